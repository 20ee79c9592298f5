"""Plain PyTorch models: what they refuse, how they score, and which of two images is the worse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.factory import FactorySource
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.evaluation.records import Level
from tests.places import TESTS
from tests.tiny_models import classifier, segmenter

SUBJECTS = TESTS / "tiny_models.py"


def small(**changes: Any) -> Classifier:
    arguments: dict[str, Any] = {
        "name": "m",
        "network": nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
        "images": torch.zeros(5, 1, 2, 2),
        "labels": torch.tensor([0, 1, 2, 0, 1]),
        "classes": ("a", "b", "c"),
    }
    return Classifier(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": torch.zeros(5, 1, 2, 2, dtype=torch.uint8)}, "images: received 'torch.uint8'"),
        ({"images": torch.full((5, 1, 2, 2), math.nan)}, "NaN or infinity"),
        ({"labels": torch.tensor([0, 1])}, "labels: received '2 labels', allowed is one per image, here 5"),
        ({"labels": torch.tensor([0, 1, 2, 3, 1])}, "whole numbers from 0 to 2"),
        ({"labels": torch.tensor([0, 1, 0.5, 0, 1])}, "whole numbers from 0 to 2"),
        ({"classes": ("a", "b")}, "classes: received '2 names', allowed is one per class of the network, here 3"),
        ({"box": (1.0, 1.0)}, "box: received"),
        ({"group": 0}, "group: received 0"),
        ({"names": ["x"] * 5}, "names: received 'x twice'"),
        ({"classes": ("a", "b", "b ")}, "classes: received 'b twice'"),
        ({"labels": None}, "class indices, or a data set"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        small(**changes)


def test_a_data_set_is_the_same_as_its_arrays() -> None:
    images, labels = np.random.default_rng(0).random((5, 1, 2, 2), np.float32), [0, 1, 2, 0, 1]
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    pairs = list(zip(torch.from_numpy(images), labels, strict=True))
    one, other = small(network=network, images=pairs, labels=None), small(network=network, images=images, labels=labels)
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.load("images 0 to 4").images, torch.from_numpy(images))


def test_a_fingerprint_changes_with_weights_data_and_code() -> None:
    prints = {classifier().fingerprint, classifier(seed=1).fingerprint}
    changed = classifier()
    changed.images[3, 0, 0, 0] += 1e-6
    prints.add(changed.fingerprint)
    changed = classifier()
    changed.labels[3] = (changed.labels[3] + 1) % 3
    prints.add(changed.fingerprint)
    changed = classifier()
    changed.network.network[1] = nn.Sequential(changed.network.network[1], nn.ReLU())  # type: ignore[union-attr, operator, index]
    prints.add(changed.fingerprint)
    assert len(prints) == 5
    assert classifier().fingerprint == classifier().fingerprint


def test_combine_takes_image_by_image_the_smaller_margin() -> None:
    case = classifier().load("images 0 to 7")
    torch.manual_seed(0)
    one, other = (case.images + 0.3 * torch.randn_like(case.images) for _ in range(2))
    best = case.combine(one, other)
    margins = [case.task.margin(case.network(x), case.target) for x in (one, other, best)]
    assert torch.equal(margins[2], torch.minimum(margins[0], margins[1]))
    assert 0 < int((margins[0] < margins[1]).sum()) < 8
    assert torch.equal(case.combine(one, one.clone()), one)


def test_classification_scores() -> None:
    case = classifier().load("images 0 to 7")
    scores = case.scores(case.images)
    assert [s.score for s in scores] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert [s.case for s in scores] == list("01234567")
    for score in scores:
        assert sum(score.probabilities) == pytest.approx(1)
        assert (np.argmax(score.probabilities) == score.label) == bool(score.score)


def test_two_classes_from_one_logit() -> None:
    model = small(network=nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), labels=[0, 1, 0, 0, 1], classes=("no", "yes"))
    (score, *_) = model.load(model.cases[0]).scores(model.images)
    assert len(score.probabilities) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": [torch.zeros(3, 4)]}, r"labels of 0: received \(3, 4\), allowed is \(4, 4\)"),
        ({"labels": [torch.full((4, 4), 2)]}, r"labels of 0: received \[2\], allowed is whole numbers from 0 to 1"),
        ({"labels": []}, "1 images, 0 label maps, 1 names"),
        ({"labels": [torch.full((4, 4), 0.9)]}, r"labels of 0: received \[0.9\], allowed is whole numbers from 0 to 1"),
        ({"network": nn.Conv2d(1, 3, 1), "classes": ("tumour", "tumour")}, "classes: received 'tumour twice'"),
        ({"images": [torch.zeros(1, 4, 4, dtype=torch.int)]}, r"images\[0\]: received 'torch.int32'"),
    ],
)
def test_a_segmentation_that_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {
        "name": "m",
        "network": nn.Conv2d(1, 2, 1),
        "images": [torch.zeros(1, 4, 4)],
        "labels": [torch.zeros(4, 4)],
        "classes": ("lesion",),
    }
    with pytest.raises(InputError, match=said):
        Segmenter(**{**arguments, **changes})


def test_segmentation_scores_by_hand() -> None:
    case = segmenter().load("0")
    assert case.scores(case.images)[0].dice == {"lesion": 1.0}
    found = int((case.images > 0.5).sum())
    (score,) = case.scores(torch.ones_like(case.images))
    assert score.score == pytest.approx(2 * found / (found + 36))
    (score,) = case.scores(torch.zeros_like(case.images))
    assert score.score == 0
    assert math.isnan(score.hd95["lesion"])


def test_a_broken_output_is_wrong_in_every_voxel() -> None:
    case = segmenter().load("0")
    assert case.scores(case.images * math.nan)[0].score == 0


def test_the_lower_dice_is_the_worse_image() -> None:
    case = segmenter().load("0")
    bad = torch.ones_like(case.images)
    assert case.combine(case.images, bad) is bad
    assert case.combine(bad, case.images) is bad


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, float("nan"), 1), (1, float("inf"), 1), (1, 1)])
def test_spacings_that_measure_nothing(spacing: tuple[float, ...]) -> None:
    volume = torch.zeros(1, 3, 4, 5)
    with pytest.raises(InputError, match="^spacing: received .*3 numbers > 0"):
        Segmenter("s", nn.Identity(), [volume], [volume[0].long()], ("a",), regions=True, spacing=spacing)


def test_regions_and_volumes() -> None:
    """Overlapping regions in 3D, with a spacing."""

    class Shells(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x - 0.2, x - 0.6], 1)

    image = torch.zeros(1, 5, 6, 7)
    image[:, 1:4, 1:4, 1:4] = 0.5
    image[:, 2, 1:4, 1:5] = 0.5  # the largest slice
    image[:, 2, 2, 2] = 1
    labels = torch.stack([image[0] > 0.2, image[0] > 0.6]).long()
    model = Segmenter("s", Shells(), [image], [labels], ("whole", "core"), regions=True, spacing=(3, 1, 1))
    case = model.load("0")
    assert case.scores(case.images)[0].dice == {"whole": 1.0, "core": 1.0}
    moved = case.images.clone()
    moved[0, 0, 2, 2, 2], moved[0, 0, 3, 2, 2] = 0.5, 1
    (score,) = case.scores(moved)
    assert score.dice == {"whole": 1.0, "core": 0.0}
    assert score.hd95["core"] == 3
    (picture,) = case.picture(moved)
    assert picture.caption == "slice 3 of 5"
    assert picture.truth[2, 2] == 2
    assert picture.on_attacked[2, 2] == 1


def test_raw_units_are_refused_where_there_are_none() -> None:
    with pytest.raises(InputError, match="unit: received 'raw'"):
        segmenter().load("0").threat(Level("l2", 1.0, "raw"))
    assert segmenter().load("0").threat(Level("l2", 0.5, "rms")).radius(torch.zeros(1, 1, 4, 4)) == 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nothing", "package.module:function or path/to/file.py:function"),
        ("no_such_package:make", "No module named 'no_such_package'"),
        ("nowhere.py:make", "no file nowhere.py"),
        (f"{SUBJECTS}:nothing", f"a function in {SUBJECTS}; known are batch_normed, classifier, failing"),
        (f"{SUBJECTS}:failing", "FileNotFoundError: weights.pt is not there"),
        ("builtins:dict", "this one's lacks name, kind, classes"),
    ],
)
def test_a_factory_that_makes_no_subject_is_refused_with_the_reason(function: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        FactorySource(function).open()
    assert said in str(error.value)


def test_the_box_of_the_command_is_the_subjects_unless_it_has_one() -> None:
    assert FactorySource(f"{SUBJECTS}:segmenter", box=(0.0, 2.0)).open().load("0").threat(
        Level("l2", 1.0, "norm")
    ).box == (
        0.0,
        2.0,
    )
    with pytest.raises(InputError, match="box: received"):
        FactorySource(f"{SUBJECTS}:classifier", box=(0.0, 2.0)).open()
