"""How much of the files' intensity (HU for CT) one unit of a network's input is, by the transforms of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.transforms.compose import Compose
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.intensity.dictionary import ScaleIntensityRanged
from monai.transforms.transform import MapTransform
from monai.transforms.utility.dictionary import CopyItemsd
from monai.utils.enums import CommonKeys

_NAMES = """
LoadImage SaveImage WriteFileMapping

AsChannelLast CastToType ClassesToIndices DataStats DeleteItems EnsureChannelFirst EnsureType FgBgToIndices Identity
IntensityStats RemoveRepeatedChannel RepeatChannel SelectItems SimulateDelay SplitDim SqueezeDim ToCupy
ToDevice ToNumpy ToTensor Transpose

Affine Flip GridDistortion GridPatch GridSplit Orientation Rand2DElastic Rand3DElastic RandAffine RandAxisFlip RandFlip
RandGridDistortion RandGridPatch RandRotate RandRotate90 RandSimulateLowResolution RandZoom ResampleToMatch Resize
Rotate Rotate90 Spacing SpatialResample Zoom

BorderPad CenterScaleCrop CenterSpatialCrop Crop CropForeground DivisiblePad Pad RandCrop
RandCropByLabelClasses RandCropByPosNegLabel RandScaleCrop RandSpatialCrop RandSpatialCropSamples RandWeightedCrop
ResizeWithPadOrCrop SpatialCrop SpatialPad
"""
NEUTRAL = frozenset(name + ending for name in _NAMES.split() for ending in ("", "d"))
"""Of MONAI's transforms those that leave intensities as they are, but for interpolation: others may change them."""
WHY_NOT = (
    "raw radii can be converted only where ScaleIntensityRange is all that changes the intensities, alike for all "
    "images: give the radius in units of the network's input"
)


def flat(transform: Any) -> Sequence[Any]:
    """The transforms one after the other.

    Not by MONAI's ``flatten``: the Compose that it makes seeds the random transforms in it anew.
    """
    kind = type(transform)
    # OneOf and the like are a transform of their own.
    return [part for each in transform.transforms for part in flat(each)] if kind is Compose else [transform]


def dataset_raw_unit(dataset: Any) -> float | None:
    """Raw intensity of one network unit, if one linear scaling is all that changes the intensities of ``image``.

    A window that inverts is as wide as one that does not: a change of the files by 22 HU is one of the same size.

    Example:
        >>> from monai.data import Dataset
        >>> from monai.transforms import ScaleIntensityRanged
        >>> dataset_raw_unit(Dataset([], ScaleIntensityRanged("image", -57, 163, 0, 1)))
        220.0
    """
    units: list[float | None] = []
    for part in flat(getattr(dataset, "transform", None)):
        if not _changes_image(part):
            continue
        if type(part) in (ScaleIntensityRange, ScaleIntensityRanged):
            units.append(_width(getattr(part, "scaler", part)))
        elif not type(part).__module__.startswith("monai.transforms.") or type(part).__name__ not in NEUTRAL:
            return None
    return units[0] if len(units) == 1 else None


def _changes_image(part: Any) -> bool:
    """Whether a transform has to do with ``image``: by its keys, or by where it writes, as ConcatItemsd's ``name``."""
    if isinstance(part, CopyItemsd):
        return CommonKeys.IMAGE in part.names
    if not isinstance(part, MapTransform):
        return True
    named = [each if isinstance(each, list | tuple) else (each,) for each in vars(part).values()]
    return any(isinstance(key, str) and key == CommonKeys.IMAGE for keys in named for key in keys)


def _width(scaler: ScaleIntensityRange) -> float | None:
    """Of the window, for one unit; None of a window without width, which has no scale."""
    ends = (scaler.b_min, scaler.b_max)
    unit = 1.0 if None in ends else float(scaler.b_max - scaler.b_min)  # type: ignore[operator]
    width = float(scaler.a_max - scaler.a_min)
    return abs(width / unit) if width and unit else None
