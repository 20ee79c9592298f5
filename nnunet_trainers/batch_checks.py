"""What a batch is refused for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from monai_adv.errors import InputError


def refuse_bad_samples(
    images: Tensor, target: Tensor | list[Tensor], batch: Mapping[str, Any], label_manager: Any
) -> None:
    """NaN voxels and unknown labels poison all that follows, so name their case.

    Args:
        images: ``(B, C, *spatial)``, on the device.
        target: of every resolution, or of the full one.
        batch: the host's, which says where the samples are from.
        label_manager: the host's.

    Raises:
        InputError: case and slice, and what is wrong with them.
    """
    full = target[0] if isinstance(target, list) else target
    finite = torch.isfinite(images).flatten(1).all(1)
    # With regions the labels are gone: nnU-Net has made a 0/1 map of each region.
    highest = max(*label_manager.all_labels, label_manager.ignore_label or 0)
    known = torch.ones_like(finite)
    if not label_manager.has_regions:
        known = ((full >= 0) & (full <= highest)).flatten(1).all(1)
    for position in (~(finite & known)).nonzero()[:, 0].tolist():
        case = f"case {batch['keys'][position]}" if "keys" in batch else f"sample {position} of a batch"
        case += f", slice {batch['slices'][position]}" if images.ndim == 4 and "slices" in batch else ""
        if not finite[position]:
            raise InputError.of("images", f"NaN or infinite voxels in {case}", "finite intensities",
                                "fix the image and preprocess again")  # fmt: skip
        found: Any = full[position]
        raise InputError.of(
            "target", f"labels {found.unique().tolist()} in {case}",
            f"the plan's labels 0 to {highest}", "fix the segmentation or dataset.json and preprocess again",
        )  # fmt: skip
