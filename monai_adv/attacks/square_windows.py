"""Windows of the Square attack: where they lie, and the proposals that redraw them (see :mod:`square`)."""

from __future__ import annotations

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.threats import Threat, per_sample

TILES = 5
"""The L2 start is a grid of 5 windows along each axis."""


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
        return torch.stack([eta(self.sides, axis, self.like) for axis in range(len(self.sides))])


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


def eta(sides: tuple[int, ...], axis: int, like: Tensor) -> Tensor:
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


def at_bound(threat: Threat, clean: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
    """Clean values moved to + or - radius, within the box. Always by this formula: equal images are then equal bits."""
    return threat.clip(clean + signs * per_sample(radius, clean), clean)


def stripes(threat: Threat, images: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
    """The L-inf start: + or - radius, one sign per channel and place on the last axis."""
    lengths = (*images.shape[:2], *[1] * (images.ndim - 3), images.shape[-1])
    signs = _signs(torch.rand(lengths, generator=generator, device=images.device), images)
    start = at_bound(threat, images, signs, radius)
    if threat.channels is None:
        return start
    attacked = images.clone()
    attacked[:, list(threat.channels)] = start[:, list(threat.channels)]
    return attacked


def redrawn(
    threat: Threat, images: Tensor, radius: Tensor, rows: Tensor, window: Window, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """A window goes to + or - radius, one sign per channel: the paper's +-2 eps, projected (Algorithm 2).

    Returns:
        ``(b, n)`` entries of the flattened samples ``rows``, and their new values.
    """
    axes = images.ndim - 2
    entries = window.entries(window.corner(draws[:, :axes]))
    clean = images.flatten(1)[rows[:, None], entries.flatten(1)].view_as(entries)
    values = at_bound(threat, clean, _signs(draws[:, 2 * axes + 1 :, None], images), radius[rows])
    return entries.flatten(1), values.flatten(1)


def tiles(threat: Threat, images: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
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


def moved(threat: Threat, images: Tensor, current: Tensor, radius: Tensor, window: Window, draws: Tensor) -> Tensor:
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
