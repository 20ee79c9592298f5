"""Classification as a task: a sample is right when the largest logit is that of its label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.tasks.base import (
    Output,
    Points,
    Target,
    TrainingLoss,
    check_labels,
    first_resolution,
    full_resolution,
    is_one_hot,
)


@dataclass(frozen=True)
class ClassificationTask:
    """One label per sample, two classes or more.

    Args:
        loss: the host's training loss, ``loss(output, target) -> scalar``; default: cross-entropy. It gets output and
            target as the host has them.
        loss_of_each: the same loss of each sample alone, ``(B,)``, for methods that weigh samples; default:
            cross-entropy.

    Outputs are logits ``(B, K)``. A head with a single logit z, ``(B, 1)`` or ``(B,)``, counts as the two logits
    ``[-z/2, z/2]``, whose softmax is the sigmoid of z; ``[0, z]`` would have no gradient in single precision where the
    network is sure. Targets are class indices ``(B,)`` or ``(B, 1)`` of any dtype, or
    one-hot rows ``(B, K)``. Spatial axes of size 1, which fully convolutional classifiers
    keep, change nothing. An output that is not finite is wrong: its margin is ``-inf``.

    Example:
        With two classes the gradient of the cross-entropy is a positive multiple of that of the negative margin:

        >>> logits = torch.tensor([[2.0, -1.0]], requires_grad=True)
        >>> task, target = ClassificationTask(), torch.tensor([0])
        >>> task.margin(logits, target)
        tensor([3.])
        >>> (gradient,) = torch.autograd.grad(task.sample_loss(logits, target).sum(), logits)
        >>> bool(gradient[0, 0] < 0) and torch.allclose(gradient[0, 0], -gradient[0, 1])
        True
    """

    loss: TrainingLoss | None = None
    loss_of_each: Callable[[Output, Target], Tensor] | None = None

    @property
    def lowest_margin(self) -> float:
        """None: a logit can always fall further."""
        return -torch.inf

    def with_loss(self, loss: TrainingLoss) -> ClassificationTask:
        """The same task with another training loss."""
        return replace(self, loss=loss)

    def training_loss(self, output: Output, target: Target) -> Tensor:
        """Scalar: the host's loss, or the mean cross-entropy."""
        return self.sample_loss(output, target).mean() if self.loss is None else self.loss(output, target)

    def sample_training_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` the host's loss of each sample alone, or the cross-entropy."""
        return (self.loss_of_each or self.sample_loss)(output, target)

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` cross-entropy."""
        logits, labels = self._read(output, target)
        return F.cross_entropy(logits, labels, reduction="none")

    @torch.no_grad()
    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` logit of the label minus the largest other logit."""
        logits, labels = self._read(output, target)
        labels = labels[:, None]
        others = logits.scatter(1, labels, -torch.inf)
        margin = (logits.gather(1, labels) - others.amax(1, keepdim=True))[:, 0]
        return torch.where(logits.isfinite().all(1), margin, -torch.inf)

    @torch.no_grad()
    def correct(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` bool; between equal logits the first class wins, as with ``argmax``."""
        logits, labels = self._read(output, target)
        return (logits.argmax(1) == labels) & logits.isfinite().all(1)

    def scorable(self, target: Target) -> Tensor:
        """``(B,)`` bool, all true."""
        return torch.ones(len(first_resolution(target)), dtype=torch.bool, device=first_resolution(target).device)

    def points(self, output: Output, target: Target) -> Points:
        """One point per sample."""
        logits, labels = self._read(output, target)
        return Points(logits[:, :, None], labels[:, None], torch.ones_like(labels, dtype=torch.bool)[:, None])

    def soft_margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` logit of the label minus the log-sum-exp of the others: at most the margin (MMA, equation 8)."""
        logits, labels = self._read(output, target)
        labels = labels[:, None]
        return logits.gather(1, labels)[:, 0] - logits.scatter(1, labels, -torch.inf).logsumexp(1)

    def all_points(self, output: Output, target: Target) -> list[tuple[float, Points]]:
        """One resolution."""
        return [(1.0, self.points(output, target))]

    @staticmethod
    def logits(output: Output) -> Tensor:
        """``(B, K >= 2)`` logits in single precision or better.

        Raises:
            InputError: an output that is not one row per sample.
        """
        values = _rows(output)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2:
            raise InputError.of("output", tuple(values.shape), "logits (B, K), or (B, 1) for a single-logit head")
        values = values if values.dtype == torch.float64 else values.float()
        return torch.cat([-values / 2, values / 2], 1) if values.shape[1] == 1 else values

    @staticmethod
    def labels(target: Target, classes: int) -> Tensor:
        """``(B,)`` int64 class indices; :meth:`check` looks at the values.

        Raises:
            InputError: another shape.
        """
        values = _rows(target)
        if values.ndim == 2 and values.shape[1] == classes:
            return (values.int() if values.dtype == torch.bool else values).argmax(1)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            allowed = f"class indices (B,) or (B, 1), or one-hot rows (B, {classes})"
            raise InputError.of("target", tuple(values.shape), allowed)
        return values.round().long() if values.is_floating_point() else values.long()

    def check(self, output: Output, target: Target) -> None:
        """Refuse labels that no class has, soft labels, several labels per sample. Waits for the device: not in a loop.

        Raises:
            InputError: says which values came.
        """
        classes = self.logits(full_resolution(output)).shape[1]
        values = _rows(target)
        if values.ndim == 2 and values.shape[1] == classes and classes > 1:
            if not bool(is_one_hot(values).all()):
                raise InputError.of(
                    "target", "soft labels, or several labels per sample", "class indices or one-hot rows",
                    "one class is right: give its index, or the argmax of soft labels",
                )  # fmt: skip
            return
        self.labels(target, classes)  # the layout
        check_labels("target", values, classes - 1, "see the labels, and the classes of the network's last layer")

    def _read(self, output: Output, target: Target) -> tuple[Tensor, Tensor]:
        """``(B, K)`` logits and ``(B,)`` labels."""
        logits = self.logits(output)
        return logits, self.labels(target, logits.shape[1])


def _rows(values: Output | Target) -> Tensor:
    """Without the spatial axes of size 1 that a fully convolutional classifier keeps."""
    tensor = first_resolution(values)
    return tensor.flatten(1) if tensor.ndim > 2 and tensor.shape[2:].numel() == 1 else tensor
