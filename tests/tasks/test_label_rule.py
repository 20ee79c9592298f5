"""One rule for labels, whoever reads them: whole numbers to within 1e-3, and nothing else in silence."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.tasks import ClassificationTask, SegmentationTask
from monai_adv.tasks.base import is_one_hot, whole_labels
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.case import NNUNetCase
from tests.evaluation.models.test_bundle_evaluation import _segmentation
from tests.tiny_nnunet import write_case, write_model

KEPT = (1.0000001, 0.9995, 1.0004)  # a file's scale factor, half precision
REFUSED = (0.9, 0.5, 1.002, math.nan, math.inf)  # interpolated, or damaged


def plain(value: float, folder: Path) -> Tensor:
    labels = torch.tensor([[0.0, value], [0.0, 0.0]])
    model = Segmenter("m", nn.Conv2d(1, 2, 1), [torch.zeros(1, 2, 2)], [labels], ("lesion",))
    return model.labels[0]


def regions(value: float, folder: Path) -> Tensor:
    labels = torch.tensor([[[0.0, value], [0.0, 0.0]]])
    model = Segmenter("m", nn.Conv2d(1, 1, 1), [torch.zeros(1, 2, 2)], [labels], ("a",), regions=True)
    return model.labels[0]


def classes(value: float, folder: Path) -> Tensor:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    return Classifier("m", network, torch.zeros(2, 1, 2, 2), torch.tensor([0.0, value]), "ab").labels


def bundle(value: float, folder: Path) -> Tensor:
    """The second of two volumes, as the file holds it."""
    source = _segmentation(folder, 2)
    file = folder / "data" / "label1.nii.gz"
    image = nib.load(file)
    values = image.get_fdata().astype(np.float32)
    values[values == 1] = value
    nib.save(nib.Nifti1Image(values, image.affine), file)
    return source.open().load("image1.nii.gz").target  # type: ignore[return-value]


def nnunet(value: float, folder: Path) -> Tensor:
    """Both the map that is scored and the one that is attacked."""
    files = write_case(folder)
    image = SimpleITK.ReadImage(str(files.ground_truth_file), SimpleITK.sitkFloat32)
    values = SimpleITK.GetArrayFromImage(image)
    values[values == 1] = value
    changed = SimpleITK.GetImageFromArray(values)
    changed.CopyInformation(image)
    SimpleITK.WriteImage(changed, str(files.ground_truth_file))
    model = DeployedModel.from_folder(write_model(folder / "model"))
    case = NNUNetCase(model, files, model.as_network())
    assert set(np.unique(case.truth)) == {0, 1, 2}
    assert case.truth.dtype.kind == "i"
    return case.labels


READERS: tuple[Callable[[float, Path], Tensor], ...] = (plain, regions, classes, bundle, nnunet)


@pytest.mark.parametrize("read", READERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [KEPT[0], KEPT[1]])
def test_what_is_nearly_whole_is_what_was_meant(read: Callable[[float, Path], Tensor], value: float, tmp_path: Path):
    labels = read(value, tmp_path)
    assert labels.dtype == torch.int64
    assert 1 in labels
    (tmp_path / "whole").mkdir()
    assert torch.equal(labels, read(1.0, tmp_path / "whole"))


@pytest.mark.parametrize("read", READERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [0.9, math.nan])
def test_what_is_not_is_refused_with_its_cause(read: Callable[[float, Path], Tensor], value: float, tmp_path: Path):
    with pytest.raises(InputError, match="nearest neighbours" if value == 0.9 else "NaN or inf"):
        read(value, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rule(dtype: torch.dtype) -> None:
    assert whole_labels("label", torch.tensor(KEPT, dtype=dtype)).tolist() == [1, 1, 1]
    for value in REFUSED:
        with pytest.raises(InputError, match=r"label: received \["):
            whole_labels("label", torch.tensor([0.0, value], dtype=dtype))
    for whole in (torch.tensor([True, False]), torch.tensor([1, 0], dtype=torch.uint8)):
        assert whole_labels("label", whole).tolist() == [1, 0]


def test_a_task_counts_a_label_that_is_nearly_whole() -> None:
    """Dice of a perfect prediction is 1 by definition, and an ignored voxel is ignored."""
    labels = torch.tensor([0, 1, 2, 2]).view(1, 1, 2, 2)
    logits = 9.0 * torch.nn.functional.one_hot(labels[:, 0].clamp(max=1)).movedim(-1, 1)
    logits[0, :, 1, 1] = logits[0, :, 1, 1].flip(0)
    task = SegmentationTask(lambda output, target: output.sum(), ignore_label=2)
    for off in (0.0, 1e-7, -4e-4):
        assert task.dice(logits, labels.double() + off).tolist() == [[1.0]]
        assert torch.equal(task.sample_loss(logits, labels.double() + off), task.sample_loss(logits, labels))
    assert ClassificationTask.labels(torch.tensor([0.9999, 1.0001]), 3).tolist() == [1, 1]


def test_one_hot_is_one_and_zeros() -> None:
    rows = torch.tensor([[0.0, 1.0], [1e-4, 0.9999], [0.4, 0.6], [1.0, 1.0], [0.0, 0.0], [-1.0, 2.0]])
    assert is_one_hot(rows).tolist() == [True, True, False, False, False, False]
    assert is_one_hot(torch.tensor([[True, False], [True, True]])).tolist() == [True, False]
