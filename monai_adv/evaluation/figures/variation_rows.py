"""What natural variations leave of a model's scores, the worst first, and what of its modality was not tested."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_adv.evaluation.records import CORRUPTION, NOT_APPLICABLE, Record, is_variation, own_scores
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Kind, mean_known
from monai_adv.metrics.statistics import Scores, Summary
from monai_adv.variations import NOT_OFFERED, VARIATIONS, Modality

CALLED: Mapping[Modality, str] = {"ct": "CT", "mri": "MRI", "ultrasound": "ultrasound", "xray": "X-ray"}


@dataclass(frozen=True)
class Strength:
    """A variation at one severity.

    Attributes:
        severity: from 1.
        level: in words, with its unit.
        summary: of the scores.
        clean: mean score of the same cases, unchanged.
    """

    severity: int
    level: str
    summary: Summary
    clean: float

    @property
    def kept(self) -> float:
        """Share of the clean score; NaN where that is 0 or not known."""
        return self.summary.mean / self.clean if self.clean > 0 else math.nan


@dataclass(frozen=True)
class VariationRow:
    """One variation of a model's images.

    Attributes:
        attack: of its records.
        name, meaning, source: for tables.
        strengths: the severities that were measured, mildest first.
        missing: why it does not exist for some cases -> how many records say so.
    """

    attack: str
    name: str
    meaning: str
    source: str
    strengths: tuple[Strength, ...]
    missing: Mapping[str, int]

    @property
    def lowest(self) -> float:
        """Smallest share of the clean score that is kept; NaN without scores."""
        return min((s.kept for s in self.strengths if not math.isnan(s.kept)), default=math.nan)


@dataclass(frozen=True)
class Inventory:
    """The variations of one model.

    Attributes:
        modality: of all of them.
        at: where the images were changed, in words.
        rows: those with scores, the one that costs most first.
        untested: (what, why) of all others that are known.
    """

    modality: str
    at: str
    rows: tuple[VariationRow, ...]
    untested: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> list[int]:
        """All severities that were measured."""
        return sorted({strength.severity for row in self.rows for strength in row.strengths})


def inventory(records: Sequence[Record], model: str, clean: Scores, kind: Kind, seed: int) -> Inventory | None:
    """What the records say; None if no variations were asked for."""
    mine = [r for r in records if r.model == model and is_variation(r.attack)]
    if not mine:
        return None
    attacks = dict.fromkeys(r.attack for r in mine)
    rows = [_row([r for r in mine if r.attack == attack], clean, kind, seed) for attack in attacks]
    tested = [row for row in rows if not math.isnan(row.lowest)]
    modality: Any = mine[0].attack.removeprefix(CORRUPTION).partition(":")[0]
    untested = [(row.name, "; ".join(row.missing) or "no score") for row in rows if row not in tested]
    untested += [(_called(v.name), "not asked for") for v in VARIATIONS[modality] if CORRUPTION + v.key not in attacks]
    return Inventory(
        CALLED[modality], str(mine[0].settings["at"]), tuple(sorted(tested, key=lambda row: row.lowest)),
        (*untested, *NOT_OFFERED[modality].items()),
    )  # fmt: skip


def _row(records: Sequence[Record], clean: Scores, kind: Kind, seed: int) -> VariationRow:
    first, strengths = records[0], []
    missing: dict[str, int] = {}
    for record in records:
        if reason := record.settings.get(NOT_APPLICABLE):
            missing[str(reason)] = missing.get(str(reason), 0) + 1
    for severity in sorted({r.level for r in records if r.own}, key=int):
        found = own_scores(records, first.model, first.attack, severity)
        level = next(str(r.settings["level"]) for r in records if r.level == severity)
        same = mean_known(clean[case].score for case in found)
        strengths.append(Strength(int(severity), level, statistics.summarise(found, kind, seed=seed), same))
    name = _called(first.attack.rpartition(":")[2])
    meaning, source = (str(first.settings[part]) for part in ("meaning", "source"))
    return VariationRow(first.attack, name, meaning, source, tuple(strengths), missing)


def _called(name: str) -> str:
    return name.replace("_", " ")
