"""How much of the files' intensity (HU for CT) one unit of a network's input is, by the transforms of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.transforms.compose import Compose
from monai.transforms.intensity.array import ScaleIntensityRange

NEUTRAL = tuple(f"monai.transforms.{part}." for part in ("io", "spatial", "croppad", "utility"))
"""Transforms that leave intensities as they are, but for interpolation."""
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
    """Raw intensity of one network unit, if one linear scaling is all that changes intensities.

    Example:
        >>> from monai.data import Dataset
        >>> from monai.transforms import ScaleIntensityRanged
        >>> dataset_raw_unit(Dataset([], ScaleIntensityRanged("image", -57, 163, 0, 1)))
        220.0
    """
    units = []
    for part in flat(getattr(dataset, "transform", None)):
        module, kind = type(part).__module__, type(part).__name__
        scaler = getattr(part, "scaler", part)
        if isinstance(scaler, ScaleIntensityRange):
            ends = (scaler.b_min, scaler.b_max)
            width = 1.0 if None in ends else scaler.b_max - scaler.b_min  # type: ignore[operator]
            units.append((scaler.a_max - scaler.a_min) / width)
        elif not module.startswith(NEUTRAL) or "Lambda" in kind:
            return None
    return float(units[0]) if len(units) == 1 else None
