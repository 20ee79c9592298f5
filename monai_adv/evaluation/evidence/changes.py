"""Two versions of a model, measured in the same way on the same cases: what got better, worse, or stays within noise.

Every case is its own control: scores are compared in pairs, by Wilcoxon's signed-rank test (segmentation) or McNemar's
exact test (classification), with Holm's correction over all rows, and a bootstrap interval of the mean difference.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from monai_adv.errors import InputError
from monai_adv.evaluation.codec import plain, plain_values
from monai_adv.evaluation.evidence.document import digest_in
from monai_adv.evaluation.evidence.history import sessions
from monai_adv.evaluation.figures.results import Figures, ModelResults, gather
from monai_adv.evaluation.records import level_name, parse_level
from monai_adv.foreign_text import printable
from monai_adv.metrics.score import mean_known
from monai_adv.metrics.statistics import Comparison, compare, holm

if TYPE_CHECKING:
    import pandas

SURE = 0.05
SAME = "measure both versions in the same way"
Outcome = Literal["better", "worse", "within noise", "not decided"]


@dataclass(frozen=True)
class Change:
    """One model at one level ("" is clean).

    Attributes:
        model: name of the new version.
        level: key.
        before, now: mean scores of the common cases.
        comparison: of the pairs, old first.
        p: of the paired test after Holm's correction; NaN without one.
        outcome: "not decided" where no test could be made, or a measurement is not reliable.
        why: of that, in a sentence; else "".
    """

    model: str
    level: str
    before: float
    now: float
    comparison: Comparison
    p: float
    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Version:
    """One of the two evaluations.

    Attributes:
        folder: its name.
        started: date and time, ISO 8601.
        versions: of Python and the packages.
        evidence: digest of ``evidence.json``; "" where there is none.
    """

    folder: str
    started: str
    versions: dict[str, str]
    evidence: str


@dataclass(frozen=True)
class Changes:
    """What changed between two evaluations.

    Attributes:
        old, new: which evaluations.
        rows: by model and level.
        told: what else differs and does not forbid the comparison, a sentence each.
    """

    old: Version
    new: Version
    rows: tuple[Change, ...]
    told: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether something got worse."""
        return any(row.outcome == "worse" for row in self.rows)

    def frame(self) -> pandas.DataFrame:
        """A row per model and level: means, difference with its interval, cases better and worse, p, outcome."""
        import pandas

        return pandas.DataFrame(
            [
                {"model": r.model, "level": r.level, "before": r.before, "now": r.now,
                 "difference": r.comparison.difference, "low": r.comparison.interval.low,
                 "high": r.comparison.interval.high, "cases": r.comparison.count, "better": r.comparison.better,
                 "worse": r.comparison.worse, "p": r.p, "outcome": r.outcome}
                for r in self.rows
            ]
        )  # fmt: skip

    def as_json(self) -> str:
        """All of it; what is not defined is null."""
        return json.dumps(plain_values(self), indent=1, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        rows = [("model", "images", "before", "now", "difference (95 %)", "cases +/-", "p", "outcome")]
        for row in self.rows:
            found = row.comparison
            between = f" ({_points(found.interval.low)} to {_points(found.interval.high)})"
            rows.append(
                (row.model, level_name(parse_level(row.level)) if row.level else "unchanged",
                 _share(row.before), _share(row.now),
                 _points(found.difference) + between * found.interval.exists,
                 f"{found.count} {found.better}/{found.worse}", _chance(row.p),
                 row.outcome + f": {row.why}" * bool(row.why))
            )  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return printable("\n".join([*lines, *self.told]))


def changes(old: str | Path, new: str | Path) -> Changes:
    """Compare two folders of evaluations.

    Args:
        old, new: of the earlier and of the new version; a model is compared with that of its name, or, where each
            folder has one model, with that.

    Raises:
        InputError: folders that cannot be read, or that were not measured in the same way on the same cases.
    """
    before, now = gather(old), gather(new)
    _check_settings(before, now)
    told = _unpaired(before, now) + _besides(old, new, before, now)
    found: list[tuple[ModelResults, ModelResults, Comparison]] = []
    for one, other in _pairs(before, now):
        told += _check_pair(before, now, one, other)
        seed = now.evaluation.settings.seed
        for key in ["", *(v.key for v in now.levels)]:
            scores = before.scores(one.name, key), now.scores(other.name, key)
            found.append((one, other, compare(*scores, now.kind, names=(one.name, other.name), level=key, seed=seed)))
    corrected = holm([c.tests[0].p for _, _, c in found])
    rows = [_row(before, now, *each, p) for each, p in zip(found, corrected, strict=True)]
    for word in ("seed", "batch_size", "threads", "device", "fuse"):
        was, is_now = (getattr(f.evaluation.settings, word) for f in (before, now))
        if was != is_now:
            told.append(f"{word.replace('_', ' ')}: {was} before, {is_now} now; the last digits depend on it.")
    versions = before.evaluation.versions, now.evaluation.versions
    if differs := [n for n in versions[1] if versions[0].get(n) != versions[1][n]]:
        told.append("Other versions: " + ", ".join(f"{n} {versions[0].get(n)} → {versions[1][n]}" for n in differs))
    return Changes(_about(old, before), _about(new, now), tuple(rows), tuple(told))


def _check_settings(before: Figures, now: Figures) -> None:
    if before.kind != now.kind:
        raise InputError.of("OLD and NEW", f"{before.kind} and {now.kind}", "two versions of one model")
    levels = [[level_name(v) for v in f.levels] for f in (before, now)]
    if [v.key for v in before.levels] != [v.key for v in now.levels] or not now.levels:
        received = f"radii {'; '.join(levels[0]) or 'none'} and {'; '.join(levels[1]) or 'none'}"
        raise InputError.of("OLD and NEW", received, "the same radii", SAME)
    for word in ("attacks", "attacks_code", "box", "smooth"):
        was, is_now = (plain(getattr(f.evaluation.settings, word)) for f in (before, now))
        if was != is_now:
            shown = " and ".join("none" if value is None else str(value) for value in (was, is_now))
            raise InputError.of("OLD and NEW", f"{word} {shown}", f"the same {word}", SAME)


def _pairs(before: Figures, now: Figures) -> list[tuple[ModelResults, ModelResults]]:
    known = {m.name: m for m in before.models}
    if common := [(known[m.name], m) for m in now.models if m.name in known]:
        return common
    if len(before.models) == len(now.models) == 1:
        return [(before.models[0], now.models[0])]
    names = " and ".join(", ".join(m.name for m in f.models) for f in (before, now))
    raise InputError.of("OLD and NEW", f"the models {names}", "models of the same names, or one in each folder")


def _unpaired(before: Figures, now: Figures) -> list[str]:
    """Models that have no other version, where some have one."""
    pairs = _pairs(before, now)
    alone = [("OLD", m.name) for m in before.models if all(m is not one for one, _ in pairs)]
    alone += [("NEW", m.name) for m in now.models if all(m is not other for _, other in pairs)]
    return [f"Not compared, as it is only in {where}: {name}." for where, name in alone]


def _besides(old: str | Path, new: str | Path, before: Figures, now: Figures) -> list[str]:
    """What was measured and is in no row; and whether the same code measured it."""
    told = []
    if any(entry.corruptions for entry in now.evaluation.models):
        told.append("What natural corruptions and variations leave is not compared; see both reports.")
    if now.evaluation.settings.smooth:
        told.append("Certificates are not compared; see both reports.")
    codes = [{session.code for session in sessions(folder)} - {""} for folder in (old, new)]
    if all(codes) and codes[0] != codes[1]:
        told.append("Measured by other code of monai-adv.")
    return told


def _check_pair(before: Figures, now: Figures, one: ModelResults, other: ModelResults) -> list[str]:
    """Refuse what would be compared like apples with pears; returns what is only to be told."""
    entries = [next(e for e in f.evaluation.models if e.name == m.name) for f, m in ((before, one), (now, other))]
    for word, what in (("classes", "classes"), ("unit", "unit of the network's input, which radii are in"),
                       ("stages", "plan of attacks"), ("corruptions", "natural corruptions")):  # fmt: skip
        was, is_now = (plain(getattr(entry, word)) for entry in entries)
        if was != is_now:
            shown = f"of {other.name}" if word in ("stages", "corruptions") else f"{was}, {is_now}"
            raise InputError.of("OLD and NEW", f"another {what} ({shown})", f"the same {what}", SAME)
    cases = [entry.cases for entry in entries]
    if cases[0] != cases[1]:
        only = [sorted(set(a) - set(b)) for a, b in (cases, cases[::-1])]
        named = {where: o for where, o in zip(("OLD", "NEW"), only, strict=True) if o}
        words = [f"only in {where}: {', '.join(o[:3])}{', ...' * (len(o) > 3)}" for where, o in named.items()]
        received = f"other cases of {other.name} ({'; '.join(words) or 'in another order'})"
        raise InputError.of("OLD and NEW", received, "the same cases", SAME)
    data = [entry.data for entry in entries]
    if all(data) and data[0] != data[1]:
        raise InputError.of("OLD and NEW", f"{other.name} on other data", "the same images and labels", SAME)
    told = [] if one.name == other.name else [f"{other.name} is compared with {one.name}."]
    if not all(data):
        told.append(f"{other.name}: whether images and labels are the same could not be checked.")
    if lost := {(m, c) for f in (before, now) for m, c, _ in f.problems if c} | {
        (m.name, c) for m in (one, other) for c in m.unfinished
    }:
        told.append(f"{other.name}: {len(lost)} cases could not be used in one of both, or are not finished.")
    if one.space != other.space:
        told.append(f"{other.name} is deployed in another way: {one.space}; now {other.space}.")
    if (entries[0].fingerprint, entries[0].files) == (entries[1].fingerprint, entries[1].files):
        told.append(f"{other.name}: weights, settings and data are the same in both.")
    return told


def _row(before: Figures, now: Figures, one: ModelResults, other: ModelResults, found: Comparison, p: float) -> Change:
    first, second = before.scores(one.name, found.level), now.scores(other.name, found.level)
    both = [k for k in first if k in second and not math.isnan(first[k].score + second[k].score)]
    was, is_now = (mean_known(scores[k].score for k in both) for scores in (first, second))
    outcome: Outcome
    outcome, why = "within noise", ""
    doubtful = {w: m.verdict for w, m in (("OLD", one), ("NEW", other)) if m.verdict.word == "not reliable"}
    if found.level and doubtful:
        reasons = dict.fromkeys(reason for verdict in doubtful.values() for reason in verdict.reasons)
        outcome = "not decided"
        why = f"the figures of {' and '.join(doubtful)} are not reliable ({'; '.join(reasons)})"
    elif math.isnan(p):
        # Nothing differs on any case, or too few cases differ for a test to tell.
        if found.better or found.worse or not found.count:
            outcome, why = "not decided", found.tests[0].note
    elif p < SURE:
        outcome = "better" if found.difference > 0 else "worse"
    return Change(other.name, found.level, was, is_now, found, p, outcome, why)


def _about(folder: str | Path, figures: Figures) -> Version:
    return Version(Path(folder).name, figures.evaluation.started, figures.evaluation.versions, digest_in(folder))


def _chance(p: float) -> str:
    return "-" if math.isnan(p) else "<0.001" if p < 5e-4 else f"{p:.3f}"


def _share(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def _points(value: float) -> str:
    return _share(value, "+")
