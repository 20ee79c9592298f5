"""``monai-adv methods --recommend``: the figures are those of docs/results, the ranking is the one said."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from monai_adv import InputError
from monai_adv.cli import main, measured
from monai_adv.cli.measured import MEASURED, Measured
from monai_adv.cli.methods import declared
from monai_adv.cli.recommend import QUESTIONS, Question, answers, commands, remarks, warnings_in
from monai_adv.defenses import METHODS, method
from monai_adv.engines import TRADESTrainer
from monai_adv.tasks import SegmentationSettings
from nnunet_trainers.augmentation import chosen
from nnunet_trainers.price import RunPrice
from nnunet_trainers.run_settings import RunSettings
from tests import monai_engine_toys as toys
from tests.places import ROOT

RESULTS = ROOT / "docs" / "results"
WARNED = warnings_in(declared())


def asked(**question: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(a.row.method, a.against) for a in answers(Question(**question), WARNED)]


def of(experiment: measured.Experiment) -> dict[str, Measured]:
    return {row.method: row for row in MEASURED if row.experiment == experiment}


# -------------------------------------------------------------------- the figures


@pytest.mark.parametrize(
    ("data", "experiment"), [("breastmnist", measured.BREAST), ("pneumoniamnist", measured.PNEUMONIA)]
)
def test_figures_of_classifiers_are_those_of_the_runs(data: str, experiment: measured.Experiment) -> None:
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in json.loads((RESULTS / "classification.json").read_text()):
        if run["set"] == data:
            runs[run["method"]].append(run)

    def mean(key: str, name: str) -> float:
        return math.fsum(run[name] for run in runs[key]) / len(runs[key])

    rows, epochs = of(experiment), mean("standard", "epochs")
    assert {METHODS[key].name for key in runs} - {"Standard"} == set(rows)
    plain = (mean("standard", "balanced"), mean("standard", "pgd_balanced"))
    assert (experiment.clean, experiment.robust) == pytest.approx(plain, abs=0.051)
    for name, row in rows.items():
        key = method(name).key
        found = (
            mean(key, "balanced"),
            mean(key, "pgd_balanced"),
            mean(key, "passes_per_sample") * mean(key, "epochs") / (3 * epochs),
        )
        assert (row.clean, row.robust, row.cost) == pytest.approx(found, abs=0.051), name


def test_figures_of_seven_methods_are_those_of_the_evaluation() -> None:
    """Their price: 300 steps, for a plain training of 1500, at the most that a step costs, or as measured."""
    with (RESULTS / "hippocampus_methods.csv").open() as file:
        table = {
            (row["model"].removesuffix("Trainer"), row["attack"]): 100 * float(row["value"])
            for row in csv.DictReader(file)
            if row["class"] == "all" and row["measure"] == "mean Dice"
        }
    plain = measured.DEFAULTS_2D
    assert (plain.clean, plain.robust) == pytest.approx(
        (table["nnUNet", "clean"], table["nnUNet", "worst case"]), abs=0.051
    )
    # As docs/results/hippocampus.md says; MMA's most, less the pass that only BatchNorm costs.
    passes = {"SAT": 19.0, "FAT": 10.0, "MMA": 2 * 10 + 6 + 10}
    for name, row in of(plain).items():
        assert (row.clean, row.robust) == pytest.approx((table[name, "clean"], table[name, "worst case"]), abs=0.051)
        most = method(name).most(method(name).settings())
        assert row.cost == pytest.approx(300 * passes.get(name, most) / (1500 * 3), abs=0.01), name


def test_figures_of_prices_are_those_of_the_runs() -> None:
    runs = json.loads((RESULTS / "price.json").read_text())
    quarter, between = ", budget: 0.25", ", then monai-adv interpolate --share 0.75"
    before = {  # with all of nnU-Net's augmentation
        ("FGSMRS", ""): "fgsmrs_2d_lr015", ("SAT", ""): "satmix_2d_lr015", ("FAT", ""): "fat_2d_lr015",
        ("IMA", ""): "ima_2d_lr015", ("MMA", ""): "mma_2d_lr015", ("FreeAT", ""): "freeat_2d_lr015",
        ("TRADES", ""): "trades_2d_lr015", ("MIRST", ""): "mirst_2d_lr015", ("FGSMRS", between): "fgsmrs_2d_75",
        ("FGSMRS", quarter): "fgsmrs_2d_quarter", ("SAT", quarter): "sat_2d_quarter",
        ("FreeAT", quarter): "freeat_2d_quarter", ("FAT", quarter): "fat_2d_quarter",
        ("IMA", quarter): "ima_2d_quarter", ("TRADES", quarter): "trades_2d_quarter",
        ("MMA", quarter): "mma_2d_quarter", ("MIRST", quarter): "mirst_2d_quarter",
    }  # fmt: skip
    by_hand = {(name, f", augmentation: host{more}"): job for (name, more), job in before.items()}
    by_hand["FGSMRS", ""] = "fgsmrs_2d_mirror"
    in_2d = [row for row in MEASURED if row.experiment == measured.PRICE_2D]
    rows = {(row.method, row.settings.removeprefix("preset: finetune")): row for row in in_2d}
    assert rows.keys() == by_hand.keys()
    pairs = [(runs[by_hand[key]], row, runs["plain_2d"]) for key, row in rows.items()]
    solid = {(row.method, row.cost): row for row in MEASURED if row.experiment == measured.PRICE_NNUNET_3D}
    in_3d = {("SAT", 1.00): "satmix_3d_lr02", ("FGSMRS", 0.99): "fgsmrs_3d_lr02", ("FGSMRS", 0.23): "fgsmrs_3d_quarter"}
    pairs += [(runs[job], solid.pop(key), runs["plain_3d"]) for key, job in in_3d.items()]
    assert not solid
    in_wide = {
        ("FGSMRS", ""): "fgsmrs_3d_wide_mirror", ("SAT", ", clean_weight: 0.6"): "sat_3d_wide_mirror",
        ("FreeAT", ""): "freeat_3d_wide_mirror", ("MIRST", ""): "mirst_3d_wide_mirror",
        ("Dual", ""): "dual_3d_wide_mirror_65", ("Dual", ", r: 0.5"): "dual_3d_wide_mirror",
    }  # fmt: skip
    of_wide = [row for row in MEASURED if row.experiment == measured.PRICE_WIDE_3D]
    wide = {(row.method, row.settings.removeprefix("preset: finetune")): row for row in of_wide}
    assert wide.keys() == in_wide.keys()
    pairs += [(runs[in_wide[key]], row, runs["plain_3d_wide"]) for key, row in wide.items()]
    breast = {row.settings: row for row in MEASURED if row.experiment == measured.PRICE_BREAST}
    of_breast = {"preset: finetune": "fgsmrs_busi_lr02", "preset: finetune, eps: 0.05": "fgsmrs_busi_eps05"}
    pairs += [(runs[job], breast.pop(settings), runs["plain_busi_more"]) for settings, job in of_breast.items()]
    assert not breast
    for run, row, plain in pairs:
        for figures, of_these in ((run, row), (plain, row.experiment)):
            found = figures["measured"]["checkpoint_final.pth"]
            assert (of_these.clean, of_these.robust) == pytest.approx((found["clean"], found["worst"]), abs=0.051)
        assert row.cost == pytest.approx(run["budget"], abs=0.005)
        said_so = re.search(r"augmentation: (\w+)", row.settings)
        augmentation = said_so[1] if said_so else augmentation_of(run)
        assert run["job"]["settings"].get("augmentation", "host") == augmentation
        finetune = method(row.method).presets.get("finetune", {})
        differs = {name: value for name, value in finetune.items() if run["job"]["settings"].get(name) != value}
        said = {"clean_weight": 0.5} if "clean_weight" in row.settings and row.method == "SAT" else {}
        said |= {"r": 0.65} if "r: 0.5" in row.settings else {}
        assert differs == (said | ({"eps": 0.1} if "eps: 0.05" in row.settings else {}))
    plain, sat = (run for run in json.loads((RESULTS / "price_3d.json").read_text())["runs"] if "13th" in run["cases"])
    (row,) = (row for row in MEASURED if row.experiment == measured.PRICE_3D)
    for figures, of_these in ((sat, row), (plain, row.experiment)):
        found_3d = (100 * figures["clean"], 100 * figures["pgd20_rms_0_1"])
        assert (of_these.clean, of_these.robust) == pytest.approx(found_3d, abs=0.051)
    assert row.cost == sat["budget"]


def augmentation_of(run: dict[str, Any]) -> str:
    """What `preset: finetune` would have chosen for so many steps: fold 0 has 176 cases, BUSI 446 images."""
    images = 446 if run["job"].get("dataset") == "5" else 176 * (36 if run["job"]["configuration"] == "2d" else 1)
    return "mirroring" if chosen([], run["steps"] * run["batch"] / images, "image")[0] else "host"


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row.method}-{row.experiment.data}")
def test_every_row_is_of_a_method_and_on_a_page_that_says_its_figures(row: Measured) -> None:
    text = (RESULTS / row.experiment.page).read_text()
    assert row.method in WARNED
    if row.experiment.page != "bundles.md":  # whose figures stand in the bundle's own README
        for figure in (row.clean, row.robust, row.experiment.clean, row.experiment.robust):
            assert f"{figure:.1f}" in text


# -------------------------------------------------------------------- the ranking


def test_ranked_is_what_is_given_back_of_the_damage() -> None:
    """From 18.2 to 62.8 of 84.4: 44.6 of the 66.2 points that the attack takes."""
    row = next(row for row in MEASURED if row.experiment == measured.PRICE_2D and row.method == "SAT")
    assert row.given_back == pytest.approx(44.6 / 66.2)
    assert row.lost == pytest.approx(0.5)
    shares = [a.row.given_back for a in answers(Question("segmentation"), WARNED) if not a.against]
    assert shares == sorted(shares, reverse=True)


def test_what_costs_or_loses_more_than_asked_comes_last_and_says_why() -> None:
    found = asked(task="segmentation", start="trained", budget=1.0, may_lose=3.0)
    assert found[0] == ("FGSMRS", ())
    assert asked(task="segmentation", start="trained", budget=1.0, may_lose=2.0)[0] == ("Dual", ())  # 1.01: rounding
    assert ("IMA", ("costs 3.3 times the plain training", "lost 3.6 points")) in found
    fits = [bool(against) for _, against in found]
    assert fits == sorted(fits)
    assert ("TRADES", ("not recommended", "costs 1.8 times the plain training", "lost 46.5 points")) in found


def test_a_constant_answer_is_not_robustness() -> None:
    """TE has 51.1 under attack on BreastMNIST, more than IMA, and says one class nearly always."""
    found = dict(asked(task="classification", samples=500))
    assert found["TE"] == ("nearly always says the same class",)
    assert found["IMA"] == ()


def test_a_price_just_above_the_budget_is_told_as_it_is() -> None:
    found = asked(task="segmentation", start="trained", budget=1.0)
    assert ("FAT", ("costs 1.03 times the plain training",)) in found
    assert "0.92 times" in next(a.figures for a in answers(Question("segmentation"), WARNED) if a.row.cost == 0.92)


def test_what_went_badly_on_another_anatomy_is_told_as_well() -> None:
    """446 images and 176 cases are near each other, whatever the number that is asked for."""
    for samples in (20, 100, 500, 5000):
        found = {a.row.experiment for a in answers(Question("segmentation", "trained", samples=samples), WARNED)}
        assert {measured.PRICE_2D, measured.PRICE_BREAST} <= found
    assert ("FGSMRS", ("lost 10.7 points",)) in asked(task="segmentation", start="trained", may_lose=3.0)


def test_the_nearest_set_by_its_size_counts() -> None:
    assert asked(task="classification", samples=500)[0][0] == "DAT"
    assert asked(task="classification", samples=9000)[0][0] == "MART"
    assert len(asked(task="classification")) == 48
    assert remarks(Question("classification", samples=20)) == ["Measured on 546 samples, far from your 20."]
    assert remarks(Question("classification", "trained", samples=600)) == [
        "All figures for classification are of trainings from random weights."
    ]
    assert remarks(Question("segmentation", "trained", samples=200)) == []


def test_every_question_of_the_page_has_an_answer() -> None:
    for have, want, question in QUESTIONS:
        assert any(not a.against for a in answers(question, WARNED)), (have, want)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"samples": 0}, "samples: received 0, allowed is a whole number >= 1"),
        ({"budget": 0.0}, "budget: received 0.0, allowed is a number > 0"),
        ({"budget": math.nan}, "budget: received nan"),
        ({"may_lose": -1.0}, "may-lose: received -1.0, allowed is a number from 0 to 100"),
        ({"may_lose": math.nan}, "may-lose: received nan"),
    ],
)
def test_questions_that_make_no_sense(given: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        Question("segmentation", **given)


# -------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--recommend"], "--task: received None, allowed is classification or segmentation"),
        (["--budget", "1"], "--budget: received 1.0, allowed is given beside --recommend"),
        (["IMA", "--recommend", "--task", "segmentation"], "name: received 'IMA', allowed is none beside --recommend"),
    ],
)
def test_bad_commands(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", *words]) == 2
    assert error in capsys.readouterr().err.splitlines()[-1]


def test_the_command_answers_without_torch() -> None:
    code = (
        "import sys; from monai_adv.cli import main; "
        "main(['methods', '--recommend', '--task', 'segmentation', '--samples', '20']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for said in ("What fits, the best first", "others do not fit: --all", "TRADES: with its default `beta`"):
        assert said in done.stdout
    assert "What speaks against" not in done.stdout
    assert "Measured on 176, 446 samples, far from your 20." in done.stdout


def test_the_first_are_shown_and_how_to_train_the_first_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["methods", "--recommend", "--task", "segmentation", "--start", "trained", "--budget", "1"]
    fit = [a.row for a in answers(Question("segmentation", "trained", budget=1.0), {}) if not a.against]
    assert main(words) == 0
    short = capsys.readouterr().out
    assert f"The first of them ({len(fit) - 5} more fit: --all):" in short
    assert "\n".join(commands(fit[0])) in short
    assert main([*words, "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2 * len(short.splitlines())


@pytest.mark.parametrize(
    ("settings", "nnunet", "monai", "later"),
    [
        ("", "", "", []),
        ("preset: finetune", "MONAI_ADV_PRESET=finetune ", " --train#trainer#settings \"{'preset': 'finetune'}\"", []),
        ("preset: finetune, augmentation: host", "MONAI_ADV_PRESET=finetune MONAI_ADV_AUGMENTATION=host ",
         " --train#trainer#settings \"{'preset': 'finetune'}\"", []),
        ("eps: 0.2, unit: norm, then monai-adv interpolate --share 0.75", "MONAI_ADV_EPS=0.2 MONAI_ADV_UNIT=norm ",
         " --train#trainer#settings \"{'eps': 0.2, 'unit': 'norm'}\"", ["monai-adv interpolate --share 0.75 ..."]),
    ],
)  # fmt: skip
def test_commands(settings: str, nnunet: str, monai: str, later: list[str]) -> None:
    row = replace(next(r for r in MEASURED if r.experiment.task == "segmentation"), method="SAT", settings=settings)
    assert commands(row) == [
        f"{nnunet}nnUNetv2_train ... -tr SATTrainer",
        f"python -m monai.bundle run ... --train#trainer#_target_ monai_adv.engines.SATTrainer{monai}", *later,
    ]  # fmt: skip


# -------------------------------------------------------------------- not recommended


@pytest.mark.parametrize("name", ["TRADES", "TE"])
def test_a_method_that_does_harm_says_so(name: str) -> None:
    found = method(name)
    said = found.warning("segmentation", found.settings())
    assert said is not None
    assert said.startswith(f"{name} is not recommended for segmentation: with its default ")
    assert found.warning("classification", found.settings()) is None
    assert found.warning("segmentation", found.settings(eps=0.0)) is None


def test_nnunet_trainers_warn_at_the_start() -> None:
    for name, said in (("TRADES", True), ("SAT", False)):
        sections = {"defense": method(name).settings(), "task": SegmentationSettings(), "run": RunSettings()}
        lines = RunPrice(method(name), sections, None).lines(10, 250)
        assert any(line.startswith(f"WARNING: {name} is not recommended") for line in lines) == said


def test_monai_trainers_warn_at_the_first_batch(caplog: pytest.LogCaptureFixture) -> None:
    said = "TRADES is not recommended for segmentation: with its default `beta` it took"
    toys.trainer(TRADESTrainer, toys.class_list(), settings={"steps": 1}).run()
    assert said not in caplog.text
    with caplog.at_level(logging.WARNING):
        toys.trainer(
            TRADESTrainer, toys.segment_list(), toys.segmenter(), loss=toys.dice_loss(), settings={"steps": 1}
        ).run()
    assert said in caplog.text
