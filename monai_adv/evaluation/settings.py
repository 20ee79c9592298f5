"""What the user decides about an evaluation; all of it changes the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

from monai_adv import given
from monai_adv.certificates.settings import Smoothing
from monai_adv.errors import InputError, did_you_mean
from monai_adv.evaluation.described import SettingsEntry
from monai_adv.evaluation.named import ALLOWED
from monai_adv.evaluation.plans import Plan
from monai_adv.evaluation.records import Level
from monai_adv.given import Box
from monai_adv.threats import Norm, RadiusUnit
from monai_adv.variations import checked_words

Version = Literal["quick", "standard", "full"]
SMALLEST, LARGEST = 1e-12, 1e12
"""Radii whose squares, summed over the voxels of a volume, single precision still holds."""
MOST_THREADS = 512
"""More than any machine uses well; tens of thousands end the process."""
CASES = "a number >= 1, names of cases, or nothing for all"
VERSIONS: tuple[Version, ...] = ("quick", "standard", "full")


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Args:
        levels: radii, ascending and without repetition within each norm, all > 0: the clean score is always measured.
        attacks: ``"quick"``, ``"standard"`` or ``"full"``; see :mod:`monai_adv.evaluation.search.plan`. Or a plan of
            one's own.
        seed: of all random draws.
        batch_size: inputs that an attack gets at once. Random draws depend on it.
        cases: ``None``: all; a number: the first ones, which for a classifier are images; or names.
        box: lowest and highest intensity of an attacked image in network units; ``None``: the model's own, if any.
        device: type of device; its kernels and random streams decide the last digits.
        threads: CPU threads of each process; sums depend on it in the last digit.
        smooth: attack and certify the smoothed versions of the models; ``None``: the models themselves.
        variations: natural variations that are measured beside the attacks, in the words of
            :func:`monai_adv.variations.checked_words`.
        fuse: search on a copy of each network with BatchNorm folded, see :func:`monai_adv.networks.fused.fused`; what
            is reported is the network's own. The last digits of the search differ.

    Raises:
        InputError: for a value that is not allowed.

    Example:
        >>> EvaluationSettings((Level("l2", 0.5), Level("l2", 0.1)))
        Traceback (most recent call last):
        monai_adv.errors.InputError: eps: received [0.5, 0.1], allowed is radii of l2 in ascending order, each once.
    """

    levels: tuple[Level, ...]
    attacks: Version | Plan = "standard"
    seed: int = 0
    batch_size: int = 64
    cases: int | tuple[str, ...] | None = None
    box: Box | None = None
    device: str = "cpu"
    threads: int = 1
    smooth: Smoothing | None = None
    variations: tuple[str, ...] = ()
    fuse: bool = False

    def __post_init__(self) -> None:
        if not self.levels:
            raise InputError.of("eps", [], "at least one radius")
        for level in self.levels:
            if level.norm not in get_args(Norm):
                raise InputError.of("norm", level.norm, "'l2' or 'linf'")
            if level.unit not in get_args(RadiusUnit):
                raise InputError.of("unit", level.unit, "one of " + ", ".join(get_args(RadiusUnit)))
            if not (math.isfinite(level.eps) and level.eps > 0):
                raise InputError.of("eps", level.eps, "finite radii > 0", "the clean score is always measured")
            if not SMALLEST <= level.eps <= LARGEST:
                raise InputError.of("eps", level.eps, f"radii from {SMALLEST:g} to {LARGEST:g}", "check its unit")
            if level.unit == "rms" and level.norm == "linf":
                raise InputError.of("unit", "rms", "'norm' or 'raw' for linf", "its radius is per voxel already")
        for norm, group in groupby(sorted(self.levels, key=lambda level: level.norm), lambda level: level.norm):
            radii = [level.eps for level in group]
            if radii != sorted(set(radii)):
                raise InputError.of("eps", radii, f"radii of {norm} in ascending order, each once")
        if len({level.key for level in self.levels}) < len(self.levels):
            raise InputError.of("eps", [level.eps for level in self.levels], "radii that differ in six digits")
        if not isinstance(self.attacks, Plan) and self.attacks not in VERSIONS:
            raise InputError.of("attacks", self.attacks, "one of " + ", ".join(VERSIONS))
        object.__setattr__(self, "seed", given.whole("seed", self.seed, 0, given.LARGEST_SEED, "a whole number >= 0"))
        object.__setattr__(self, "batch_size", given.whole("batch_size", self.batch_size, 1))
        object.__setattr__(self, "threads", given.whole("threads", self.threads, 1, MOST_THREADS))
        if self.box is not None:
            object.__setattr__(self, "box", given.box("box", self.box))
        if self.smooth is not None and all(level.norm != "l2" for level in self.levels):
            raise InputError.of("smooth", self.smooth.sigma, "given with radii of l2", "a certificate holds for l2")
        object.__setattr__(self, "variations", checked_words(self.variations))
        if not isinstance(self.fuse, bool):
            raise InputError.of("fuse", self.fuse, "True or False")
        if self.fuse and self.smooth is not None:
            raise InputError.of("fuse", True, "given without smooth", "a last digit can turn a whole vote")
        if self.cases is not None and not isinstance(self.cases, tuple):
            object.__setattr__(self, "cases", given.whole("cases", self.cases, 1, allowed=CASES))
        if self.cases == ():
            raise InputError.of("cases", self.cases, CASES)

    def select(self, cases: Sequence[str]) -> tuple[str, ...]:
        """Those of a model's cases that are evaluated, in the model's order.

        Raises:
            InputError: no cases, or names that the model does not have.
        """
        return selected(self.cases, cases)

    def ascending(self) -> tuple[tuple[Level, ...], ...]:
        """The levels, norm by norm: each group is a chain in which every level starts from the one before."""
        norms = dict.fromkeys(level.norm for level in self.levels)
        return tuple(tuple(level for level in self.levels if level.norm == norm) for norm in norms)

    @property
    def version(self) -> Version:
        """As which the checks treat the attacks: a plan of one's own has to hold what ``standard`` holds."""
        return "standard" if isinstance(self.attacks, Plan) else self.attacks

    def entry(self) -> SettingsEntry:
        """As ``evaluation.json`` has them, without the levels: a plan by its name and the hash of its code."""
        plan = self.attacks if isinstance(self.attacks, Plan) else None
        return SettingsEntry(
            attacks=plan.name if plan else str(self.attacks),
            seed=self.seed,
            batch_size=self.batch_size,
            cases=self.cases,
            box=self.box,
            device=self.device,
            threads=self.threads,
            attacks_code=plan.code if plan else "",
            smooth=self.smooth,
            variations=self.variations,
            fuse=self.fuse,
        )


def attacks_of(given: Any) -> Version | Plan:
    """What a user gives as ``attacks``: a version, a plan, its function, or its name.

    Raises:
        InputError: something else, or a plan that is not found.
    """
    if given in VERSIONS:
        found: Version = given
        return found
    if isinstance(given, Plan):
        return given
    if isinstance(given, str):
        if ":" not in given:
            todo = f"{did_you_mean(given, VERSIONS)}" if given else ""
            raise InputError.of("attacks", given, f"quick, standard, full, or a plan as {ALLOWED}", todo)
        return Plan.named(given)
    return Plan.of(given)


def selected(asked: int | tuple[str, ...] | None, cases: Sequence[str]) -> tuple[str, ...]:
    """Those of a model's cases that are asked for, in the model's order.

    Args:
        asked: None: all; a number: the first ones; or names.
        cases: that the model has.

    Raises:
        InputError: no cases, or names that the model does not have.
    """
    if not cases:
        raise InputError("cases: the model has no case that can be used; see the problems above.")
    if asked is None:
        return tuple(cases)
    if isinstance(asked, int):
        return tuple(cases[:asked])
    unknown = sorted(set(asked) - set(cases))
    if unknown:
        known = ", ".join([*cases[:10], *(["..."] if len(cases) > 10 else [])])
        raise InputError.of("cases", ", ".join(unknown), f"names among {known}")
    return tuple(c for c in cases if c in asked)
