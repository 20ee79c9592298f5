"""Everything that a report shows, as numbers: read from a folder once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monai_adv.errors import InputError
from monai_adv.evaluation import records as kept
from monai_adv.evaluation import store
from monai_adv.evaluation.certify.kept import is_certified
from monai_adv.evaluation.checks.flags import find_flags
from monai_adv.evaluation.checks.probed import ModelProbe
from monai_adv.evaluation.checks.verdict import Flag, Verdict, verdict
from monai_adv.evaluation.costs import Costs
from monai_adv.evaluation.described import Evaluation, Family, ModelEntry, StageEntry
from monai_adv.evaluation.figures.comparisons import compare_all
from monai_adv.evaluation.figures.variation_rows import Inventory, inventory
from monai_adv.evaluation.records import CLEAN, Level, Record, Totals, scores_at
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Kind, mean_known
from monai_adv.metrics.statistics import ClassRow, Comparison, Detection, Scores, Summary


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
        """Of all models: they are of one kind."""
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


def gather(folder: str | Path, *, attacked: bool = True) -> Figures:
    """Read a folder, finished or not, and compute all numbers.

    Args:
        folder: of an evaluation.
        attacked: refuse that of ``monai-adv certify``, which has no figures of attacks.

    Raises:
        InputError: not the folder of an evaluation, or nothing in it is finished.
    """
    evaluation, records = store.read_evaluation(folder), store.usable_records(folder)
    certified = evaluation.settings.certify is not None
    if certified and attacked:
        raise InputError(
            f"{folder}: holds certificates and no attack, so there is no report; see {folder}/certificates.csv, or run "
            "monai-adv evaluate with --smooth for both."
        )
    if not records and not certified:
        raise InputError(f"{folder}: no case is finished that could be used; run the evaluation first.")
    problems, probes = store.read_problems(folder), store.read_probes(folder)
    seed = evaluation.settings.seed
    lost = {(model, case) for model, case, _ in problems}
    unfinished = {
        entry.name: _uncertified(folder, entry) if certified else _unfinished(entry, records)
        for entry in evaluation.models
    }
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


def finished_records(evaluation: Evaluation, records: Sequence[Record]) -> list[Record]:
    """Records of the cases that have all of theirs: another one would be in some means and not in others."""
    unfinished = {entry.name: set(_unfinished(entry, records)) for entry in evaluation.models}
    return [r for r in records if r.case not in unfinished.get(r.model, ())]


def _unfinished(entry: ModelEntry, records: Iterable[Record]) -> tuple[str, ...]:
    """Cases of a model that do not have all their records of attacks."""
    expected = 1 + entry.attacks_per_case
    done = Counter(r.case for r in records if r.model == entry.name and not r.attack.startswith(kept.CORRUPTION))
    return tuple(case for case in entry.cases if done[case] < expected)


def _uncertified(folder: str | Path, entry: ModelEntry) -> tuple[str, ...]:
    """Cases of a model of which nothing is proven yet."""
    kept_here = store.Store(folder)
    return tuple(case for case in entry.cases if not is_certified(kept_here, entry.name, case))


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
    scores = {key: scores_at(records, name, key) for key in ["", *keys]}
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


def _corruption(attack: str) -> str:
    return attack.removeprefix(kept.CORRUPTION).strip().replace("_", " ")
