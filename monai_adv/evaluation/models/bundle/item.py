"""One image of a bundle's data set, with its label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.evaluation.models.geometry import Geometry, compare, told_spacing
from monai_adv.evaluation.models.plain import digest_of
from monai_adv.metrics.segmentation import check_spacing
from monai_adv.tasks.base import whole_labels


@dataclass(frozen=True)
class Item:
    """``(C, *spatial)`` image on the CPU, its label, the spacing in mm (None: not known), and notes on its geometry."""

    image: Tensor
    label: Tensor
    spacing: tuple[float, ...] | None
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Changes with any of the three."""
        return digest_of(self.image, self.label, self.spacing)


def item_of(found: Any, name: str) -> Item:
    """What a data set gave, checked.

    Args:
        found: a mapping with ``image`` and ``label``, or a pair of them.
        name: of the case, for errors.

    Raises:
        InputError: neither of them, intensities that are not finite, a label that is not whole, or voxels without size.
    """
    pair = [found.get("image"), found.get("label")] if isinstance(found, dict) else found
    if not isinstance(pair, list | tuple) or len(pair) != 2 or any(part is None for part in pair):
        keys = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        allowed = "items with the keys image and label, or pairs of them"
        raise InputError.of("dataset", f"items with {keys}", allowed, "an attack needs the truth")
    image, label = (torch.as_tensor(part) for part in pair)
    spacing = told_spacing(label, image)
    image = (image.as_tensor() if isinstance(image, MetaTensor) else image).float()
    label = whole_labels(f"label of {name}", label.as_tensor() if isinstance(label, MetaTensor) else label)
    if not bool(image.isfinite().all()):
        raise InputError.of("case", name, "finite intensities", "there is NaN or infinity in its image")
    if label.ndim == image.ndim - 1 and label.shape == image.shape[1:] and label.ndim > 1:
        label = label[None]
    if label.ndim != image.ndim:
        return Item(image, label, spacing and spacing[: image.ndim - 1], ())
    if spacing is not None:  # distances of the segmentation are measured with it
        spacing = check_spacing(spacing[: image.ndim - 1], min(len(spacing), image.ndim - 1))
    return Item(image, label, spacing, _notes(*pair))


def _notes(image: Any, label: Any) -> tuple[str, ...]:
    """Where a label map lies, if both tensors tell; one that a transform made anew says the identity of anything."""
    if not (isinstance(image, MetaTensor) and isinstance(label, MetaTensor)):
        return ()
    if any(not {"original_affine", "filename_or_obj"} & set(t.meta) for t in (image, label)):
        return ()
    if image.affine.shape != label.affine.shape:
        return ()
    pair = [
        (str(t.meta.get("filename_or_obj", what)), t.affine.cpu()) for what, t in (("image", image), ("label", label))
    ]
    return compare(*(Geometry.from_affine(*each) for each in pair), refuse=False)
