"""A task for attacks whose loss compares with a reference: the output on the clean image, soft labels, ..."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from monai_adv.tasks.base import Output, Points, Target, Task

ReferenceLoss = Callable[[list[Tensor], Output, Target], Tensor]
"""``(B,)`` of the reference tensors, the output and the target."""


class WithReference:
    """``task``, but an attack raises ``loss(reference, output, target)``.

    The reference travels with the target, so that samples which leave the batch take theirs along: attack
    ``with_reference.pack(target, reference)`` instead of the target.

    Args:
        task: says what is right.
        loss: what the attack raises.

    Example:
        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> def apart(reference, output, target):
        ...     return (output - reference[0]).norm(dim=1)
        >>> away = WithReference(ClassificationTask(), apart)
        >>> packed = away.pack(torch.tensor([0]), [torch.tensor([[1.0, 1.0]])])
        >>> away.sample_loss(torch.tensor([[4.0, 5.0]]), packed)
        tensor([5.])
    """

    def __init__(self, task: Task, loss: ReferenceLoss) -> None:
        self.task = task
        self.loss = loss
        self.lowest_margin = task.lowest_margin
        self._targets = 0
        """How many tensors of a packed target are the target; 0 if the target is a tensor and not a list."""

    def pack(self, target: Target, reference: list[Tensor]) -> list[Tensor]:
        """The target with its reference: tensors whose first axis is the batch."""
        self._targets = 0 if isinstance(target, Tensor) else len(target)
        return [*([target] if isinstance(target, Tensor) else target), *(r.detach() for r in reference)]

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` the loss against the reference."""
        count = max(self._targets, 1)
        return self.loss(list(target[count:]), output, self._target(target))

    def training_loss(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self.task.training_loss(output, self._target(target))

    def margin(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self.task.margin(output, self._target(target))

    def correct(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self.task.correct(output, self._target(target))

    def scorable(self, target: Target) -> Tensor:
        """The task's."""
        return self.task.scorable(self._target(target))

    def points(self, output: Output, target: Target) -> Points:
        """The task's."""
        return self.task.points(output, self._target(target))

    def _target(self, packed: Target) -> Target:
        return packed[0] if self._targets == 0 else list(packed[: self._targets])
