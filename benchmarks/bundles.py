"""The three classifying bundles on real images, made small for a machine without a GPU.

    python benchmarks/bundles.py run ../shared/data WORK --only covid_ct_ima      # goes on where it stopped
    python benchmarks/bundles.py collect WORK                                    # into docs/results/bundles.json
    python benchmarks/bundles.py table                                           # Markdown

Every figure comes from the bundles' own configs, as their READMEs say; what differs from them is in ``RUNS``. One
training is one process: start several with different ``--only`` to use several cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from spread import spread

from monai_adv.bundles.folds import read_metrics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "bundles.json"
FOLDS = tuple(("fold", k) for k in range(5))
SEEDS = tuple(("seed", k) for k in range(2))


@dataclass(frozen=True)
class Row:
    """One way to train.

    Args:
        configs: after train.json, in training only.
        network: configs that say which network, in every stage.
        options: of the training; of the evaluation if there is none.
        first: of the SimCLR stage, its folder below models; "": none.
        weights: row whose weights are evaluated, without a training of its own; "": trains.
        test: configs after evaluate.json.
        places: folds or seeds; default: those of the bundle.
    """

    configs: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    first: str = ""
    weights: str = ""
    test: tuple[str, ...] = ()
    places: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Run:
    """One bundle on one data set."""

    data: str
    size: tuple[str, ...]
    training: tuple[str, ...]
    places: tuple[tuple[str, int], ...]
    rows: dict[str, Row] = field(default_factory=dict)


def narrow(pixels: int) -> tuple[str, ...]:
    """Images of that many pixels a side, and a network with a quarter of the channels."""
    return ("--image_size", str(pixels), "--network_def#widen_factor", "0.25")


def other(trainer: str) -> tuple[str, ...]:
    """The ARFL paper's settings, with the radius of the ultrasound paper, in place of MIRST."""
    settings = {"preset": "arfl_mammography", "eps": 5 / 255}
    return ("--train#trainer#_target_", f"monai_adv.engines.{trainer}", "--train#trainer#settings", str(settings))


RUNS = {
    "breast_ultrasound_mirst_dm": Run(
        "busi_224", narrow(96), ("--learning_rate", "0.0005", "--epochs", "12"), FOLDS,
        {
            "mirst_dm": Row(first="pre_dm"),
            "rst_dm": Row(("rst",), first="pre_dm"),
            "base_dm": Row(("clean",), first="pre_dm"),
            "mirst_mp": Row(network=("max_pool",), first="pre_mp"),
            "dual_dm": Row(options=other("DualTrainer"), first="pre_dm"),
            "arfl_dm": Row(options=other("ARFLTrainer"), first="pre_dm"),
        },
    ),
    "mammography_arfl": Run(
        "mini_mias_224", narrow(64), ("--epochs", "15"), FOLDS,
        {
            "arfl": Row(network=("vgg16_bn",)),
            "dual": Row(("dual",), ("vgg16_bn",)),
            "label_aware": Row(("label_aware",), ("vgg16_bn",)),
            "clean": Row(("clean",), ("vgg16_bn",)),
        },
    ),
    "covid_ct_ima": Run(
        "sars_cov2_ct_224", narrow(96), ("--epochs", "20"), SEEDS,
        {
            "clean": Row(("clean",)),
            "ima_d2": Row(options=("--train#trainer#settings#steps", "7")),
            **{
                f"ima_d{delta}": Row(
                    options=("--delta", delta, "--train#trainer#settings#steps", "7"), places=SEEDS[:1]
                )
                for delta in ("1", "4")
            },
            **{
                f"{row}_autoattack": Row(
                    options=("--every", "4"), weights=row, test=("autoattack",), places=SEEDS[:1]
                )
                for row in ("clean", "ima_d2")
            },
        },
    ),
}  # fmt: skip


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path, help="folder of the data sets")
    run.add_argument("work", type=Path, help="folder for copies of the bundles, their weights and figures")
    run.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    run.set_defaults(run=measure)
    collected = commands.add_parser("collect")
    collected.add_argument("work", type=Path)
    collected.set_defaults(run=collect)
    table = commands.add_parser("table")
    table.set_defaults(run=lambda given: print_tables(json.loads(RESULTS.read_text())))
    arguments = parser.parse_args()
    arguments.run(arguments)


def measure(given: argparse.Namespace) -> None:
    """Train and evaluate what has no figures yet."""
    for bundle in given.only:
        measure_bundle(given, bundle)


def measure_bundle(given: argparse.Namespace, bundle: str) -> None:
    """The first fold or seed of all rows comes first."""
    run, folder = RUNS[bundle], given.work / bundle
    if not folder.exists():
        shutil.copytree(ROOT / "bundles" / bundle, folder)
    data = ("--dataset_dir", str((given.data / run.data).resolve()))
    for place in run.places:
        for name, row in run.rows.items():
            if place not in (row.places or run.places) or figures_file(folder, name, place).exists():
                continue
            common = (*data, *run.size, f"--{place[0]}", str(place[1]))
            here = f"{place[0]}{place[1]}"
            own = ("--ckpt_dir", f"models/{row.weights or name}/{here}", "--output_dir", f"eval/{name}/{here}")
            if row.weights:
                start(folder, (*row.network, "evaluate", *row.test), (*common, *row.options, *own))
                continue
            first: tuple[str, ...] = ()
            if row.first:
                stage = f"models/{row.first}/{here}"
                first = ("--pretrained", f"{stage}/simclr.pt")
                if not (folder / stage / "simclr.pt").exists():
                    start(folder, (*row.network, "pretrain"), (*common, "--pretrain_epochs", "20", "--ckpt_dir", stage))
            start(folder, (*row.network, *row.configs), (*common, *run.training, *row.options, *first, *own))
            start(folder, (*row.network, "evaluate", *row.test), (*common, *own))


def start(folder: Path, configs: tuple[str, ...], options: tuple[str, ...]) -> None:
    """One command of the bundle, as a user types it."""
    files = str([f"configs/{name}.json" for name in ("train", *configs)])
    words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *options]
    print(" ".join(words), flush=True)
    subprocess.run(words, cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def figures_file(folder: Path, name: str, place: tuple[str, int]) -> Path:
    """Of one training."""
    return folder / "eval" / name / f"{place[0]}{place[1]}" / "metrics.csv"


def collect(given: argparse.Namespace) -> None:
    """Write what has been measured so far."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for bundle, run in RUNS.items():
        for name in run.rows:
            files = [figures_file(given.work / bundle, name, place) for place in run.places]
            tables = [read_metrics(file) for file in files if file.exists()]
            if tables:
                found.setdefault(bundle, {})[name] = {key: [table[key] for table in tables] for key in tables[0]}
    about = {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
    RESULTS.write_text(json.dumps({"about": about, "figures": found}, indent=1) + "\n")


SHOWN = {
    "breast_ultrasound_mirst_dm": ("clean", "paper_fgsm", "paper_pgd", "paper_cw", "full_cw"),
    "mammography_arfl": ("clean", "pgd7_linf_1e-4", "pgd20_linf_1e-3", "pgd20_linf_1e-2"),
    "covid_ct_ima": (
        "clean", "pgd20_l2_1", "pgd20_l2_2", "pgd20_l2_3", "noise_l2_9", "noise_l2_18", "noise_l2_27",
        "autoattack_l2_1", "autoattack_l2_2", "autoattack_l2_3",
    ),
}  # fmt: skip
MEASURES = {
    "breast_ultrasound_mirst_dm": ("f1", "sensitivity", "balanced_accuracy", "auc"),
    "mammography_arfl": ("auc",),
    "covid_ct_ima": ("accuracy",),
}


def print_tables(results: dict[str, dict[str, dict[str, dict[str, list[float]]]]]) -> None:
    """Mean and sample standard deviation, in percent; an empty cell was not measured."""
    for bundle, rows in results["figures"].items():
        for measure_ in MEASURES[bundle]:
            print(f"\n{bundle}, {measure_}\n\n| row | n | {' | '.join(SHOWN[bundle])} |")
            print(f"|---|---:|{'---:|' * len(SHOWN[bundle])}")
            for name, figures in rows.items():
                columns = [figures.get(f"{attack}_{measure_}", []) for attack in SHOWN[bundle]]
                cells = [spread([100 * value for value in values], "") for values in columns]
                print(f"| {name} | {len(columns[0])} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
