"""The demo's parts; the whole of it is ``make demo``."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from monai_adv.errors import InputError
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Level, Record
from monai_adv.first_look.phantom import LABELS, Phantom, make_case
from monai_adv.first_look.picture import picture
from monai_adv.metrics.score import Score
from monai_adv.settings import combine, expand_preset, read_settings
from nnunet_trainers import IMATrainer
from nnunet_trainers.demo import __main__ as demo
from nnunet_trainers.demo import figures
from nnunet_trainers.demo.dataset import write_dataset
from nnunet_trainers.demo.measure import one_slice, typical_case
from nnunet_trainers.demo.page import render
from nnunet_trainers.demo.progress import StageFailed, Stages, Timing
from nnunet_trainers.demo.recipe import TRAINERS, Recipe
from nnunet_trainers.demo.summary import summarise, text_table
from nnunet_trainers.demo.workplace import Workplace
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.case import NNUNetCase
from nnunet_trainers.short_training import smaller_plans
from nnunet_trainers.volume_dice import dice_per_class, mean_dice
from tests.tiny_nnunet import write_case, write_model

# ---------------------------------------------------------------- phantom


def test_a_case_follows_from_the_seed() -> None:
    image, labels = make_case(Phantom(), 3)
    again, labels_again = make_case(Phantom(), 3)
    assert np.array_equal(image, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(image, make_case(Phantom(), 4)[0])
    assert not np.array_equal(image, make_case(Phantom(seed=21), 3)[0])


def test_every_case_has_every_class_and_looks_as_its_labels_say() -> None:
    for number in range(20):
        image, labels = make_case(Phantom(), number)
        assert image.dtype == np.float32
        assert image.shape == labels.shape == Phantom().shape
        assert image.min() >= 0
        assert set(np.unique(labels)) == set(LABELS.values())
        body = np.median(image[(labels == 0) & (image > 300)])
        assert (
            np.median(image[labels == LABELS["dark insert"]])
            < body
            < np.median(image[labels == LABELS["bright insert"]])
        )


def test_nnunet_accepts_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / "Dataset990_Phantom"
    written: list[int] = []
    write_dataset(Phantom(training_cases=3, test_cases=1), folder, lambda: written.append(1))
    verify_dataset_integrity(str(folder), num_processes=1)
    assert len(written) == 4
    assert [p.name for p in (folder / "imagesTs").iterdir()] == ["phantom_003_0000.nii.gz"]


# ---------------------------------------------------------------- recipe and plan


def test_ima_trainer_takes_the_settings_file(tmp_path: Path) -> None:
    recipe = Recipe()
    file = tmp_path / "ima_settings.yaml"
    file.write_text(recipe.ima_settings_file())
    given = read_settings({"MONAI_ADV_SETTINGS": str(file)})
    assert given == yaml.safe_load(recipe.ima_settings_file()) == recipe.ima_settings()
    classes = IMATrainer._sections()
    sections = combine(classes, expand_preset(classes, given, IMATrainer.method.presets))
    assert sections["defense"].eps == given["eps"]
    assert sections["run"].epochs == recipe.epochs
    assert sections["run"].initial_lr == recipe.learning_rate


def test_the_small_plan_leaves_nnunets_own_plan_alone() -> None:
    network = {
        "n_stages": 5,
        "features_per_stage": [32, 64, 128, 256, 512],
        "kernel_sizes": [[3, 3]] * 5,
        "strides": [[1, 1]] + [[2, 2]] * 4,
        "n_conv_per_stage": [2] * 5,
        "n_conv_per_stage_decoder": [2] * 4,
        "conv_bias": True,
    }
    plans = {
        "plans_name": "nnUNetPlans",
        "configurations": {"2d": {"batch_size": 26, "architecture": {"arch_kwargs": network}}, "3d_fullres": {}},
    }
    before = json.dumps(plans)
    small = smaller_plans(plans, "nnUNetPlansDemo", {"2d": 12}, (8, 16, 32))
    assert json.dumps(plans) == before
    configuration = small["configurations"]["2d"]
    assert small["plans_name"] == "nnUNetPlansDemo"
    assert configuration["batch_size"] == 12
    made = configuration["architecture"]["arch_kwargs"]
    assert made["features_per_stage"] == [8, 16, 32]
    assert [len(made[k]) for k in ("kernel_sizes", "strides", "n_conv_per_stage")] == [3, 3, 3]
    assert made["n_conv_per_stage_decoder"] == [2, 2]
    assert made["conv_bias"] is True


# ---------------------------------------------------------------- folder and stages


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="a new or empty folder"):
        Workplace(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert demo.main([str(tmp_path / "file" / "demo")]) == 2
    assert "a folder you may write to" in capsys.readouterr().err


def test_nothing_of_the_users_own_reaches_nnunet(tmp_path: Path) -> None:
    given = {"nnUNet_raw": "/data/raw", "nnUNet_wandb_enabled": "1", "MONAI_ADV_EPS": "9", "PATH": "/bin",
             "nnUNet_extTrainer": "/ours"}  # fmt: skip
    made = Workplace(tmp_path).environment(given)
    assert made["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert made["nnUNet_extTrainer"] == "/ours"
    assert made["PATH"] == "/bin"
    assert not {"nnUNet_wandb_enabled", "MONAI_ADV_EPS"} & set(made)


def test_finished_stages_are_reused_until_something_changes(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    files = [tmp_path / "first", tmp_path / "second"]

    def run(basis: str) -> list[bool]:
        stages = Stages(place, 2, {"settings": (basis,)})
        for file in files:
            stages.run(f"make {file.name}", [file], file.touch)
        return [timing.reused for timing in stages.timings]

    assert run("a") == [False, False]
    assert run("a") == [True, True]
    files[0].unlink()
    assert run("a") == [False, False]
    assert run("b") == [False, False]


def test_a_failed_stage_tells_and_is_done_again(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    stages = Stages(place, 1, {})
    with pytest.raises(StageFailed, match="ZeroDivisionError"):
        stages.run("divide", [], lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert "Traceback" in place.log.read_text()
    with pytest.raises(StageFailed, match="exit code 3"):
        stages.command(["python", "-c", "print('so long'); raise SystemExit(3)"], 1, lambda: 0)
    assert "so long" in stages.log_tail()
    again = Stages(place, 1, {})
    again.run("divide", [], lambda: None)
    assert not again.timings[0].reused


# ---------------------------------------------------------------- attack


def test_every_model_shows_the_same_slice_within_the_radius(tmp_path: Path) -> None:
    files, level = write_case(tmp_path), Level("l2", 0.2, "rms")
    shown = []
    for name in ("one", "other"):
        model = DeployedModel.from_folder(write_model(tmp_path / name))
        if shown:
            for weights in model.network.parameters():
                weights.data.mul_(0.9)
        case = NNUNetCase(model, files, model.as_network())
        shown.append(one_slice(case, level))
    most = (case.labels > 0).flatten(1).sum(1).argmax()
    for drawn in shown:
        np.testing.assert_array_equal(drawn.clean, case.images[most, 0])
        np.testing.assert_array_equal(drawn.truth, case.labels[most, 0])
        assert drawn.caption == f"slice {most + 1} of {len(case.images)}"
        assert 0.1 < np.sqrt(np.mean((drawn.attacked - drawn.clean) ** 2)) <= 0.2 * (1 + 1e-5)
        before, after = (
            mean_dice(dice_per_class(found, drawn.truth, LABELS)) for found in (drawn.on_clean, drawn.on_attacked)
        )
        assert after < before
    assert not np.array_equal(shown[0].attacked, shown[1].attacked)


def test_the_typical_case_is_the_median_of_the_clean_ones() -> None:
    def clean(model: str, case: str, score: float) -> Record:
        return Record(model, case, "", "clean", (Score(case, score),), (Score(case, score),))

    scores = {"a": (0.9, 0.1), "b": (0.7, 0.7), "c": (0.6, 0.6)}  # means 0.5, 0.7, 0.6
    records = [clean(m, case, s) for case, pair in scores.items() for m, s in zip("xy", pair, strict=True)]
    low = Score("b", 0.0)
    assert typical_case([*records, Record("x", "b", "l2-1", "FGSM", (low,), (low,))]) == "c"


# ---------------------------------------------------------------- page


RECIPE = Recipe(radii=(0.1, 0.2))


@pytest.fixture
def records() -> list[Record]:
    """Clean, white noise at two radii, and an attack that by itself leaves what the noise leaves."""
    found = []
    for trainer, (clean, noise, near, far) in zip(
        TRAINERS, ((0.912, 0.9, 0.7, 0.2), (0.882, 0.88, 0.8, 0.61)), strict=True
    ):
        for case, shift in (("a", -0.01), ("b", 0.01)):

            def record(level: str, attack: str, own: float, worst: float) -> Record:
                scores = (
                    (Score(case, v + shift, {"dark insert": v, "bright insert": math.nan}),)  # noqa: B023
                    for v in (own, worst)
                )
                return Record(trainer, case, level, attack, *scores, attacked=20, dead=int(attack == "FGSM"))  # noqa: B023

            found.append(record("", "clean", clean, clean))
            for level, worst in (("l2-0.1-rms", near), ("l2-0.2-rms", far)):
                found.append(record(level, "white noise", noise, noise))
                found.append(record(level, "FGSM", noise, worst))
    return found


@pytest.fixture
def results(records: list[Record]) -> dict[str, Any]:
    predicted = {t: [r.own[0] for r in records if (r.model, r.level) == (t, "")] for t in TRAINERS}
    timings = [Timing("train", 75.0, 80.0, False), Timing("attack", 61.0, 100.0, True)]
    return summarise(records, predicted, RECIPE, timings, "2031-05-06")


def test_the_summary_is_what_the_rows_say(results: dict[str, Any]) -> None:
    clean = next(line for line in results["table"] if line["condition"] == "clean")
    assert clean["dice"]["nnUNetTrainer"]["mean"] == pytest.approx(0.912)
    assert clean["dice"]["nnUNetTrainer"]["sd"] == pytest.approx(0.02 / 2**0.5)
    assert results["radii_where_ima_is_higher"] == 2
    assert results["radii"][1] == {"rms": 0.2, "l2": 12.8}
    assert results["dead_gradient"] == 1 / 20
    assert [row["dice"] for row in results["rows"] if row["condition"] == "worst case"][:2] == pytest.approx(
        [0.69, 0.71]
    )
    assert "NaN" not in json.dumps(results)
    assert re.search(r"worst case, RMS 0.2 +20.0 ± 1.4 +61.0 ± 1.4", text_table(results))


def test_the_page_shows_the_figures_and_needs_no_network(
    records: list[Record], results: dict[str, Any], tmp_path: Path
) -> None:
    results["classes"] = ["dark <b>", "bright"]
    figure = tmp_path / "any.png"
    figures.curve(records, figure)
    page = render(results, 5.0, "eps: 0.2  # <script>", {"picture": figure, "curve": figure})
    for shown in (
        "91.2 ± 1.4",
        "61.0 ± 1.4",
        "+41.0",
        "−3.0",
        "12.8",
        "5 times stronger",
        "2031-05-06",
        "1:15",
        "2:16",
        f"{results['gradient_steps']} gradient steps",
        *results["attacks"],
        "Dataset990_Phantom/IMATrainer__nnUNetPlansDemo__2d -i nnUNet_raw",
        "--unit rms --eps 0.1 0.2",
    ):
        assert shown in page, shown
    assert "dark &lt;b&gt;" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert not re.search(r"https?://|url\(|@import|src=\"(?!data:)|href=", page)


def test_the_picture_is_drawn_and_tells_its_factor(tmp_path: Path) -> None:
    image = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    labels = np.arange(64).reshape(8, 8) % 3
    noisy = image + np.float32(0.09)
    shown = Picture("a", image, noisy, labels, labels, labels, "slice 1 of 9")
    factor = picture({"IMATrainer": shown}, 0.1, tmp_path / "picture.png")
    assert factor == 10
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- short training and command


def test_short_training_sets_the_schedule_and_reports_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_trainers import short_training as module

    class Trainer:
        num_epochs, num_iterations_per_epoch, num_val_iterations_per_epoch, initial_lr = 1000, 250, 50, 1e-2
        current_epoch = 0

        def on_epoch_end(self) -> None:
            self.current_epoch += 1

        def run_training(self) -> None:
            for _ in range(self.num_epochs):
                self.on_epoch_end()

    asked: list[tuple[Any, ...]] = []

    def get(*args: Any, **kwargs: Any) -> Trainer:
        asked.append(args)
        return Trainer()

    monkeypatch.setattr(module, "get_trainer_from_args", get)
    epochs: list[int] = []
    run = module.short_training(
        "990", "2d", 0, "IMATrainer", "Plans", epochs=3, iterations=7, initial_lr=0.1,
        after_epoch=lambda r: epochs.append(r.current_epoch),
    )  # fmt: skip
    assert asked == [("990", "2d", 0, "IMATrainer", "Plans")]
    assert (run.num_epochs, run.num_iterations_per_epoch, run.num_val_iterations_per_epoch) == (3, 7, 50)
    assert run.initial_lr == 0.1
    assert epochs == [1, 2, 3]
    assert type(run) is Trainer


@pytest.mark.parametrize(("files", "loaded", "trained"), [
    ([], [], 3), (["latest"], ["checkpoint_latest.pth"], 2), (["latest", "final"], ["checkpoint_final.pth"], 0),
])  # fmt: skip
def test_short_training_goes_on_and_does_not_repeat_what_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], loaded: list[str], trained: int
) -> None:
    from nnunet_trainers import short_training as module

    class Trainer:
        num_epochs, current_epoch, was_initialized, output_folder = 3, 0, True, str(tmp_path)

        def load_checkpoint(self, file: str) -> None:
            read.append(Path(file).name)
            self.current_epoch = 1

        def run_training(self) -> None:
            ran.append(self.num_epochs - self.current_epoch)

    read: list[str] = []
    ran: list[int] = []
    before: list[int] = []
    for name in files:
        (tmp_path / f"checkpoint_{name}.pth").touch()
    monkeypatch.setattr(module, "get_trainer_from_args", lambda *args, **kwargs: Trainer())
    module.short_training("990", "2d", 0, go_on=True, before=lambda r: before.append(r.current_epoch))
    assert read == loaded
    assert sum(ran) == trained
    assert before == ([] if trained == 0 else [3 - trained])
