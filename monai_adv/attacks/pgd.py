"""Projected gradient descent, with a radius of its own for every sample; it returns the strongest iterate.

Sources: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1; the
step is that of projected_steps.py. The momentum is that of Dong et al., CVPR 2018, equations 6 and 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Problem,
    Strongest,
    Until,
    input_gradient,
    one_of,
    sync_interval,
)
from monai_adv.attacks.projected_steps import ProjectedSteps
from monai_adv.errors import InputError
from monai_adv.network_state import any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import take


@dataclass(frozen=True)
class PGD(ProjectedSteps, BaseAttack[AttackResult]):
    """Projected gradient descent; fields as in :class:`ProjectedSteps`, and:

    The strongest iterate is returned: smallest task margin, then largest loss. A full run makes K + 1 forwards. What
    training needs, the last iterate and early stops, is :class:`~monai_adv.attacks.ascent.Ascent`.

    Args:
        until: a sample leaves when it is ``"wrong"``, or when its score cannot fall further (``"lowest"``).
        momentum: share of the earlier gradients, each of Euclidean length 1, that a step keeps (MI-FGSM's mu).
        decay: the step falls to 0 over the run, along a cosine.

    Attacks of the same loop derive from this class: :meth:`_raised` says what is raised, :meth:`_length` how long a
    step is, :meth:`_step` where it ends.

    Example:
        ``PGD(Threat("l2", 15.0, unit="norm"))(network, images, target, task).images`` lies within L2 distance 15 of
        ``images``.
    """

    takes: ClassVar[tuple[str, ...]] = ("start",)

    until: Until = "lowest"
    momentum: float = 0.0
    decay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("until", self.until, get_args(Until))
        if not 0 <= self.momentum < 1:
            raise InputError.of("momentum", self.momentum, "a number in [0, 1)")

    def run(self, problem: Problem) -> AttackResult:
        """K + 1 iterates at most, from ``problem.start`` or as the setting says."""
        delta = problem.start
        if delta is None:
            delta = self._start(problem.images, problem.radius, None, problem.generator)
        with frozen(problem.network, self.mode) as model, torch.enable_grad():
            return self._search(replace(problem, network=model), delta)

    def most_passes(self) -> Passes:
        """K + 1 forwards, K backwards."""
        return Passes(forward=self.steps + 1, backward_input=self.steps)

    def _length(self, radius: Tensor, number: int) -> Tensor:
        length = super()._length(radius, number)
        return length * ((1 + math.cos(math.pi * number / self.steps)) / 2) if self.decay else length

    def _search(self, problem: Problem, delta: Tensor) -> AttackResult:
        network, images, target, task = problem.network, problem.images, problem.target, problem.task
        passes = Passes()
        best = Strongest(images, task, self.until)
        dead = torch.zeros_like(best.wrong)
        moving, euclidean = torch.zeros_like(images), replace(self.threat, norm="l2")
        active = padded(torch.arange(len(images), device=images.device), network)
        for k in range(self.steps + 1):
            last = k == self.steps
            x = any_batch_size(images[active] + delta[active], network).requires_grad_(not last)
            labels = take(target, active)
            with torch.set_grad_enabled(not last):
                output = network(x)
            passes.forward += len(x)
            if k == 0:
                task.check(output, labels)
            if last:
                losses = self._raised(task, output, labels, 1.0)
            else:
                losses, gradient = input_gradient(
                    output,
                    x,
                    lambda o: self._raised(task, o, labels, k / self.steps),  # noqa: B023
                    self.mode,
                )
                passes.backward_input += len(x)
            best.update(active, x.detach(), output, labels, losses)
            del output
            if last:
                break
            if self.momentum > 0:
                unit = euclidean.direction(gradient)
                dead[active] |= unit.flatten(1).eq(0).all(1)
                gradient = self.momentum * moving[active] + unit
                moving = moving.index_copy(0, active, gradient)
            moved, still = self._step(images[active], delta[active], problem.radius[active], gradient, k)
            dead[active] |= still
            delta = delta.index_copy(0, active, moved)
            if k % sync_interval(images.device) == 0:
                active = padded(best.running(), network)
                if len(active) == 0:
                    break
        return AttackResult(best.images, best.wrong, best.margin, dead, best.broken, passes)
