"""Pictures of the cases with the lowest scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from monai_adv.evaluation.figures.results import Figures, ModelResults
from monai_adv.evaluation.figures.sentences import telling_level
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Level, level_name
from monai_adv.evaluation.report.as_text import percent
from monai_adv.evaluation.report.pictures import draw, largest_change
from monai_adv.evaluation.store import read_pictures
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Score

PICTURES = 3
"""Worst cases per model; fewer with many models."""
MOST_PICTURES = 9


@dataclass(frozen=True)
class WorstCase:
    """A case with one of the lowest scores of a model.

    Attributes:
        id: of its anchor.
        case: the patient or image.
        level: the radius, in words.
        png, alt, caption: the picture; its text for who does not see it; which slice it is.
        change, unit: largest change of a voxel, and its unit.
        before, after: scores in words, without and under attack.
    """

    id: str
    case: str
    level: str
    png: bytes
    alt: str
    caption: str
    change: str
    unit: str
    before: str
    after: str


def worst_cases_of(folder: Path, results: Figures) -> dict[str, list[WorstCase]]:
    """For each model, by its name, the cases with the lowest scores, at one radius for all models."""
    count = max(1, min(PICTURES, MOST_PICTURES // len(results.models)))
    shown: dict[str, list[WorstCase]] = {m.name: [] for m in results.models}
    level = telling_level(results.models, results.levels)
    if level is None:
        return shown
    for number, model in enumerate(results.models, start=1):
        clean, attacked = results.scores(model.name, ""), results.scores(model.name, level.key)
        for case, patient in statistics.lowest_cases(clean, attacked, len(attacked)):
            drawn = [p for p in read_pictures(folder, model.name, case, level.key) if p.case == patient]
            if drawn:
                before, after = clean[case, patient], attacked[case, patient]
                anchor = f"case-{number}-{len(shown[model.name]) + 1}"
                shown[model.name].append(
                    _picture(anchor, drawn[0], model, level, _result(before, model), _result(after, model))
                )
            if len(shown[model.name]) == count:
                break
    return shown


def draw_case(picture: Picture, model: ModelResults, clean: Score, attacked: Score) -> bytes:
    """One case as a PNG file, with its scores in the titles."""
    return draw(picture, model.classes, _result(clean, model), _result(attacked, model), model.unit.split(" (")[0])


def _picture(anchor: str, picture: Picture, model: ModelResults, level: Level, before: str, after: str) -> WorstCase:
    unit = model.unit.split(" (")[0]
    seen = "" if picture.truth is None else ", ground truth, segmentation of both"
    return WorstCase(
        id=anchor,
        case=picture.case,
        level=level_name(level),
        png=draw(picture, model.classes, before, after, unit),
        alt=f"{picture.case}: scan, attacked scan, difference{seen}",
        caption=picture.caption,
        change=f"{largest_change(picture):.2g}",
        unit=unit,
        before=before,
        after=after,
    )


def _result(score: Score, model: ModelResults) -> str:
    """A case's score for a title: Dice, or the class found with its probability."""
    if model.kind == "segmentation":
        return f"Dice {percent(score.score)} %"
    if not score.probabilities or not all(map(math.isfinite, score.probabilities)):
        return "no valid output"
    best = max(range(len(score.probabilities)), key=score.probabilities.__getitem__)
    name = model.classes[best] if best < len(model.classes) else f"class {best}"
    return f"{name}, {percent(score.probabilities[best])} %"
