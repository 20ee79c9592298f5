"""What the checks of one model add up to: how far its figures can be trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from monai_adv.metrics.score import Kind
from monai_adv.metrics.statistics import FEWEST

Outcome = Literal["passed", "FAILED", "not run"]
Word = Literal["reliable", "not reliable", "not fully checked", "not enough measured"]

FEWEST_CASES: dict[Kind, int] = {"segmentation": FEWEST, "classification": 50}
"""Patients: with fewer there is no interval and no test. Images: each is only right or wrong, and with fewer than 50
the 95 % interval of an accuracy can be wider than 14 points to each side."""
FEWEST_RADII = 2
"""Of one norm and unit: with one alone nobody sees whether the score falls as the attacker may do more."""


@dataclass(frozen=True)
class Flag:
    """One check.

    Attributes:
        name: short, for machines.
        question: what is checked.
        title: the finding in a few words, as if it were raised.
        raised: whether the check failed; None: it was not run, or there was nothing to compare.
        measured: what was found, with its numbers.
        threshold: from where on it is raised, and why from there.
        meaning: what it means and what to do, for a reader who is no engineer.
    """

    name: str
    question: str
    title: str
    raised: bool | None
    measured: str
    threshold: str
    meaning: str

    @property
    def outcome(self) -> Outcome:
        """In words."""
        return "not run" if self.raised is None else "FAILED" if self.raised else "passed"


@dataclass(frozen=True)
class Verdict:
    """Whether the figures of a model can be trusted; nothing is said of the model.

    Attributes:
        word: "reliable", "not reliable", "not enough measured" or "not fully checked".
        reasons: titles of the checks that failed, or else what is too little, or else the questions that stayed open.
    """

    word: Word
    reasons: tuple[str, ...]


def verdict(flags: Iterable[Flag], kind: Kind, cases: int, radii: int) -> Verdict:
    """One check that failed is enough; too little measured, or a check that was not run, leaves the question open.

    Args:
        flags: of the model.
        kind: classification or segmentation.
        cases: patients or images with a score.
        radii: how many of one norm and unit were attacked, the most of any.

    Example:
        >>> verdict([], "segmentation", 2, 1).reasons
        ('2 patients of at least 6', '1 radius of at least 2 of one norm and unit')
    """
    flags = list(flags)
    if raised := tuple(f.title for f in flags if f.raised):
        return Verdict("not reliable", raised)
    one = "patient" if kind == "segmentation" else "image"
    few = []
    if cases < FEWEST_CASES[kind]:
        few.append(f"{cases} {one}{'s' * (cases != 1)} of at least {FEWEST_CASES[kind]}")
    if radii < FEWEST_RADII:
        few.append(f"{radii} {'radius' if radii == 1 else 'radii'} of at least {FEWEST_RADII} of one norm and unit")
    if few:
        return Verdict("not enough measured", tuple(few))
    if unknown := tuple(f.question for f in flags if f.raised is None):
        return Verdict("not fully checked", unknown)
    return Verdict("reliable", ())
