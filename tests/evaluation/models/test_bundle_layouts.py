"""Layout of labels and randomness are judged for every case of a bundle, not for the first one only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data.dataset import Dataset
from monai.inferers.inferer import SimpleInferer
from monai.transforms.compose import Compose
from monai.transforms.spatial.dictionary import RandFlipd
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.bundle.models import BundleClassifier, BundleSegmenter, as_model
from monai_adv.evaluation.models.bundle.opened import OpenBundle

IMAGE = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
THERE = (IMAGE > 0.5).float()
INDEX, ONE_HOT, REGIONS = THERE, torch.cat([1 - THERE, THERE]), torch.cat([torch.ones_like(THERE), THERE])


def bundle(*labels: Any, network: nn.Module | None = None) -> OpenBundle:
    items = [{"image": IMAGE, "label": label} for label in labels]
    return OpenBundle("m", network or nn.Conv2d(1, 2, 1), SimpleInferer(), items)


@pytest.mark.parametrize("layout", [INDEX, ONE_HOT, REGIONS], ids=["index", "one-hot", "regions"])
def test_labels_of_one_layout_give_one_truth(layout: Tensor) -> None:
    model = as_model(bundle(layout, layout))
    assert isinstance(model, BundleSegmenter)
    targets = [model.load(case).target for case in model.cases]
    assert torch.equal(*targets)  # type: ignore[arg-type]
    assert torch.equal(targets[1][0, -1], THERE[0].long())  # type: ignore[index]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (INDEX, ONE_HOT, r"label of 1: received \(2, 4, 4\), allowed is \(1, 4, 4\), as of the first case"),
        (ONE_HOT, INDEX, r"label of 1: received \(1, 4, 4\), allowed is \(2, 4, 4\), as of the first case"),
        (ONE_HOT, REGIONS, "label of 1: received 'regions, which overlap.* allowed is one class in every voxel"),
        (REGIONS, ONE_HOT, "label of 1: received 'one class in every voxel', allowed is regions"),
        (INDEX, torch.tensor(1), r"label of 1: received \(\), allowed is \(1, 4, 4\)"),
        (INDEX, INDEX[:, :2], r"label of 1: received \(1, 2, 4\), allowed is \(1, 4, 4\)"),
        (ONE_HOT, 0.9 * ONE_HOT, r"label of 1: received \[0.9\], allowed is whole numbers; .*nearest neighbours"),
    ],
)
def test_another_layout_is_refused_for_its_case_alone(first: Tensor, second: Tensor, said: str) -> None:
    model = as_model(bundle(first, second, first))
    model.load("0"), model.load("2")
    with pytest.raises(InputError, match=said):
        model.load("1")


def test_a_classifiers_labels_have_one_layout() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model = as_model(bundle(0, torch.tensor([0.0, 1.0]), INDEX, 0.5, 1, network=network))
    assert isinstance(model, BundleClassifier)
    assert model.names == ("0", "4")
    assert [problem.split(",")[0] for problem in model.problems] == [
        "label of 1: received (2", "label of 2: received (1", "label of 3: received [0.5]",
    ]  # fmt: skip


def test_a_case_that_is_another_one_the_next_time_is_refused() -> None:
    class Items(list[Any]):
        def __getitem__(self, i: Any) -> Any:
            noise = torch.rand(1) if i == 1 else 0
            return {"image": IMAGE + noise, "label": INDEX}

    model = as_model(OpenBundle("m", nn.Conv2d(1, 2, 1), SimpleInferer(), Items([0, 1])))
    model.load("0")
    with pytest.raises(InputError, match="preprocessing that is random.*see 1"):
        model.load("1")


def test_what_is_meant_to_be_random_is_refused_even_if_it_did_nothing_yet() -> None:
    def model(prob: float) -> Any:
        transform = Compose([RandFlipd("image", prob=prob)])
        items = Dataset([{"image": IMAGE, "label": INDEX}], transform)
        return as_model(OpenBundle("m", nn.Conv2d(1, 2, 1), SimpleInferer(), items))

    assert model(0.0).cases == ("0",)
    with pytest.raises(InputError, match=r"preprocessing that is random \(RandFlipd\)"):
        model(1e-9)
