"""What a notebook hands in: outputs of every make, loaders, labels. Each is taken as what it is, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from monai_adv.errors import InputError
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.memory import collect, model_of
from monai_adv.evaluation.models.segmenter import Segmenter
from tests.linear_classifier import problem

CLASSIFIER, IMAGES, LABELS = problem(2, (1, 4, 4), count=6, dtype=torch.float32)
SCANS = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
MAPS = (SCANS[:, 0] > 0.5).long()


class Made(nn.Module):
    """A network with an output of another make."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def logits(x: Tensor) -> Tensor:
    found: Tensor = CLASSIFIER(x)
    return found


def voxels(x: Tensor) -> Tensor:
    """Two classes, told apart at 0.5."""
    return torch.cat([0.5 - x, x - 0.5], 1)


def opened(make: Callable[[Tensor], Any], images: Any, labels: Any, **more: Any) -> Classifier | Segmenter:
    given = {"classes": None, "box": None, "regions": None, "spacing": None} | more
    return model_of(Made(make), collect(images, labels), "mine", **given)


@pytest.mark.parametrize(
    "make",
    [
        logits,
        lambda x: logits(x)[:, :, None, None],  # fully convolutional
        lambda x: logits(x)[:, 1:] - logits(x)[:, :1],
        lambda x: logits(x)[:, 1] - logits(x)[:, 0],
        lambda x: (logits(x), x),
    ],
)
def test_outputs_of_a_classifier(make: Callable[[Tensor], Any]) -> None:
    model = opened(make, IMAGES, LABELS)
    assert isinstance(model, Classifier)
    assert model.classes == ("class 0", "class 1")
    found = model.load(model.cases[0]).scores(IMAGES)
    assert [s.score for s in found] == [1.0] * 6
    expected = logits(IMAGES).softmax(1).tolist()
    assert [list(s.probabilities) for s in found] == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize(
    "make",
    [
        voxels,
        lambda x: [voxels(x), voxels(x)[..., ::2, ::2]],
        lambda x: voxels(x)[:, 1:],  # a region of its own: one sigmoid
        lambda x: voxels(x).half(),
    ],
)
def test_outputs_of_a_segmentation(make: Callable[[Tensor], Any]) -> None:
    model = opened(make, SCANS, MAPS)
    assert isinstance(model, Segmenter)
    assert [model.load(case).scores(scan[None])[0].score for case, scan in zip(model.cases, SCANS, strict=True)] == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("make", "images", "labels", "said"),
    [
        (lambda x: {"out": voxels(x)}, SCANS, MAPS, "output: received 'a dict with out', allowed is a tensor"),
        (lambda x: voxels(x).argmax(1), SCANS, MAPS, "output: received 'torch.int64', allowed is logits"),
        (lambda x: logits(x).argmax(1), IMAGES, LABELS, "output: received 'torch.int64', allowed is logits"),
        (lambda x: (logits(x)[:, 1:] - logits(x)[:, :1]).squeeze(), IMAGES, LABELS, "squeeze that of the batch"),
        (lambda x: [voxels(x)[..., ::2, ::2], voxels(x)], SCANS, MAPS, "the full one comes first"),
        (lambda x: voxels(x)[..., 1:-1], SCANS, MAPS, "a map of each image of its own size"),
        (nn.Conv2d(1, 2, 1), SCANS[:, 0], MAPS, "an axis of the images may be missing"),
        (lambda x: torch.cat([voxels(x), x], 1), SCANS, torch.ones(2, 3, 6, 6), "regions that overlap, regions=True"),
    ],
)  # fmt: skip
def test_outputs_that_are_no_logits_of_these_images(make: Any, images: Tensor, labels: Tensor, said: str) -> None:
    with pytest.raises(InputError) as error:
        opened(make, images, labels)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("spacing", "expected"), [(None, [6.0, 1.5]), ((1, 1), [3.0, 3.0]), (np.array([2, 1], np.float32), [6.0, 6.0])]
)
def test_distances_are_in_the_millimetres_that_the_files_told(spacing: Any, expected: list[float]) -> None:
    """One row is the object; another, three voxels away, is found."""
    maps = torch.zeros(2, 1, 6, 6).index_fill(2, torch.tensor(1), 1)
    scans = maps.roll(3, 2)
    told = [
        {"filename_or_obj": "a.nii", "affine": torch.diag(torch.tensor([*mm, 1.0, 1.0]))}
        for mm in ((2.0, 1.0), (0.5, 4.0))
    ]
    pairs = [(MetaTensor(scan, meta=meta), label) for scan, meta, label in zip(scans, told, maps, strict=True)]
    model = opened(voxels, DataLoader(pairs, 2, collate_fn=list_data_collate), None, spacing=spacing)  # type: ignore[arg-type]
    found = [model.load(case).scores(scan[None])[0] for case, scan in zip(model.cases, scans, strict=True)]
    assert [s.hd95["class 1"] for s in found] == pytest.approx(expected)


def test_a_new_tensor_of_monai_knows_no_millimetres() -> None:
    assert collect([MetaTensor(scan) for scan in SCANS], MAPS).spacings == [None, None]


def test_one_channel_is_a_region() -> None:
    with pytest.raises(InputError, match="regions: received False, allowed is True, or nothing"):
        opened(lambda x: voxels(x)[:, 1:], SCANS, MAPS, regions=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_goes_inside_of_a_module() -> None:
    script = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    given = collect(IMAGES, LABELS), "mine", None, None, None, None
    with pytest.raises(InputError, match=r"network: received 'a TorchScript module'.*torch.nn.Sequential\(network\)"):
        model_of(script, *given)
    case = model_of(nn.Sequential(script), *given).load("images 0 to 5")
    found = [list(s.probabilities) for s in case.scores(IMAGES)]
    assert found == [pytest.approx(row) for row in script(IMAGES).softmax(1).tolist()]


PAIRS = TensorDataset(IMAGES, LABELS)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(PAIRS)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(PAIRS, None),
        DataLoader(PAIRS, 3, drop_last=True),
        DataLoader(Stream(), 4),
        DataLoader(Stream(), None),
        DataLoader(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 4, False)),
    ],
)
def test_loaders(loader: DataLoader[Any]) -> None:
    found = collect(loader, None)
    assert torch.equal(torch.stack(list(found.images)), IMAGES)
    assert torch.equal(torch.stack(list(found.labels)), LABELS)


@pytest.mark.parametrize(
    ("loader", "labels", "said"),
    [
        (DataLoader(PAIRS, 2, sampler=DistributedSampler(PAIRS, 2, 0)), None, "share of one rank"),
        (DataLoader(Stream(), 4, drop_last=True), None, "drops its last images"),
        (DataLoader(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 4, True)), None, "drops its last"),
        (DataLoader(PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 4, False)), None, "that shuffles"),
        (
            DataLoader(TensorDataset(IMAGES), 1),
            LABELS,
            "labels: received 'Tensor', allowed is None beside a DataLoader",
        ),
    ],
)
def test_images_that_a_loader_would_lose_or_mix(loader: DataLoader[Any], labels: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        collect(loader, labels)


def test_a_table_of_labels_gives_its_rows() -> None:
    table = pandas.DataFrame({"label": LABELS.numpy()}, index=range(6, 0, -1))
    for labels in (table, table["label"]):
        assert [int(label) for label in collect(IMAGES, labels).labels] == LABELS.tolist()
