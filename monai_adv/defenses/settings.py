"""Settings that defences share: the attacker they train against, and the search for adversarial images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from monai_adv.attacks.ascent import Ascent
from monai_adv.attacks.projected_steps import Start
from monai_adv.errors import InputError
from monai_adv.given import Box
from monai_adv.network_state import Mode
from monai_adv.settings import Settings, not_negative, positive, setting
from monai_adv.threats import MOST_RMS, Norm, RadiusUnit, Threat, in_network_units, unit_of

N = TypeVar("N", int, float)
S = TypeVar("S", bound="DefenseSettings")


def clean_share() -> float:
    """The setting ``clean_weight`` of methods that train on attacked images alone unless told otherwise."""
    weight: float = setting(
        0.0, "weight of the loss on clean images, that on attacked ones has the rest (paper: 0); above 0 it costs "
        "3 forwards",
        "a number in [0, 1)", lambda v: 0 <= v < 1,
    )  # fmt: skip
    return weight


SMALLEST_EPS = 1e-8
"""A smaller change is lost beside an intensity of 1 in single precision."""


def numbers(name: str, text: str | float | None, number: Callable[[str], N], allowed: str) -> tuple[N, ...]:
    """The numbers of a setting such as ``"2,4,6,8"``: settings hold scalars, so that variables can set them.

    Raises:
        InputError: something else stands between the commas.
    """
    if text is None:
        return ()
    try:
        return tuple(number(part) for part in str(text).split(","))
    except ValueError:
        raise InputError.of(name, text, allowed) from None


@dataclass(frozen=True)
class DefenseSettings(Settings):
    """The attacker: also methods that attack nothing in training have one, which robust validation uses."""

    eps: float = setting(0.1, "radius of the attack", "a finite number >= 0 (0: off)", not_negative, radius=True)
    unit: RadiusUnit | None = setting(
        None,
        "unit of eps: RMS change per voxel (rms), or the norm itself (norm); none: rms for l2, norm for linf; raw: the "
        "same in the intensities of the files (HU)",
    )
    norm: Norm = setting("l2", "norm of the perturbation")
    box: Box | None = setting(
        None, "lowest and highest intensity of an attacked image; none: no bounds (z-scored scans have none)",
        "two numbers such as 0, 1, or none",
    )  # fmt: skip
    seed: int = setting(0, "seed of random starts and noise", "a whole number >= 0", not_negative)

    def check(self) -> None:
        if 0 < self.eps < SMALLEST_EPS:
            raise InputError.of("eps", self.eps, f"0 (off) or at least {SMALLEST_EPS:g}",
                                "less is lost in the rounding of an image")  # fmt: skip
        if self.norm == "linf" and self.unit == "rms":
            raise InputError.of("unit", "rms", "'norm' when norm is 'linf'", "an L-inf radius is per voxel already")
        if (self.unit or unit_of(self.norm, None)) == "rms" and self.eps > MOST_RMS:
            raise InputError.of(
                "eps", self.eps, "at most 1 in the unit rms, one standard deviation in every voxel",
                "set unit to norm if you mean an L2 radius",
            )  # fmt: skip

    def in_network_units(self: S, raw_unit: float | None, why_not: str) -> S:
        """The same with all radii in units of the network's input, where they are ``raw``.

        Args:
            raw_unit: intensity in the files of one network unit; None if it is not the same for all images.
            why_not: what is said then, and what to do.

        Raises:
            InputError: raw radii without a raw unit.

        Example:
            >>> settings = AttackSettings(norm="linf", eps=21, unit="raw")
            >>> settings.in_network_units(210.0, "") == AttackSettings(norm="linf", eps=0.1, unit="norm")
            True
        """
        if self.unit != "raw":
            return self
        if raw_unit is None:
            raise InputError.of("unit", "raw", "'rms' or 'norm' here", why_not)
        fields = [f.name for f in dataclasses.fields(self) if f.metadata["radius"]]
        given = {name: getattr(self, name) for name in fields}
        radii = {name: in_network_units(self.norm, r, "raw", raw_unit) for name, r in given.items() if r is not None}
        changed: dict[str, Any] = {name: r for name, (r, _) in radii.items()}
        return dataclasses.replace(self, unit=radii["eps"][1], **changed)

    def threat(self, channels: tuple[int, ...] | None = None) -> Threat:
        """The attacker that is trained against.

        Raises:
            InputError: a raw radius, which only a host can convert.
        """
        if self.unit == "raw":
            todo = "only a host that reads files can convert raw; divide by the intensity of one unit of your images"
            raise InputError.of("unit", "raw", "'rms' or 'norm' in a loop of your own", todo)
        return Threat(self.norm, self.eps, self.box, self.unit, channels)


@dataclass(frozen=True)
class AttackSettings(DefenseSettings):
    """A projected gradient attack in every training step."""

    steps: int = setting(10, "gradient steps K of the attack", "a whole number >= 1", positive)
    relative_step: float | None = setting(
        None, "step as a fraction of the radius; none: 4 / steps", "a number > 0 or none", positive
    )
    start: Start = setting(
        "ball", "first point: the clean image, a random one in the ball or on its surface, or 0.001 standard normal"
    )
    attack_mode: Mode = setting("eval", "network mode during the attack")

    def ascent(self, channels: tuple[int, ...] | None = None, **overrides: Any) -> Ascent:
        """The attack. A method that runs the last iterate through the network anyway does not check it."""
        given: dict[str, Any] = {
            "steps": self.steps,
            "relative_step": self.relative_step,
            "start": self.start,
            "mode": self.attack_mode,
            "check_last": False,
        }
        return Ascent(self.threat(channels), **{**given, **overrides})
