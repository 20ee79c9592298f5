"""What an attack promises about the images that it returns, and whether it has kept to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_adv.threats import Threat

TOLERANCE = 1e-5
"""Largest share by which a perturbation may exceed its radius, and an image its box."""


def used(threat: Threat, clean: Tensor, images: Tensor, radius: Tensor | None = None) -> tuple[float, list[str]]:
    """The largest share of the radius that attacked images use, and all in which they break the threat, in words.

    Args:
        threat: norm, radius, box, channels.
        clean: ``(B, C, *spatial)``.
        images: as attacked, of the same shape.
        radius: ``(B,)`` of each sample; default: the threat's.

    Example:
        >>> clean = torch.zeros(1, 1, 4)
        >>> used(Threat("linf", 0.5), clean, clean + 0.25)
        (0.5, [])
        >>> used(Threat("linf", 0.5), clean, clean + 1.25)
        (2.5, ['the perturbation has the size 1.25 where the radius is 0.5 (L-inf radius 0.5, no box)'])
    """
    faults = []
    delta = images.double() - clean.double()
    size = threat.size(delta)
    allowed = threat.radius(clean.double()) if radius is None else radius.double()
    shares = torch.where((size == 0) & (allowed == 0), torch.zeros_like(size), size / allowed)
    share = float(shares.max())
    if not bool(images.isfinite().all()):
        faults.append("an image has voxels that are NaN or infinite")
    elif not share <= 1 + TOLERANCE:
        most = int(shares.argmax())
        faults.append(
            f"the perturbation has the size {float(size[most]):.8g} where the radius is {float(allowed[most]):.8g} "
            f"({threat.describe()})"
        )
    if threat.box is not None:
        channels = slice(None) if threat.channels is None else list(threat.channels)
        attacked, before = images[:, channels], clean[:, channels]
        beyond = float((threat.clip(attacked, before) - attacked).abs().max())
        if beyond > TOLERANCE * (threat.box[1] - threat.box[0]):
            faults.append(f"an image leaves the box {threat.box} by {beyond:.4g}")
    if threat.channels is not None:
        others = [c for c in range(clean.shape[1]) if c not in threat.channels]
        if bool(delta[:, others].any()):
            faults.append("a channel that is not an intensity was changed")
    return share, faults


def same_layout(images: Any, clean: Tensor) -> list[str]:
    """In which attacked images are no tensor like the clean ones; in words."""
    if not isinstance(images, Tensor):
        return [f"it returned {type(images).__name__}, allowed is a tensor of images"]
    if images.shape != clean.shape or images.dtype != clean.dtype:
        found, given = (f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in (images, clean))
        return [f"it returned {found}, allowed is what it got, {given}"]
    return []


def shape_faults(result: Any, clean: Tensor) -> list[str]:
    """In which a result has not the parts of an :class:`~monai_adv.attacks.base.AttackResult`, in words."""
    parts = ("images", "wrong", "margin", "dead", "broken", "passes")
    if any(not hasattr(result, part) for part in parts):
        return [
            f"it returned {type(result).__name__}, allowed is an AttackResult (a function that returns images joins "
            "through monai_adv.attacks.foreign.Foreign)"
        ]
    faults = same_layout(result.images, clean)
    for part in parts[1:5]:
        values = getattr(result, part)
        if not isinstance(values, Tensor) or values.shape != clean.shape[:1]:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            faults.append(f"its {part!r} is {found}, allowed is one value per image, ({len(clean)},)")
    return faults
