"""Everything that a report shows, as numbers: read from a folder once, written as JSON and CSV for machines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_adv.errors import InputError
from monai_adv.evaluation import records as kept
from monai_adv.evaluation import store
from monai_adv.evaluation.checks.flags import find_flags
from monai_adv.evaluation.checks.probed import ModelProbe
from monai_adv.evaluation.checks.verdict import Flag, Verdict, verdict
from monai_adv.evaluation.codec import plain
from monai_adv.evaluation.costs import Costs
from monai_adv.evaluation.described import Evaluation, Family, ModelEntry, StageEntry
from monai_adv.evaluation.records import CLEAN, Level, Record, Totals
from monai_adv.evaluation.report.comparisons import compare_all
from monai_adv.evaluation.report.variation_rows import Inventory, inventory
from monai_adv.foreign_text import csv_text, printable
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Kind, Score, mean_known
from monai_adv.metrics.statistics import ClassRow, Comparison, Detection, Scores, Summary

Cell = str | float | None
"""Of a table for machines; None: not defined."""
WORST = "worst case"
"""What stands for an attack where a row is of the lowest score over all of them."""


@dataclass(frozen=True)
class ModelResults:
    """One model.

    Attributes:
        name, kind, classes, space, unit: as in ``evaluation.json``.
        families: level -> attack -> family.
        stages: level -> the attacks with their settings.
        unfinished: cases without all their records that are not among the problems; they are in no figure.
        flags, verdict: see :mod:`monai_adv.evaluation.checks.verdict`.
        summaries: level ("" for clean) -> worst case over the attacks.
        foreground_mean: of nnU-Net's ``summary.json`` on clean images; NaN for classification.
        attacks: attack -> level -> what it leaves by itself.
        rows: level -> classes; Dice and HD95, or one class against the rest.
        attack_rows: attack -> level -> classes, of what the attack leaves by itself.
        detections: level -> sensitivity and the like; classification only.
        corruptions: corruption -> severity -> summary.
        variations: those of the modality, or None if none were asked for.
        meanings: corruption -> in words.
        totals: passes, seconds, inputs attacked, dead, broken, largest perturbation.
        probes: what they found; None if they did not run.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    space: str
    unit: str
    families: dict[str, dict[str, Family]]
    stages: dict[str, tuple[StageEntry, ...]]
    unfinished: tuple[str, ...]
    flags: list[Flag]
    verdict: Verdict
    summaries: dict[str, Summary]
    foreground_mean: float
    attacks: dict[str, dict[str, Summary]]
    rows: dict[str, list[ClassRow]]
    attack_rows: dict[str, dict[str, list[ClassRow]]]
    detections: dict[str, Detection]
    corruptions: dict[str, dict[str, Summary]]
    meanings: dict[str, str]
    variations: Inventory | None
    totals: Totals
    probes: ModelProbe | None

    @property
    def noise(self) -> str:
        """Name of the first attack that is random noise; "" if there is none."""
        return next((n for attacks in self.families.values() for n, f in attacks.items() if f == "random"), "")


@dataclass(frozen=True)
class Figures:
    """One evaluation.

    Attributes:
        evaluation: what was evaluated and how.
        cost: predicted and measured.
        problems: (model, case, reason) of what could not be used.
        levels: by norm, unit and radius.
        models: in the order of the command line.
        comparisons: of every pair of models.
        records: all of the finished cases.
        notes: (model, case, what is odd about its files) of cases that were used.
        shared: the cases that all models have, where some have others; empty if all have the same, or none in common.
    """

    evaluation: Evaluation
    cost: Costs
    problems: list[tuple[str, str, str]]
    levels: list[Level]
    models: list[ModelResults]
    comparisons: list[Comparison]
    records: list[Record]
    notes: list[tuple[str, str, str]]
    shared: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        return self.models[0].kind

    def scores(self, model: str, level: str) -> Scores:
        """Of every case: clean, or the worst over the attacks."""
        return scores_at(self.records, model, level)

    @property
    def joint(self) -> list[Record]:
        """Records for figures that show several models side by side: of the same cases, if they have any in common."""
        return [r for r in self.records if r.case in self.shared] if self.shared else self.records

    def joint_mean(self, model: str, level: str) -> float:
        """Mean score over the cases of :attr:`joint`; NaN where nothing is measured."""
        return mean_known(s.score for s in scores_at(self.joint, model, level).values())


def gather(folder: str | Path) -> Figures:
    """Read a folder, finished or not, and compute all numbers.

    Raises:
        InputError: not the folder of an evaluation, or nothing in it is finished.
    """
    evaluation, records = store.read_evaluation(folder), store.usable_records(folder)
    if not records:
        raise InputError(f"{folder}: no case is finished that could be used; run the evaluation first.")
    problems, probes = store.read_problems(folder), store.read_probes(folder)
    seed = evaluation.settings.seed
    lost = {(model, case) for model, case, _ in problems}
    unfinished = {entry.name: _unfinished(entry, records) for entry in evaluation.models}
    records = finished_records(evaluation, records)
    levels = [replace(level, words=evaluation.words.get(level.key, "")) for level in kept.levels(records)]
    models = [
        _model(
            entry,
            [r for r in records if r.model == entry.name],
            levels,  # of all models: one of them may not have begun
            tuple(case for case in unfinished[entry.name] if (entry.name, case) not in lost),
            probes.get(entry.name),
            seed,
        )
        for entry in evaluation.models
    ]
    comparisons = compare_all(records, models[0].kind, seed=seed)
    notes = [(r.model, r.case, note) for r in records for note in r.notes if r.attack == CLEAN]
    return Figures(
        evaluation, store.read_cost(folder), problems, levels, models, comparisons, records, notes,
        _shared(records),
    )  # fmt: skip


def _shared(records: Sequence[Record]) -> tuple[str, ...]:
    cases = {name: dict.fromkeys(r.case for r in records if r.model == name) for name in kept.models(records)}
    first, *others = cases.values() or [{}]
    if all(first.keys() == other.keys() for other in others):
        return ()
    return tuple(case for case in first if all(case in other for other in others))


def scores_at(records: Iterable[Record], model: str, level: str) -> Scores:
    """Of every case of a model: clean (level ""), or the worst over the attacks."""
    if level:
        return kept.worst_scores(records, model, level)
    return kept.own_scores(records, model, CLEAN)


def finished_records(evaluation: Evaluation, records: Sequence[Record]) -> list[Record]:
    """Records of the cases that have all of theirs: another one would be in some means and not in others."""
    unfinished = {entry.name: set(_unfinished(entry, records)) for entry in evaluation.models}
    return [r for r in records if r.case not in unfinished.get(r.model, ())]


def _unfinished(entry: ModelEntry, records: Iterable[Record]) -> tuple[str, ...]:
    """Cases of a model that do not have all their records of attacks."""
    expected = 1 + entry.attacks_per_case
    done = Counter(r.case for r in records if r.model == entry.name and not r.attack.startswith(kept.CORRUPTION))
    return tuple(case for case in entry.cases if done[case] < expected)


def _model(
    entry: ModelEntry,
    records: list[Record],
    levels: list[Level],
    unfinished: tuple[str, ...],
    probes: ModelProbe | None,
    seed: int,
) -> ModelResults:
    name, kind, classes = entry.name, entry.kind, entry.classes
    keys = [level.key for level in levels]
    scores = {"": kept.own_scores(records, name, CLEAN)}
    scores |= {key: kept.worst_scores(records, name, key) for key in keys}
    families = {level: {stage.name: stage.family for stage in stages} for level, stages in entry.stages.items()}
    flags = find_flags(records, kind, families, probes, levels)
    meanings: dict[str, str] = {}
    for record in records:
        if record.attack.startswith(kept.CORRUPTION) and not kept.is_variation(record.attack):
            meanings.setdefault(_corruption(record.attack), str(record.settings.get("meaning", "")))
    corruptions: dict[str, dict[str, Summary]] = {}
    for attack, severity in kept.corruptions(records):
        if kept.is_variation(attack):
            continue
        found = kept.own_scores(records, name, attack, severity)
        corruptions.setdefault(_corruption(attack), {})[severity] = statistics.summarise(found, kind, seed=seed)
    own = {
        attack: {k: found for k in keys if (found := kept.own_scores(records, name, attack, k))}
        for attack in kept.attacks(records)
    }

    summaries = {key: statistics.summarise(s, kind, seed=seed) for key, s in scores.items()}
    radii = Counter((v.norm, v.unit) for v in kept.levels(records))

    def per_class(found: Scores) -> list[ClassRow]:
        if kind == "segmentation":
            return statistics.per_class_dice(found, classes, seed=seed)
        return statistics.per_class_detection(found, classes)

    def unranked(rows: list[ClassRow]) -> list[ClassRow]:
        return [replace(row, values=_without_auc(row.values)) for row in rows]

    found_classes = (
        {key: statistics.detection(s, classes) for key, s in scores.items()} if kind == "classification" else {}
    )
    for key, value in found_classes.items():
        if key:
            found_classes[key] = replace(value, values=_without_auc(value.values), rows=unranked(value.rows))
    return ModelResults(
        name=name,
        kind=kind,
        classes=classes,
        space=entry.space,
        unit=entry.unit,
        families=families,
        stages=entry.stages,
        unfinished=unfinished,
        flags=flags,
        verdict=verdict(flags, kind, summaries[""].count, max(radii.values(), default=0)),
        summaries=summaries,
        foreground_mean=statistics.mean_over_classes(scores[""], false_positives=True),
        attacks={a: {k: statistics.summarise(s, kind, seed=seed) for k, s in v.items()} for a, v in own.items()},
        rows={key: unranked(per_class(s)) if key else per_class(s) for key, s in scores.items()},
        attack_rows={a: {k: unranked(per_class(s)) for k, s in v.items()} for a, v in own.items()},
        detections=found_classes,
        corruptions=corruptions,
        meanings=meanings,
        variations=inventory(records, name, scores[""], kind, seed),
        totals=kept.totals(records, name),
        probes=probes,
    )


def _without_auc(values: Mapping[str, float]) -> dict[str, float]:
    """An attack ends once an image is wrong: the order of the worst images is its work, an AUC of it says nothing."""
    return {name: value for name, value in values.items() if name != "auc"}


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
    """(model, case, key of the level, attack, score): every attack's own, and :data:`WORST` over them."""
    for model in results.models:
        for record in results.records:
            if record.model == model.name:
                for score in record.own:
                    yield model, record.case, record.level, record.attack, score
        for level in results.levels:
            for (case, _), score in results.scores(model.name, level.key).items():
                yield model, case, level.key, WORST, score


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
    rows = [("model", "level", f"worst-case {word} (%)", "cases")]
    for model in results.models:
        for key in ["", *(v.key for v in results.levels)]:
            summary = model.summaries[key]
            mean = "-" if math.isnan(summary.mean) else f"{100 * summary.mean:.1f}"
            rows.append((model.name, key or "clean", mean, str(summary.count)))
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
        tables = [("", "clean", model.summaries[""], model.rows[""])]
        for key in levels:
            tables += [
                (key, attack, found[key], model.attack_rows[attack][key])
                for attack, found in model.attacks.items()
                if key in found
            ]
            tables.append((key, "worst case", model.summaries[key], model.rows[key]))
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


def _corruption(attack: str) -> str:
    return attack.removeprefix(kept.CORRUPTION).strip().replace("_", " ")


def _cells(values: Mapping[str, Cell]) -> dict[str, Cell]:
    """For a CSV file: what is not defined is empty, names have no control characters."""
    return {printable(name): _cell(value) for name, value in values.items()}


def _cell(value: Cell) -> Cell:
    if isinstance(value, str):
        return printable(value)
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def plain_values(value: Any) -> Any:
    """As :func:`~monai_adv.evaluation.codec.plain`, with NaN and infinity as None."""
    return _finite(plain(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
