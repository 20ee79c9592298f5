"""What a bundle's network and labels are: classification or segmentation, and how the labels are laid out.

Tasks want class indices (classification), label maps ``(B, 1, *spatial)`` or 0/1 maps of regions (segmentation).
Bundles also have one-hot labels and labels without a channel axis; the bundle's own loss gets what the bundle made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_adv.defenses.ranks import on_any_rank
from monai_adv.engines.bundle_rule import Rule
from monai_adv.errors import InputError
from monai_adv.tasks import Output, Target
from monai_adv.tasks.base import check_labels, first_resolution, is_one_hot

Kind = Literal["classification", "segmentation"]
KINDS: tuple[Kind, ...] = ("classification", "segmentation")
OTHER_KINDS = "landmarks, registration and other tasks whose truth is not a class are not supported"


@dataclass(frozen=True)
class Layout:
    """How a bundle lays out its labels.

    Attributes:
        classes: channels of a one-hot label; 0 for every other label.
        dtype: of a one-hot label.
        channel: whether a segmentation label has a channel axis.
        regions: each channel of the output is a region of its own (sigmoid).
        sigmoid: exclusive classes, but each channel behind the background is judged for itself (sigmoid).

    Example:
        >>> label = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # (B, K, L): voxel 0 is class 1, voxel 1 is class 0
        >>> layout = Layout(classes=2)
        >>> layout.to_task(label), bool((layout.to_bundle(layout.to_task(label)) == label).all())
        (tensor([[[1, 0]]]), True)
    """

    classes: int = 0
    dtype: torch.dtype = torch.float32
    channel: bool = True
    regions: bool = False
    sigmoid: bool = False

    @property
    def words(self) -> str:
        """For the log."""
        labels = "one-hot" if self.classes else "regions" if self.regions else "label values"
        return f"{labels}; decided is {self.decision}"

    @property
    def decision(self) -> str:
        """What becomes of the logits, in words."""
        if self.regions or self.sigmoid:
            return "each channel by its sigmoid above 0.5" + ("" if self.regions else ", the background left out")
        return "the class by the largest logit"

    def to_task(self, label: Tensor) -> Tensor:
        """The label as a task wants it."""
        if self.classes:
            return (label.int() if label.dtype == torch.bool else label).argmax(1, keepdim=True)
        return label if self.channel else label[:, None]

    def to_bundle(self, target: Target) -> Tensor:
        """The label as the bundle made it."""
        values = first_resolution(target)
        if self.classes:
            return F.one_hot(values[:, 0], self.classes).movedim(-1, 1).to(self.dtype)
        return values if self.channel else values[:, 0]


def kind_of_data(items: Any) -> Kind | None:
    """What the labels of a data list suggest before any is loaded: a number is a class, a file is a segmentation.

    Only suggest: transforms may turn a file into a class.
    """
    label = items[0].get("label") if items and isinstance(items[0], Mapping) else None
    if isinstance(label, Number | np.generic):
        return "classification"
    if isinstance(label, Path) or (isinstance(label, str) and Path(label).suffix):
        return "segmentation"
    if isinstance(label, Tensor | np.ndarray):
        return "classification" if label.ndim < 2 else "segmentation"
    return None


def logits_of(output: Any) -> Tensor:
    """The full-resolution logits of what a network returns.

    Raises:
        InputError: neither a tensor nor a list of them.
    """
    first = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(first, Tensor):
        found = f"of type {type(first).__name__}" + (
            f" with {sorted(map(str, first))}" if isinstance(first, dict) else ""
        )
        raise InputError.of(
            "network", f"an output {found}", "a tensor of logits, or a list with one per resolution",
            "networks with several heads (HoVerNet, detectors) and generative networks cannot be attacked here",
        )  # fmt: skip
    return first


def kind_of_batch(output: Output, label: Tensor) -> Kind:
    """What output and labels of a batch say; spatial axes of size 1 are those of a fully convolutional classifier.

    Raises:
        InputError: they do not fit each other.
    """
    logits = logits_of(output)
    if logits.shape[2:].numel() == 1 and label.shape[2:].numel() == 1:
        return "classification"
    if logits.ndim >= 3 and label.ndim in (logits.ndim, logits.ndim - 1):
        return "segmentation"
    raise InputError.of(
        "label", f"{tuple(label.shape)} for a network output {tuple(logits.shape)}",
        "(B,) or (B, 1) for logits (B, K), or (B, channels, *spatial) for logits (B, K, *spatial)",
        f"see the last layer of the network and the label's transforms; {OTHER_KINDS}",
    )  # fmt: skip


def layout_of(
    output: Output,
    label: Tensor,
    regions: bool | None,
    ignore_label: int | None = None,
    rule: Rule | None = None,
    background: bool = True,
) -> Layout:
    """How a segmentation's labels are laid out, the same on every rank.

    As many channels as the network has logits are one-hot if they add up to 1 in every voxel, otherwise regions. With
    the rule "sigmoid" they are regions, but for one-hot ones whose channel 0 is a background that the loss leaves out.

    Args:
        output: ``(B, K, *spatial)`` logits, or a list of them (full resolution first).
        label: of the same batch.
        regions: what the user says; ``None``: look.
        ignore_label: of label maps.
        rule: how logits become a decision; ``None``: nobody says it.
        background: whether the loss looks at channel 0 as at the others.

    Raises:
        InputError: shapes or values that do not fit.
    """
    logits = logits_of(output)
    heads = logits.shape[1]
    channel = label.ndim == logits.ndim
    channels = label.shape[1] if channel else 1
    if channels not in (1, heads) or label.shape[2 if channel else 1 :] != logits.shape[2:]:
        raise InputError.of(
            "label", f"{tuple(label.shape)} for a network output {tuple(logits.shape)}",
            f"(B, 1, *spatial) with label values or (B, {heads}, *spatial) with a 0/1 map for each output channel",
            "see the label's transforms (a DynUNet with deep supervision stacks its resolutions: switch that off)",
        )  # fmt: skip
    if heads == 1:
        regions = True  # a single logit is a sigmoid
    if channels == heads:
        one_hot = heads > 1 and regions is not True and bool(is_one_hot(label).all())
        if regions is False and not one_hot:
            raise InputError.of("regions", False, "true for labels that overlap or leave voxels out", "or leave it out")
        if regions is None:
            _check_values(label, Layout(regions=True), heads, ignore_label)
            overlaps = on_any_rank(not one_hot, label.device)  # a rank may have drawn a lesion that fills its patch
            if rule == "softmax" and overlaps:
                raise InputError.of(
                    "label", f"{channels} channels that overlap or leave voxels out", "one-hot labels",
                    "the bundle takes the largest logit; if its channels are regions, say so: regions true",
                )  # fmt: skip
            regions = overlaps or (rule == "sigmoid" and background)
        layout = Layout(0 if regions else heads, label.dtype, channel, regions, not regions and rule == "sigmoid")
    elif regions:
        allowed = f"a label with {heads} channels, one for each region"
        raise InputError.of("regions", f"true with a label {tuple(label.shape)}", allowed, "or leave it out")
    else:
        layout = Layout(channel=channel, sigmoid=rule == "sigmoid")
    _check_values(label, layout, heads, ignore_label)
    return layout


def loss_of_each_sample(loss: Callable[..., Tensor]) -> Callable[[Output, Target], Tensor] | None:
    """``(B,)`` losses of a module that can leave out its mean or sum (``reduction="none"``); ``None`` if it cannot."""
    if getattr(loss, "reduction", None) not in ("mean", "sum"):
        return None
    alone = copy.copy(loss)
    alone.reduction = "none"  # type: ignore[attr-defined]

    def sample_loss(output: Output, target: Target) -> Tensor:
        values = alone(output, target)
        return values.reshape(len(values), -1).mean(1)

    return sample_loss


def _check_values(label: Tensor, layout: Layout, heads: int, ignore_label: int | None) -> None:
    """The first batch only: it waits for the device."""
    if layout.classes:
        return
    if layout.regions and ignore_label is not None:
        raise InputError.of("ignore_label", ignore_label, "none for regions", "leave such voxels out in the loss")
    todo = f"see the label's transforms, or give ignore_label; {OTHER_KINDS}"
    check_labels("label", label, 1 if layout.regions else heads - 1, todo, ignore_label)


def with_meta(output: Output, image: Tensor) -> Any:
    """The output with the meta data of its image, as MONAI's operations would have passed it on."""
    if not isinstance(image, MetaTensor):
        return output
    if not isinstance(output, Tensor):
        return [with_meta(o, image) for o in output]
    result = MetaTensor(output)
    result.copy_meta_from(image)  # type: ignore[no-untyped-call]
    return result
