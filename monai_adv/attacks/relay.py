"""Relay: APGD in phases, each from the strongest image of the one before, with a radius and a loss of its own.

Source: Croce, Singh, Hein, "Towards reliable evaluation and fast training of robust semantic segmentation models",
ECCV 2024, section 3.2, for phases of falling radius (see sea.py). Phases of different losses are ours: a loss with a
gradient in every voxel opens the way, the score that counts finishes (measured in benchmarks/segmentation_attacks.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch

from monai_adv.attacks.apgd import APGD
from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Loss,
    Problem,
    Until,
    judged,
)
from monai_adv.attacks.ensemble import WorstCase
from monai_adv.errors import InputError
from monai_adv.statistics import Passes
from monai_adv.tasks.base import take


@dataclass(frozen=True)
class Phase:
    """One run of APGD.

    Args:
        steps: gradient steps.
        loss: what is raised, of the task's points; ``None``: ``task.sample_loss``.
        multiple: of the threat's radius, at least 1.
    """

    steps: int
    loss: Loss | None = None
    multiple: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError.of("steps", self.steps, "a whole number >= 1 for each phase")
        if not 1 <= self.multiple < math.inf:
            raise InputError.of("multiple", self.multiple, "a finite multiple of the radius, at least 1")


@dataclass(frozen=True)
class Relay(BaseAttack[AttackResult]):
    """APGD in phases; each starts from the projection of the strongest image of the phase before.

    Only images within the threat's own radius are returned: those of the phases at that radius, and the projections of
    the others. A sample whose image cannot be made worse is finished without further phases. With a box, all phases
    stay inside it.

    Args:
        threat: norm, radius, box, channels.
        phases: multiples of the radius fall, the last is 1.
        until: when a sample is finished and leaves the batch.
        start: where the first phase starts, see :class:`APGD`.

    Example:
        The cross-entropy from twice the radius, then the task's own loss; a projection is one forward:

        >>> from monai_adv.threats import Threat
        >>> from monai_adv.attacks.losses import cross_entropy
        >>> relay = Relay(Threat("l2", 0.1), (Phase(30, cross_entropy, 2.0), Phase(70)))
        >>> relay.most_passes()
        Passes(forward=103, backward_input=100, backward_full=0)
    """

    phases: tuple[Phase, ...]
    until: Until = "lowest"
    start: Literal["surface", "clean", "ball"] = "surface"

    def __post_init__(self) -> None:
        multiples = [phase.multiple for phase in self.phases]
        if multiples[-1:] != [1.0] or any(a < b for a, b in pairwise(multiples)):
            raise InputError.of("phases", multiples, "phases whose multiples of the radius fall, the last being 1")
        for phase in self.phases:
            self._attack(phase)

    @property
    def random(self) -> bool:
        """Whether the first start is random."""
        return self.start != "clean"

    def run(self, problem: Problem) -> AttackResult:
        """The phases; ``dead`` and ``passes`` are of all of them."""
        network, images, task = problem.network, problem.images, problem.task
        worst = WorstCase.nothing_yet(images, task, self.until)
        delta = torch.zeros_like(images)
        for number, phase in enumerate(self.phases):
            index = worst.running()
            if len(index) == 0:
                break
            own, clean, labels = problem.radius[index], images[index], take(problem.target, index)
            start = delta[index] if number else None
            found = self._attack(phase)(
                network, clean, labels, task, radius=phase.multiple * own, generator=problem.generator, start=start
            )
            delta[index] = found.images - clean
            if phase.multiple > 1:
                # Beyond the radius the network may do what it likes: only the projection is judged.
                projected = clean + self.threat.project(delta[index], clean, own)
                inside, _ = judged(network, projected, labels, task, self.until)
                found = replace(inside, dead=found.dead, passes=found.passes + inside.passes)
            worst.add(index, found)
        return worst.result

    def most_passes(self) -> Passes:
        """Those of the phases, and a forward for each projection."""
        projections = sum(phase.multiple > 1 for phase in self.phases)
        return sum((self._attack(phase).most_passes() for phase in self.phases), Passes(forward=projections))

    def _attack(self, phase: Phase) -> APGD:
        return APGD(self.threat, phase.steps, phase.loss, until=self.until, start=self.start)
