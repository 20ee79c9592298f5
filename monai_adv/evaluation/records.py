"""What is kept of a case, level by level and attack by attack, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from monai_adv.errors import InputError
from monai_adv.evaluation.codec import Plain
from monai_adv.given import number
from monai_adv.metrics.score import Score
from monai_adv.metrics.statistics import Scores
from monai_adv.threats import Norm, RadiusUnit, unit_of


@dataclass(frozen=True, order=True)
class Level:
    """One radius of the evaluation, as the user gave it; for the units see :class:`~monai_adv.threats.Threat`.

    Raises:
        InputError: no unit, and a radius that is too large for the one that is then meant.
    """

    norm: Norm
    eps: float
    unit: RadiusUnit | None = None
    words: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", unit_of(self.norm, self.unit, self.eps))

    @classmethod
    def written(cls, norm: Norm, eps: object, unit: RadiusUnit | None) -> Level:
        """Of a radius as a user writes it; a quotient stays one where it is shown.

        Raises:
            InputError: no number.

        Example:
            >>> Level.written("linf", "8/255", None).radius
            '8/255'
        """
        words = eps.strip() if isinstance(eps, str) and "/" in eps else ""
        return cls(norm, number("eps", eps, "a radius, or several in ascending order"), unit, words)

    @property
    def is_rms(self) -> bool:
        """Whether the radius is a root mean square change per voxel, in network units or in those of the files."""
        return self.norm == "l2" and self.unit != "norm"

    @property
    def radius(self) -> str:
        """The radius as it was written: ``8/255`` stays that, where a number would be one that nobody chose."""
        return self.words or f"{self.eps:g}"

    @property
    def key(self) -> str:
        """A name for files and tables, such as ``l2-5`` or ``linf-0.1-raw``."""
        return f"{self.norm}-{self.eps:g}" + ("" if self.unit == "norm" else f"-{self.unit}")


@dataclass(frozen=True)
class Record:
    """One attack on one case at one level: what the store keeps and the report reads.

    Attributes:
        model, case: names; a case holds several images for classification.
        level: key of the level; "" for the clean record.
        attack: name of the attack; "clean" for the first record of a case.
        own: scores of the images that this attack returned; samples that earlier attacks had finished were not
            attacked again and carry their worst score.
        worst: worst scores so far: over this and the earlier attacks at this level, and the lower levels before.
        carried: share of the inputs whose worst image came from a lower level of the same norm.
        forward, backward: network passes, in inputs.
        seconds: wall clock.
        attacked: number of inputs that were attacked.
        dead: number of them on which some gradient was zero or not finite.
        broken: number of them on which the model gave NaN or infinity.
        largest: largest perturbation as a share of the radius, measured in double precision; at most 1 + 1e-5.
        settings: of the attack, in words or numbers; of the clean record the ``notes`` on its files, of a corruption
            its ``meaning`` and ``level``.
    """

    model: str
    case: str
    level: str
    attack: str
    own: tuple[Score, ...]
    worst: tuple[Score, ...]
    carried: float = 0.0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    attacked: int = 0
    dead: int = 0
    broken: int = 0
    largest: float = 0.0
    settings: Plain = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about the files of a case, in its clean record."""
        notes = self.settings.get("notes", [])
        return tuple(map(str, notes)) if isinstance(notes, list) else ()


CLEAN = "clean"
"""What stands for an attack in the record of unchanged images."""


WORST = "worst case"
"""What stands for an attack where something is of the lowest score over all of them."""


CORRUPTION = "corruption:"
"""Begins the name of what happens without an attacker; its severity is the record's level."""


NOT_APPLICABLE = "not applicable"
"""Setting of a natural corruption that does not exist for a case: why."""


def is_variation(attack: str) -> bool:
    """Whether a natural corruption is one of a modality, as :mod:`monai_adv.variations` has them.

    Example:
        >>> is_variation("corruption:mri:motion"), is_variation("corruption:blur"), is_variation("PGD")
        (True, False, False)
    """
    return attack.startswith(CORRUPTION) and ":" in attack.removeprefix(CORRUPTION)


def parse_level(key: str) -> Level:
    """The level of a record's key, see :attr:`Level.key`.

    Raises:
        InputError: not such a key.

    Example:
        >>> parse_level("linf-0.1-raw")
        Level(norm='linf', eps=0.1, unit='raw')
    """
    match = re.fullmatch(r"(l2|linf)-(.+?)(?:-(rms|raw))?", key)
    if match is None:
        raise InputError.of("level", key, "a key such as 'l2-5', 'l2-0.1-rms' or 'linf-10-raw'")
    return Level(cast(Norm, match[1]), float(match[2]), cast(RadiusUnit, match[3] or "norm"))


def level_of(saved: Mapping[str, Any] | None) -> Level | None:
    """What a checkpoint says that its model was trained against, see ``Defense.trained_against``."""
    return None if saved is None else Level(saved["norm"], saved["eps"], saved["unit"])


def level_name(level: Level) -> str:
    """A level as tables call it; in the user's own words where there are some.

    Example:
        >>> level_name(Level("l2", 0.1)), level_name(Level("l2", 21, "raw")), level_name(Level("linf", 10, "raw"))
        ('L2, 0.1 RMS', 'L2, 21 RMS (file units)', 'L-inf 10 (file units)')
    """
    norm = "L2" if level.norm == "l2" else "L-inf"
    eps = f", {level.radius} RMS" if level.is_rms else f" {level.radius}"
    return f"{norm}{eps}" + (" (file units)" if level.unit == "raw" else "")


def place_of(level: Level) -> dict[str, str | float | None]:
    """``norm``, ``eps`` and ``unit``, for a row of a table."""
    return {"norm": level.norm, "eps": level.eps, "unit": level.unit}


def models(records: Iterable[Record]) -> list[str]:
    """Names of the models, in the order of the records."""
    return list(dict.fromkeys(r.model for r in records))


def levels(records: Iterable[Record]) -> list[Level]:
    """The levels of the attacks (not of natural corruptions), by norm, unit and radius."""
    keys = dict.fromkeys(r.level for r in records if r.level and not r.attack.startswith(CORRUPTION))
    return sorted((parse_level(k) for k in keys), key=lambda v: (v.norm, v.unit, v.eps))


def attacks(records: Iterable[Record]) -> list[str]:
    """Names of the attacks, in the order of the records, without "clean" and natural corruptions."""
    names = dict.fromkeys(r.attack for r in records)
    return [n for n in names if n != CLEAN and not n.startswith(CORRUPTION)]


def corruptions(records: Iterable[Record]) -> list[tuple[str, str]]:
    """(name, severity) of the natural corruptions; the severity is the record's level as it stands."""
    return list(dict.fromkeys((r.attack, r.level) for r in records if r.attack.startswith(CORRUPTION)))


def own_scores(records: Iterable[Record], model: str, attack: str, level: str = "") -> Scores:
    """What one attack (or "clean", or a corruption) left of each case."""
    return {
        (r.case, s.case): s for r in records if (r.model, r.attack, r.level) == (model, attack, level) for s in r.own
    }


def worst_scores(records: Iterable[Record], model: str, level: str) -> Scores:
    """The lowest score of each case over all attacks at a level (and the lower ones, which the runner carries)."""
    result: Scores = {}
    for record in records:
        if record.model == model and record.level == level and not record.attack.startswith(CORRUPTION):
            for score in record.worst:
                key = (record.case, score.case)
                if key not in result or not score.remaining > result[key].remaining:
                    result[key] = score
    return result


def scores_at(records: Iterable[Record], model: str, level: str) -> Scores:
    """Of every case of a model: clean (level ""), or the worst over the attacks."""
    return worst_scores(records, model, level) if level else own_scores(records, model, CLEAN)


@dataclass(frozen=True)
class Totals:
    """What the attacks on a model cost and met, see :class:`Record`."""

    forward: int
    backward: int
    seconds: float
    attacked: int
    dead: int
    broken: int
    largest: float


def totals(records: Iterable[Record], model: str) -> Totals:
    """Summed over the records of a model; the largest perturbation of all."""
    mine = [r for r in records if r.model == model]
    return Totals(
        forward=sum(r.forward for r in mine),
        backward=sum(r.backward for r in mine),
        seconds=sum(r.seconds for r in mine),
        attacked=sum(r.attacked for r in mine),
        dead=sum(r.dead for r in mine),
        broken=sum(r.broken for r in mine),
        largest=max((r.largest for r in mine), default=0.0),
    )
