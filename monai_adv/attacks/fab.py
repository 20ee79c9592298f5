"""FAB: walks along the decision boundary towards the clean image, for the smallest perturbation rather than a radius.

Source: Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020:
Algorithm 1, the projection of section 3.1 (equation 3 and its solutions), the final search of section 3.5; the targeted
version of Croce & Hein, "Reliable evaluation ...", ICML 2020, section 5.

A boundary is where a function of the image reaches 0. For one point per sample (classification) these functions are
the leads of the other classes over the label, or of the one rival. Otherwise (segmentation) there is a single one: its
value is ``-task.margin``, the threshold minus the hard Dice, and its slope that of ``task.sample_loss``, minus the soft
Dice in the same unit. A loss in another unit than the margin makes the steps too long or too short; whether an image is
wrong is always judged by the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor

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
from monai_adv.attacks.rivals import against_each_rival
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes, wide_dtype
from monai_adv.tasks.base import Output, Target, take
from monai_adv.threats import Norm, check_free, per_sample

FINAL_SEARCH = 3
"""Steps of the final search (section 3.5)."""


@dataclass
class FABResult(AttackResult):
    """The result of FAB.

    Attributes:
        images: the strongest image within the radius; the clean one if every crossing lies beyond it.
        distance: ``(B,)`` size of the smallest perturbation found on which the network is wrong, also beyond the
            radius; 0 where it is wrong already, ``inf`` where nothing was found. It is only the smallest one that FAB
            can find with ``until="lowest"``: otherwise a sample leaves at its first wrong image within the radius.
    """

    distance: Tensor = field(default_factory=Tensor)


@dataclass(frozen=True)
class FAB(BaseAttack[FABResult]):
    """Fast adaptive boundary attack.

    Args:
        threat: norm, box, channels; images beyond its radius do not count as wrong.
        steps: projections per restart.
        alpha_max: largest pull towards the clean image.
        eta: overshoot of a projection, >= 1, so that it crosses the boundary.
        beta: where a crossing happened, the share of the perturbation to go on from.
        restarts: the first begins at the clean image, the others at a random perturbation of half the size to beat.
        until: ``"wrong"``: a sample leaves at its first wrong image within the radius. ``"lowest"``: all steps for
            everyone, for the smallest distance.
        classes: of the network; only ``most_passes`` of an untargeted attack needs it, because such an attack makes a
            backward pass for each other class.
        mode: network mode during the attack, restored afterwards.

    Example:
        On a linear classifier it finds the distance to the boundary, here ``7 / 5``:

        >>> from torch import nn
        >>> from monai_adv.threats import Threat
        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(2, 2, bias=False)
        >>> network.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> attack = FAB(Threat("l2", 2.0, unit="norm"), steps=10, until="lowest")
        >>> attack(network, torch.ones(1, 2), torch.tensor([0]), ClassificationTask()).distance.round(decimals=3)
        tensor([1.4000])
    """

    takes: ClassVar[tuple[str, ...]] = ("rivals",)

    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    restarts: int = 1
    until: Until = "wrong"
    classes: int = 2
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        check_free(self.threat)
        for name, whole, least in (
            ("steps", self.steps, 1),
            ("restarts", self.restarts, 1),
            ("classes", self.classes, 2),
        ):
            if whole < least:
                raise InputError.of(name, whole, f"a whole number >= {least}")
        if not 0 <= self.alpha_max <= 1:
            raise InputError.of("alpha_max", self.alpha_max, "a number in [0, 1]")
        if not 1 <= self.eta < 2:
            raise InputError.of("eta", self.eta, "a number in [1, 2)")
        if not 0 < self.beta < 1:
            raise InputError.of("beta", self.beta, "a number in (0, 1)")
        one_of("until", self.until, get_args(Until))
        one_of("mode", self.mode, get_args(Mode))

    @property
    def random(self) -> bool:
        """From the second restart on."""
        return self.restarts > 1

    def run(self, problem: Problem) -> FABResult:
        """The walks of all restarts; with ``problem.rivals`` towards their boundaries, otherwise the nearest one.

        Raises:
            InputError: rivals for a task with several points per sample.
        """
        with frozen(problem.network, self.mode) as model, torch.enable_grad():
            search = _Search(self, replace(problem, network=model))
            for restart in range(self.restarts):
                search.walk(None if restart == 0 else problem.generator)
                search.final_search()  # after each: a restart then never loses what another one found
        best = search.best
        return FABResult(best.images, best.wrong, best.margin, search.dead, best.broken, search.passes, search.distance)

    def most_passes(self) -> Passes:
        """Two forwards and ``classes - 1`` backwards per step (one for a rival), and the final searches."""
        return Passes(self.restarts * (2 * self.steps + FINAL_SEARCH), self.restarts * self.steps * (self.classes - 1))


class _Search:
    """What FAB knows about each sample of a batch.

    Attributes:
        best: strongest image within the radius.
        distance, closest, closest_margin: size, perturbation and margin of the smallest wrong perturbation so far.
        clean_margin: margin of the clean image.
    """

    def __init__(self, attack: FAB, problem: Problem) -> None:
        images, task, radius = problem.images, problem.task, problem.radius
        self.attack, self.network, self.images, self.target, self.task = (
            attack, problem.network, images, problem.target, task
        )  # fmt: skip
        self.radius, self.rivals = radius, problem.rivals
        self.best = Strongest(images, task, attack.until)
        self.distance = torch.full_like(radius, torch.inf)
        self.closest = torch.zeros_like(images)
        self.closest_margin = torch.zeros_like(self.best.margin)
        self.clean_margin = torch.zeros_like(self.best.margin)
        self.dead = torch.zeros_like(self.best.wrong)
        self.passes = Passes()

    def running(self) -> Tensor:
        """``(B,)`` bool. A sample that is wrong as it is has no boundary to be approached."""
        going_on = self.distance > 0
        return going_on & ~self.best.wrong if self.attack.until == "wrong" else going_on

    def walk(self, generator: torch.Generator | None) -> None:
        """Algorithm 1 for those that run, from the clean image or (with a generator) from a random perturbation."""
        attack, threat, network = self.attack, self.attack.threat, self.network
        rows = self.running().nonzero()[:, 0]
        if len(rows) == 0:
            return
        delta = torch.zeros_like(self.images) if generator is None else self._random_start(generator)
        index, count = padded(rows, network), len(rows)
        delta = delta[index]
        base, radius, labels, rivals = self._of(index)
        anywhere = torch.full_like(radius, torch.inf)
        for k in range(attack.steps):
            x = any_batch_size(base + delta, network).requires_grad_()
            output = network(x)
            self.passes.forward += len(x)
            if k == 0 and generator is None:
                self.task.check(output, labels)
                self._judge(index, delta, x.detach(), output, labels, radius)
                self.clean_margin[index] = self.best.margin[index]
                if not bool(self.running().any()):
                    return
            value, slope = self._nearest_boundary(output, x, labels, rivals)
            del output  # its graph, before the next forward
            standing = slope.flatten(1).eq(0).all(1)
            self.dead[index] |= standing & self.running()[index]
            # The plane <slope, y - x> + value = 0, from the iterate and from the clean image.
            to_plane = to_hyperplane(x.detach(), slope, -value, threat.norm, threat.box)
            offset = (slope * delta).flatten(1).sum(1)
            clean_to_plane = to_hyperplane(base, slope, offset - value, threat.norm, threat.box)
            near, far = threat.size(to_plane).clamp(min=1e-8), threat.size(clean_to_plane)
            pull = per_sample((near / (near + far)).clamp(max=attack.alpha_max), delta)
            delta = (1 - pull) * (delta + attack.eta * to_plane) + pull * attack.eta * clean_to_plane
            delta = threat.project(delta, base, anywhere)  # the box only
            with torch.no_grad():
                x = any_batch_size(base + delta, network)
                wrong = self._judge(index, delta, x, network(x), labels, radius)
            self.passes.forward += len(x)
            delta = torch.where(per_sample(wrong, delta), attack.beta * delta, delta)
            if k % sync_interval(base.device) == 0:
                rows = self.running()[index[:count]].nonzero()[:, 0]
                if len(rows) == 0:
                    return
                if len(rows) < count:
                    count, rows = len(rows), padded(rows, network)
                    index, delta = index[rows], delta[rows]
                    base, radius, labels, rivals = self._of(index)
                    anywhere = torch.full_like(radius, torch.inf)

    @torch.no_grad()
    def final_search(self) -> None:
        """Section 3.5: false position on the segment between the clean image and the closest wrong one.

        It aims a tenth of the rest beyond the predicted crossing, so that rounding does not leave it on the right side.
        """
        rows = (self.running() & self.distance.isfinite()).nonzero()[:, 0]
        if len(rows) == 0:
            return
        index = padded(rows, self.network)
        base, radius, labels, _ = self._of(index)
        closest = self.closest[index]
        right, right_margin = torch.zeros_like(radius), self.clean_margin[index]
        wrong, wrong_margin = torch.ones_like(radius), self.closest_margin[index]
        for _ in range(FINAL_SEARCH):
            crossing = (right_margin / (right_margin - wrong_margin)).nan_to_num(0.5).clamp(0, 1).to(radius)
            share = right + (wrong - right) * (0.9 * crossing + 0.1)
            delta = per_sample(share, base) * closest
            x = any_batch_size(base + delta, self.network)
            output = self.network(x)
            self.passes.forward += len(x)
            margin = self.task.margin(output, labels).to(right_margin)
            beyond = self._judge(index, delta, x, output, labels, radius)
            right, right_margin = torch.where(beyond, right, share), torch.where(beyond, right_margin, margin)
            wrong, wrong_margin = torch.where(beyond, share, wrong), torch.where(beyond, margin, wrong_margin)

    def _judge(self, index: Tensor, delta: Tensor, x: Tensor, output: Output, target: Target, radius: Tensor) -> Tensor:
        """Keep what is closer, and what is stronger within the radius. Returns who is wrong."""
        size = self.attack.threat.size(delta)
        wrong = self.best.update(index, x, output, target, allowed=size <= radius)
        closer = wrong & (size < self.distance[index])
        margin = self.task.margin(output, target).to(self.closest_margin)
        self.distance[index] = torch.where(closer, size, self.distance[index])
        self.closest[index] = torch.where(per_sample(closer, delta), delta, self.closest[index])
        self.closest_margin[index] = torch.where(closer, margin, self.closest_margin[index])
        return wrong

    def _nearest_boundary(
        self, output: Output, x: Tensor, target: Target, rivals: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``(b,)`` value, negative while right, and slope of the boundary function that is nearest to linear order."""
        dual = 2 if self.attack.threat.norm == "l2" else 1
        shortest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        nearest, nearest_slope = torch.zeros_like(shortest), torch.zeros_like(x)
        for value, slope in self._boundaries(output, x, target, rivals):
            steepness = slope.flatten(1).norm(p=dual, dim=1)
            usable = (steepness > 0) & steepness.isfinite() & value.isfinite()
            distance = torch.where(usable, value.abs() / steepness, torch.inf)
            closer = distance < shortest
            shortest = torch.where(closer, distance, shortest)
            nearest = torch.where(closer, value, nearest)
            nearest_slope = torch.where(per_sample(closer, slope), slope, nearest_slope)
        return nearest, nearest_slope

    def _boundaries(
        self, output: Output, x: Tensor, target: Target, rivals: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Values and slopes of the boundary functions, one after the other."""
        points = self.task.points(output, target)
        if points.logits.shape[2] > 1:
            if rivals is not None:
                raise InputError.of("rivals", tuple(rivals.shape), "None for a task with several points per sample")
            value = -self.task.margin(output, target).to(x.dtype)
            yield value, self._slope(self.task.sample_loss(output, target), x, last=True)
            return
        logits, label = points.logits[:, :, 0], points.labels
        others = (
            [rivals.reshape(-1, 1)]
            if rivals is not None
            else [(label + i) % logits.shape[1] for i in range(1, logits.shape[1])]
        )
        for i, other in enumerate(others, start=1):
            lead = (logits.gather(1, other) - logits.gather(1, label))[:, 0]
            yield lead.detach().to(x.dtype), self._slope(lead, x, last=i == len(others))

    def _slope(self, values: Tensor, x: Tensor, *, last: bool) -> Tensor:
        """Gradient of each sample's value for the attacked channels of its image."""
        slope = gradient_or_zero(values, x, retain_graph=not last)
        self.passes.backward_input += len(x)
        channels = self.attack.threat.channels
        if channels is None:
            return slope
        attacked = torch.zeros_like(slope)
        attacked[:, list(channels)] = slope[:, list(channels)]
        return attacked

    def _random_start(self, generator: torch.Generator) -> Tensor:
        """A random perturbation of half the size to beat; drawn for everyone, so that neighbours do not matter."""
        threat = self.attack.threat
        size = torch.minimum(self.distance, self.radius) / 2
        noise = threat.random(self.images, size, generator)
        longer = size / threat.size(noise).clamp(min=torch.finfo(noise.dtype).tiny)
        return threat.project(noise * per_sample(longer, noise), self.images, size)

    def _of(self, index: Tensor) -> tuple[Tensor, Tensor, Target, Tensor | None]:
        rivals = None if self.rivals is None else self.rivals[index]
        return self.images[index], self.radius[index], take(self.target, index), rivals


def to_hyperplane(x: Tensor, normal: Tensor, gap: Tensor, norm: Norm, box: tuple[float, float] | None) -> Tensor:
    """The smallest ``delta`` with ``<normal, delta> = gap`` and ``x + delta`` in the box (equation 3, exactly).

    Entries move by ``min(t * b, room)``, where ``b`` is 1 in L-inf and ``|normal|`` in L2, and ``room`` is what the box
    leaves in the direction of ``normal``. What they contribute to the product grows with t, piecewise linear with its
    kinks at ``room / b``; so these are sorted and summed. If even all the room is too little, all of it is used.

    Args:
        x: ``(B, ...)`` in the box.
        normal: of the same shape; entries of 0 do not move.
        gap: ``(B,)`` of either sign.
        norm: in which ``delta`` is smallest.
        box: or ``None``.
    """
    weight = normal.flatten(1).abs()
    largest = weight.amax(1).clamp(min=torch.finfo(weight.dtype).tiny)
    weight, need = weight / largest[:, None], gap.abs() / largest  # squares must not underflow
    towards = (normal.flatten(1) * gap[:, None].sign()).sign()
    share = weight if norm == "l2" else (weight > 0).to(weight)
    gain = (weight * share).to(wide_dtype(x.device))  # of a growing t, until the kink; sums over many voxels
    if box is None:
        total = gain.sum(1)
        t = torch.where(total > 0, need / total, 0).to(share)
        return (towards * share * t[:, None]).view_as(x)
    room = torch.where(towards > 0, box[1] - x.flatten(1), x.flatten(1) - box[0]).clamp(min=0)
    kink = torch.where(gain > 0, room / share, 0)
    at, order = kink.sort(dim=1)
    gain, at = gain.gather(1, order), at.to(gain)
    none = torch.zeros_like(gain[:, :1])
    full = torch.cat([none, (gain * at).cumsum(1)], 1)  # contribution of the first k entries, which are at their room
    rest = gain.sum(1, keepdim=True) - torch.cat([none, gain.cumsum(1)], 1)  # of the others, per unit of t
    k = ((full[:, 1:] + at * rest[:, 1:]) < need[:, None]).sum(1, keepdim=True)
    enough = k[:, 0] < gain.shape[1]
    open_gain = rest.gather(1, k)[:, 0]
    t = torch.where(enough & (open_gain > 0), (need - full.gather(1, k)[:, 0]) / open_gain, at[:, -1])
    return (towards * torch.minimum(share * t[:, None].to(share), share * kink)).view_as(x)


@dataclass(frozen=True)
class TargetedFAB(BaseAttack[FABResult]):
    """FAB towards the boundary of one rival after the other, one backward pass per step whatever the number of classes.

    Args:
        threat, steps, restarts, until, mode: see :class:`FAB`.
        targets: number of rivals, the most likely wrong classes of the clean image; at most the number of classes
            minus 1.
    """

    targets: int = 9
    steps: int = 100
    restarts: int = 1
    until: Until = "wrong"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise InputError.of("targets", self.targets, "a whole number >= 1")
        self._towards_one()

    @property
    def random(self) -> bool:
        """From the second restart on."""
        return self.restarts > 1

    def run(self, problem: Problem) -> FABResult:
        """FAB towards each rival.

        Raises:
            InputError: more targets than wrong classes, or several points per sample.
        """
        distance = torch.full_like(problem.radius, torch.inf)

        def keep_distance(index: Tensor, result: FABResult) -> None:
            distance[index] = torch.minimum(distance[index], result.distance)

        r = against_each_rival(self._towards_one(), self.targets, problem, keep_distance)
        return FABResult(r.images, r.wrong, r.margin, r.dead, r.broken, r.passes, distance)

    def most_passes(self) -> Passes:
        """A forward to rank the classes, then FAB for each target."""
        one = self._towards_one().most_passes()
        return Passes(1 + self.targets * one.forward, self.targets * one.backward_input)

    def _towards_one(self) -> FAB:
        return FAB(self.threat, self.steps, restarts=self.restarts, until=self.until, mode=self.mode)
