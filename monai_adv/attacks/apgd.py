"""Auto-PGD: projected gradient ascent with momentum that halves its step when it stops paying.

Source: Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks", ICML 2020, Algorithm 1 and section 3 (step control), section 4 (losses), section 6.2 (targets). The rounding
of the checkpoints, the start of full size and the treatment of the first checkpoint are those of the reference
implementation. What differs from it changes no decision on right or wrong: finished samples leave the batch, the last
iterate is only looked at, and the returned image is the strongest one, not the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Loss,
    Problem,
    Strongest,
    Until,
    input_gradient,
    one_of,
    sync_interval,
)
from monai_adv.attacks.losses import targeted_dlr
from monai_adv.attacks.rivals import against_each_rival
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Output, Target, Task, take
from monai_adv.threats import Threat, per_sample


def checkpoints(steps: int) -> dict[int, int]:
    """The iterates after which the step is judged, and the number of steps since the one before.

    Example:
        >>> checkpoints(100)
        {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    """
    period, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found = {}
    at = period
    while at <= steps:
        found[at] = period
        period = max(period - shorter, shortest)
        at += period
    return found


@dataclass(frozen=True)
class APGD(BaseAttack[AttackResult]):
    """Auto-PGD. It raises a loss, by default ``task.sample_loss``, and returns the image with the lowest margin.

    Args:
        threat: norm, radius, box, channels.
        steps: gradient steps; the last iterate is only looked at, so a full run makes one forward more.
        loss: what is raised, of the task's points; ``None``: ``task.sample_loss``.
        relative_step: first step as a share of the radius.
        momentum: share of the new step, alpha in the paper; the rest repeats the last move.
        rho: the step is halved unless more than this share of the steps since the last checkpoint raised the loss.
        until: when a sample is finished and leaves the batch.
        start: ``"surface"``: a random point scaled to the full radius (in L-inf its largest entry is exactly the
            radius); ``"ball"``: uniform in the ball; ``"clean"``.
        eot: for randomised networks, the passes over which gradient, loss and output are averaged (their graphs are in
            memory together). A sample is judged by the mean output.
        mode: network mode during the attack, restored afterwards.

    Example:
        On a linear network the first step of twice the radius already ends at the optimum, eps along the weights:

        >>> from torch import nn
        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(2, 2, bias=False)
        >>> network.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> attack = APGD(Threat("l2", 0.5, unit="norm"), steps=2, start="clean")
        >>> attack(network, torch.ones(1, 2), torch.tensor([0]), ClassificationTask()).images
        tensor([[0.7000, 0.6000]])
    """

    takes: ClassVar[tuple[str, ...]] = ("start", "rivals")

    steps: int = 100
    loss: Loss | None = None
    relative_step: float = 2.0
    momentum: float = 0.75
    rho: float = 0.75
    until: Until = "wrong"
    start: Literal["surface", "clean", "ball"] = "surface"
    eot: int = 1
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        for name, whole in (("steps", self.steps), ("eot", self.eot)):
            if whole < 1:
                raise InputError.of(name, whole, "a whole number >= 1")
        if not (math.isfinite(self.relative_step) and self.relative_step > 0):
            raise InputError.of("relative_step", self.relative_step, "a finite number > 0")
        for name, share in (("momentum", self.momentum), ("rho", self.rho)):
            if not 0 < share <= 1:
                raise InputError.of(name, share, "a number in (0, 1]")
        one_of("until", self.until, get_args(Until))
        one_of("start", self.start, ("surface", "clean", "ball"))
        one_of("mode", self.mode, get_args(Mode))

    @property
    def random(self) -> bool:
        """Whether the start is random."""
        return self.start != "clean"

    def run(self, problem: Problem) -> AttackResult:
        """Algorithm 1 for every sample."""
        delta = problem.start
        if delta is None:
            delta = self._start(problem.images, problem.radius, problem.generator)
        with frozen(problem.network, self.mode) as model, torch.enable_grad():
            return self._search(replace(problem, network=model), delta)

    def most_passes(self) -> Passes:
        """``steps + 1`` forwards and ``steps`` backwards, times ``eot``."""
        return Passes(forward=self.eot * (self.steps + 1), backward_input=self.eot * self.steps)

    def _search(self, problem: Problem, delta: Tensor) -> AttackResult:
        network, images, target, task = problem.network, problem.images, problem.target, problem.task
        passes = Passes()
        best = Strongest(images, task, self.until)
        dead = torch.zeros_like(best.wrong)
        judged = checkpoints(self.steps)
        everyone = torch.arange(len(images), device=images.device)
        count = len(images)  # the rows beyond are padding
        search = _Search.begin(everyone, images, problem.radius, delta, self.relative_step)
        search = search.take(padded(everyone, network))
        labels, aims = _of(search.index, target, problem.rivals)
        for k in range(self.steps + 1):
            last = k == self.steps
            x = any_batch_size(search.images + search.delta, network).requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                draws = [network(x) for _ in range(self.eot)]
            passes.forward += self.eot * len(x)
            if k == 0:
                task.check(draws[0], labels)
            with torch.no_grad():
                losses = self._losses(task, draws, labels, aims, k / self.steps)
                best.update(search.index, x.detach(), _mean(draws), labels, losses)
            if last:
                break
            leaving = k % sync_interval(images.device) == 0
            if leaving:
                rows = (~best.finished()[search.index[:count]]).nonzero()[:, 0]
                if len(rows) == 0:
                    break  # before the gradient, which nobody needs any more
            gradient = self._gradient(task, draws, x, labels, aims, k / self.steps)
            passes.backward_input += self.eot * len(x)
            del draws  # their graph, before the next forward
            search.observe(losses, gradient)
            if k in judged:
                search.control_step(judged[k], self.rho)
            if leaving and len(rows) < count:
                count = len(rows)
                search = search.take(padded(rows, network))
                labels, aims = _of(search.index, target, problem.rivals)
            still = search.move(self.threat, self.momentum if k > 0 else 1.0)
            dead[search.index] |= still & ~best.finished()[search.index]
        return AttackResult(best.images, best.wrong, best.margin, dead, best.broken, passes)

    def _losses(
        self, task: Task, draws: list[Output], target: Target, rivals: Tensor | None, progress: float
    ) -> Tensor:
        """``(b,)`` what is raised, averaged over the draws of a randomised network."""
        if self.loss is None:
            return torch.stack([task.sample_loss(output, target) for output in draws]).mean(0)
        losses = []
        for output in draws:
            points = task.points(output, target)
            if rivals is not None:
                points = replace(points, rivals=rivals.reshape(len(rivals), -1).expand_as(points.labels))
            losses.append(self.loss(points, progress))
        return torch.stack(losses).mean(0)

    def _gradient(
        self, task: Task, draws: list[Output], x: Tensor, target: Target, rivals: Tensor | None, progress: float
    ) -> Tensor:
        # All draws go in as one list, because input_gradient scales a sample by the same factor in all of them.
        each = [[o] if isinstance(o, Tensor) else list(o) for o in draws]
        resolutions = len(each[0])

        def losses(leaves: Output) -> Tensor:
            groups = [leaves[i : i + resolutions] for i in range(0, len(leaves), resolutions)]
            again: list[Output] = [g[0] if isinstance(draws[0], Tensor) else g for g in groups]
            return self._losses(task, again, target, rivals, progress)

        return input_gradient([o for output in each for o in output], x, losses, self.mode)[1]

    def _start(self, images: Tensor, radius: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.start == "clean" or generator is None:
            return torch.zeros_like(images)
        if self.start == "ball":
            return self.threat.random(images, radius, generator)
        # The box cuts only after scaling: cut noise would be shorter than the radius.
        noise = replace(self.threat, box=None).random(images, torch.ones_like(radius), generator)
        noise = self.threat.only_free(noise, images)
        return self.threat.project(
            noise * per_sample(radius / self.threat.size(noise).clamp(min=1e-12), noise), images, radius
        )


@dataclass
class _Search:
    """The variables of Algorithm 1, a row for each sample that is still attacked.

    Attributes:
        index: which samples these are.
        images, radius: of them.
        delta, loss, gradient: perturbation at x(k), and what the network said about it.
        previous: perturbation at x(k-1).
        best_delta, best_loss, best_gradient: the same at x_max, the point of largest loss.
        step: eta.
        increases: steps since the last checkpoint that raised the loss.
        halved: the last checkpoint halved the step.
        best_loss_before: largest loss at the last checkpoint.
    """

    index: Tensor
    images: Tensor
    radius: Tensor
    delta: Tensor
    previous: Tensor
    gradient: Tensor
    best_delta: Tensor
    best_gradient: Tensor
    loss: Tensor
    best_loss: Tensor
    best_loss_before: Tensor
    step: Tensor
    increases: Tensor
    halved: Tensor

    @classmethod
    def begin(cls, index: Tensor, images: Tensor, radius: Tensor, delta: Tensor, relative_step: float) -> _Search:
        nothing = torch.zeros_like(delta)
        lowest = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
        return cls(
            index=index,
            images=images,
            radius=radius,
            delta=delta,
            previous=delta,
            gradient=nothing,
            best_delta=delta,
            best_gradient=nothing,
            loss=-lowest,  # the start raises nothing
            best_loss=lowest,
            best_loss_before=lowest,
            step=relative_step * radius,
            increases=torch.zeros_like(index),
            halved=torch.ones_like(index, dtype=torch.bool),  # so the first checkpoint only counts increases
        )

    def take(self, rows: Tensor) -> _Search:
        return _Search(*(getattr(self, field.name)[rows] for field in fields(self)))

    def observe(self, loss: Tensor, gradient: Tensor) -> None:
        """Lines 6 to 9: f(x(k)), and x_max."""
        loss = loss.to(self.loss)
        self.increases = self.increases + (loss > self.loss)
        better = loss > self.best_loss
        wide = per_sample(better, gradient)
        self.best_delta = torch.where(wide, self.delta, self.best_delta)
        self.best_gradient = torch.where(wide, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.loss, self.gradient = loss, gradient

    def control_step(self, period: int, rho: float) -> None:
        """Lines 10 to 14: halve eta and go back to x_max if condition 1 or condition 2 of section 3.2 holds."""
        rarely_rose = self.increases <= rho * period
        got_stuck = ~self.halved & (self.best_loss <= self.best_loss_before)
        self.halved = rarely_rose | got_stuck
        wide = per_sample(self.halved, self.delta)
        self.step = torch.where(self.halved, self.step / 2, self.step)
        self.delta = torch.where(wide, self.best_delta, self.delta)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.best_loss_before = self.best_loss
        self.increases = torch.zeros_like(self.increases)

    def move(self, threat: Threat, momentum: float) -> Tensor:
        """Lines 7 and 8: a projected step z, then its mixture with the last move. Returns who has no direction."""
        direction = threat.direction(self.gradient, self.images)
        z = threat.project(self.delta + per_sample(self.step, direction) * direction, self.images, self.radius)
        mixed = self.delta + momentum * (z - self.delta) + (1 - momentum) * (self.delta - self.previous)
        self.previous, self.delta = self.delta, threat.project(mixed, self.images, self.radius)
        return direction.flatten(1).eq(0).all(1)


@dataclass(frozen=True)
class TargetedAPGD(BaseAttack[AttackResult]):
    """APGD towards one rival after the other: the most likely wrong classes of the clean image, best first.

    A sample that one target finished is not attacked with the next. With several points (voxels) every point has its
    own ranking.

    Args:
        threat, steps, until, eot, mode: see :class:`APGD`.
        targets: number of rivals, at most the number of classes minus 1.
        loss: needs ``points.rivals``; ``targeted_dlr`` from four classes up, ``targeted_margin`` from two.
    """

    targets: int = 9
    loss: Loss = targeted_dlr
    steps: int = 100
    until: Until = "wrong"
    eot: int = 1
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise InputError.of("targets", self.targets, "a whole number >= 1")
        self._towards_one()

    @property
    def random(self) -> bool:
        """Each run starts at random."""
        return True

    def run(self, problem: Problem) -> AttackResult:
        """APGD towards each rival.

        Raises:
            InputError: more targets than wrong classes.
        """
        return against_each_rival(self._towards_one(), self.targets, problem)

    def most_passes(self) -> Passes:
        """A forward to rank the classes, then APGD for each target."""
        one = self._towards_one().most_passes()
        return Passes(1 + self.targets * one.forward, self.targets * one.backward_input)

    def _towards_one(self) -> APGD:
        return APGD(self.threat, self.steps, self.loss, until=self.until, eot=self.eot, mode=self.mode)


def _of(index: Tensor, target: Target, rivals: Tensor | None) -> tuple[Target, Tensor | None]:
    """Targets and rivals of these samples."""
    return take(target, index), None if rivals is None else rivals[index]


def _mean(draws: list[Output]) -> Output:
    """The mean output of a randomised network."""
    if len(draws) == 1:
        return draws[0]
    if isinstance(draws[0], Tensor):
        return torch.stack([o for o in draws if isinstance(o, Tensor)]).mean(0)
    return [torch.stack(list(level)).mean(0) for level in zip(*draws, strict=True)]
