"""Square attack: random search over windows of the image, without a gradient.

Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV
2020: Algorithm 1 (search), 2 (L-inf windows), 3 and equation 2 (L2 windows), section 3.2 (schedule, starts). Written
there for square images; here for any number of axes of any lengths, with a window of its own for every sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Loss,
    Problem,
    Strongest,
    Until,
    one_of,
    sample_loss,
    sync_interval,
)
from monai_adv.attacks.losses import margin
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Output, Target, Task, take
from monai_adv.threats import Threat, per_sample

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these iterations the share of voxels in a window is halved (section 3.2, not rescaled to ``queries``)."""

TILES = 5
"""The L2 start is a grid of 5 windows along each axis."""


@dataclass(frozen=True)
class Square(BaseAttack[AttackResult]):
    """Random search: a window of the perturbation is redrawn, and kept where that raises the loss.

    Args:
        threat: norm, radius, box, channels.
        queries: redrawn windows, each one forward; the start is one forward more.
        p_init: share of the voxels in the first windows, in (0, 1].
        until: a sample leaves when it is ``"wrong"``, or when its score cannot fall further (``"lowest"``).
        loss: what must rise, of the task's points; ``None``: for one point per sample (classification) the negative
            logit margin, as in the paper; otherwise ``task.sample_loss``.
        mode: network mode during the attack, restored afterwards.

    A window has ``round((p * voxels) ** (1 / d))`` voxels along each of d axes, cut to the axis: for a square image the
    paper's. The L-inf start is constant along all axes but the last (the paper's vertical stripes).

    Example:
        Without a box every L-inf perturbation is at its bound everywhere:

        >>> from monai_adv.tasks import ClassificationTask
        >>> attack, network = Square(Threat("linf", 0.5), queries=20), nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
        >>> images, seed = torch.zeros(2, 1, 4, 6), torch.Generator().manual_seed(0)
        >>> result = attack(network, images, torch.tensor([0, 1]), ClassificationTask(), generator=seed)
        >>> result.images.abs().unique()
        tensor([0.5000])
    """

    queries: int = 5000
    p_init: float = 0.8
    until: Until = "wrong"
    loss: Loss | None = None
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InputError.of("queries", self.queries, "a whole number >= 1")
        if not 0 < self.p_init <= 1:
            raise InputError.of("p_init", self.p_init, "a number in (0, 1]", "it is the share of voxels in a window")
        one_of("until", self.until, get_args(Until))
        one_of("mode", self.mode, get_args(Mode))

    @property
    def random(self) -> bool:
        """Always."""
        return True

    @torch.no_grad()
    def run(self, problem: Problem) -> AttackResult:
        """The search; ``dead`` stays false: there is no gradient.

        Raises:
            InputError: images without a spatial axis.
        """
        images, target, task, radius = problem.images, problem.target, problem.task, problem.radius
        generator = problem.generator
        assert generator is not None
        if images.ndim < 3:
            raise InputError.of("images", tuple(images.shape), "(B, C, *spatial) with at least one spatial axis")
        linf = self.threat.norm == "linf"
        best = Strongest(images, task, self.until)
        passes = Passes()
        current = (_stripes if linf else _tiles)(self.threat, images, radius, generator)
        window = Window(images, self.threat.channels, self._sides(images, 0))
        # Two places, an axis, and a sign per attacked channel.
        draws_per_query = 2 * (images.ndim - 2) + 1 + len(window.channels)
        losses = torch.full_like(best.margin, -torch.inf)
        with frozen(problem.network, self.mode) as model:
            active = padded(torch.arange(len(images), device=images.device), model)
            for query in range(self.queries + 1):
                if query == 0:
                    proposal = current[active]
                else:
                    sides = self._sides(images, query - 1)
                    if sides != window.sides:
                        window = Window(images, self.threat.channels, sides)
                    # Drawn also for samples that have left: what a sample gets must not depend on its neighbours.
                    draws = torch.rand(len(images), draws_per_query, generator=generator, device=images.device)
                    proposal = (_linf if linf else _l2)(
                        self.threat, images[active], current[active], radius[active], window, draws[active]
                    )
                rows, proposal = self._worth_a_look(query, active, current, proposal, model)
                if len(rows) > 0:
                    labels = take(target, rows)
                    output = model(any_batch_size(proposal, model))
                    passes.forward += len(proposal)
                    if query == 0:
                        task.check(output, labels)
                    loss = self._loss(task, output, labels).to(losses)
                    first = ~best.wrong[rows]
                    wrong = best.update(rows, proposal, output, labels, loss)
                    accepted = (loss > losses[rows]) | (wrong & first)
                    losses[rows] = torch.where(accepted, loss, losses[rows])
                    current[rows] = torch.where(per_sample(accepted, proposal), proposal, current[rows])
                if query % sync_interval(images.device) == 0:
                    active = padded(best.running(), model)
                    if len(active) == 0:
                        break
        return AttackResult(best.images, best.wrong, best.margin, torch.zeros_like(best.wrong), best.broken, passes)

    def most_passes(self) -> Passes:
        """One forward per query, and one for the start."""
        return Passes(forward=self.queries + 1)

    @staticmethod
    def _worth_a_look(
        query: int, active: Tensor, current: Tensor, proposal: Tensor, network: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """The proposals that change something; the others would be judged as before.

        In L-inf a window often has the sign already that it draws: of grey images every third or second one. Counting
        them makes a GPU wait, so there they are looked at again.
        """
        if query == 0 or active.device.type != "cpu":
            return active, proposal
        changed = (proposal != current[active]).flatten(1).any(1).nonzero()[:, 0]
        rows = padded(changed, network)
        return active[rows], proposal[rows]

    def _sides(self, images: Tensor, iteration: int) -> tuple[int, ...]:
        shape = images.shape[2:]
        side = max(1, round((share(self.p_init, iteration) * math.prod(shape)) ** (1 / len(shape))))
        if self.threat.norm == "l2":  # the two peaks of its windows need a centre
            side = max(side + 1 - side % 2, 3)
        return tuple(min(side, length) for length in shape)

    def _loss(self, task: Task, output: Output, target: Target) -> Tensor:
        if self.loss is None:
            points = task.points(output, target)
            if points.labels.shape[1] == 1:
                return margin(points, 0.0)
        return sample_loss(task, self.loss, output, target)


def share(p_init: float, iteration: int) -> float:
    """Share of the voxels in a window.

    Example:
        >>> [share(0.8, i) for i in (0, 10, 11, 51)]
        [0.8, 0.8, 0.4, 0.2]
    """
    return float(p_init / 2 ** sum(iteration > h for h in HALVINGS))


class Window:
    """A window shape, and its places as indices of a sample's attacked entries.

    Attributes:
        sides: voxels along each axis.
        patterns: ``(d, n)`` the L2 window along each of d axes, over its n voxels.
    """

    def __init__(self, images: Tensor, channels: tuple[int, ...] | None, sides: tuple[int, ...]) -> None:
        self.sides = sides
        self.like = images
        shape, device = images.shape[2:], images.device
        every = range(images.shape[1]) if channels is None else sorted(set(channels))
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        self.room = torch.tensor([length - side + 1 for length, side in zip(shape, sides, strict=True)], device=device)
        self.lengths = torch.tensor(sides, device=device)
        self.strides = torch.tensor(strides, device=device)
        self.channels = torch.tensor(list(every), device=device)[:, None] * math.prod(shape)
        self.offsets = _offsets(sides, device)
        self.flat_offsets = (self.offsets * self.strides).sum(1)

    def corner(self, draws: Tensor) -> Tensor:
        """``(b, d)`` first corner from numbers in [0, 1), uniform over all places where the window fits."""
        return (draws * self.room).long()

    def entries(self, corner: Tensor) -> Tensor:
        """``(b, c, n)`` indices into the flattened ``(C, *spatial)`` of a sample: c attacked channels, n voxels."""
        voxels = (corner * self.strides).sum(1, keepdim=True) + self.flat_offsets
        return self.channels + voxels[:, None]

    def covers(self, corner: Tensor, other: Tensor) -> Tensor:
        """``(b, n)`` bool: which voxels of the window at ``other`` also belong to the one at ``corner``."""
        there = self.offsets + (other - corner)[:, None]
        return ((there >= 0) & (there < self.lengths)).all(2)

    @cached_property
    def patterns(self) -> Tensor:
        return torch.stack([_eta(self.sides, axis, self.like) for axis in range(len(self.sides))])


def _offsets(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """``(n, d)`` coordinates of the voxels of a window."""
    grids = torch.meshgrid(*(torch.arange(side, device=device) for side in sides), indexing="ij")
    return torch.stack(grids, -1).reshape(-1, len(sides))


def _signs(draws: Tensor, like: Tensor) -> Tensor:
    """+1 or -1 with equal chance, from numbers in [0, 1)."""
    return torch.where(draws < 0.5, -1.0, 1.0).to(like.dtype)


def _unit(values: Tensor) -> Tensor:
    """``(b, c, n)`` values with norm 1 over the last axis; zeros stay zeros."""
    size = values.norm(dim=2, keepdim=True)
    return torch.where(size > 0, values / size, values)


def _eta(sides: tuple[int, ...], axis: int, like: Tensor) -> Tensor:
    """``(n,)`` window of the L2 attack: a positive and a negative peak side by side along ``axis``; norm 1.

    At the largest coordinate distance m from its centre a peak is ``sum_{k=m}^{r} 1 / (k + 1)^2``, with r half its
    longest side (equation 2).
    """
    first = sides[axis] // 2
    peaks = []
    for length, sign in ((first, 1), (sides[axis] - first, -1)):
        shape = (*sides[:axis], length, *sides[axis + 1 :])
        centre = torch.tensor([side // 2 for side in shape], device=like.device)
        distance = (_offsets(shape, like.device) - centre).abs().amax(1)
        terms = torch.arange(1, max(shape) // 2 + 2, device=like.device).to(like.dtype).pow(-2)
        peaks.append(sign * terms.flip(0).cumsum(0).flip(0)[distance].view(shape))
    return F.normalize(torch.cat(peaks, axis).flatten(), dim=0)


def _stripes(threat: Threat, images: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
    """The L-inf start: + or - radius, one sign per channel and place on the last axis."""
    lengths = (*images.shape[:2], *[1] * (images.ndim - 3), images.shape[-1])
    sign = _signs(torch.rand(lengths, generator=generator, device=images.device), images)
    return images + threat.project((sign * per_sample(radius, images)).expand_as(images), images, radius)


def _linf(threat: Threat, images: Tensor, current: Tensor, radius: Tensor, window: Window, draws: Tensor) -> Tensor:
    """A window goes to + or - radius, one sign per channel: the paper's +-2 eps, projected (Algorithm 2)."""
    axes = images.ndim - 2
    entries = window.entries(window.corner(draws[:, :axes]))
    index = entries.flatten(1)
    clean = images.flatten(1).gather(1, index).view_as(entries)
    changed = clean + _signs(draws[:, 2 * axes + 1 :, None], images) * radius[:, None, None]
    changed = threat.clip(changed, clean)
    return current.flatten(1).scatter(1, index, changed.flatten(1)).view_as(current)


def _tiles(threat: Threat, images: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
    """The L2 start: a centred grid of windows, each with an axis of its own and signs per channel."""
    shape = tuple(images.shape[2:])
    sides = tuple(max(1, length // TILES) for length in shape)
    places = []
    for length, side in zip(shape, sides, strict=True):
        count = min(TILES, length)
        places.append(torch.arange(count, device=images.device) * side + (length - count * side) // 2)
    corners = torch.cartesian_prod(*places).view(-1, len(shape))
    window = Window(images, threat.channels, sides)
    channels = len(window.channels)
    draws = torch.rand(len(images), channels + 1, len(corners), generator=generator, device=images.device)
    patterns = window.patterns[(draws[:, 0] * len(shape)).long()]  # (B, tiles, n)
    values = patterns[:, None] * _signs(draws[:, 1:, :, None], images)  # (B, c, tiles, n)
    index = window.entries(corners).transpose(0, 1).reshape(1, -1).expand(len(images), -1)
    delta = torch.zeros_like(images).flatten(1).scatter(1, index, values.flatten(1)).view_as(images)
    return images + threat.project(delta * per_sample(radius / threat.size(delta), delta), images, radius)


def _l2(threat: Threat, images: Tensor, current: Tensor, radius: Tensor, window: Window, draws: Tensor) -> Tensor:
    """One window is wiped; its mass, and what the ball has left, go to another one (Algorithm 3)."""
    axes = images.ndim - 2
    to, wiped = window.corner(draws[:, :axes]), window.corner(draws[:, axes : 2 * axes])
    entries, wiped_entries = window.entries(to), window.entries(wiped)
    delta = (current - images).flatten(1)
    old = delta.gather(1, entries.flatten(1)).view_as(entries)
    lost = delta.gather(1, wiped_entries.flatten(1)).view_as(entries)
    lost = lost.masked_fill(window.covers(to, wiped)[:, None], 0)  # voxels of both windows count once
    unused = (radius.square() - delta.square().sum(1)).clamp(min=0)
    mass = old.square().sum(2) + lost.square().sum(2) + unused[:, None] / len(window.channels)
    pattern = window.patterns[(draws[:, 2 * axes] * axes).long()][:, None]
    new = _unit(_signs(draws[:, 2 * axes + 1 :, None], images) * pattern + _unit(old)) * mass.sqrt()[..., None]
    delta = delta.scatter(1, wiped_entries.flatten(1), 0.0).scatter(1, entries.flatten(1), new.flatten(1))
    # What the box has cut off comes back here; otherwise the radius is filled already.
    size = delta.norm(dim=1, keepdim=True)
    delta = torch.where(size > 0, delta * (radius[:, None] / size), delta).view_as(images)
    return images + threat.project(delta, images, radius)
