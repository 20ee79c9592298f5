"""Certificates of whatever the evaluation opens: cases, volumes, a folder to go on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import tiny_models
import torch
from scipy import stats
from torch import nn

import monai_adv
from monai_adv import InputError
from monai_adv.certificates import Certification, certify_classes, certify_labels
from monai_adv.cli import main
from monai_adv.evaluation.certify.run import certify_models
from monai_adv.evaluation.frame_columns import COLUMNS
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.evaluation.run.measure import LiveSource
from nnunet_trainers.evaluation.arguments import source_at
from tests.linear_classifier import problem
from tests.test_certificates import Sign
from tests.tiny_nnunet import write_case, write_model

SETTINGS = Certification(sigma=0.5, n0=20, n=200, alpha=0.01)


def _classifier(name: str = "linear") -> LiveSource:
    network, images, labels = problem(2, (1, 3, 3), count=6)
    labels[0] = 1 - labels[0]
    return LiveSource(Classifier(name, network, images, labels, ["a", "b"]))


def _segmenter(count: int = 2) -> LiveSource:
    torch.manual_seed(0)
    labels = [torch.zeros(6, 6, dtype=torch.long) for _ in range(count)]
    for one in labels:
        one[2:5, 2:5] = 1
    images = [(4 * one - 2.0)[None] + 0.5 * torch.randn(1, 6, 6) for one in labels]
    return LiveSource(Segmenter("sign", Sign(), images, labels, ["lesion"]))


def test_a_classifier_image_by_image() -> None:
    found = certify_models([_classifier()], SETTINGS)
    assert len(found.cases) == 6
    assert found.cases[0].score == 0.0  # wrong
    network, images, labels = problem(2, (1, 3, 3), count=6)
    distance = network.distances(images, labels, "l2").amin(1)
    assert all(c.radius <= d + 1e-9 for c, d in zip(found.cases, distance.tolist(), strict=True))
    right = [c for c in found.cases if c.score]
    assert found.at(0.0) == len(right) / 6
    assert found.at(max(c.radius for c in right)) == pytest.approx(1 / 6)
    assert found.at(1e9) == 0


def test_a_frame_has_the_columns_of_the_evaluations() -> None:
    frame = certify_models([_segmenter()], SETTINGS).frame()
    assert list(frame.columns) == list(COLUMNS)
    rows = frame[frame.case == "0"].set_index("measure").value
    radius = 0.5 * stats.norm.ppf(0.75)
    assert rows["radius rms"] == pytest.approx(radius / 6)
    assert frame.eps.tolist() == pytest.approx([radius] * len(frame))
    assert 0 < rows["score"] <= rows["clean"] <= 1
    assert rows["score"] == rows["dice lesion"]


def test_the_slices_of_a_2d_nnunet_are_one_volume(tmp_path: Path) -> None:
    """Voxels kept, added and there are counted over the slices before the Dice is taken."""
    folder = write_model(tmp_path / "model")
    write_case(tmp_path)
    source = _nnunet(folder, tmp_path)
    [found] = certify_models([source], Certification(sigma=0.1, n0=5, n=40, alpha=0.2)).cases
    case = source.open().load(found.case)
    assert len(case.images) > 1
    assert found.radius == pytest.approx(0.1 * stats.norm.ppf(0.75))
    assert found.voxels == case.images[0].numel()
    assert 0 <= found.score <= found.clean <= 1 or found.score != found.score


def _nnunet(folder: Path, data: Path) -> Any:
    return source_at(
        folder, str(data / "imagesTr"), str(data / "labelsTr"), device="cpu", box=None, name="tiny", options={}
    )


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(Sign):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return super().forward(x)

    def source(count: int) -> LiveSource:
        made = _segmenter()
        made.model.network = Counting().eval()
        return made

    folder = tmp_path / "certificates"
    first = certify_models([source(2)], SETTINGS, folder)
    made = len(calls)
    assert made > 0
    again = certify_models([source(2)], SETTINGS, folder)
    assert len(calls) == made
    assert again.cases == first.cases
    with pytest.raises(InputError, match="folder: received .*this one differs in n"):
        certify_models([source(2)], Certification(sigma=0.5, n0=20, n=300, alpha=0.01), folder)
    file = next((folder / "sign").glob("*.json"))
    content = json.loads(file.read_text())
    content["cases"][0]["score"] = 0.123
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="its checksum does not fit.* delete it"):
        certify_models([source(2)], SETTINGS, folder)


def test_cases_have_noise_of_their_own_and_the_same_each_time() -> None:
    one, two = (certify_models([_classifier()], SETTINGS).cases for _ in range(2))
    assert [c.radius for c in one] == [c.radius for c in two]
    network, images, _ = problem(2, (1, 3, 3), count=6)
    assert certify_classes(network, images, SETTINGS).radius.tolist() != [c.radius for c in one]


def test_it_says_first_what_is_certified() -> None:
    text = repr(certify_models([_segmenter()], SETTINGS))
    assert text.startswith("Certified is the smoothed model: the majority vote over copies of the input with noise")
    assert "under every change up to L2 0.337 (RMS 0.0562 per voxel)" in text
    text = repr(certify_models([_classifier()], SETTINGS))
    assert "half of the right images are certified up to L2" in text


def test_sigmoids_over_label_maps_are_regions_without_the_background() -> None:
    """One class, its own logit above 0; the background channel says nothing."""
    labels = torch.zeros(5, dtype=torch.long)
    labels[2:] = 1

    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(x, 9.0), x], 1)

    source = LiveSource(Segmenter("s", Noisy(), [(4 * labels - 2.0)[None]], [labels], ["lesion"]))
    from monai_adv.tasks import SegmentationTask

    source.model.task = SegmentationTask.for_evaluation(sigmoid=True)
    [case] = certify_models([source], SETTINGS).cases
    assert case.score == case.clean == 1.0
    assert not certify_labels(Noisy(), torch.zeros(1, 1, 2), SETTINGS).labels.any()


def test_models_of_two_kinds() -> None:
    with pytest.raises(InputError, match="models: received .*one kind in one call"):
        certify_models([_classifier(), _segmenter()], SETTINGS)


# ------------------------------------------------------------------ the two doors


def test_python_and_the_command_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network in memory and the same one from a factory: the same certificates, bit for bit."""
    network, images, labels = tiny_models.classifier().network, *_tiny()
    found = monai_adv.certify(network, images, labels, sigma=0.1, n0=5, n=30, name="tiny", cases=8)
    words = ["certify", "--factory", f"{tiny_models.__file__}:classifier", "--sigma", "0.1", "--n0", "5", "--n", "30"]
    words += ["--cases", "8", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    assert "About 280 passes of one input" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Certified is the smoothed model" in said
    table = pandas.read_csv(tmp_path / "out" / "certificates.csv")
    mine = found.frame()
    assert list(table.columns) == list(mine.columns)
    assert np.allclose(table.eps, mine.eps)
    assert len(mine[mine.measure == "score"]) == 8


def _tiny() -> tuple[torch.Tensor, torch.Tensor]:
    model = tiny_models.classifier()
    return model.images, model.labels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sigma", "0"], "sigma: received 0.0, allowed is a finite number > 0"),
        (["--sigma", "0.1", "--n", "5"], "n: received 5, allowed is at least 10"),
        (["--sigma", "0.1", "--alpha", "2"], "alpha: received 2.0"),
        (["--sigma", "0.1", "--cases", "nobody"], "cases: received nobody"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    factory = ["--factory", f"{tiny_models.__file__}:classifier", "--device", "cpu"]
    assert main(["certify", *factory, *words, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1].replace("'", "")
    assert not (tmp_path / "out").exists()  # which the corrected command would not fit


def test_a_volume_that_is_too_large_for_the_draws_is_a_problem_of_its_own(tmp_path: Path) -> None:
    """16 voxels need 34 draws, 1024 need 49; if the first does not fit either, nothing is written."""
    labels = [torch.zeros(size, size, dtype=torch.long) for size in (4, 32)]
    for one in labels:
        one[1:3, 1:3] = 1
    model = Segmenter("sign", Sign(), [(4.0 * one - 2)[None] for one in labels], labels, ["lesion"])
    settings = Certification(sigma=0.5, n0=5, n=40)
    found = certify_models([LiveSource(model)], settings, tmp_path / "out")
    assert [case.case for case in found.cases] == ["0"]
    assert found.problems[0][:2] == ("sign", "1")
    assert "at least 49" in found.problems[0][2]
    with pytest.raises(InputError, match="n: received 5, allowed is at least"):
        certify_models([LiveSource(model)], Certification(sigma=0.5, n=5), tmp_path / "none")
    assert not (tmp_path / "none").exists()
