"""Classification as a task: a sample is right when the largest logit is that of its label."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.tasks.base import Output, Points, Target


class ClassificationTask:
    """One label per sample, two classes or more.

    Args:
        loss: the host's training loss, ``loss(output, target) -> scalar``; default: cross-entropy. It gets output and
            target as the host has them.
        sample_loss: the same loss of each sample alone, ``(B,)``, for methods that weigh samples; default:
            cross-entropy.

    Outputs are logits ``(B, K)``. A head with a single logit z, ``(B, 1)`` or ``(B,)``, counts as the two logits
    ``[-z/2, z/2]``, whose softmax is the sigmoid of z; ``[0, z]`` would have no gradient in single precision where the
    network is sure. Targets are class indices ``(B,)`` or ``(B, 1)`` of any dtype, or
    one-hot rows ``(B, K)``. An output that is not finite is wrong: its margin is ``-inf``.

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

    lowest_margin = -torch.inf

    def __init__(
        self,
        loss: Callable[[Output, Target], Tensor] | None = None,
        sample_loss: Callable[[Output, Target], Tensor] | None = None,
    ) -> None:
        self.training_loss = loss or self._cross_entropy
        self.sample_training_loss = sample_loss or self.sample_loss

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` cross-entropy."""
        logits = self.logits(output)
        return F.cross_entropy(logits, self.labels(target, logits.shape[1]), reduction="none")

    @torch.no_grad()
    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` logit of the label minus the largest other logit."""
        logits = self.logits(output)
        labels = self.labels(target, logits.shape[1])[:, None]
        others = logits.scatter(1, labels, -torch.inf)
        margin = (logits.gather(1, labels) - others.amax(1, keepdim=True))[:, 0]
        return torch.where(logits.isfinite().all(1), margin, -torch.inf)

    @torch.no_grad()
    def correct(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` bool; between equal logits the first class wins, as with ``argmax``."""
        logits = self.logits(output)
        return (logits.argmax(1) == self.labels(target, logits.shape[1])) & logits.isfinite().all(1)

    def scorable(self, target: Target) -> Tensor:
        """``(B,)`` bool, all true."""
        return torch.ones(len(_tensor(target)), dtype=torch.bool, device=_tensor(target).device)

    def points(self, output: Output, target: Target) -> Points:
        """One point per sample."""
        logits = self.logits(output)
        labels = self.labels(target, logits.shape[1])[:, None]
        return Points(logits[:, :, None], labels, torch.ones_like(labels, dtype=torch.bool))

    def soft_margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` logit of the label minus the log-sum-exp of the others: at most the margin (MMA, equation 8)."""
        logits = self.logits(output)
        labels = self.labels(target, logits.shape[1])[:, None]
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
        values = _tensor(output)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2:
            raise InputError.of("output", tuple(values.shape), "logits (B, K), or (B, 1) for a single-logit head")
        values = values if values.dtype == torch.float64 else values.float()
        return torch.cat([-values / 2, values / 2], 1) if values.shape[1] == 1 else values

    @staticmethod
    def labels(target: Target, classes: int) -> Tensor:
        """``(B,)`` int64 class indices. Soft labels and values outside the classes are refused where that is free.

        Raises:
            InputError: another shape.
        """
        values = _tensor(target)
        if values.ndim == 2 and values.shape[1] == classes:
            return values.argmax(1)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            allowed = f"class indices (B,) or (B, 1), or one-hot rows (B, {classes})"
            raise InputError.of("target", tuple(values.shape), allowed)
        return values.long()

    def check(self, output: Output, target: Target) -> None:
        """Refuse labels that no class has, and soft labels. Costs a host sync: once per data set, not in a loop.

        Raises:
            InputError: says which values came.
        """
        classes = self.logits(output).shape[1]
        values = _tensor(target)
        if values.ndim == 2 and values.shape[1] == classes and classes > 1:
            if not bool(((values == 0) | (values == 1)).all() & (values.sum(1) == 1).all()):
                raise InputError.of("target", "soft labels", "class indices or one-hot rows", "take their argmax")
            return
        labels = self.labels(target, classes)
        if not bool((labels == values.reshape(-1)).all()) or not bool(((labels >= 0) & (labels < classes)).all()):
            found = sorted(set(values.reshape(-1).tolist()))[:10]
            raise InputError.of("target", found, f"whole numbers from 0 to {classes - 1}", "see the network's head")

    def _cross_entropy(self, output: Output, target: Target) -> Tensor:
        return self.sample_loss(output, target).mean()


def _tensor(values: Output | Target) -> Tensor:
    return values if isinstance(values, Tensor) else values[0]
