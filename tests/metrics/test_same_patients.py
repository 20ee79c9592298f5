"""The same patients before an attack and after it; false positives by themselves; inputs that do not count."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics

from monai_adv.evaluation.checks.probes import _gradients
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.figures.tables import as_csv, as_table
from monai_adv.evaluation.records import parse_level
from monai_adv.evaluation.report.curves import _line
from monai_adv.metrics.score import Score
from monai_adv.metrics.segmentation import overlap_score
from monai_adv.metrics.statistics import mean_over_classes
from monai_adv.tasks import SegmentationTask
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.case import NNUNetCase
from nnunet_trainers.volume_dice import class_masks
from tests.planted_evaluation import folder_of, plant
from tests.tiny_nnunet import REGIONS, write_case, write_model


def _organ(value: float) -> Score:
    """A patient with the first class only; of the second one something is found once the Dice falls below 0.9."""
    found = ("posterior",) if value < 0.9 else ()
    return Score(
        "with", value, {"anterior": value, "posterior": math.nan}, absent=("posterior",), false_positives=found
    )


def _nothing(found: bool) -> Score:
    """A patient without foreground."""
    both = ("anterior", "posterior")
    return Score("without", math.nan, dict.fromkeys(both, math.nan), absent=both, false_positives=both if found else ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One patient of whom the attack leaves 98.5 of 99.1 %, and one without foreground, in whom it finds some."""
    attacked = [_organ(0.985), _nothing(found=True)]
    records = plant("IMA", [_organ(0.991), _nothing(found=False)], {("l2-5", "APGD-CE"): attacked})
    other = plant("plain", [_organ(0.95), _nothing(found=True)], {("l2-5", "APGD-CE"): [_organ(0.5), _nothing(True)]})
    return folder_of(tmp_path, records + other)


def test_a_patient_without_foreground_is_in_no_mean(folder: Path) -> None:
    results = gather(folder)
    clean, attacked = (results.models[0].summaries[key] for key in ("", "l2-5"))
    assert (clean.mean, attacked.mean) == (0.991, 0.985)  # not 0.4925, as if the other patient had fallen from nothing
    assert (clean.count, attacked.count, clean.undefined, attacked.undefined) == (1, 1, 1, 1)
    assert (clean.false_positives, attacked.false_positives, clean.absent, attacked.absent) == (0, 2, 3, 3)
    line = _line(results.records, "IMA", [parse_level("l2-5")], "segmentation")
    assert line.mean == pytest.approx([99.1, 98.5])
    assert [c.count for c in results.comparisons] == [1, 1]
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    without = [r for r in rows if r["model"] == "IMA" and r["patient"] == "without"]
    assert {r["score"] for r in without} == {""}
    assert [r["false_positive posterior"] for r in without] == ["0", "1", "1"]
    table = {
        (r["attack"], r["class"], r["measure"]): (r["value"], r["count"])
        for r in csv.DictReader(io.StringIO(as_table(results)))
        if r["model"] == "IMA"
    }
    assert table["worst case", "all", "mean Dice"] == ("0.985", "1")
    assert table["worst case", "all", "false positives"] == (str(2 / 3), "3")
    assert table["worst case", "anterior", "false positives"] == ("1.0", "1")
    assert table["clean", "posterior", "mean Dice"] == ("", "0")


def test_a_patient_whose_attacks_are_not_finished_is_in_no_mean(tmp_path: Path) -> None:
    scores = [Score(n, v, {"anterior": v, "posterior": v}) for n, v in (("a", 0.9), ("b", 0.5))]
    records = plant("IMA", scores, {("l2-5", a): scores for a in ("APGD-CE", "Square")})
    results = gather(folder_of(tmp_path, [r for r in records if (r.case, r.attack) != ("b", "Square")]))
    assert [s.mean for s in results.models[0].summaries.values()] == [0.9, 0.9]
    assert results.models[0].unfinished == ("b",)


def test_means_over_classes_are_nnunets() -> None:
    """foreground_mean of summary.json: nnU-Net's own function on the same arrays, false positives included."""
    labels = {"background": 0, "one": 1, "two": 2, "ignore": 3}
    generator = np.random.default_rng(0)
    pairs = [generator.integers(0, 4, (2, 1, 4, 4)) for _ in range(3)]
    pairs[0][1][pairs[0][1] == 2] = 0  # in the first case, the second class is a false positive
    pairs[1][0][pairs[1][0] == 1] = pairs[1][1][pairs[1][1] == 1] = 0  # in the second, nobody has the first class
    scores, host = {}, []
    for i, (found, truth) in enumerate(pairs):
        found[found == 3] = 0  # no network predicts what is ignored
        reader = SimpleNamespace(read_seg=lambda name, f=found, t=truth: ({"found": f, "truth": t}[name], {}))
        host.append(compute_metrics("truth", "found", reader, [1, 2], ignore_label=3)["metrics"])
        scores[str(i), str(i)] = overlap_score(str(i), class_masks(found, truth, labels))
    per_class = [np.nanmean([metrics[label]["Dice"] for metrics in host]) for label in (1, 2)]
    assert mean_over_classes(scores, false_positives=True) == pytest.approx(np.mean(per_class))
    for (case, _), score in scores.items():
        assert list(score.dice.values()) == pytest.approx([host[int(case)][k]["Dice"] for k in (1, 2)], nan_ok=True)
    assert scores["0", "0"].false_positives == ("two",)
    assert mean_over_classes(scores) > mean_over_classes(scores, false_positives=True)


@pytest.mark.parametrize("regions", [False, True])
def test_slices_that_are_ignored_are_left_out(tmp_path: Path, regions: bool) -> None:
    """Sparse annotation: their gradient is zero, and says nothing about the model."""
    files = write_case(tmp_path)
    image = SimpleITK.ReadImage(str(files.ground_truth_file))
    values = SimpleITK.GetArrayFromImage(image)
    values[:, :, ::2] = 3  # the axis along which a 2D model with this plan takes its slices
    sparse = SimpleITK.GetImageFromArray(values)
    sparse.CopyInformation(image)
    SimpleITK.WriteImage(sparse, str(files.ground_truth_file))
    labels = REGIONS if regions else {"background": 0, "front": 1, "back": 2, "ignore": 3}
    model = DeployedModel.from_folder(write_model(tmp_path / "model", labels=labels))
    case = NNUNetCase(model, files, model.as_network())
    ignored = (case.labels == 3).flatten(1).all(1)
    assert ignored.any()
    assert not ignored.all()
    for task in (case.task, SegmentationTask.for_evaluation(regions=regions, ignore_label=3)):
        assert torch.equal(task.scorable(case.target), ~ignored)
    found = _gradients(case, case.images, case.target, [], torch.Generator())
    assert found.samples == 0


def test_a_case_that_is_wholly_ignored_misses_nothing() -> None:
    score = overlap_score("a", {"organ": (np.zeros(3, bool), np.zeros(3, bool))}, counted=False)
    assert (score.absent, score.false_positives, score.remaining) == ((), (), 0.0)
