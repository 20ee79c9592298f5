"""What one network unit is in the files: known where one linear scaling is all that happens to the image."""

from __future__ import annotations

from typing import Any

import monai.transforms
import pytest
import torch
from monai.data.dataset import Dataset
from monai.transforms.compose import Compose, OneOf
from monai.transforms.croppad.dictionary import CropForegroundd, RandCropByPosNegLabeld
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.intensity.dictionary import MedianSmoothd, NormalizeIntensityd, ScaleIntensityRanged
from monai.transforms.spatial.array import Flip
from monai.transforms.spatial.dictionary import RandFlipd, Spacingd
from monai.transforms.transform import MapTransform
from monai.transforms.utility.dictionary import (
    ConcatItemsd,
    CopyItemsd,
    EnsureTyped,
    FgBgToIndicesd,
    Lambdad,
    TorchVisiond,
)

from monai_adv.engines.raw_unit import NEUTRAL, dataset_raw_unit

WINDOW = ScaleIntensityRanged("image", -57, 163, 0, 1)


class Spacing(MapTransform):
    """Somebody's own, of a name that MONAI has too."""

    def __call__(self, data: Any) -> Any:
        return data


class Wider(ScaleIntensityRanged):
    """A scaling of somebody's own, which may do more."""


def unit(*transforms: Any) -> float | None:
    return dataset_raw_unit(Dataset([], Compose(list(transforms))))


@pytest.mark.parametrize(
    "others",
    [
        [],
        [Spacingd(["image", "label"], (1.0, 1.0)), EnsureTyped(["image", "label"])],
        [CropForegroundd("image", source_key="image"), RandFlipd(["image", "label"])],
        [FgBgToIndicesd("label", image_key="image"), RandCropByPosNegLabeld("label", "label", 8, image_key="image")],
        [ScaleIntensityRanged("label", 0, 255, 0, 1), NormalizeIntensityd("other"), Lambdad("label", torch.sign)],
        [CopyItemsd("image", names="as_it_was")],
        [Compose([Spacingd("image", (1.0, 1.0))])],
    ],
)
def test_what_leaves_the_image_alone_changes_nothing(others: list[Any]) -> None:
    """163 - (-57) HU are one unit."""
    assert unit(WINDOW, *others) == unit(*others, WINDOW) == 220


@pytest.mark.parametrize(
    "other",
    [
        # A unit of the network is 55 HU then: whoever says 220 is wrong by a factor of 4.
        TorchVisiond("image", name="Normalize", mean=[0.5], std=[0.25]),
        NormalizeIntensityd(["label", "image"]),
        MedianSmoothd("image", 1),
        Lambdad("image", torch.square),
        Lambdad("other", torch.square, overwrite="image"),
        ConcatItemsd(["image", "other"], name="image"),
        ConcatItemsd(["ct", "other"], name="image"),
        CopyItemsd("ct", names="image"),
        OneOf([Spacingd("image", (1.0, 1.0))]),
        Spacing(["image"]),
        lambda item: item,
        WINDOW,
    ],
)
def test_what_may_change_the_image_leaves_no_scale(other: Any) -> None:
    assert unit(WINDOW, other) is None
    assert unit(other, WINDOW) is None


@pytest.mark.parametrize(
    "transform",
    [
        ScaleIntensityRanged("label", 0, 255, 0, 1),
        Wider("image", 0, 255, 0, 1),
        ScaleIntensityRanged("image", 0, 255, 1, 1),
        ScaleIntensityRanged("image", 7, 7, 0, 1),
        None,
    ],
)
def test_no_scaling_of_the_image_is_no_scale(transform: Any) -> None:
    assert dataset_raw_unit(Dataset([], transform)) is None


def test_an_inverted_window_is_as_wide() -> None:
    """22 HU become -0.1: a change of that size."""
    inverted = ScaleIntensityRanged("image", -57, 163, 1, 0)
    item = inverted({"image": torch.tensor([[0.0, 22.0]])})["image"]
    assert float((item[0, 1] - item[0, 0]).abs()) == pytest.approx(22 / 220)
    assert unit(inverted) == 220
    assert unit(ScaleIntensityRange(163, -57, 0, 1)) == 220


def test_scalings_without_a_target_and_of_arrays() -> None:
    assert unit(ScaleIntensityRanged("image", 0, 210)) == 210
    assert unit(ScaleIntensityRanged(["image", "label"], -1000, 1000, -1, 1)) == 1000
    assert unit(Flip(0), ScaleIntensityRange(0, 255, 0, 1)) == 255


def test_the_neutral_ones_are_monais() -> None:
    """A slip of the pen would refuse a radius."""
    assert [n for n in NEUTRAL if n + "d" in NEUTRAL and not hasattr(monai.transforms, n + "d")] == []
