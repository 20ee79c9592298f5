"""Measure both models under noise, and keep one slice of each for the picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_trainers.demo.progress import Stages
from nnunet_trainers.demo.recipe import CONFIGURATION, DATASET, FOLD, PLANS, TRAINERS, Recipe
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.noise_case import Case, find_cases
from nnunet_trainers.noise_example import Example, example
from nnunet_trainers.noise_report import Row, evaluate
from nnunet_trainers.noise_table import from_json, to_json
from nnunet_trainers.volume_dice import dice_per_class, mean_dice

PREDICTED = "clean, nnUNetv2_predict"
"""Condition of the rows that score the files which nnU-Net's own command wrote."""


def measure(stages: Stages, recipe: Recipe) -> None:
    """Write rows.json and example_<trainer>.npz."""
    place = stages.place
    models = [
        DeployedModel.from_folder(place.results(DATASET, f"{t}__{PLANS}__{CONFIGURATION}"), FOLD, name=t)
        for t in TRAINERS
    ]
    cases = find_cases(place.raw(DATASET, "imagesTs"), place.raw(DATASET, "labelsTs"), ".nii.gz")
    radii = [recipe.l2(rms) for rms in recipe.radii]
    rows = evaluate(models, cases, radii, steps=recipe.attack_steps, seed=recipe.seed)
    labels = models[0].dataset_json["labels"]
    predicted = [_predicted(place.predictions(t), t, case, labels) for t in TRAINERS for case in cases]
    to_json([*predicted, *rows], place.folder / "rows.json")
    middle = radii[len(radii) // 2]
    for shown in example(models, _typical(rows, cases), middle, steps=recipe.attack_steps, seed=recipe.seed):
        values = {**dataclasses.asdict(shown), "dice": json.dumps(shown.dice)}
        np.savez_compressed(place.folder / f"example_{shown.model}.npz", **values)


def read_rows(folder: Path) -> list[Row]:
    """What :func:`measure` has written."""
    return from_json((folder / "rows.json").read_text(encoding="utf-8"))


def read_example(folder: Path, trainer: str) -> Example:
    """What :func:`measure` has written."""
    with np.load(folder / f"example_{trainer}.npz") as arrays:
        values: dict[str, Any] = {k: v.item() if v.ndim == 0 else v for k, v in arrays.items()}
    return Example(**{**values, "dice": json.loads(values["dice"])})


def _predicted(folder: Path, trainer: str, case: Case, labels: dict[str, Any]) -> Row:
    scores = dice_per_class(_read(folder / case.ground_truth_file.name), _read(case.ground_truth_file), labels)
    return Row(trainer, case.name, PREDICTED, 0.0, mean_dice(scores), scores)


def _read(path: Path) -> npt.NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def _typical(rows: list[Row], cases: list[Case]) -> Case:
    """The case whose clean Dice, as a mean over the models, is the median: neither the best nor the worst is shown."""

    def clean(case: Case) -> float:
        return float(np.mean([r.dice for r in rows if r.case == case.name and r.condition == "clean"]))

    return sorted(cases, key=clean)[len(cases) // 2]
