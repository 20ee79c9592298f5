"""Settings that defences share: the enemy they train against, and the search for adversarial images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from monai_adv.attacks.ascent import Ascent
from monai_adv.attacks.projected_steps import Start
from monai_adv.errors import InputError
from monai_adv.given import Box
from monai_adv.network_state import Mode
from monai_adv.settings import Settings, not_negative, positive, setting
from monai_adv.threats import Norm, Threat, Unit, unit_of

N = TypeVar("N", int, float)


def clean_share() -> float:
    """The setting ``clean_weight`` of methods that train on attacked images alone unless told otherwise."""
    weight: float = setting(
        0.0, "weight of the loss on clean images, that on attacked ones has the rest (paper: 0); above 0 it costs 3 F",
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
    """The enemy: also methods that attack nothing in training have one, which robust validation uses."""

    eps: float = setting(0.1, "radius of the attack", "a finite number >= 0 (0: off)", not_negative)
    unit: Unit | None = setting(
        None, "unit of eps: RMS change per voxel (rms), or the norm itself (norm); none: rms for l2, norm for linf"
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
        if unit_of(self.norm, self.unit) == "rms" and self.eps > 1:
            raise InputError.of(
                "eps", self.eps, "at most 1 in the unit rms, one standard deviation in every voxel",
                "set unit to norm if you mean an L2 radius",
            )  # fmt: skip

    def threat(self, channels: tuple[int, ...] | None = None) -> Threat:
        """The enemy that is trained against."""
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
