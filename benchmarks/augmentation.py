"""What natural changes of an image cost nnU-Net models that were trained with more or with less augmentation.

    python benchmarks/augmentation.py DATA --cases 8 --output docs/results/augmentation.json \\
        --models plain=nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__2d robust=...

DATA holds Dataset004_Hippocampus, the models are nnU-Net folders of fold 0. Without an attack, on the first validation
cases: the variations of MRI, made in the file as ``monai-adv evaluate --variations mri`` does, and the corruptions of
the network's input that every evaluation has. A model that the output holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from monai_adv.attacks.corruptions import CORRUPTIONS, Corruption
from monai_adv.bundles.volume_index import read_volumes
from monai_adv.evaluation.search.variations import measured, steps_of
from monai_adv.files import write_whole
from nnunet_trainers.evaluation.source import NNUNetSource

SEVERITIES = (1, 3, 5)  # of the corruptions
SEED = 7


def main() -> None:
    """Measure, print, and write the mean Dice in % of each model under each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", metavar="NAME=FOLDER", required=True)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    data = args.data / "Dataset004_Hippocampus"
    held_out = read_volumes(str(data), classes=3, fold=0).part("val")
    cases = tuple(Path(item["image"]).name.removesuffix("_0000.nii.gz") for item in held_out[: args.cases])
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    for name, folder in (word.split("=", 1) for word in args.models):
        if name in found:
            continue
        model: Any = NNUNetSource(folder, str(data / "imagesTr"), str(data / "labelsTr"), cases=cases).open()
        dice: dict[str, list[float]] = defaultdict(list)
        for case in model.cases:
            for change, scores in changed(model, case):
                dice[change] += [100 * score.score for score in scores]
        found[name] = {change: round(mean(values), 2) for change, values in dice.items()}
        print(name, json.dumps(found[name], indent=1))
        write_whole(args.output, json.dumps(found, indent=1) + "\n")


def changed(model: Any, case: str) -> Iterator[tuple[str, Any]]:
    """The scores of a case as it is, under each corruption of the input and each variation of the file."""
    loaded = model.load(case)
    yield "clean", loaded.scores(loaded.images)
    for name, kind in CORRUPTIONS.items():
        if loaded.images.ndim - 2 in kind.axes:
            for severity in SEVERITIES:
                yield f"{name} {severity}", loaded.scores(Corruption(name, severity)(loaded.images, seed=SEED))
    for step in steps_of(["mri"], model):
        record, _ = measured(model, case, step, 0)
        yield f"{record.attack.removeprefix('corruption:')} {step.severity}", record.own


if __name__ == "__main__":
    main()
