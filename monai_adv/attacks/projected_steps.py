"""What attacks by projected gradient steps share: their settings, the step, the start.

Sources: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1 (the
projected step); Ma & Liang, CMPB 2023, Algorithms 2 and 3 (step 4 * radius / K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from monai_adv.attacks.base import Loss, one_of, sample_loss
from monai_adv.errors import InputError
from monai_adv.network_state import Mode
from monai_adv.tasks.base import Output, Target, Task
from monai_adv.threats import Threat, per_sample

Start = Literal["clean", "ball", "surface", "gaussian"]
GAUSSIAN_START = 0.001  # standard deviation, as in the official code of TRADES, MART, FAT, LBGAT and TE


@dataclass(frozen=True)
class ProjectedSteps:
    """Settings of an attack that *raises* a loss by projected gradient steps.

    Args:
        threat: norm, radius, box, channels.
        steps: gradient steps K >= 1; a full run looks at K + 1 points.
        relative_step: step size as a fraction of the radius; ``None``: ``4 / steps`` (IMA paper). ``steps * step``
            should exceed 1, otherwise the attack cannot reach the surface from the centre.
        start: ``"clean"``, or a random point ``"ball"`` inside the ball / ``"surface"`` on its surface, or
            ``"gaussian"``: 0.001 standard normal (TRADES: the gradient of a divergence is 0 at the clean image).
            Beyond the box it is cut before the first gradient (the official code of TRADES, MART, LBGAT, TE and DAT
            cuts after the first step).
        mode: network mode during the attack, restored afterwards. In ``"train"`` mode BatchNorm takes its statistics
            from the samples that are in the batch, so the attack on a sample depends on which others are attacked with
            it, and on when they leave.
        loss: what is raised, of the task's points; ``None``: ``task.sample_loss``.
    """

    threat: Threat
    steps: int = 20
    relative_step: float | None = None
    start: Start = "clean"
    mode: Mode = "eval"
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError.of("steps", self.steps, "a whole number >= 1")
        if self.relative_step is not None and not (math.isfinite(self.relative_step) and self.relative_step > 0):
            raise InputError.of("relative_step", self.relative_step, "a finite number > 0, or None for 4 / steps")
        one_of("start", self.start, get_args(Start))
        one_of("mode", self.mode, get_args(Mode))

    @property
    def random(self) -> bool:
        """Whether the start is random."""
        return self.start != "clean"

    def _raised(self, task: Task, output: Output, target: Target, progress: float) -> Tensor:
        """``(b,)`` what the attack raises."""
        return sample_loss(task, self.loss, output, target, progress)

    def _length(self, radius: Tensor, number: int) -> Tensor:
        """``(b,)`` length of step ``number``, in the unit of the radius."""
        return radius * (self.relative_step or 4 / self.steps)

    def _step(
        self,
        images: Tensor,
        delta: Tensor,
        radius: Tensor,
        gradient: Tensor,
        number: int,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The next perturbation, and which samples did not move for want of a gradient."""
        direction = self.threat.direction(gradient, images)
        moved = delta + per_sample(self._length(radius, number), direction) * direction
        moved = self.threat.project(moved if noise is None else moved + noise, images, radius)
        return moved, direction.flatten(1).eq(0).all(1)

    def _start(
        self, images: Tensor, radius: Tensor, start_radius: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """The first perturbation."""
        if self.start == "clean" or generator is None:
            return torch.zeros_like(images)
        if self.start == "gaussian":
            noise = torch.empty_like(images).normal_(generator=generator)
            return self.threat.project(GAUSSIAN_START * noise, images, radius)
        start_radius = radius if start_radius is None else torch.minimum(start_radius, radius)
        return self.threat.random(images, start_radius, generator, surface=self.start == "surface")
