"""The demo from the first voxel to the page."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from monai_adv.cli.doctor import available_cores
from monai_adv.evaluation.run.workers import versions
from monai_adv.evaluation.store import read_evaluation, read_records
from monai_adv.first_look.picture import picture
from nnunet_trainers.demo import figures, nnunet_steps
from nnunet_trainers.demo.measure import measure, predicted, read_slice
from nnunet_trainers.demo.page import render
from nnunet_trainers.demo.progress import Stages
from nnunet_trainers.demo.recipe import DATASET, TRAINERS, Recipe, model_folder
from nnunet_trainers.demo.summary import attacks, summarise
from nnunet_trainers.demo.workplace import Workplace


def run_demo(place: Workplace, stages: Stages, recipe: Recipe) -> dict[str, Any]:
    """Run what is not finished yet, and write the page anew.

    Returns:
        what results.json holds.
    """
    torch.set_num_threads(available_cores())
    place.settings.write_text(recipe.ima_settings_file(), encoding="utf-8")
    slices = [place.slice_file(t) for t in TRAINERS]
    stages.run("make a phantom dataset", [place.raw(DATASET)], lambda: nnunet_steps.make_phantom(stages, recipe))
    stages.run(
        "plan and preprocess", [place.preprocessed(DATASET)], lambda: nnunet_steps.plan_and_preprocess(stages, recipe)
    )
    for trainer in TRAINERS:
        model = place.results(*model_folder(trainer))
        stages.run(f"train {trainer}", [model], lambda t=trainer: nnunet_steps.train(stages, recipe, t))  # type: ignore[misc]
    for trainer in TRAINERS:
        stages.run(
            f"nnUNetv2_predict -tr {trainer}",
            [place.predictions(trainer)],
            lambda t=trainer: nnunet_steps.predict(stages, recipe, t),  # type: ignore[misc]
        )
    stages.run("attack both models", [place.evaluation, *slices], lambda: measure(stages, recipe))
    return _write_page(place, stages, recipe)


def basis(recipe: Recipe) -> dict[str, Any]:
    """What a stage is made from: when it changes, the stage is done anew."""
    plan = {stage.name: stage.settings() for stage in attacks()}
    return {"recipe": dataclasses.asdict(recipe), "versions": versions(), "attacks": plan}


def _write_page(place: Workplace, stages: Stages, recipe: Recipe) -> dict[str, Any]:
    records = read_records(place.evaluation)
    day = read_evaluation(place.evaluation).started[: len("2026-01-01")]
    results = summarise(records, {t: predicted(place, t) for t in TRAINERS}, recipe, stages.timings, day)
    pictures = {name: place.folder / f"{name}.png" for name in ("picture", "curve")}
    slices = {trainer: read_slice(place, trainer) for trainer in TRAINERS}
    factor = picture(slices, recipe.middle.eps, pictures["picture"])
    figures.curve(records, pictures["curve"])
    page = render(results, factor, recipe.ima_settings_file(), pictures)
    (place.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (place.folder / "index.html").write_text(page, encoding="utf-8")
    return results
