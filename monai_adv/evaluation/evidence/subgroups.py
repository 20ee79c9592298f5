"""Are some patients worse off, and more so under attack? Scores per group, and how far groups are apart.

The gap of a column is that between its groups with the highest and the lowest mean. They were chosen because they are
furthest apart, so the interval is made wide enough for every pair of groups (Bonferroni): 95 % hold for all together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from monai_adv.evaluation.clock import now
from monai_adv.evaluation.evidence.code import code_hash
from monai_adv.evaluation.evidence.group_table import NOT_GIVEN, GroupTable
from monai_adv.evaluation.evidence.history import Session
from monai_adv.evaluation.figures.results import Figures, ModelResults, gather
from monai_adv.evaluation.records import level_name
from monai_adv.evaluation.store import Store, read_subgroups
from monai_adv.foreign_text import printable
from monai_adv.metrics.score import Kind
from monai_adv.metrics.statistics import Interval, Scores, Summary, summarise
from monai_adv.metrics.two_groups import bootstrap_difference, newcombe

if TYPE_CHECKING:
    import pandas

SMALL = 10
"""Cases; a group with fewer is shown in grey, and takes no part in a gap."""


@dataclass(frozen=True)
class Group:
    """Cases of one model that have something in common.

    Attributes:
        model, column, name: for example "site" and "Basel".
        summaries: level ("" for clean) -> mean of the worst case with its interval.
    """

    model: str
    column: str
    name: str
    summaries: dict[str, Summary]

    @property
    def count(self) -> int:
        """Cases with a defined clean score."""
        return self.summaries[""].count

    @property
    def small(self) -> bool:
        """Too few cases to say much."""
        return self.count < SMALL


@dataclass(frozen=True)
class Gap:
    """The groups of a column that are furthest apart at a level.

    Attributes:
        model, column, level: level "" is clean.
        highest, lowest: names of the groups.
        difference: of their means.
        interval: 95 % for all pairs of groups together.
    """

    model: str
    column: str
    level: str
    highest: str
    lowest: str
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Subgroups:
    """Groups and gaps of all models.

    Attributes:
        table: that says who belongs where.
        groups: by model and column, in the order of the table.
        gaps: for each column with two groups that are large enough, clean and at every level.
    """

    table: GroupTable
    groups: tuple[Group, ...]
    gaps: tuple[Gap, ...]

    def frame(self) -> pandas.DataFrame:
        """A row per model, column, group and level: ``cases``, ``score``, ``low``, ``high``, ``small``."""
        import pandas

        rows = [
            {"model": g.model, "column": g.column, "group": g.name, "level": key, "cases": s.count, "score": s.mean,
             "low": s.interval.low, "high": s.interval.high, "small": g.small}
            for g in self.groups for key, s in g.summaries.items()
        ]  # fmt: skip
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        lines = []
        for gap in self.gaps:
            known = f" ({100 * gap.interval.low:.1f} to {100 * gap.interval.high:.1f})" if gap.interval.exists else ""
            lines.append(
                f"{gap.model}, {gap.column}, {gap.level or 'clean'}: {gap.highest} is {100 * gap.difference:.1f} "
                f"points{known} above {gap.lowest}"
            )
        few = sum(group.small for group in self.groups)
        if few:
            lines.append(f"{few} groups of fewer than {SMALL} cases are in no gap")
        return printable("\n".join(lines) or "no two groups that are large enough")


def subgroups_of(table: GroupTable, figures: Figures) -> Subgroups:
    """Scores per group.

    Args:
        table: of the cases; cases that could not be used may be in it.
        figures: of the evaluation.
    """
    groups, gaps = [], []
    for model in figures.models:
        scores = {key: figures.scores(model.name, key) for key in model.summaries}
        for column in table.columns:
            parts = {name: _part(scores, table, column, name) for name in table.groups(column)}
            parts = {name: part for name, part in parts.items() if part[""]}
            found = [_group(model, figures, column, name, part) for name, part in parts.items()]
            groups += found
            large = [g for g in found if not g.small and g.name != NOT_GIVEN]
            gaps += [gap for key in scores if (gap := _gap(large, parts, key, figures)) is not None]
    return Subgroups(table, tuple(groups), tuple(gaps))


def check_cases(table: GroupTable, figures: Figures) -> None:
    """Hold a table against the cases of an evaluation; those that could not be used may be in it.

    Raises:
        InputError: other cases; names them.
    """
    lost = {case for _, case, _ in figures.problems} & set(next(iter(table.columns.values())))
    table.check({*(case for m in figures.models for _, case in figures.scores(m.name, "")), *lost})


def add_later(table: GroupTable, folder: str | Path) -> None:
    """Keep a table with an evaluation that has run; the history says when.

    Raises:
        InputError: no evaluation there, or a table of other cases. Nothing is written then.
    """
    figures = gather(folder)
    check_cases(table, figures)
    store = Store(folder)
    store.add_subgroups(table)
    Session(
        at=now(), machine=figures.evaluation.machine, records=len(figures.records), command="", code=code_hash(),
        subgroups=table.hash,
    ).keep(store)  # fmt: skip


def kept_subgroups(folder: str | Path, figures: Figures) -> Subgroups | None:
    """By the table that was given with the evaluation in a folder; None without one.

    Raises:
        InputError: a damaged file.
    """
    kept = read_subgroups(folder, GroupTable)
    return None if kept is None else subgroups_of(kept, figures)


def _part(scores: dict[str, Scores], table: GroupTable, column: str, name: str) -> dict[str, Scores]:
    members = {case for case, group in table.columns[column].items() if group == name}
    return {key: {k: s for k, s in found.items() if k[1] in members} for key, found in scores.items()}


def _group(model: ModelResults, figures: Figures, column: str, name: str, part: dict[str, Scores]) -> Group:
    seed = figures.evaluation.settings.seed
    return Group(model.name, column, name, {key: summarise(s, model.kind, seed=seed) for key, s in part.items()})


def _gap(groups: Sequence[Group], parts: dict[str, dict[str, Scores]], key: str, figures: Figures) -> Gap | None:
    known = [g for g in groups if not math.isnan(g.summaries[key].mean)]
    if len(known) < 2:
        return None
    highest = max(known, key=lambda g: g.summaries[key].mean)
    lowest = min((g for g in known if g is not highest), key=lambda g: g.summaries[key].mean)
    pairs = len(list(combinations(known, 2)))
    one, other = ([s.score for s in parts[g.name][key].values() if not math.isnan(s.score)] for g in (highest, lowest))
    interval = _interval(one, other, figures.kind, 1 - 0.05 / pairs, figures.evaluation.settings.seed)
    difference = highest.summaries[key].mean - lowest.summaries[key].mean
    return Gap(highest.model, highest.column, key, highest.name, lowest.name, difference, interval)


def _interval(one: Sequence[float], other: Sequence[float], kind: Kind, confidence: float, seed: int) -> Interval:
    if kind == "classification":
        return newcombe(round(sum(one)), len(one), round(sum(other)), len(other), confidence)
    return bootstrap_difference(one, other, confidence, seed=seed)


def gap_sentence(gap: Gap, figures: Figures, score: str) -> str:
    """Example: "L2, 0.1 RMS: site A has 8.2 points more Dice than site B (2.1 to 14.0); chance alone would ..."."""
    where = {level.key: level_name(level) for level in figures.levels}.get(gap.level, "unchanged")
    text = f"{where}: {gap.column} {gap.highest} has {100 * gap.difference:.1f} points more {score} than {gap.lowest}"
    if not gap.interval.exists:
        return f"{text} (no interval: {gap.interval.how})."
    text += f" ({100 * gap.interval.low:.1f} to {100 * gap.interval.high:.1f})"
    if gap.interval.low > 0:
        return f"{text}; chance alone would rarely give such a gap."
    return f"{text}; these cases do not show a gap, which is not proof that there is none."
