"""The fast gradient method: one step of full size along the gradient.

Sources: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015, section 4 (the step
eps * sign(g); in L2 eps * g / ||g||); Wong, Rice, Kolter, "Fast is better than free", ICLR 2020, Algorithm 3 (the
random start, with a step of 1.25 eps that is projected).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Loss,
    Problem,
    Strongest,
    input_gradient,
    one_of,
    sample_loss,
)
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen
from monai_adv.statistics import Passes
from monai_adv.threats import per_sample


@dataclass(frozen=True)
class FGSM(BaseAttack[AttackResult]):
    """One step: ``project(start + relative_step * radius * direction)``; direction is ``sign(g)`` or ``g / ||g||_2``.

    The image after the step is returned as it is, also where the clean one was already wrong. It is not a strong
    attack: far more steps win against a defence that only bends the loss near the image.

    Args:
        threat: norm, radius, box, channels.
        relative_step: step size as a fraction of the radius.
        start: ``"clean"``, or ``"ball"``: a random point of the ball, for which 1.25 is the usual step.
        mode: network mode during the attack, restored afterwards.
        loss: what is raised, of the task's points; ``None``: ``task.sample_loss``.

    Example:
        >>> from torch import nn
        >>> from monai_adv.threats import Threat
        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(3, 2, bias=False)
        >>> network.weight.data = torch.tensor([[0.5, -2.0, 0.0], [0.0, 0.0, 0.0]])
        >>> FGSM(Threat("linf", 0.25))(network, torch.ones(1, 3), torch.tensor([0]), ClassificationTask()).images
        tensor([[0.7500, 1.2500, 1.0000]])
    """

    relative_step: float = 1.0
    start: Literal["clean", "ball"] = "clean"
    mode: Mode = "eval"
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.relative_step) and self.relative_step > 0):
            raise InputError.of("relative_step", self.relative_step, "a finite number > 0", "a share of the radius")
        one_of("start", self.start, ("clean", "ball"))
        one_of("mode", self.mode, get_args(Mode))

    @property
    def random(self) -> bool:
        """Whether the start is random."""
        return self.start != "clean"

    def run(self, problem: Problem) -> AttackResult:
        """The step, and a forward to judge it."""
        images, target, task, radius = problem.images, problem.target, problem.task, problem.radius
        delta = torch.zeros_like(images)
        if self.start == "ball" and problem.generator is not None:
            delta = self.threat.random(images, radius, problem.generator)
        best = Strongest(images, task, "wrong")
        with frozen(problem.network, self.mode) as model:
            with torch.enable_grad():
                x = any_batch_size(images + delta, model).requires_grad_()
                output = model(x)
                task.check(output, target)
                _, gradient = input_gradient(
                    output, x, lambda output: sample_loss(task, self.loss, output, target), self.mode
                )
            direction = self.threat.direction(gradient, images)
            step = per_sample(self.relative_step * radius, direction) * direction
            attacked = images + self.threat.project(delta + step, images, radius)
            with torch.no_grad():
                output = model(any_batch_size(attacked, model))
        best.update(torch.arange(len(images), device=images.device), attacked, output, target)
        dead = direction.flatten(1).eq(0).all(1)
        passes = Passes(forward=2 * len(images), backward_input=len(images))
        return AttackResult(best.images, best.wrong, best.margin, dead, best.broken, passes)

    def most_passes(self) -> Passes:
        """A forward and a backward for the step, a forward to judge it."""
        return Passes(forward=2, backward_input=1)
