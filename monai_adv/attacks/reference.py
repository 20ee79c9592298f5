"""A task for attacks whose loss compares with a reference: the output on the clean image, soft labels, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from monai_adv.tasks.base import Output, Points, Target, Task

ReferenceLoss = Callable[[list[Tensor], Output, Target], Tensor]
"""``(B,)`` of the reference tensors, the output and the target."""


@dataclass(frozen=True)
class WithReference:
    """``task``, but an attack raises ``loss(reference, output, target)``; made by :meth:`of`.

    The reference travels with the target, so that samples which leave the batch take theirs along.

    Attributes:
        task: says what is right.
        loss: what the attack raises.
        targets: how many tensors of a packed target are the target; 0 if the target is a tensor and not a list.

    Example:
        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> def apart(reference, output, target):
        ...     return (output - reference[0]).norm(dim=1)
        >>> clean = [torch.tensor([[1.0, 1.0]])]
        >>> away, packed = WithReference.of(ClassificationTask(), apart, torch.tensor([0]), clean)
        >>> away.sample_loss(torch.tensor([[4.0, 5.0]]), packed)
        tensor([5.])
    """

    task: Task
    loss: ReferenceLoss
    targets: int = 0

    @classmethod
    def of(
        cls, task: Task, loss: ReferenceLoss, target: Target, reference: list[Tensor]
    ) -> tuple[WithReference, list[Tensor]]:
        """The task, and the target packed with its reference, which is attacked instead of the target.

        Args:
            task, loss: see the class.
            target: of the batch.
            reference: tensors whose first axis is the batch.
        """
        alone = isinstance(target, Tensor)
        packed = [*([target] if isinstance(target, Tensor) else target), *(r.detach() for r in reference)]
        return cls(task, loss, 0 if alone else len(target)), packed

    @property
    def lowest_margin(self) -> float:
        """The task's."""
        return self.task.lowest_margin

    def check(self, output: Output, target: Target) -> None:
        """The task's."""
        self.task.check(output, self._target(target))

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` the loss against the reference."""
        count = max(self.targets, 1)
        return self.loss(list(target[count:]), output, self._target(target))

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
        return packed[0] if self.targets == 0 else list(packed[: self.targets])
