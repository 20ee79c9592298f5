"""The first page of a report for somebody who has to sign it: what for, which criteria, met or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_adv.evaluation.evidence import decisions
from monai_adv.evaluation.evidence.certified import proof
from monai_adv.evaluation.evidence.decisions import Decision, Measured, Outcome, decide, together
from monai_adv.evaluation.evidence.history import Session, purpose_of, told_late
from monai_adv.evaluation.figures.results import Figures, ModelResults
from monai_adv.evaluation.figures.sentences import radius_name, robustness
from monai_adv.metrics import statistics

MARKS: dict[Outcome, str] = {"passed": "✓ passed", "FAILED": "✗ FAILED", "not decided": "? not decided",
                             "not measured": "– not measured"}  # fmt: skip


@dataclass(frozen=True)
class ModelSummary:
    """One model on the summary page.

    Attributes:
        name: of the model.
        trust: word of the first badge, about the measurement.
        robust, tone: word and colour of the second badge, about the model.
        decisions: one per criterion.
        outcome: of all criteria; None without any.
        draft: a sentence for the instructions for use, or why there is none.
    """

    name: str
    trust: str
    robust: str
    tone: str
    decisions: tuple[Decision, ...]
    outcome: Outcome | None
    draft: str


@dataclass(frozen=True)
class Summary:
    """The summary page.

    Attributes:
        intended_use: as stated.
        models: in their order.
        late: what was stated after results were known, a sentence each.
        records: hash of the files that the figures rest on, which ties a printed page to them.
    """

    intended_use: str
    models: tuple[ModelSummary, ...]
    late: tuple[str, ...]
    records: str


def summary_of(figures: Figures, history: Sequence[Session], records: str, folder: Path) -> Summary | None:
    """The summary page; None where no purpose was stated.

    Args:
        figures: of the evaluation.
        history: its sessions.
        records: hash of the files that the figures rest on.
        folder: where certificates lie, if there are any.
    """
    purpose = purpose_of(history)
    if not purpose:
        return None
    models = []
    for model in figures.models:
        proven = proof(folder, figures, model)
        decided = tuple(decide(c, model, figures, proven.get(c.level)) for c in purpose.criteria)
        robust = robustness(model, figures.levels)
        radii = {d.criterion.level for d in decided if d.criterion.level}
        models.append(
            ModelSummary(
                model.name, model.verdict.word, robust.word, robust.tone, decided, together(decided),
                draft_sentence(model, figures, radii),
            )
        )  # fmt: skip
    return Summary(purpose.intended_use, tuple(models), tuple(told_late(history)), records)


def told(summary: Summary | None) -> list[str]:
    """What became of the acceptance criteria, for a terminal: a line per model; none where none was stated."""
    return [line for m in (summary.models if summary else ()) for line in decisions.told(m.name, m.decisions)]


def draft_sentence(model: ModelResults, figures: Figures, keys: set[str]) -> str:
    """What the instructions for use could say of a model; why nothing, where the figures do not carry it.

    Args:
        model: that it is about.
        figures: of the evaluation.
        keys: of the radii to name; empty: all.
    """
    if model.verdict.word != "reliable":
        return f"No sentence is proposed: the figures are {model.verdict.word}."
    one = "patient" if figures.kind == "segmentation" else "image"
    score = "mean Dice" if one == "patient" else "accuracy"
    clean = model.summaries[""]
    parts = [
        f"of at most {radius_name(level)}{' per voxel' * level.is_rms} lowered it to "
        f"{_known(model.summaries[level.key])}"
        for level in figures.levels
        if level.key in model.summaries and (not keys or level.key in keys)
    ]
    return (
        f"On the {clean.count} {one}s of the test, {model.name} reached {'a' if one == 'patient' else 'an'} {score} of "
        f"{_known(clean)}; in a search for the most harmful change of each image, changes {', changes '.join(parts)}. "
        f"Radii are in {model.unit}. Larger changes, changes of other kinds and other {one}s were not tested, and "
        "lower values cannot be excluded."
    )


def figure_text(measured: Measured, in_percent: bool) -> str:
    """Example:

    >>> from monai_adv.metrics.statistics import wilson
    >>> figure_text(Measured(0.8, wilson(8, 10), 10), True)
    '80.0 % (49.0 to 94.3)'
    """

    def form(value: float) -> str:
        if math.isinf(value):
            return "not found"
        return f"{100 * value:.1f}" if in_percent else f"{value:.1f}"

    if math.isnan(measured.value):
        return "–"
    unit = "" if math.isinf(measured.value) else " %" if in_percent else " mm"
    between = f" ({form(measured.interval.low)} to {form(measured.interval.high)})" if measured.interval.exists else ""
    return f"{form(measured.value)}{unit}{between}"


def _known(summary: statistics.Summary) -> str:
    low, high = summary.interval.low, summary.interval.high
    between = f" (95\u00a0% interval {100 * low:.1f} to {100 * high:.1f}\u00a0%)" if summary.interval.exists else ""
    return f"{100 * summary.mean:.1f}\u00a0%{between}"
