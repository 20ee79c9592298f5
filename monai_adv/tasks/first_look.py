"""A task whose target is checked as soon as the network has said something about it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from monai_adv.tasks.base import Output, Points, Target, TrainingLoss, TrainingTask


class FirstLook:
    """``task``, but the first output that it is asked about is checked together with its target.

    Tasks remember nothing, and how many classes a network has is known from its output only. So a defence looks at a
    batch through this, before any loss is made of its labels.

    Args:
        task: that is asked.
        done: called once the look was taken, so that nobody looks through this any longer.
    """

    def __init__(self, task: TrainingTask, done: Callable[[], None]) -> None:
        self.task = task
        self._done = done
        self._looked = False

    @property
    def lowest_margin(self) -> float:
        """The task's."""
        return self.task.lowest_margin

    def check(self, output: Output, target: Target) -> None:
        """The task's."""
        self.task.check(output, target)

    def with_loss(self, loss: TrainingLoss) -> TrainingTask:
        """The task with another training loss."""
        return self.task.with_loss(loss)

    def scorable(self, target: Target) -> Tensor:
        """The task's: no output is asked for."""
        return self.task.scorable(target)

    def training_loss(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self._checked(output, target).training_loss(output, target)

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self._checked(output, target).sample_loss(output, target)

    def sample_training_loss(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self._checked(output, target).sample_training_loss(output, target)

    def margin(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self._checked(output, target).margin(output, target)

    def soft_margin(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self._checked(output, target).soft_margin(output, target)

    def correct(self, output: Output, target: Target) -> Tensor:
        """The task's."""
        return self._checked(output, target).correct(output, target)

    def points(self, output: Output, target: Target) -> Points:
        """The task's."""
        return self._checked(output, target).points(output, target)

    def all_points(self, output: Output, target: Target) -> list[tuple[float, Points]]:
        """The task's."""
        return self._checked(output, target).all_points(output, target)

    def _checked(self, output: Output, target: Target) -> TrainingTask:
        if not self._looked:
            self.task.check(output, target)
            self._looked = True
            self._done()
        return self.task
