"""Real patients: the Hippocampus set of the Medical Segmentation Decathlon, plain nnU-Net against IMA.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...     # Dataset004_Hippocampus in nnUNet_raw
    nnUNetv2_plan_and_preprocess -d 4 -c 2d 3d_fullres
    python benchmarks/hippocampus.py prepare                             # CPU-sized plans; not needed on a GPU
    python benchmarks/hippocampus.py train nnUNetTrainer 2d --epochs 60 --iterations 25 --lr 0.03
    MONAI_ADV_SETTINGS=ima.yaml nnUNetv2_train 4 2d 0 -tr IMATrainer -p nnUNetPlansCPU -device cpu
    python benchmarks/hippocampus.py evaluate 2d --output docs/results/hippocampus_2d.json

``evaluate`` measures the final checkpoints of fold 0 on the whole volumes of its validation cases, through nnU-Net's
own sliding window: clean, white noise, and PGD-20 without any clamp, at L2 radii per network input.
docs/results/hippocampus.md says with which settings the figures there were made.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.noise_case import find_cases
from nnunet_trainers.noise_report import evaluate
from nnunet_trainers.noise_table import table, table_per_class, to_json
from nnunet_trainers.short_training import short_training, smaller_plans

DATASET = "Dataset004_Hippocampus"
PLANS = "nnUNetPlansCPU"


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=PLANS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("prepare").set_defaults(run=prepare)
    training = commands.add_parser("train")
    training.add_argument("trainer")
    training.add_argument("configuration")
    training.add_argument("--epochs", type=int, required=True)
    training.add_argument("--iterations", type=int, required=True)
    training.add_argument("--lr", type=float, default=0.01)
    training.add_argument("--weights", help="checkpoint to fine-tune, output layers included")
    training.set_defaults(run=train)
    measuring = commands.add_parser("evaluate")
    measuring.add_argument("configuration")
    measuring.add_argument("--trainers", nargs="+", default=["nnUNetTrainer", "IMATrainer"])
    measuring.add_argument("--radii", type=float, nargs="+", default=[5.0, 15.0, 25.0])
    measuring.add_argument("--cases", type=int, help="the first so many validation cases; default: all")
    measuring.add_argument("--checkpoint", default="checkpoint_final.pth")
    measuring.add_argument("--output", type=Path, required=True, help="JSON, a row per model, case and condition")
    measuring.set_defaults(run=measure)
    arguments = parser.parse_args()
    arguments.run(arguments)


def prepare(arguments: argparse.Namespace) -> None:
    """Plans for two CPU cores beside nnU-Net's own: batch 32 (2d) and 2 (3d), features 8-16-32-64."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    smaller = smaller_plans(plans, arguments.plans, {"2d": 32, "3d_fullres": 2}, (8, 16, 32, 64))
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
        device=arguments.device,
    )


def measure(arguments: argparse.Namespace) -> None:
    """Print the tables and write every row."""
    results = Path(os.environ["nnUNet_results"]) / DATASET
    models = [
        DeployedModel.from_folder(
            results / f"{trainer}__{arguments.plans}__{arguments.configuration}", 0, arguments.checkpoint,
            arguments.device, name=trainer,
        )
        for trainer in arguments.trainers
    ]  # fmt: skip
    splits = json.loads((Path(os.environ["nnUNet_preprocessed"]) / DATASET / "splits_final.json").read_text())
    raw = Path(os.environ["nnUNet_raw"]) / DATASET
    cases = find_cases(raw / "imagesTr", raw / "labelsTr", ".nii.gz", splits[0]["val"][: arguments.cases])
    rows = evaluate(models, cases, arguments.radii)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    to_json(rows, arguments.output)
    print(f"{len(cases)} cases\n\n{table(rows)}\n\n{table_per_class(rows)}")
    print("\nlongest noise / radius:", max(r.largest_norm / r.radius for r in rows if r.radius))
    print("dead gradients:", max(r.dead_gradient for r in rows))


if __name__ == "__main__":
    main()
