"""Transforms of the bundles that MONAI does not have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from torch import Tensor

from monai_adv.errors import InputError


class GreySliced(MapTransform):
    """One grey slice with a channel axis, ``(1, W, H)``, from what LoadImaged gives for PNG, NIfTI or DICOM.

    Args:
        keys: of the images, as LoadImaged gives them: ``(W, H)`` or with axes of length one behind.

    Raises:
        InputError: an image in colours, or a volume; names the file.

    Example:
        >>> GreySliced("image")({"image": torch.zeros(5, 4, 1)})["image"].shape
        torch.Size([1, 5, 4])
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same dictionary with other images."""
        changed = dict(data)
        for key in self.key_iterator(changed):
            image = torch.as_tensor(changed[key])
            if image.ndim < 2 or any(size != 1 for size in image.shape[2:]):
                raise InputError.of(
                    "image", f"{_file_of(image)} of shape {tuple(image.shape)}", "one grey slice (W, H)",
                    "convert images in colours, and take a slice of a volume",
                )  # fmt: skip
            changed[key] = self._with_channel(image)
        return changed

    @staticmethod
    def _with_channel(image: Tensor) -> Tensor:
        slice_: Tensor = image.reshape(1, *image.shape[:2])
        if isinstance(slice_, MetaTensor):
            slice_.meta["original_channel_dim"] = "no_channel"
        return slice_


class WithinRanged(MapTransform):
    """Refuses an image with intensities below 0 or above the stated maximum; changes nothing.

    Args:
        keys: of the images.
        high: the maximum of the format, not of an image: 255 for 8 bits, 4095 for 12, 65535 for 16.

    Raises:
        InputError: names the file and the range in it.

    Example:
        >>> image = {"image": torch.tensor([[0.0, 255.0]])}
        >>> WithinRanged("image", high=255)(image)["image"].tolist()
        [[0.0, 255.0]]
    """

    def __init__(self, keys: KeysCollection, high: float) -> None:
        super().__init__(keys)
        if not high > 0:
            raise InputError.of("intensity_high", high, "a number > 0, such as 255 for images of 8 bits")
        self.high = high

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same dictionary."""
        for key in self.key_iterator(dict(data)):
            image = torch.as_tensor(data[key])
            lowest, highest = float(image.min()), float(image.max())
            if not (lowest >= 0 and highest <= self.high):  # NaN is refused as well
                found = f"{_file_of(image)} with intensities from {lowest:g} to {highest:g}"
                raise InputError.of(
                    "image", found, f"0 to {self.high:g}",
                    "give --intensity_high: 255 for images of 8 bits, 4095 for 12, 65535 for 16",
                )  # fmt: skip
        return dict(data)


def _file_of(image: Tensor) -> str:
    return str(image.meta.get("filename_or_obj", "an image")) if isinstance(image, MetaTensor) else "an image"
