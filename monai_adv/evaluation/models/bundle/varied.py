"""A bundle's images, changed as their files hold them: after they are loaded, before all other preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.utility.dictionary import EnsureChannelFirstd
from torch import Tensor
from torch.utils.data import Subset

from monai_adv.variations.base import NotApplicable
from monai_adv.variations.scan import Change, Scan, changed

AT_FILES = "the images as the files hold them, before all other preprocessing of the bundle"
Item = Mapping[str, Any]
"""Of a bundle's data set: which keys it has is the bundle's affair."""
Transform = Callable[[Item], Any]


def unchanged(scan: Scan, number: int) -> Tensor:
    """The scan as it is."""
    return scan.voxels


def varied_dataset(dataset: Any, change: Change) -> Any:
    """The same items with a change right after their images are loaded.

    Returns:
        None where ``image`` is not loaded by a LoadImaged of a MONAI data set.
    """
    if isinstance(dataset, Subset):
        inner = varied_dataset(dataset.dataset, change)
        return None if inner is None else Subset(inner, dataset.indices)
    transform = getattr(dataset, "transform", None)
    if not isinstance(dataset, Dataset) or transform is None:
        return None
    varied = _with(transform, change)
    return None if varied is None else Dataset(dataset.data, varied)


def not_applicable(error: BaseException | None) -> NotApplicable | None:
    """What a change said about an image, if that is what MONAI wrapped."""
    while error is not None:
        if isinstance(error, NotApplicable):
            return error
        error = error.__cause__
    return None


def input_names(metadata: Path) -> list[str]:
    """What metadata.json says that the input channels are: their names if these are modalities, or the modality."""
    try:
        described = json.loads(metadata.read_text(encoding="utf-8"))["network_data_format"]["inputs"]["image"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    if not isinstance(described, dict):
        return []
    names = described.get("channel_def")
    channels = [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else []
    modality = described.get("modality")
    return channels if len(channels) > 1 or not isinstance(modality, str) else [modality]


def _with(transform: Any, change: Change) -> Compose | None:
    """A chain of transforms with one more behind the loading of ``image``, and of its channels where that is apart."""
    if type(transform) is not Compose:
        return _with(Compose([transform]), change)
    parts = list(transform.transforms)
    for i, part in enumerate(parts):
        if type(part) is Compose:
            if (found := _with(part, change)) is None:
                continue
            parts[i] = found
        elif isinstance(part, LoadImaged) and "image" in part.keys:
            apart = (
                i + 1 < len(parts) and isinstance(parts[i + 1], EnsureChannelFirstd) and "image" in parts[i + 1].keys
            )
            first = apart or part._loader.ensure_channel_first
            parts.insert(i + 1 + apart, _Vary(change, first))
        else:
            continue
        whole: Compose = copy(transform)  # with its other settings, such as lazy
        whole.transforms = tuple(parts)
        return whole
    return None


class _Vary:
    """Changes ``image`` of an item; files are read with x first."""

    def __init__(self, change: Change, channels_first: bool) -> None:
        self.change, self.channels_first = change, channels_first

    def __call__(self, item: Item) -> Item:
        image = torch.as_tensor(item["image"])
        values = (image.as_tensor() if isinstance(image, MetaTensor) else image).float()
        channel, axes = 0 if self.channels_first else _channel_axis(image), 0
        if channel is None:
            values = values[None]
        else:
            values = values.movedim(channel, 0)
        while values.ndim > 3 and values.shape[-1] == 1:  # a slice as a volume
            values, axes = values[..., 0], axes + 1
        varied = changed(values, self.change, spacing=_spacing(image, values.ndim - 1), x_first=True)
        varied = varied.reshape(*varied.shape, *[1] * axes)
        varied = varied[0] if channel is None else varied.movedim(0, channel)
        if isinstance(image, MetaTensor):
            varied = MetaTensor(varied, meta=image.meta, applied_operations=image.applied_operations)
        return {**item, "image": varied}


def _channel_axis(image: Tensor) -> int | None:
    """What MONAI notes about it; None without channels."""
    noted = image.meta.get("original_channel_dim") if isinstance(image, MetaTensor) else None
    return int(noted) if isinstance(noted, int | float) and noted == noted else None


def _spacing(image: Tensor, axes: int) -> tuple[float, ...] | None:
    """In mm, where the image comes from a file that tells it; a PNG does not."""
    if not isinstance(image, MetaTensor) or "pixdim" not in image.meta:
        return None
    return tuple(float(mm) for mm in affine_to_spacing(image.affine, len(image.affine) - 1, suppress_zeros=False))[
        :axes
    ]
