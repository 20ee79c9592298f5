"""What a host gives a defence, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.tasks.base import Output, Target, plain


@dataclass(frozen=True)
class Batch:
    """A clean batch. Of MONAI's tensors with meta data it keeps the data.

    Attributes:
        images: ``(B, C, *spatial)``.
        target: in the task's layout.
        ids: ``(B,)`` whole numbers, the indices of the samples, see :class:`~monai_adv.sample_state.SampleIds`; None
            for methods that remember nothing about samples. On the CPU they are checked in every batch, elsewhere in
            the first one only, because that makes a GPU wait.
    """

    images: Tensor
    target: Target
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        # An attack makes thousands of operations.
        for name in ("images", "target", "ids"):
            object.__setattr__(self, name, plain(getattr(self, name)))


@dataclass(frozen=True)
class LossPart:
    """A summand of the batch's loss; the host calls ``backward`` on it at once.

    Attributes:
        loss: scalar with a graph; the parts of a batch add up to its training loss.
        output: the network's output on the clean images, detached, where this part made one (hosts use it for metrics).
        noisy_output: the same on attacked images.
        update: the host makes a weight update after this part and goes on (methods with several updates per batch).
    """

    loss: Tensor
    output: Output | None = None
    noisy_output: Output | None = None
    update: bool = False


def check_layout(batch: Batch) -> None:
    """Images, and a target for each.

    Raises:
        InputError: images or target that are no batch.
    """
    images, target = batch.images, batch.target
    if not isinstance(images, Tensor) or images.ndim < 2 or len(images) == 0 or not images.is_floating_point():
        raise InputError.of("images", layout(images), "a float tensor (B, C, *spatial) with B >= 1")
    for values in target if isinstance(target, list | tuple) else [target]:
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != len(images):
            allowed = f"a tensor (B, ...) with B = {len(images)}, as images, or a list of such"
            raise InputError.of("target", layout(values), allowed)


def whole(values: Tensor) -> bool:
    """Whether a tensor holds whole numbers, by its dtype."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def layout(values: object) -> str:
    """A tensor's dtype and shape, or what came instead of one."""
    return f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
