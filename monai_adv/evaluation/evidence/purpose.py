"""What a model is for, and which figures it has to reach: stated by the user, decided in ``decisions.py``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from monai_adv.errors import InputError
from monai_adv.evaluation.records import Level, level_name
from monai_adv.given import number
from monai_adv.metrics.score import Kind
from monai_adv.threats import Norm, RadiusUnit

SCORE, KEPT = "score", "share kept"
LOWER_IS_BETTER = ("hd95_mm", "false_positive")
MEASURES: dict[Kind, tuple[str, ...]] = {
    "segmentation": (SCORE, KEPT, "dice CLASS", "hd95_mm CLASS", "false_positive CLASS"),
    "classification": (SCORE, KEPT, "sensitivity", "specificity", "sensitivity CLASS", "specificity CLASS"),
}
"""In the words of ``Results.frame``; "sensitivity" without a class is of the second of two classes."""
WORDS = {
    SCORE: "mean score", KEPT: "share of the clean score kept", "dice": "mean Dice", "hd95_mm": "median HD95",
    "false_positive": "false positives",
}  # fmt: skip
"""Measures as the report calls them, where that differs."""
PROVEN = (SCORE, "dice", "sensitivity")
"""First words of the measures for which a certificate is a lower bound."""
KEYS = ("measure", "norm", "eps", "unit", "at_least", "at_most", "most_lost", "reason")
LONGEST = 2000
"""Characters of a text: the summary is one page."""


@dataclass(frozen=True)
class Criterion:
    """One acceptance criterion.

    Attributes:
        measure: one of :data:`MEASURES`, with the name of a class for CLASS.
        level: key of a radius (:attr:`Level.key`); "" for unchanged images.
        bound: a share between 0 and 1; mm for HD95.
        at_least: whether the figure has to reach the bound, or to stay below it.
        reason: why this bound, in the user's words.
    """

    measure: str
    level: str
    bound: float
    at_least: bool
    reason: str

    @property
    def in_percent(self) -> bool:
        """Whether the bound is a share."""
        return not self.measure.startswith("hd95_mm")

    @property
    def text(self) -> str:
        """Example:

        >>> Criterion("dice tumour", "l2-0.1-rms", 0.7, True, "as agreed").text
        'dice tumour at least 70 %'
        """
        return f"{self.measure} {self._allowed}"

    @property
    def title(self) -> str:
        """The same in the words of the report.

        Example:
            >>> Criterion("hd95_mm tumour", "l2-0.1-rms", 3, False, "as agreed").title
            'median HD95 of tumour at most 3 mm'
        """
        word, _, of = self.measure.partition(" ")
        if self.measure in WORDS:
            return f"{WORDS[self.measure]} {self._allowed}"
        return f"{WORDS.get(word, word)}{f' of {of}' if of else ''} {self._allowed}"

    @property
    def proven_at(self) -> float | None:
        """L2 norm at which a certificate can decide it, 0 for unchanged images; None: at no radius of this kind.

        Example:
            >>> [Criterion("score", key, 0.7, True, "x").proven_at for key in ("", "l2-0.25", "l2-0.25-rms", "linf-1")]
            [0.0, 0.25, None, None]
        """
        norm, _, size = self.level.partition("-")
        if not self.level:
            return 0.0
        return float(size) if norm == "l2" and not size.endswith(("-rms", "-raw")) else None

    @property
    def _allowed(self) -> str:
        bound = f"{100 * self.bound:g} %" if self.in_percent else f"{self.bound:g} mm"
        return f"{'at least' if self.at_least else 'at most'} {bound}"


@dataclass(frozen=True)
class Purpose:
    """What the user states about a model, for the file.

    Attributes:
        intended_use: in the user's words; "" if nothing was stated.
        criteria: all of them have to be met.
    """

    intended_use: str = ""
    criteria: tuple[Criterion, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.intended_use or self.criteria)

    @classmethod
    def stated(cls, intended_use: str | None = None, acceptance: Iterable[Mapping[str, Any]] | None = None) -> Purpose:
        """Read what a user states.

        Args:
            intended_use: what the model is for.
            acceptance: criteria, mappings with the keys ``measure``, ``at_least`` or ``at_most``, ``reason``; for
                attacked images ``norm``, ``eps`` and ``unit`` as they were measured, and, if wanted, ``most_lost``: at
                most this share of the clean score may be lost there, which is a criterion of its own.

        Raises:
            InputError: a key, a measure or a value that is not allowed.

        Example:
            >>> purpose = Purpose.stated(None, [{"measure": "score", "norm": "l2", "eps": 0.1, "at_least": 0.7,
            ...                                  "most_lost": 0.2, "reason": "as the reader study"}])
            >>> [f"{c.text}, {c.level}" for c in purpose.criteria]
            ['score at least 70 %, l2-0.1-rms', 'share kept at least 80 %, l2-0.1-rms']
        """
        text = _text("intended_use", intended_use) if intended_use is not None else ""
        if isinstance(acceptance, Mapping | str):
            raise InputError.of("acceptance", acceptance, "a list of criteria, each a mapping", "begin it with a dash")
        criteria = [c for i, each in enumerate(acceptance or (), 1) for c in _criteria(f"acceptance {i}", each)]
        twice = [c.text for i, c in enumerate(criteria) if (c.measure, c.level) in _places(criteria[:i])]
        if twice:
            raise InputError.of("acceptance", twice[0], "one criterion for a measure at a radius", "remove one of both")
        return cls(text, tuple(criteria))

    def check_levels(self, levels: Sequence[Level]) -> None:
        """Refuse criteria at radii that are not measured: nobody could decide them.

        Raises:
            InputError: names the radii that are.
        """
        known = {level.key: level_name(level) for level in levels}
        for criterion in self.criteria:
            if criterion.level and criterion.level not in known:
                raise InputError.of(
                    "acceptance", f"{criterion.text}, at {criterion.level}",
                    f"a radius that is measured: {'; '.join(known.values())}",
                    "give norm, eps and unit as for the attacks, or measure that radius as well",
                )  # fmt: skip

    def check_certified(self) -> None:
        """Refuse criteria about which a certificate says nothing.

        Raises:
            InputError: names those about which it does.
        """
        for criterion in self.criteria:
            if criterion.proven_at is None or criterion.measure.split()[0] not in PROVEN:
                place = f", at {criterion.level}" if criterion.level else ""
                raise InputError.of(
                    "acceptance", criterion.text + place,
                    f"{', '.join(PROVEN)} with at_least, of unchanged images or with norm: l2, eps and unit: norm",
                    "a certificate proves nothing else; monai-adv evaluate --smooth measures the rest",
                )  # fmt: skip

    def check_model(self, name: str, kind: Kind, classes: Sequence[str]) -> None:
        """Refuse measures that a model does not have.

        Raises:
            InputError: names those that it has.
        """
        known = measures_of(kind, classes)
        for criterion in self.criteria:
            if criterion.measure not in known:
                raise InputError.of(
                    "acceptance", criterion.measure, f"a measure of {name}: {', '.join(known)}",
                    "name the class as the model does",
                )  # fmt: skip


def measures_of(kind: Kind, classes: Sequence[str]) -> list[str]:
    """All measures of a model that a criterion can name.

    Example:
        >>> measures_of("classification", ("benign", "malignant"))[2:5]
        ['sensitivity', 'specificity', 'sensitivity benign']
    """
    named = [m for m in MEASURES[kind] if not m.endswith("CLASS")]
    if kind == "classification" and len(classes) != 2:
        named = [SCORE, KEPT]
    return named + [m.replace("CLASS", c) for m in MEASURES[kind] if m.endswith("CLASS") for c in classes]


def _places(criteria: Iterable[Criterion]) -> set[tuple[str, str]]:
    return {(c.measure, c.level) for c in criteria}


def _criteria(name: str, given: object) -> list[Criterion]:
    if not isinstance(given, Mapping):
        raise InputError.of(name, given, f"a mapping with the keys {', '.join(KEYS)}")
    for key in given:
        if key not in KEYS:
            raise InputError.unknown(str(key), f"key of {name}", KEYS)
    measure = " ".join(_text(f"{name}, measure", given.get("measure")).split())
    reason = _text(f"{name}, reason", given.get("reason"))
    level = _level(name, given)
    wanted = [key for key in ("at_least", "at_most") if key in given]
    allowed = "at_most" if measure.startswith(LOWER_IS_BETTER) else "at_least"
    if wanted != [allowed]:
        better = "lower" if allowed == "at_most" else "higher"
        raise InputError.of(
            name, " and ".join(wanted) or "no bound", f"{allowed} for {measure!r}, of which a {better} one is better"
        )
    bound = _bound(f"{name}, {allowed}", given[allowed], share=not measure.startswith("hd95_mm"))
    found = [Criterion(measure, level, bound, allowed == "at_least", reason)]
    if measure == KEPT and not level:
        raise InputError.of(name, KEPT, "given with norm and eps", "unchanged images keep all of their score")
    if "most_lost" in given:
        if measure != SCORE or not level:
            raise InputError.of(name, "most_lost", f"given with the measure {SCORE!r}, norm and eps")
        lost = _bound(f"{name}, most_lost", given["most_lost"], share=True)
        found.append(Criterion(KEPT, level, round(1 - lost, 12), True, reason))
    return found


def _level(name: str, given: Mapping[str, Any]) -> str:
    norm, unit = given.get("norm"), given.get("unit")
    if "eps" not in given:
        if norm is not None or unit is not None:
            raise InputError.of(name, "norm or unit without eps", "norm and eps, or none of them for unchanged images")
        return ""
    if norm is None or norm not in get_args(Norm):
        raise InputError.of(f"{name}, norm", norm, "'l2' or 'linf', where eps is given")
    if unit is not None and unit not in get_args(RadiusUnit):
        raise InputError.of(f"{name}, unit", unit, "one of " + ", ".join(get_args(RadiusUnit)))
    return Level.written(norm, given["eps"], unit).key


def _bound(name: str, given: object, share: bool) -> float:
    value = number(name, given, "a number")
    if share and not 0 <= value <= 1:
        raise InputError.of(name, given, "a share between 0 and 1", "80 % is 0.8")
    if not share and not 0 < value < math.inf:
        raise InputError.of(name, given, "a distance in mm > 0")
    return value


def _text(name: str, given: object) -> str:
    if not isinstance(given, str) or not given.strip():
        raise InputError.of(name, given, "a text")
    if len(given) > LONGEST:
        raise InputError.of(name, f"{len(given)} characters", f"at most {LONGEST}", "the summary is one page")
    return given.strip()
