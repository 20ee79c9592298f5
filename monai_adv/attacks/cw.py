"""The attacks of Carlini & Wagner: on the logit margin, within a radius or for the nearest wrong image.

Sources: Carlini & Wagner, "Towards evaluating the robustness of neural networks", IEEE S&P 2017: objective f6 with the
confidence kappa, section V.B (change of variables), section VI.A (the L2 attack). Within a radius the margin is raised
by projected gradient steps, as in Madry et al., ICLR 2018, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Problem,
    Strongest,
    Until,
    gradient_or_zero,
    one_of,
    sync_interval,
)
from monai_adv.attacks.losses import lead_of_others
from monai_adv.attacks.pgd import PGD
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Points, Target, Task, take
from monai_adv.threats import check_free, per_sample

ALMOST = 1 - 1e-6
"""tanh reaches the edges of the box only at infinity, so voxels there start this far out."""

BETAS = 0.9, 0.999
"""Decay rates of Adam."""


def confident_margin(points: Points, progress: float, *, kappa: float) -> Tensor:
    """``(B,)`` mean over the points of ``min(max_{i != y} z_i - z_y, kappa)``: points that are wrong by kappa are done.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0], [3.0, -1.0]]])
        >>> points = Points(logits, torch.tensor([[0, 0]]), torch.ones(1, 2, dtype=torch.bool))
        >>> [confident_margin(points, 0.0, kappa=kappa).item() for kappa in (0.0, 2.0, 50.0)]
        [-0.5, 0.5, 1.0]
    """
    return points.mean(lead_of_others(points).clamp(max=kappa))


@dataclass(frozen=True)
class CW(BaseAttack[AttackResult]):
    """Projected gradient ascent on the margin within a radius ("CW-inf" in L-inf); returns the strongest iterate.

    With two classes and one point per sample its iterates are those of PGD on the cross-entropy, whose gradient is a
    positive multiple of the margin's.

    Args:
        threat: norm, radius, box, channels.
        steps: gradient steps.
        kappa: confidence, in logits, at which a point is done. 0: as soon as it is wrong, so that a segmentation's
            budget goes to the voxels that are still right. Larger values transfer better.
        relative_step: step size as a share of the radius; ``None``: ``4 / steps``. A setting whose ``steps *
            relative_step`` is below 1 cannot use the radius up (10 steps of 0.001 within 0.0196, as in MIRST-DM).
        start: ``"clean"``, or ``"ball"``: a random point of it.
        until: a sample leaves when it is ``"wrong"``, or when its score cannot fall further (``"lowest"``).
        mode: network mode during the attack, restored afterwards.

    Example:
        ``CW(Threat("linf", 8 / 255, box=(0, 1)), steps=20, kappa=50)(network, images, target, task).wrong``
    """

    steps: int = 100
    kappa: float = 0.0
    relative_step: float | None = None
    start: Literal["clean", "ball"] = "clean"
    until: Until = "wrong"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        _check_kappa_and_until(self.kappa, self.until, ("wrong", "lowest"))
        one_of("start", self.start, ("clean", "ball"))
        self._pgd()

    @property
    def random(self) -> bool:
        """Whether the start is random."""
        return self.start != "clean"

    def run(self, problem: Problem) -> AttackResult:
        """PGD on the margin."""
        result = self._pgd().run(problem)
        # A sample that is wrong by kappa everywhere has no gradient because it is done.
        result.dead &= ~result.wrong
        return result

    def most_passes(self) -> Passes:
        """Those of PGD."""
        return self._pgd().most_passes()

    def _pgd(self) -> PGD:
        return PGD(
            self.threat,
            self.steps,
            self.relative_step,
            self.start,
            mode=self.mode,
            loss=partial(confident_margin, kappa=self.kappa),
            until=self.until,
        )


@dataclass
class CWL2Result(AttackResult):
    """The result of the L2 attack of Carlini & Wagner.

    Attributes:
        nearest: ``(B, C, *spatial)`` nearest wrong image found, also beyond the radius; the clean one if there is none.
        distance: ``(B,)`` its L2 distance; ``+inf`` if there is none.
    """

    nearest: Tensor = field(default_factory=Tensor)
    distance: Tensor = field(default_factory=Tensor)


@dataclass(frozen=True)
class CWL2(BaseAttack[CWL2Result]):
    """The nearest wrong image: Adam on ``||delta||^2 + c * f(x + delta)`` with a binary search for c, for each sample.

    ``f`` is the mean over the points of ``max(z_y - max_{i != y} z_i, 0)``. With a box the image is ``tanh`` of what is
    optimised, scaled to the box; without one ``delta`` itself is optimised.

    Args:
        threat: L2; its radius decides which images are returned, and ends the search under ``until="wrong"``.
        steps: of Adam, for each c.
        search_steps: values of c.
        learning_rate: of Adam; without a box in the unit of the images.
        initial_c: first c; ten times larger as long as no wrong image is found.
        until: ``"wrong"``: a sample leaves when a wrong image within the radius is found. ``"nearest"``: never.
        mode: network mode during the attack, restored afterwards.

    Example:
        The decision boundary of this network is 2 away from the image:

        >>> from monai_adv.threats import Threat
        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(2, 2, bias=False)
        >>> network.weight.data = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
        >>> attack = CWL2(Threat("l2", 9.0, unit="norm"), steps=200, learning_rate=0.05, until="nearest")
        >>> result = attack(network, torch.tensor([[1.2, 1.6]]), torch.tensor([0]), ClassificationTask())
        >>> round(float(result.distance), 1)
        2.0
    """

    steps: int = 1000
    search_steps: int = 9
    learning_rate: float = 0.01
    initial_c: float = 1e-3
    until: Literal["wrong", "nearest"] = "wrong"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        _check_kappa_and_until(0.0, self.until, ("wrong", "nearest"))
        if self.threat.norm != "l2":
            raise InputError.of("threat", self.threat.norm, "an L2 threat", "use CW for L-inf")
        check_free(self.threat)
        for name, whole in (("steps", self.steps), ("search_steps", self.search_steps)):
            if whole < 1:
                raise InputError.of(name, whole, "a whole number >= 1")
        for name, value in (("learning_rate", self.learning_rate), ("initial_c", self.initial_c)):
            if not (math.isfinite(value) and value > 0):
                raise InputError.of(name, value, "a finite number > 0")
        one_of("mode", self.mode, get_args(Mode))

    @torch.no_grad()
    def run(self, problem: Problem) -> CWL2Result:
        """``images`` are the nearest wrong images, those beyond the radius moved back to it."""
        images, target, task, radius = problem.images, problem.target, problem.task, problem.radius
        found = _Nearest(images)
        dead = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        passes = Passes()
        c = torch.full_like(radius, self.initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        with frozen(problem.network, self.mode) as model:
            everyone = torch.arange(len(images), device=images.device)
            active = padded(everyone, model)
            for _ in range(self.search_steps):
                crossed = torch.zeros_like(dead)
                variables = self._variables(images)
                slope, square = torch.zeros_like(images), torch.zeros_like(images)  # Adam's moments
                for k in range(self.steps):
                    x, derivative = self._image(variables[active], images[active])
                    labels = take(target, active)
                    first = passes.forward == 0
                    wrong, gradient = self._look(model, x, labels, task, c[active], check=first)
                    passes += Passes(forward=len(x), backward_input=len(x))
                    found.update(active, x, wrong)
                    crossed[active] |= wrong
                    dead[active] |= ~wrong & gradient.flatten(1).eq(0).all(1)
                    gradient = (2 * (x - images[active]) + gradient) * derivative
                    slope[active] = BETAS[0] * slope[active] + (1 - BETAS[0]) * gradient
                    square[active] = BETAS[1] * square[active] + (1 - BETAS[1]) * gradient.square()
                    mean, variance = (
                        moment[active] / (1 - beta ** (k + 1))
                        for moment, beta in zip((slope, square), BETAS, strict=True)
                    )
                    variables[active] -= self.learning_rate * mean / (variance.sqrt() + 1e-8)
                    if self.until == "wrong" and k % sync_interval(images.device) == 0:
                        active = padded((found.distance > radius).nonzero()[:, 0], model)
                        if len(active) == 0:
                            break
                if len(active) == 0:
                    break
                high = torch.where(crossed, torch.minimum(high, c), high)
                low = torch.where(crossed, low, torch.maximum(low, c))
                c = torch.where(high.isfinite(), (low + high) / 2, c * 10)
            back = images + self.threat.project(found.images - images, images, radius)
            # Those within the radius stay as they are: at the boundary, rounding could make them right again.
            inside = torch.where(per_sample(found.distance <= radius, images), found.images, back)
            best = Strongest(images, task, "wrong")
            best.update(everyone, inside, model(any_batch_size(inside, model)), target)
            passes.forward += len(images)
        return CWL2Result(
            best.images, best.wrong, best.margin, dead, best.broken, passes,
            nearest=found.images, distance=found.distance,
        )  # fmt: skip

    def most_passes(self) -> Passes:
        """A forward and a backward for each step and c; a forward to judge what is within the radius."""
        total = self.search_steps * self.steps
        return Passes(forward=total + 1, backward_input=total)

    def _look(
        self, network: nn.Module, x: Tensor, target: Target, task: Task, c: Tensor, check: bool
    ) -> tuple[Tensor, Tensor]:
        """Which images are wrong, and the gradient of c * f; 0 where it is not finite."""
        with torch.enable_grad():
            x = any_batch_size(x.detach(), network).requires_grad_()
            output = network(x)
            if check:
                task.check(output, target)
            f = -confident_margin(task.points(output, target), 0.0, kappa=0.0)
            if self.mode == "train":  # BatchNorm makes every f a function of all images, so c belongs inside
                gradient = gradient_or_zero(c * f, x)
            else:  # half-precision layers might not hold c times a gradient
                gradient = per_sample(c, x) * gradient_or_zero(f, x)
        judged = Strongest(x.detach(), task, "wrong")
        wrong = judged.update(torch.arange(len(x), device=x.device), x, output, target)
        return wrong, gradient.nan_to_num(0.0, 0.0, 0.0)

    def _variables(self, images: Tensor) -> Tensor:
        """What Adam optimises, at the clean image."""
        if self.threat.box is None:
            return torch.zeros_like(images)
        low, high = self.threat.box
        return torch.atanh((2 * (images - low) / (high - low) - 1) * ALMOST)

    def _image(self, variables: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Images of the variables, and their derivative; channels that are not attacked stay clean."""
        if self.threat.box is None:
            delta, derivative = variables, torch.ones_like(variables)
        else:
            low, high = self.threat.box
            tanh = variables.tanh()
            delta = low + (high - low) * (tanh + 1) / 2 - clean
            derivative = (high - low) / 2 * (1 - tanh.square())
        unbounded = torch.full((len(clean),), torch.inf, dtype=clean.dtype, device=clean.device)
        return clean + self.threat.project(delta, clean, unbounded), derivative


class _Nearest:
    """The nearest wrong image of each sample so far."""

    def __init__(self, images: Tensor) -> None:
        self.clean = images
        self.images = images.clone()
        self.distance = torch.full((len(images),), torch.inf, dtype=images.dtype, device=images.device)

    def update(self, index: Tensor, images: Tensor, wrong: Tensor) -> None:
        distance = torch.linalg.vector_norm((images - self.clean[index]).flatten(1), dim=1)
        nearer = wrong & (distance < self.distance[index])
        self.distance[index] = torch.where(nearer, distance, self.distance[index])
        self.images[index] = torch.where(per_sample(nearer, images), images, self.images[index])


def _check_kappa_and_until(kappa: float, until: str, allowed: tuple[str, str]) -> None:
    if not (math.isfinite(kappa) and kappa >= 0):
        raise InputError.of("kappa", kappa, "a finite number >= 0", "it is a confidence in logits")
    one_of("until", until, allowed)
