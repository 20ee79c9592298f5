"""The range of intensities that a bundle scales to [0, 1]: checked, because radii of attacks depend on it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from monai_adv.errors import InputError


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
                name = image.meta.get("filename_or_obj", "an image") if isinstance(image, MetaTensor) else "an image"
                raise InputError.of(
                    "image", f"{name} with intensities from {lowest:g} to {highest:g}", f"0 to {self.high:g}",
                    "give --intensity_high: 255 for images of 8 bits, 4095 for 12, 65535 for 16",
                )  # fmt: skip
        return dict(data)
