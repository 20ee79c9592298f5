"""What an nnU-Net user does: plan, preprocess, make a smaller plan, train, predict."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from monai_adv.settings import ENV_FILE
from nnunet_trainers.demo.dataset import write_dataset
from nnunet_trainers.demo.progress import Stages
from nnunet_trainers.demo.recipe import CONFIGURATION, DATASET, DATASET_ID, FOLD, PLANS, Recipe
from nnunet_trainers.short_training import short_training, smaller_plans


def make_phantom(stages: Stages, recipe: Recipe) -> None:
    """Write the dataset."""
    phantom = recipe.phantom
    with stages.quiet(), stages.bar(phantom.training_cases + phantom.test_cases, "case") as bar:
        write_dataset(phantom, stages.place.raw(DATASET), bar.update)


def plan_and_preprocess(stages: Stages, recipe: Recipe) -> None:
    """nnU-Net's own command, then the plan for a CPU beside nnU-Net's own."""
    folder = stages.place.preprocessed(DATASET)
    words = f"nnUNetv2_plan_and_preprocess -d {DATASET_ID} -c {CONFIGURATION} --verify_dataset_integrity -npfp 1 -np 1"
    stages.command(
        [*words.split(), "--no_pbar"], recipe.phantom.training_cases,
        lambda: len(list(folder.glob(f"nnUNetPlans_{CONFIGURATION}/*.pkl"))),
        nnUNet_n_proc_DA="1",  # 0 breaks nnU-Net's preprocessing
    )  # fmt: skip
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    text = json.dumps(smaller_plans(plans, PLANS, {CONFIGURATION: recipe.batch_size}, recipe.features), indent=2)
    (folder / f"{PLANS}.json").write_text(text, encoding="utf-8")


def train(stages: Stages, recipe: Recipe, trainer: str) -> None:
    """Train; IMATrainer reads the settings file, the plain trainer is given the same schedule."""
    schedule: dict[str, Any] = {}
    if trainer == "nnUNetTrainer":
        schedule = {
            "epochs": recipe.epochs,
            "iterations": recipe.iterations,
            "validation_iterations": recipe.validation_iterations,
            "initial_lr": recipe.learning_rate,
        }
    with _settings_file(str(stages.place.settings)), stages.quiet(), stages.bar(recipe.epochs, "epoch") as bar:

        def after_epoch(run: Any) -> None:
            bar.set_postfix_str(f"validation Dice {100 * run.logger.get_value('mean_fg_dice', step=-1):.0f} %")
            bar.update()

        short_training(
            str(DATASET_ID), CONFIGURATION, FOLD, trainer, PLANS, **schedule, seed=recipe.seed, after_epoch=after_epoch
        )


def predict(stages: Stages, recipe: Recipe, trainer: str) -> None:
    """nnU-Net's own command on the test cases."""
    place = stages.place
    words = f"nnUNetv2_predict -d {DATASET_ID} -c {CONFIGURATION} -f {FOLD} -tr {trainer} -p {PLANS} -device cpu"
    folders = ["-i", str(place.raw(DATASET, "imagesTs")), "-o", str(place.predictions(trainer))]
    stages.command(
        [*words.split(), *folders, "--disable_tta", "-npp", "1", "-nps", "1", "--disable_progress_bar"],
        recipe.phantom.test_cases,
        lambda: len(list(place.predictions(trainer).glob("*.nii.gz"))),
    )  # fmt: skip


@contextmanager
def _settings_file(path: str) -> Iterator[None]:
    os.environ[ENV_FILE] = path
    try:
        yield
    finally:
        del os.environ[ENV_FILE]
