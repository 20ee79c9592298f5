"""The numbers of a report for machines, as JSON and CSV, and the shortest table of them for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from monai_adv.evaluation import records as kept
from monai_adv.evaluation.codec import plain_values
from monai_adv.evaluation.figures.results import Figures, ModelResults
from monai_adv.foreign_text import csv_text, printable
from monai_adv.metrics.score import Score

Cell = str | float | None
"""Of a table for machines; None: not defined."""


def as_json(results: Figures) -> str:
    """All numbers of the page, and every record; what is not defined is ``null``."""
    content = {
        "evaluation": results.evaluation,
        "cost": results.cost,
        "problems": [dict(zip(("model", "case", "reason"), p, strict=True)) for p in results.problems],
        "notes": [dict(zip(("model", "case", "note"), n, strict=True)) for n in results.notes],
        "models": [plain_values(m) for m in results.models],
        "comparisons": [plain_values(c) for c in results.comparisons],
        "records": [plain_values(r) for r in results.records],
    }
    return json.dumps(plain_values(content), indent=1, ensure_ascii=False, allow_nan=False)


def as_csv(results: Figures) -> str:
    """One row for every patient or image, level and attack, and one ("worst case") over the attacks of a level.

    Columns: model, case, patient, level, norm, eps, unit, attack, family, score, label, then per class Dice, HD95 and
    whether it was found where the ground truth lacks it (1 or 0), or probabilities. Scores lie between 0 and 1; what is
    not defined is empty.
    """
    classes = list(dict.fromkeys(c for m in results.models for c in m.classes))
    segmentation = results.kind == "segmentation"
    names = [
        f"{kind} {c}"
        for kind in (("dice", "hd95_mm", "false_positive") if segmentation else ("probability",))
        for c in classes
    ]
    head = ["model", "case", "patient", "level", "norm", "eps", "unit", "attack", "family", "score", "label", *names]
    lines: list[dict[str, Cell]] = []
    levels = {level.key: level for level in results.levels}
    for model, case, key, attack, score in all_scores(results):
        values: dict[str, Cell] = {"model": model.name, "case": case, "patient": score.case, "level": key}
        values |= {"attack": attack, "family": model.families.get(key, {}).get(attack, ""), "label": score.label}
        if key in levels:
            values |= kept.place_of(levels[key])
        lines.append(_cells(values | measures_of(score, model.classes)))
    return csv_text(list(map(printable, head)), lines)


def all_scores(results: Figures) -> Iterator[tuple[ModelResults, str, str, str, Score]]:
    """(model, case, key of the level, attack, score): every attack's own, and the worst case over them."""
    for model in results.models:
        for record in results.records:
            if record.model == model.name:
                for score in record.own:
                    yield model, record.case, record.level, record.attack, score
        for level in results.levels:
            for (case, _), score in results.scores(model.name, level.key).items():
                yield model, case, level.key, kept.WORST, score


def measures_of(score: Score, classes: Sequence[str]) -> dict[str, float]:
    """What is known of a patient or image, by the names that ``results.csv`` has for it."""
    values = {"score": score.score}
    values |= {f"dice {c}": v for c, v in score.dice.items()}
    values |= {f"hd95_mm {c}": v for c, v in score.hd95.items()}
    values |= {f"false_positive {c}": int(c in score.false_positives) for c in score.absent}
    return values | {f"probability {c}": p for c, p in zip(classes, score.probabilities, strict=False)}


def summary_table(results: Figures) -> str:
    """Worst case of every model and radius in percent, for a terminal."""
    word = "accuracy" if results.kind == "classification" else "Dice"
    rows = [("model", "level", f"worst-case {word} (%)", "images" if results.kind == "classification" else "cases")]
    for model in results.models:
        for key, name in [("", "clean"), *((v.key, kept.level_name(v)) for v in results.levels)]:
            summary = model.summaries[key]
            mean = "-" if math.isnan(summary.mean) else f"{100 * summary.mean:.1f}"
            rows.append((model.name, name, mean, str(summary.count)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_table(results: Figures) -> str:
    """CSV with one row per model, level, attack, class and measure: the numbers of the page's tables.

    Columns: model, level, norm, eps, unit, attack ("clean", a name, or "worst case"), class ("all": the score that the
    attacks push down), measure, value, low and high of its 95 % interval, lowest, lowest_patient, count. Shares lie
    between 0 and 1, HD95 is in mm; what is not defined is empty. "mean Dice" of "all" is the mean over the patients,
    "mean over classes" that over the classes; "false positives" are a share of the patients (of "all": of the pairs of
    patient and class) whose ground truth lacks the class.
    """
    head = ["model", "level", "norm", "eps", "unit", "attack", "class", "measure"]
    head += ["value", "low", "high", "lowest", "lowest_patient", "count"]
    return csv_text(head, [_cells(row) for row in table_rows(results)])


def table_rows(results: Figures) -> list[dict[str, Cell]]:
    """The rows of :func:`as_table`, by its columns; what is not defined is NaN, None or missing."""
    lines: list[dict[str, Cell]] = []
    measures = {"dice": "mean Dice", "hd95": "median HD95 in mm", "false_positives": "false positives"}
    levels = {level.key: kept.place_of(level) for level in results.levels}
    for model in results.models:
        tables = [("", kept.CLEAN, model.summaries[""], model.rows[""])]
        for key in levels:
            tables += [
                (key, attack, found[key], model.attack_rows[attack][key])
                for attack, found in model.attacks.items()
                if key in found
            ]
            tables.append((key, kept.WORST, model.summaries[key], model.rows[key]))
        for key, attack, summary, rows in tables:
            place: dict[str, Cell] = {"model": model.name, "level": key, "attack": attack, **levels.get(key, {})}
            whole: dict[str, Cell] = {
                "class": "all", "measure": "mean Dice" if model.kind == "segmentation" else "accuracy",
                "value": summary.mean, "low": summary.interval.low, "high": summary.interval.high,
                "lowest": summary.lowest, "lowest_patient": summary.lowest_case, "count": summary.count,
            }  # fmt: skip
            if model.kind == "classification":
                del whole["lowest"], whole["lowest_patient"]
            lines.append(place | whole)
            if model.kind == "segmentation":
                mean: dict[str, Cell] = {"measure": "mean over classes", "value": summary.class_mean}
                lines.append(place | {"class": "all"} | mean | {"count": len(rows)})
            if summary.absent:
                share: dict[str, Cell] = {"measure": "false positives", "count": summary.absent}
                share["value"] = summary.false_positives / summary.absent
                lines.append(place | {"class": "all"} | share)
            for row in rows:
                for measure in [m for m in row.values if m != "lowest"]:
                    interval = row.intervals.get(measure)
                    value: dict[str, Cell] = {
                        "class": row.name, "measure": measures.get(measure, measure), "value": row.values[measure],
                        "low": interval.low if interval else None, "high": interval.high if interval else None,
                        "lowest": row.values.get("lowest") if measure == "dice" else None,
                        "count": row.counts[measure],
                    }  # fmt: skip
                    lines.append(place | value)
    return lines


def _cells(values: Mapping[str, Cell]) -> dict[str, Cell]:
    """For a CSV file: what is not defined is empty, names have no control characters."""
    return {printable(name): _cell(value) for name, value in values.items()}


def _cell(value: Cell) -> Cell:
    if isinstance(value, str):
        return printable(value)
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
