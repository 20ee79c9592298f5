"""Real patients: the Hippocampus set of the Medical Segmentation Decathlon, plain nnU-Net against IMA.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...     # Dataset004_Hippocampus in nnUNet_raw
    nnUNetv2_plan_and_preprocess -d 4 -c 2d 3d_fullres
    python benchmarks/hippocampus.py prepare                             # CPU-sized plans; not needed on a GPU
    python benchmarks/hippocampus.py train nnUNetTrainer 2d --epochs 60 --iterations 25 --lr 0.03
    MONAI_ADV_SETTINGS=ima.yaml nnUNetv2_train 4 2d 0 -tr IMATrainer -p nnUNetPlansCPU -device cpu
    MONAI_ADV_SETTINGS=l2_5.yaml python benchmarks/hippocampus.py train TRADESTrainer 2d --epochs 12 --iterations 25 \
        --seed 0 --weights .../nnUNetTrainer__nnUNetPlansCPU__2d/fold_0/checkpoint_final.pth
    monai-adv evaluate -d 4 -c 2d -f 0 -tr nnUNetTrainer IMATrainer -p nnUNetPlansCPU --norm l2 --unit norm \
        --eps 5 15 25 -o report

The last line attacks the final checkpoints on the whole volumes of the fold's validation cases, see docs/measuring.md.
docs/results/hippocampus.md says with which settings its models were trained.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from nnunet_trainers.short_training import short_training, smaller_plans

DATASET = "Dataset004_Hippocampus"
PLANS = "nnUNetPlansCPU"


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=PLANS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    commands = parser.add_subparsers(required=True)
    plans = commands.add_parser("prepare")
    plans.add_argument("--features", type=int, nargs=4, default=(8, 16, 32, 64), help="of the stages")
    plans.set_defaults(run=prepare)
    training = commands.add_parser("train")
    training.add_argument("trainer")
    training.add_argument("configuration")
    training.add_argument("--epochs", type=int, required=True)
    training.add_argument("--iterations", type=int, required=True)
    training.add_argument("--lr", type=float, default=0.01)
    training.add_argument("--weights", help="checkpoint to fine-tune, output layers included")
    training.add_argument("--seed", type=int)
    training.set_defaults(run=train)
    arguments = parser.parse_args()
    arguments.run(arguments)


def prepare(arguments: argparse.Namespace) -> None:
    """Plans for two CPU cores beside nnU-Net's own: batch 32 (2d) and 2 (3d), few features."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    smaller = smaller_plans(plans, arguments.plans, {"2d": 32, "3d_fullres": 2}, tuple(arguments.features))
    (folder / f"{arguments.plans}.json").write_text(json.dumps(smaller, indent=1))


def train(arguments: argparse.Namespace) -> None:
    """Plain trainers have no settings file for their schedule."""
    short_training(
        DATASET,
        arguments.configuration,
        0,
        arguments.trainer,
        arguments.plans,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        validation_iterations=5,
        initial_lr=arguments.lr,
        weights=arguments.weights,
        seed=arguments.seed,
        device=arguments.device,
    )


if __name__ == "__main__":
    main()
