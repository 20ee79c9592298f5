"""What a training is said to cost is what it costs, or more; a budget becomes epochs by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_adv import InputError
from monai_adv.cli.method_tables import prices
from monai_adv.defenses import METHODS, method
from monai_adv.price import Clock, cheaper_way, forecast, price_line, refuse_another_price
from nnunet_trainers.plain_model import PlainModel, check_worth_attacking, epochs_within, find_plain, read_plain
from tests.defense_toys import BATCH, optimizer_of, step, toy

PLAIN = PlainModel(Path("fold_0/checkpoint_final.pth"), epochs=100, iterations=50, dice=0.8)


@pytest.mark.parametrize("key", METHODS)
def test_no_method_costs_more_than_it_says(key: str) -> None:
    """One epoch of two steps; methods that never stop early cost exactly that."""
    problem = toy("2 classes", key)
    defense, optimizer = problem.defense(key), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    defense.on_epoch_start(3, 4)
    for _ in range(2):
        step(defense, problem.network, optimizer, problem.batch(torch.arange(BATCH)))
    found, most = defense.on_epoch_end()["passes_per_sample"], METHODS[key].most(defense.settings)
    assert found <= most + 1e-9
    if not METHODS[key].cost.startswith("up to") and key not in ("fgsmrs", "fgsmsdi", "gairat", "iaat", "mart"):
        assert found == pytest.approx(most)


@pytest.mark.parametrize(
    ("key", "settings", "passes"),
    [
        ("arfl", {"mix": "batch", "r": 0.5}, 2 + 3),  # half of the attack's 2K = 4, one pass of all
        ("dual", {"mix": "batch", "r": 0.5}, 2 + 3),
        ("dual", {"mix": "batch", "r": 0.0}, 4 + 3),
        ("dual", {"mix": "batch", "r": 1.0}, 3),
        ("dual", {"mix": "loss", "r": 0.0}, 4 + 3),
        ("dual", {"mix": "loss", "r": 1.0}, 3),
        ("gr", {"lam": 0.0}, 3),
        ("lbgat", {"beta": 0.0}, 1 + 4 + 2 * 3),
        ("llr", {"lam": 0.0, "mu": 0.0}, 3),
        ("mart", {"lam": 0.0}, 4 + 3),
        ("rst", {"weight_noisy": 0.0}, 3),
        ("te", {"weight": 0.0}, 4 + 3),
        ("trades", {"beta": 0.0}, 3),
    ],
)
def test_what_a_setting_leaves_out_is_not_in_the_price(key: str, settings: dict[str, Any], passes: float) -> None:
    """A budget would end a training early that pays for what is not done. K = 2."""
    problem = toy("2 classes", key)
    defense, optimizer = problem.defense(key, **settings), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    defense.on_epoch_start(3, 4)
    step(defense, problem.network, optimizer, problem.batch(torch.arange(BATCH)))
    assert defense.on_epoch_end()["passes_per_sample"] == METHODS[key].most(defense.settings) == passes


@pytest.mark.parametrize("clean_weight", [0.0, 1 / 3])
def test_where_batch_norm_makes_the_modes_disagree_mma_looks_once_more(clean_weight: float) -> None:
    """All right, under attack as well, which costs most: 2K + searches + 7, or 5 without the clean loss."""
    problem = toy("2 classes", "mma")
    batch = problem.batch(torch.arange(BATCH))
    defense = problem.defense("mma", eps=1e-4, clean_weight=clean_weight)
    target = problem.network.eval()(batch.images).argmax(1)
    problem.network.train()
    for part in defense.losses(problem.network, replace(batch, target=target)):
        part.loss.backward()
    most = METHODS["mma"].most(defense.settings)
    assert defense.on_epoch_end()["passes_per_sample"] == most == 2 * 2 + 2 + (7 if clean_weight else 5)


@pytest.mark.parametrize(
    ("name", "saved", "now", "refused"),
    [
        ("SAT", {"budget": 1.0, "steps": 2}, {"budget": 1.0, "steps": 2, "eps": 0.2}, None),
        ("SAT", {"budget": 1.0, "steps": 2}, {"budget": 2.0, "steps": 2}, ("budget", 2.0, 1.0)),
        ("SAT", {"budget": 1.0, "steps": 2}, {"budget": 1.0, "eps": 0.2, "steps": 8}, ("steps", 8, 2)),
        ("IMA", {"steps": 4, "searches": 2}, {"steps": 4, "searches": 3, "delta": 0.01}, ("searches", 3, 2)),
        ("IMA", {"steps": 4, "searches": 2}, {"steps": 3, "searches": 4}, None),  # 2K + 7 + searches: 17 twice
        ("MIRST", {"instances": "1,2", "betas": "0.5,0.5"}, {"instances": "1", "betas": "0.5"},
         ("instances", "'1'", "1,2")),
        ("Standard", {"eps": 0.1}, {"eps": 0.2}, None),
    ],
)  # fmt: skip
def test_a_run_goes_on_at_its_price(name: str, saved: dict[str, Any], now: dict[str, Any], refused: Any) -> None:
    if refused is None:
        refuse_another_price(method(name), saved, now, ("budget",), "go on with it")
        return
    said = "{}: received {}, allowed is that of the checkpoint .{}.; its epochs and .*: go on with it".format(*refused)
    with pytest.raises(InputError, match=said):
        refuse_another_price(method(name), saved, now, ("budget",), "go on with it")


def test_the_price_in_words() -> None:
    ima = method("IMA")
    settings = ima.settings(steps=5, searches=4)
    assert "up to 21 network passes per sample and step (in forwards), about 7 times" in price_line(ima, settings)
    assert cheaper_way(ima, settings, 100, "Fine-tune.") is None
    assert cheaper_way(ima, settings, 1000, "Fine-tune.") == (
        "WARNING: 1000 epochs of IMA cost as much as about 7000 plain ones. Fine-tune."
    )


def test_the_price_of_the_defaults_and_of_the_preset_is_what_a_training_says() -> None:
    """IMA: 2 x 20 + 7 + 10 forwards, and 2 x 3 + 7 + 3; DAT has no preset of its own."""
    said = "up to {} network passes per sample and step (in forwards), about {} times a plain epoch."
    assert prices(method("IMA")) == [
        "Price with the defaults: " + said.format(57, 19), "Price with preset finetune: " + said.format(16, 5.3),
    ]  # fmt: skip
    assert len(prices(method("DAT"))) == 1


def test_the_clock_leaves_out_the_first_step_and_speaks_once() -> None:
    ticks = iter([0.0, 60.0, 62.0, 64.0, 66.0])
    clock = Clock(steps=250, now=lambda: next(ticks))
    said = [clock.step(epochs_left=100) for _ in range(6)]
    assert said == [None] * 4 + [
        "About 500 s of training per epoch, 13.9 hours for the 100 that are left; validation comes on top."
    ] + [None]


def test_the_clock_is_silent_where_an_epoch_is_too_short_for_it() -> None:
    """Three steps an epoch, and a validation of 100 s between them: the whole epoch is timed instead."""
    ticks = iter([0.0, 1.0, 2.0, 102.0, 103.0, 104.0])
    clock = Clock(steps=3, now=lambda: next(ticks))
    assert [clock.step(epochs_left=left) for left in (2, 2, 2, 1, 1, 1)] == [None] * 6
    clock = Clock(steps=5, now=iter([0.0, 1.0, 2.0, 3.0, 4.0]).__next__)
    assert [clock.step(1) for _ in range(5)][-1] == (
        "About 5 s of training per epoch, 5 s for the last one; validation comes on top."
    )


def test_a_whole_epoch_is_the_measure_once_there_was_one() -> None:
    assert forecast(111, 1) == "About 111 s per epoch, 111 s for the last one."
    assert forecast(111, 3) == "About 111 s per epoch, 6 minutes for the 3 that are left."
    assert forecast(360, 20) == "About 360 s per epoch, 2.0 hours for the 20 that are left."


def test_a_budget_becomes_epochs_by_hand() -> None:
    """100 x 50 steps at 3 forwards are 15,000; one epoch of 25 steps at 9 forwards is 225."""
    assert epochs_within(1.0, PLAIN, 25, 9) == 66
    assert epochs_within(0.25, PLAIN, 25, 9) == 16
    assert epochs_within(0.015, PLAIN, 25, 9) == 1
    exactly = replace(PLAIN, epochs=300, iterations=250)  # 0.29 * 225,000 / 750 is a hair below 87 in floating point
    assert epochs_within(0.29, exactly, 250, 3) == 87
    with pytest.raises(InputError, match=r"budget: received 0.0149, allowed is at least 0.015: one epoch, 25 steps"):
        epochs_within(0.0149, PLAIN, 25, 9)


def test_a_budget_in_hours_is_the_share_that_the_plain_training_made_in_them() -> None:
    """100 epochs of 72 s are 2 hours: 30 minutes of them are a quarter."""
    timed = replace(PLAIN, epoch_seconds=72.0)
    assert timed.hours == 2
    assert epochs_within("0.5h", timed, 25, 9) == epochs_within(0.25, timed, 25, 9) == 16
    with pytest.raises(InputError, match=r"budget: received '0.02h', allowed is at least 0.03h: one epoch, 25 steps"):
        epochs_within("0.02h", timed, 25, 9)
    with pytest.raises(InputError, match=r"budget: received '1h', allowed is a share, such as 1.0, with a checkpoint"):
        epochs_within("1h", PLAIN, 25, 9)


def test_a_checkpoint_that_lost_its_history_says_what_to_give_instead() -> None:
    """As weights are handed on: without optimiser and log."""
    for budget in (1.0, "2h"):
        with pytest.raises(InputError, match=r"none with .*final.pth, which does not say .* MONAI_ADV_EPOCHS=50"):
            epochs_within(budget, replace(PLAIN, epochs=0), 25, 9)


def test_weights_of_another_fold_have_seen_what_validates(tmp_path: Path) -> None:
    file = _trained(tmp_path / "nnUNetTrainer__p__2d" / "fold_0")
    assert read_plain(file).told_of_a_leak("Dataset004_Hippocampus", 1) is None  # it does not say what it is of
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["init_args"] = {"plans": {"dataset_name": "Dataset004_Hippocampus"}, "fold": 0}
    torch.save(checkpoint, file)
    plain = read_plain(file)
    assert (plain.dataset, plain.fold) == ("Dataset004_Hippocampus", 0)
    leaks = {fold: plain.told_of_a_leak("Dataset004_Hippocampus", fold) is not None for fold in (0, 1, "all")}
    assert leaks == {0: False, 1: True, "all": False}
    assert plain.told_of_a_leak("Dataset005_Prostate", 1) is None
    assert replace(plain, fold="all").told_of_a_leak("Dataset004_Hippocampus", 0) is not None


def test_the_time_of_an_epoch_is_the_median_that_its_checkpoint_logs(tmp_path: Path) -> None:
    """10, 2 and 3 seconds: the first one is slow, it compiles or fills caches."""
    file = _trained(tmp_path / "nnUNetTrainer__p__2d" / "fold_0")
    checkpoint = torch.load(file, weights_only=True)
    assert math.isnan(read_plain(file).epoch_seconds)
    checkpoint["logging"] |= {"epoch_start_timestamps": [0.0, 10.0, 20.0], "epoch_end_timestamps": [10.0, 12.0, 23.0]}
    torch.save(checkpoint, file)
    assert read_plain(file).epoch_seconds == 3


def _trained(folder: Path, *, defended: bool = False, epochs: int = 100, dice: float = 0.8, **more: Any) -> Path:
    folder.mkdir(parents=True)
    content: dict[str, Any] = {
        "trainer_name": folder.parent.name.split("__")[0],
        "network_weights": {"w": torch.zeros(1)},
        "current_epoch": epochs,
        "logging": {"mean_fg_dice": [0.1, dice]},
    }
    torch.save({**content, **({"monai_adv": {}} if defended else {}), **more}, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def test_the_plain_model_is_found_among_decoys(tmp_path: Path) -> None:
    """Other plans, folds, configurations, data sets, unfinished and defended trainings are not it."""
    data = tmp_path / "Dataset004_Hippocampus"
    wanted = _trained(data / "nnUNetTrainer_250epochs__nnUNetPlans__2d" / "fold_0")
    _trained(data / "nnUNetTrainer__nnUNetPlans__2d" / "fold_1")
    _trained(data / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0")
    _trained(data / "nnUNetTrainer__nnUNetResEncUNetMPlans__2d" / "fold_0")
    _trained(data / "IMATrainer__nnUNetPlans__2d" / "fold_0", defended=True)
    _trained(tmp_path / "Dataset005_Prostate" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0")
    (data / "nnUNetTrainer_5epochs__nnUNetPlans__2d" / "fold_0").mkdir(parents=True)
    (data / "nnUNetTrainer_5epochs__nnUNetPlans__2d" / "fold_0" / "checkpoint_latest.pth").write_bytes(b"")
    assert find_plain(tmp_path, data.name, "nnUNetPlans", "2d", 0).file == wanted
    _trained(data / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0")
    several = (
        r"there are several; name a checkpoint \(MONAI_ADV_INITIAL_WEIGHTS=FILE\), one of .*_250epochs__.*Trainer__"
    )
    with pytest.raises(InputError, match=several):
        find_plain(tmp_path, data.name, "nnUNetPlans", "2d", 0)
    with pytest.raises(InputError, match="a finished plain training of .*, fold 4; there are .*train it first"):
        find_plain(tmp_path, data.name, "nnUNetPlans", "2d", 4)
    for trainer, defended in (("IMATrainer", True), ("nnUNetTrainer", False)):  # of these two the plain one is meant
        final = _trained(data / f"{trainer}__nnUNetPlans__2d" / "fold_4", defended=defended)
        latest = final.rename(final.with_name("checkpoint_latest.pth"))
    with pytest.raises(InputError, match=rf", fold 4; {latest} is of one that is not finished; end it .*with --c"):
        find_plain(tmp_path, data.name, "nnUNetPlans", "2d", 4)


def test_an_exported_robust_model_is_not_plain(tmp_path: Path) -> None:
    data = tmp_path / "Dataset004_Hippocampus"
    _trained(data / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0", defended=True, exported_from="RobustBN")
    _trained(data / "nnUNetTrainerBN__nnUNetPlans__2d" / "fold_0", exported_from="SATTrainer")
    _trained(data / "nnUNetTrainer__nnUNetPlans__2d" / "fold_1", exported_from="nnUNetTrainer_250epochs")
    there = r"there are nnUNetTrainerBN__nnUNetPlans__2d/fold_0 \(robust\), nnUNetTrainer__nnUNetPlans__2d/fold_0 \("
    with pytest.raises(InputError, match=there):
        find_plain(tmp_path, data.name, "nnUNetPlans", "2d", 0)
    assert find_plain(tmp_path, data.name, "nnUNetPlans", "2d", 1).fold is None


def test_what_the_plain_training_was(tmp_path: Path) -> None:
    """The epochs stand in the checkpoint, their length in debug.json beside it; nnU-Net's 250 without."""
    file = _trained(tmp_path / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0", epochs=60)
    assert read_plain(file) == PlainModel(file, 60, 250, 0.8)
    weights = read_plain(file).weights
    assert weights is not None
    assert torch.equal(weights["w"], torch.zeros(1))
    (file.parent / "debug.json").write_text(json.dumps({"num_iterations_per_epoch": "40"}))
    plain = read_plain(file)
    assert (plain.iterations, plain.passes) == (40, 60 * 40 * 3)


@pytest.mark.parametrize(
    ("name", "dice", "refused"),
    [
        ("IMA", 0.55, "allowed is a model above the `threshold` 0.6 with IMA; IMA attacks samples that are right"),
        ("IMA", 0.61, None),
        ("FGSMRS", 0.55, None),
        ("FGSMRS", 0.06, "a pseudo Dice of 0.06', allowed is a model above 0.1; it finds next to nothing"),
        ("Standard", 0.06, None),
        ("IMA", math.nan, None),
    ],
)
def test_a_start_that_segments_too_little(name: str, dice: float, refused: str | None) -> None:
    """IMA leaves wrong samples alone, FGSM-RS does not, standard training attacks nothing."""
    given = PlainModel(Path("x.pth"), 1, 1, dice), method(name), method(name).settings(), 0.6
    if refused is None:
        check_worth_attacking(*given)
        return
    with pytest.raises(InputError, match=refused):
        check_worth_attacking(*given)
