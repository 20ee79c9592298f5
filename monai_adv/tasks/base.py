"""The few functions through which attacks and defences see a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.errors import InputError

Output = Tensor | list[Tensor] | tuple[Tensor, ...]
"""What a network returns: a tensor, or one tensor per resolution under deep supervision (full resolution first)."""

Target = Tensor | list[Tensor] | tuple[Tensor, ...]
"""The ground truth in the same layout as the output."""

TrainingLoss = Callable[[Output, Target], Tensor]
"""Scalar training loss of output and target, as the host has them."""

T = TypeVar("T", Tensor, Output)


@dataclass(frozen=True)
class Points:
    """An output as the N classification problems that a sample consists of: 1 (its label), or one per voxel and region.

    Losses of attacks are written on points, and so hold for every task and any number of axes.

    Attributes:
        logits: ``(B, K, N)`` in single precision or better; differentiable.
        labels: ``(B, N)`` int64 in ``[0, K)``, also where ``valid`` is false.
        valid: ``(B, N)`` bool: the points that count.
        rivals: ``(B, N)`` classes that a targeted attack aims at; None otherwise.
    """

    logits: Tensor
    labels: Tensor
    valid: Tensor
    rivals: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """``(B,)`` mean of ``(B, N)`` values over the points that count."""
        return (values * self.valid).sum(1) / self.valid.sum(1).clamp(min=1)

    def class_mean(self, values: Tensor) -> Tensor:
        """``(B,)`` the same, with the same total weight for every class that a sample has.

        So a small structure counts as much as the background around it. With regions the two classes are inside and
        outside, over all regions together.
        """
        counted = F.one_hot(self.labels, self.logits.shape[1]) * self.valid[..., None]
        sizes = counted.sum(1)
        weight = 1 / (sizes.clamp(min=1) * (sizes > 0).sum(1, keepdim=True)).to(self.logits)
        return (values * self.valid * weight.gather(1, self.labels)).sum(1)


def full_resolution(output: Any) -> Tensor:
    """The logits that count: what a network returns, or the first of several resolutions.

    Raises:
        InputError: a dictionary, or something else that is no tensor; or whole numbers, which may be classes.

    Example:
        >>> full_resolution([torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]).shape
        torch.Size([1, 2, 4, 4])
        >>> full_resolution({"out": torch.zeros(1, 2)})
        Traceback (most recent call last):
        monai_adv.errors.InputError: output: received 'a dict with out', allowed is a tensor of logits, or a list of \
them with the full resolution first; put a module around the network that picks the logits out.
    """
    first = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(first, Tensor):
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        allowed = "a tensor of logits, or a list of them with the full resolution first"
        todo = "put a module around the network that picks the logits out"
        raise InputError.of("output", f"a {type(output).__name__}{keys}", allowed, todo)
    if not first.is_floating_point():
        todo = "leave out the argmax at the network's end; a decision without a gradient has to be one-hot and floating"
        raise InputError.of("output", str(first.dtype), "logits, which are floating", todo)
    return first


def first_resolution(values: Output | Target) -> Tensor:
    """A tensor, or the first of those at several resolutions; unlike :func:`full_resolution` it refuses nothing.

    Example:
        >>> first_resolution([torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]).shape
        torch.Size([1, 1, 4, 4])
    """
    return values if isinstance(values, Tensor) else values[0]


def are_probabilities(output: Tensor, alone: bool) -> bool:
    """Whether an output looks as if a softmax or a sigmoid had been applied to it already.

    Args:
        output: ``(B,)``, ``(B, K)`` or ``(B, K, *spatial)``.
        alone: each channel is decided for itself, as by a sigmoid; a single channel always is.

    Example:
        >>> logits = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
        >>> [are_probabilities(x, alone=False) for x in (logits, logits.softmax(1), logits.sigmoid())]
        [False, True, False]
        >>> are_probabilities(logits.sigmoid(), alone=True), are_probabilities(logits[:, :1].sigmoid(), alone=False)
        (True, True)
    """
    low, high = output.aminmax()
    if alone or output.ndim == 1 or output.shape[1] == 1:
        return bool(low >= 0 and low < high <= 1)  # a constant says nothing
    return bool(low >= 0 and ((output.double().sum(1) - 1).abs() < 1e-3).all())


class Task(Protocol):
    """What *right* means: classification, segmentation, ... Every method is per sample except ``training_loss``.

    A task is a value: it remembers nothing between calls. Attacks :meth:`check` the first output of each call, defences
    that of the first batch.
    """

    @property
    def lowest_margin(self) -> float:
        """No margin is below it; a sample that reached it cannot be attacked further. ``-inf`` if there is none."""

    def check(self, output: Output, target: Target) -> None:
        """Refuse labels that no class has, and layouts that do not fit. Waits for the device: once, not in a loop."""

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` differentiable loss that an attack raises; sample *i* depends on sample *i* only."""

    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` signed distance of the score from its threshold, without gradient; larger is better."""

    def correct(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` bool: is the output right?"""

    def scorable(self, target: Target) -> Tensor:
        """``(B,)`` bool: can right and wrong be told for this target at all?"""

    def points(self, output: Output, target: Target) -> Points:
        """The full-resolution output as classification problems, for losses that attacks raise."""


class TrainingTask(Task, Protocol):
    """What a defence may ask of a task beyond what an attack needs."""

    def training_loss(self, output: Output, target: Target) -> Tensor:
        """Scalar: the loss that the host trains with, unchanged (it may couple the samples of a batch)."""

    def with_loss(self, loss: TrainingLoss) -> TrainingTask:
        """The same task with another training loss: that of the host."""

    def sample_training_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` differentiable: the training loss of each sample alone, for methods that weigh samples."""

    def soft_margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` differentiable margin: above 0 where the output is right with something to spare."""

    def all_points(self, output: Output, target: Target) -> list[tuple[float, Points]]:
        """The points of every resolution with its weight; the weights add up to 1."""


WHOLE = 1e-3
"""How far a label may lie from a whole number: files with a scale factor hold 1.0000001, interpolation leaves 0.9."""


def whole_labels(name: str, labels: Tensor, allowed: str = "whole numbers", todo: str = "") -> Tensor:
    """Labels as int64, if they are whole numbers to within :data:`WHOLE`. Costs a host sync.

    Nothing is cut off or filled in: a label map that was resampled like an image would otherwise lose its borders, and
    NaN would become background, without a word.

    Args:
        name: of the labels, for the message.
        labels: any shape and dtype.
        allowed: what they have to be, for the message.
        todo: what the user can do, for the message.

    Raises:
        InputError: NaN, infinity or fractions; says which, how many, and where they probably come from.

    Example:
        >>> whole_labels("label", torch.tensor([0.9999, 2.0000001])).tolist()
        [1, 2]
        >>> whole_labels("label", torch.tensor([0.9, 2.0]))
        Traceback (most recent call last):
        monai_adv.errors.InputError: label: received [0.9], allowed is whole numbers; 1 of 2 values between them: \
a label that was interpolated or scaled like an image; resample it with nearest neighbours.
    """
    if labels.is_complex():
        raise InputError.of(name, str(labels.dtype), allowed, todo)
    if not labels.is_floating_point():
        return labels.long()
    nearest = labels.round()
    off = ~((labels - nearest).abs() <= WHOLE)  # also true for NaN and infinity
    if bool(off.any()):
        found, total = labels[off], labels.numel()
        broken = int((~found.isfinite()).sum())
        cause = (
            f"{broken} of {total} values NaN or infinite: see how the label was written"
            if broken
            else f"{len(found)} of {total} values between them: a label that was interpolated or scaled like an image; "
            "resample it with nearest neighbours"
        )
        values = [round(v, 4) for v in torch.unique(found).tolist()[:5]]
        raise InputError.of(name, values, allowed, "; ".join(filter(None, [todo, cause])))
    return nearest.long()


def is_one_hot(maps: Tensor) -> Tensor:
    """``(B, *spatial)`` bool of ``(B, K, *spatial)``: one channel is 1 and all others are 0, to within :data:`WHOLE`.

    Example:
        >>> is_one_hot(torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 1.0]])).tolist()
        [True, False, False]
    """
    values = maps if maps.is_floating_point() else maps.float()
    near = (values.abs() <= WHOLE) | ((values - 1).abs() <= WHOLE)
    return near.all(1) & (values.round().sum(1) == 1)


def check_labels(name: str, labels: Tensor, largest: int, todo: str, ignore_label: int | None = None) -> Tensor:
    """Labels as int64, if they are whole numbers from 0 to ``largest``; see :func:`whole_labels`. Costs a host sync.

    Args:
        name: of the labels, for the message.
        labels: any shape and dtype.
        largest: of them.
        todo: what the user can do, for the message.
        ignore_label: also allowed.

    Raises:
        InputError: says which values came.
    """
    allowed = f"whole numbers from 0 to {largest}"
    whole = whole_labels(name, labels, allowed, todo)
    known = (whole >= 0) & (whole <= largest)
    if ignore_label is not None:
        known |= whole == ignore_label
    if not bool(known.all()):
        raise InputError.of(name, torch.unique(whole[~known]).tolist()[:5], allowed, todo)
    return whole


def plain(values: Any) -> Any:
    """A tensor, or those in a list, without what subclasses add: every operation on MONAI's MetaTensor takes longer."""
    if isinstance(values, list | tuple):
        return [plain(v) for v in values]
    return values.as_subclass(Tensor) if isinstance(values, Tensor) and type(values) is not Tensor else values


def take(values: T, index: Tensor) -> T:
    """The samples ``index`` of a tensor or of every tensor in a list."""
    if isinstance(values, Tensor):
        return values[index]
    return [v[index] for v in values]


def to_device(values: T, device: torch.device) -> T:
    """A tensor, or every tensor in a list, on a device."""
    if isinstance(values, Tensor):
        return values.to(device)
    return [v.to(device) for v in values]
