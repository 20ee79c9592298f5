"""The demo from the first voxel to the page."""

from __future__ import annotations

import dataclasses
import json
from datetime import date
from typing import Any

import torch

from monai_adv.doctor import available_cores
from nnunet_trainers.demo import figures, nnunet_steps
from nnunet_trainers.demo.measure import measure, read_example, read_rows
from nnunet_trainers.demo.page import render
from nnunet_trainers.demo.progress import Stages
from nnunet_trainers.demo.recipe import CONFIGURATION, DATASET, PLANS, TRAINERS, Recipe
from nnunet_trainers.demo.summary import summarise, versions
from nnunet_trainers.demo.workplace import Workplace


def run_demo(place: Workplace, stages: Stages, recipe: Recipe) -> dict[str, Any]:
    """Run what is not finished yet, and write the page anew.

    Returns:
        what results.json holds.
    """
    torch.set_num_threads(available_cores())
    place.settings.write_text(recipe.ima_settings_file(), encoding="utf-8")
    examples = [place.folder / f"example_{t}.npz" for t in TRAINERS]
    stages.run("make a phantom dataset", [place.raw(DATASET)], lambda: nnunet_steps.make_phantom(stages, recipe))
    stages.run(
        "plan and preprocess", [place.preprocessed(DATASET)], lambda: nnunet_steps.plan_and_preprocess(stages, recipe)
    )
    for trainer in TRAINERS:
        model = place.results(DATASET, f"{trainer}__{PLANS}__{CONFIGURATION}")
        stages.run(f"train {trainer}", [model], lambda t=trainer: nnunet_steps.train(stages, recipe, t))  # type: ignore[misc]
    for trainer in TRAINERS:
        stages.run(
            f"nnUNetv2_predict -tr {trainer}",
            [place.predictions(trainer)],
            lambda t=trainer: nnunet_steps.predict(stages, recipe, t),  # type: ignore[misc]
        )
    stages.run("attack both models", [place.folder / "rows.json", *examples], lambda: measure(stages, recipe))
    return _write_page(place, stages, recipe)


def basis(recipe: Recipe) -> dict[str, Any]:
    """What a stage is made from: when it changes, the stage is done anew."""
    return {"recipe": dataclasses.asdict(recipe), "versions": versions()}


def _write_page(place: Workplace, stages: Stages, recipe: Recipe) -> dict[str, Any]:
    rows_file = place.folder / "rows.json"
    measured = date.fromtimestamp(rows_file.stat().st_mtime).isoformat()
    results = summarise(read_rows(place.folder), recipe, stages.timings, measured)
    pictures = {name: place.folder / f"{name}.png" for name in ("picture", "curve")}
    middle = recipe.radii[len(recipe.radii) // 2]
    shown = [read_example(place.folder, trainer) for trainer in TRAINERS]
    factor = figures.picture(shown, results["classes"], middle, pictures["picture"])
    figures.curve(results, pictures["curve"])
    page = render(results, factor, recipe.ima_settings_file(), pictures)
    (place.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (place.folder / "index.html").write_text(page, encoding="utf-8")
    return results
