"""Threat: what the attacker may do to an input.

Everything works on ``(B, C, *spatial)`` tensors of any number of spatial dimensions, on the tensor's own device and
dtype, one sample at a time (a sample's budget never depends on its neighbours in the batch), and without a host sync.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from monai_adv import given
from monai_adv.errors import InputError
from monai_adv.given import Box

Norm = Literal["l2", "linf"]
Unit = Literal["norm", "rms"]
RadiusUnit = Literal["norm", "rms", "raw"]
"""As in :class:`Threat`, or ``raw``: the default unit in the intensities of the image files (HU for CT)."""
MOST_RMS = 1.0
"""An RMS change of one standard deviation of a z-scored image, or of the whole width of [0, 1]: nothing is left."""
Beyond = Literal["refuse", "keep", "keep_ends"]
ROUNDING = 1e-6
"""Share of a box's width by which an image may lie beyond it all the same: boxes are written with seven digits."""


def unit_of(norm: Norm, unit: RadiusUnit | None, eps: float = 0.0) -> RadiusUnit:
    """The unit of a radius: if none was given, RMS change per voxel for L2 and the largest change for L-inf.

    Raises:
        InputError: none was given, and ``eps`` as an RMS change leaves nothing of an image: it may be meant as a norm.

    Example:
        >>> unit_of("l2", None, 0.1), unit_of("linf", None, 0.1), unit_of("l2", "norm", 15.0)
        ('rms', 'norm', 'norm')
    """
    if unit is not None:
        return unit
    if norm == "l2" and eps > MOST_RMS:
        raise InputError.of(
            "eps", eps, f"at most {MOST_RMS:g} where no unit is given: an L2 radius is RMS change per voxel then",
            "say unit norm if it is the L2 norm itself, or unit rms",
        )  # fmt: skip
    return "rms" if norm == "l2" else "norm"


def in_network_units(norm: Norm, eps: float, unit: RadiusUnit | None, raw_unit: float | None) -> tuple[float, Unit]:
    """A radius and its unit as a :class:`Threat` takes them.

    Args:
        norm: of the radius.
        eps: the radius.
        unit: of the radius.
        raw_unit: intensity in the files of one network unit; asked for with ``raw`` only.

    Example:
        21 HU, where a network unit is 210 HU, is 0.1: the largest change for L-inf, RMS per voxel for L2.

        >>> in_network_units("linf", 21, "raw", 210), in_network_units("l2", 21, "raw", 210)
        ((0.1, 'norm'), (0.1, 'rms'))
    """
    unit = unit_of(norm, unit, eps)
    if unit != "raw":
        return eps, unit
    assert raw_unit is not None
    return eps / raw_unit, "rms" if norm == "l2" else "norm"


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View ``(B,)`` values as ``(B, 1, ..., 1)`` so that they broadcast over the samples of ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Threat:
    """A ball around each input, optionally cut by an intensity box.

    Args:
        norm: ``"l2"`` (over all attacked channels and voxels of one sample together) or ``"linf"`` (per voxel).
        eps: radius, a number >= 0, in the units of the tensor that the network sees (for nnU-Net: standard deviations
            of the z-scored image). 0 allows no change at all. A call of an attack takes a radius for every sample.
        box: lowest and highest intensity that an attacked image may have, or ``None``. There is no default box:
            z-scored scans have none, and clamping them to [0, 1] destroys them.
        beyond: what becomes of voxels of the clean image that lie beyond the box. ``"refuse"``: the box is taken to be
            wrong. ``"keep"``: they stay as they are. ``"keep_ends"``: so do those at its ends, for images that were
            clipped to the box: what a file has there lies beyond it, and a small change of the file would not show.
        boxed: the channels that the box is for, as with CT beside PET; ``None`` means all that are attacked.
        unit: ``"rms"`` (L2 only, and its default): ``eps`` is the root mean square change per voxel, because an L2
            radius means less and less per voxel as images grow. ``"norm"``: ``eps`` is the norm itself.
        channels: the channels that are intensities and may be changed; ``None`` means all. The one-hot channels that
            an nnU-Net cascade appends are not intensities.

    Raises:
        InputError: for an unknown norm or unit, a negative or non-finite radius, an empty box, or an L2 radius above 1
            without a unit.

    Example:
        The same RMS budget is a larger L2 radius on a larger image:

        >>> threat = Threat("l2", 0.1)
        >>> [round(float(threat.radius(torch.zeros(1, 1, n, n))), 6) for n in (10, 20)]
        [1.0, 2.0]
    """

    norm: Norm
    eps: float
    box: Box | None = None
    unit: Unit | None = None
    channels: tuple[int, ...] | None = None
    beyond: Beyond = "refuse"
    boxed: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise InputError.of("norm", self.norm, "'l2' or 'linf'")
        if self.unit not in ("norm", "rms", None):
            raise InputError.of("unit", self.unit, "'norm' or 'rms'")
        if self.unit == "rms" and self.norm == "linf":
            raise InputError.of("unit", "rms", "'norm' when norm is 'linf'", "an L-inf radius is per voxel already")
        if isinstance(self.eps, Tensor):
            todo = "give radii of their own to the call of the attack: radius=..."
            raise InputError.of("eps", f"a tensor {tuple(self.eps.shape)}", "one number", todo)
        object.__setattr__(self, "eps", given.number("eps", self.eps, "a finite number >= 0"))
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise InputError.of("eps", self.eps, "a finite number >= 0")
        object.__setattr__(self, "unit", unit_of(self.norm, self.unit, self.eps))
        if self.box is not None:
            object.__setattr__(self, "box", given.box("box", self.box))
        if self.boxed is not None and self.channels is not None:
            raise InputError.of("boxed and channels", (self.boxed, self.channels), "one of the two")

    def check(self, images: Tensor) -> None:
        """Refuse images that this threat cannot be applied to. Costs one host sync: call it once, not in a loop.

        Raises:
            InputError: no channel axis, integer images, unknown channels, or a box that does not contain the images.
        """
        if images.ndim < 2 or not images.is_floating_point():
            raise InputError.of("images", f"{images.dtype} {tuple(images.shape)}", "a float tensor (B, C, *spatial)")
        if self.channels is not None and not all(0 <= c < images.shape[1] for c in self.channels):
            raise InputError.of("channels", self.channels, f"indices below {images.shape[1]}")
        if self.box is not None:
            bounded = self.channels if self.boxed is None else self.boxed
            attacked = images if bounded is None else images[:, list(bounded)]
            low, high = (float(v) for v in attacked.aminmax())
            slack = ROUNDING * (self.box[1] - self.box[0])
            if self.beyond == "refuse" and (low < self.box[0] - slack or high > self.box[1] + slack):
                raise InputError.of(
                    "box", self.box, f"a box that contains the images, here [{low:.4g}, {high:.4g}]",
                    "z-scored images have no box",
                )  # fmt: skip

    def radius(self, images: Tensor) -> Tensor:
        """``(B,)`` radius of each sample in the norm's own unit, on the images' device."""
        eps = torch.as_tensor(self.eps, dtype=images.dtype, device=images.device)
        return (eps * self.scale(images)).expand(len(images))

    def scale(self, images: Tensor) -> float:
        """One unit of ``eps`` in the norm's own unit: ``sqrt(number of attacked voxels)`` for RMS, otherwise 1."""
        return self._root_of_entries(images) if self.unit == "rms" else 1.0

    def size(self, delta: Tensor) -> Tensor:
        """``(B,)`` norm of each sample's perturbation, in the norm's own unit."""
        flat = delta.flatten(1)
        return flat.norm(dim=1) if self.norm == "l2" else flat.abs().amax(dim=1)

    def project(self, delta: Tensor, images: Tensor, radius: Tensor) -> Tensor:
        """The nearest allowed perturbation: first into the ball, then into the box.

        For images inside the box the second step only shrinks ``delta`` voxel by voxel, so the norm bound still holds.
        """
        bound = per_sample(radius, delta)
        delta = self.only_free(delta, images)
        if self.norm == "l2":
            # 1 exactly for a perturbation inside the ball, also for delta = 0 and radius = 0.
            size = per_sample(self.size(delta), delta)
            delta = delta * torch.where(size > bound, bound / size, torch.ones_like(size))
        else:
            delta = delta.clamp(-bound, bound)
        if self.box is not None:
            delta = self.clip(images + delta, images) - images
        return self._attacked_channels_only(delta)

    def clip(self, images: Tensor, clean: Tensor) -> Tensor:
        """Attacked images, voxel by voxel, within the box; those that stay as they are come from the clean image."""
        if self.box is None:
            return images
        inside = images.clamp(*self.box)
        if self.boxed is not None:
            inside = torch.where(_channel_mask(self.boxed, images), inside, images)
        return inside if self.beyond == "refuse" else torch.where(self._kept(clean), clean, inside)

    def only_free(self, values: Tensor, clean: Tensor) -> Tensor:
        """Values with zeros where a voxel of the clean image may not change."""
        if self.box is not None and self.beyond != "refuse":
            values = torch.where(self._kept(clean), torch.zeros_like(values), values)
        return self._attacked_channels_only(values)

    def direction(self, gradient: Tensor, images: Tensor | None = None) -> Tensor:
        """Steepest ascent of unit size under the norm: ``g / ||g||_2`` or ``sign(g)``.

        A sample whose gradient is zero or not finite gets a zero direction; callers count those (see ``PGD``).

        Args:
            gradient: of the loss.
            images: clean ones, whose fixed voxels get no part of the direction.
        """
        gradient = self._attacked_channels_only(gradient) if images is None else self.only_free(gradient, images)
        largest = gradient.flatten(1).abs().amax(dim=1)
        usable = per_sample((largest > 0) & largest.isfinite(), gradient)
        # Dividing by the largest entry first keeps the squares of tiny (half precision) gradients from underflowing.
        gradient = torch.where(usable, gradient / per_sample(largest, gradient), torch.zeros_like(gradient))
        if self.norm == "linf":
            return gradient.sign()
        size = per_sample(self.size(gradient), gradient)
        return torch.where(usable, gradient / size, gradient)

    def random(self, images: Tensor, radius: Tensor, generator: torch.Generator, *, surface: bool = False) -> Tensor:
        """A random perturbation of each sample, uniform in the ball (``surface``: on its surface), cut by the box."""
        if self.norm == "linf":
            noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
            noise = noise.sign() if surface else noise
        else:
            noise = self.only_free(torch.empty_like(images).normal_(generator=generator), images)
            # A sample without a free voxel has no noise either.
            noise = noise / per_sample(self.size(noise).clamp(min=torch.finfo(noise.dtype).tiny), noise)
            if not surface:
                scale = torch.empty_like(radius).uniform_(generator=generator) ** (1 / self._attacked_entries(images))
                noise = noise * per_sample(scale, noise)
        return self.project(noise * per_sample(radius, noise), images, radius)

    def rms(self, images: Tensor) -> float:
        """The radius as change per voxel, in network units: RMS for L2, the largest for L-inf."""
        return self.eps if self.norm == "linf" or self.unit == "rms" else self.eps / self._root_of_entries(images)

    def words(self, images: Tensor | None = None, raw_unit: float | None = None) -> str:
        """The radius in words with its unit, for logs and reports.

        Args:
            images: with them also in the other unit.
            raw_unit: intensity in the files of one network unit, where it is known: then also in the files.
        """
        if self.norm == "linf":
            text, others = f"L-inf radius {self.eps:g}", ["the largest change of a voxel"] if images is not None else []
        elif self.unit == "norm":
            text, others = f"L2 radius {self.eps:g}", []
            if images is not None:
                others.append(f"{self.rms(images):.3g} RMS per voxel")
        else:
            text, others = f"L2, {self.eps:g} RMS per voxel", []
            if images is not None:
                others.append(f"L2 radius {self.eps * self._root_of_entries(images):.3g}")
        if images is not None and raw_unit not in (None, 1.0):
            assert raw_unit is not None
            others.append(f"{self.rms(images) * raw_unit:.3g}{' RMS' if self.norm == 'l2' else ''} in the files")
        return text + (f" (= {', '.join(others)})" if others else "")

    def describe(self, images: Tensor | None = None, raw_unit: float | None = None) -> str:
        """The threat in words: the radius, see :meth:`words`, and the box."""
        text = self.words(images, raw_unit)
        if self.box is None:
            return f"{text}, no box"
        text += "" if self.boxed is None else f", of channel {', '.join(map(str, self.boxed))}"
        if self.beyond == "refuse":
            return f"{text}, box [{self.box[0]:.6g}, {self.box[1]:.6g}]"
        which = "beyond it" if self.beyond == "keep" else "at its ends or beyond"
        return f"{text}, box [{self.box[0]:.6g}, {self.box[1]:.6g}], voxels {which} stay as they are"

    def _kept(self, clean: Tensor) -> Tensor:
        """Bool, like the images: which voxels stay as they are."""
        assert self.box is not None
        low, high = self.box
        slack = ROUNDING * (high - low) * (1 if self.beyond == "keep_ends" else -1)
        kept = (clean <= low + slack) | (clean >= high - slack)
        return kept if self.boxed is None else kept & _channel_mask(self.boxed, clean)

    def _attacked_channels_only(self, values: Tensor) -> Tensor:
        if self.channels is None:
            return values
        return torch.where(_channel_mask(self.channels, values), values, torch.zeros_like(values))

    def _root_of_entries(self, images: Tensor) -> float:
        return math.sqrt(self._attacked_entries(images))

    def _attacked_entries(self, images: Tensor) -> int:
        """How many numbers of one sample may change."""
        return images[0].numel() if self.channels is None else images[0, 0].numel() * len(self.channels)


def check_free(threat: Threat) -> None:
    """Refuse a box that fixes voxels, for attacks that go by distances to the box.

    Raises:
        InputError: says so.
    """
    if threat.box is not None and threat.beyond != "refuse":
        raise InputError.of("beyond", threat.beyond, "'refuse' for this attack", "it takes every voxel to be free")


def _channel_mask(channels: tuple[int, ...], like: Tensor) -> Tensor:
    """``(1, C, 1, ...)`` bool."""
    return _mask(channels, like.shape[1], like.device).view(1, -1, *[1] * (like.ndim - 2))


@lru_cache(maxsize=32)  # building it copies from host to device: once, not in every attack step
def _mask(channels: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    return torch.tensor([c in channels for c in range(count)], device=device)
