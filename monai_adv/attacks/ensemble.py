"""Attacks one after the other, each only on the samples that the earlier ones did not finish; the worst image is kept.

Source: Croce & Hein, ICML 2020, section 6: the worst case over complementary attacks, per sample. An attack starts from
the clean image, unless it is there to polish the worst one (``from_worst``): then it comes after those that find it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn

from monai_adv.attacks.base import (
    Attack,
    AttackResult,
    BaseAttack,
    Problem,
    Strongest,
    Until,
    continued,
    is_finished,
    judged,
    one_of,
)
from monai_adv.errors import InputError
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Target, Task, take
from monai_adv.threats import Threat, per_sample


@dataclass(frozen=True)
class Stage:
    """An attack with the name that tables give it."""

    name: str
    attack: Attack


@dataclass(frozen=True)
class StageSummary:
    """What one stage did.

    Attributes:
        name: of the stage; ``"clean"`` for the first look at the images.
        attacked: number of samples that were not finished before.
        newly_wrong: those of them that were right on everything before and are wrong now.
        passes: network passes made.
    """

    name: str
    attacked: int
    newly_wrong: int
    passes: Passes


@dataclass
class EnsembleResult(AttackResult):
    """The worst case over the stages.

    Attributes:
        stage: ``(B,)`` int: the index into ``summary`` of the stage that found the image; 0 is the clean image.
        summary: the clean look, then the stages in order.
    """

    stage: Tensor = field(default_factory=Tensor)
    summary: tuple[StageSummary, ...] = ()


class WorstCase:
    """The worst result of each sample over several attacks: wrong before right, then the smallest margin.

    Between equals the earlier one stays, so more attacks never make a result better for the network.

    Args:
        result: where to begin, for all samples.
        task: its lowest margin, at which a sample is finished.
        until: when a sample is finished.
    """

    def __init__(self, result: AttackResult, task: Task, until: Until) -> None:
        self.result = result
        self.stage = torch.zeros(len(result.images), dtype=torch.long, device=result.images.device)
        self.until = until
        self.lowest_margin = task.lowest_margin

    @classmethod
    def nothing_yet(cls, images: Tensor, task: Task, until: Until) -> WorstCase:
        """Begin with images that no network has seen."""
        none = Strongest(images, task, until)
        return cls(AttackResult(none.images, none.wrong, none.margin, none.wrong.clone(), none.broken), task, until)

    def running(self) -> Tensor:
        """Indices of the samples that are not finished. Costs a host sync."""
        done = is_finished(self.result.wrong, self.result.margin, self.lowest_margin, self.until)
        return (~done).nonzero()[:, 0]

    def add(self, index: Tensor, found: AttackResult, stage: int = 0) -> Tensor:
        """Keep what ``found``, the result for the samples ``index``, has worse. Returns who of them is newly wrong."""
        kept = self.result
        wrong, margin = kept.wrong[index], kept.margin[index]
        found_margin = found.margin.to(margin)
        worse = (found.wrong & ~wrong) | ((found.wrong == wrong) & (found_margin < margin))
        kept.images[index] = torch.where(per_sample(worse, found.images), found.images, kept.images[index])
        kept.margin[index] = torch.where(worse, found_margin, margin)
        kept.wrong[index] = wrong | found.wrong
        kept.dead[index] |= found.dead
        kept.broken[index] |= found.broken
        kept.passes = kept.passes + found.passes
        self.stage[index] = torch.where(worse, stage, self.stage[index])
        return found.wrong & ~wrong


@dataclass(frozen=True)
class Ensemble(BaseAttack[EnsembleResult]):
    """Stages in order; only samples that are not finished go on, from the clean image or from the worst one so far.

    It looks at the clean images first: what is wrong there is not attacked.

    Args:
        stages: with one threat.
        until: when a sample is finished; the stages have a setting of their own, which should be the same.
        classes: refuse networks with another number of classes, or several points per sample; ``None``: take any.

    Raises:
        InputError: no stage, two stages of one name, stages with different threats, or radii for a batch in the
            threat (they belong to the call, because survivors are fewer).
    """

    threat: Threat = field(init=False, repr=False)
    stages: tuple[Stage, ...]
    until: Until = "wrong"
    classes: int | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise InputError.of("stages", names, "one stage or more with different names")
        one_of("until", self.until, get_args(Until))
        threats = [stage.attack.threat for stage in self.stages]
        if any(threat != threats[0] for threat in threats):
            raise InputError.of("stages", [t.describe() for t in threats], "stages with the same threat")
        object.__setattr__(self, "threat", threats[0])

    @classmethod
    def restarts(cls, attack: Attack, count: int, until: Until = "wrong") -> Ensemble:
        """The same attack ``count`` times; its random start differs."""
        return cls(tuple(Stage(f"restart {i + 1}", attack) for i in range(count)), until)

    def run(self, problem: Problem) -> EnsembleResult:
        """The stages.

        Raises:
            InputError: a network without the ``classes``, or no generator for a stage that needs one.
        """
        network, images, target, task = problem.network, problem.images, problem.target, problem.task
        clean = self._look(network, images, target, task)
        worst = WorstCase(clean, task, self.until)
        summary = [StageSummary("clean", len(images), int(clean.wrong.sum()), clean.passes)]
        for i, stage in enumerate(self.stages, start=1):
            index = worst.running()
            found, newly = Passes(), 0
            if len(index):
                result = continued(
                    stage.attack,
                    network,
                    images[index],
                    take(target, index),
                    task,
                    worst=worst.result.images[index],
                    radius=problem.radius[index],
                    generator=problem.generator,
                )
                found, newly = result.passes, int(worst.add(index, result, i).sum())
            summary.append(StageSummary(stage.name, len(index), newly, found))
        r = worst.result
        return EnsembleResult(r.images, r.wrong, r.margin, r.dead, r.broken, r.passes, worst.stage, tuple(summary))

    def most_passes(self) -> Passes:
        """The clean forward, and those of all stages."""
        return sum((stage.attack.most_passes() for stage in self.stages), Passes(forward=1))

    def _look(self, network: nn.Module, images: Tensor, target: Target, task: Task) -> AttackResult:
        """How the network judges the clean images."""
        result, output = judged(network, images, target, task, self.until)
        if self.classes is not None:
            _, classes, points = task.points(output, target).logits.shape
            if (classes, points) != (self.classes, 1):
                found = f"{classes} classes at {points} points"
                raise InputError.of("network", found, f"{self.classes} classes at one point per sample")
        return result


@dataclass(frozen=True)
class EnsembleAttack(BaseAttack[EnsembleResult]):
    """An attack that is an ensemble by another name: subclasses have settings and say which."""

    @property
    @abstractmethod
    def ensemble(self) -> Ensemble:
        """The stages."""

    def run(self, problem: Problem) -> EnsembleResult:
        """The stages of the ensemble."""
        return self.ensemble.run(problem)

    def most_passes(self) -> Passes:
        """The clean forward, and those of all stages."""
        return self.ensemble.most_passes()
