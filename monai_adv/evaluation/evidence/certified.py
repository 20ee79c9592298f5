"""What is proven of smoothed models, as figures of the evidence: lower bounds, each with its interval over cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from monai_adv.certificates import Certification
from monai_adv.certificates.bounds import radius
from monai_adv.evaluation.certify.both_bounds import Bounds, read_bounds
from monai_adv.evaluation.certify.cases import Certified
from monai_adv.evaluation.certify.kept import read_certified
from monai_adv.evaluation.checks.verdict import FEWEST_RADII, Flag, Verdict, verdict
from monai_adv.evaluation.described import ModelEntry
from monai_adv.evaluation.evidence.content import Figure
from monai_adv.evaluation.evidence.decisions import Decision, bound_interval, decide_proven
from monai_adv.evaluation.evidence.purpose import Criterion
from monai_adv.evaluation.figures.results import Figures, ModelResults
from monai_adv.evaluation.models.protocol import Model
from monai_adv.evaluation.records import CLEAN
from monai_adv.evaluation.store import Store
from monai_adv.metrics.score import Kind, mean_known

CERTIFIED = "certified lower bound"
"""Measure of what is proven."""
NOT_ATTACKED = "certified, not attacked"
"""In place of a word for how robust a model is."""


def beside_attacks(folder: Path, figures: Figures, model: ModelResults) -> list[Figure]:
    """Of a smoothed model that was attacked, at the radii of the attacks; of a model itself nothing is proven."""
    seed, proven = figures.evaluation.settings.seed, proven_scores(folder, figures, model)
    return [_figure(found, model.kind, seed, level) for level, found in proven.items()]


def proven_scores(folder: Path, figures: Figures, model: ModelResults) -> dict[str, list[float]]:
    """Lower bound of every case's score by the key of an L2 level, "" for unchanged images; empty if not smoothed.

    Raises:
        InputError: a file that was changed or is damaged.
    """
    return _by_level(_bounds(folder, figures, model), figures)


def proof(folder: Path, figures: Figures, model: ModelResults) -> dict[str, list[float]]:
    """The same to decide by: empty where an attack beats a certificate, which then proves nothing."""
    kept = _bounds(folder, figures, model)
    beaten = any(found.beaten for case in kept for found in case.attacked.values())
    return {} if beaten else _by_level(kept, figures)


def _bounds(folder: Path, figures: Figures, model: ModelResults) -> list[Bounds]:
    smooth = figures.evaluation.settings.smooth
    cases = list(dict.fromkeys(r.case for r in figures.records if r.model == model.name))
    return read_bounds(folder, smooth, model.name, cases, figures.levels) if smooth else []


def _by_level(kept: Sequence[Bounds], figures: Figures) -> dict[str, list[float]]:
    if not kept:
        return {}
    keys = {"": CLEAN} | {v.key: v.key for v in figures.levels if v.norm == "l2"}
    return {level: [c.attacked[k].certified for c in kept if k in c.attacked] for level, k in keys.items()}


def decide_alone(criterion: Criterion, cases: Sequence[Certified], entry: Model | ModelEntry, seed: int) -> Decision:
    """Decide a criterion for a model that was certified and not attacked.

    Args:
        criterion: one that :meth:`Purpose.check_certified` allows.
        cases: of the model.
        entry: its kind and classes.
        seed: of the bootstrap.
    """
    size, (word, _, of) = criterion.proven_at, criterion.measure.partition(" ")
    assert size is not None
    of = of or (entry.classes[1] if word == "sensitivity" else "")
    return decide_proven(criterion, [_proven(case, size, of) for case in cases], entry.kind, seed)


def _proven(case: Certified, size: float, of: str) -> float:
    """Lower bound at a radius, of all or of a class."""
    if not of:
        return case.clean if not size else case.score if case.radius >= size else 0 * case.score
    value = case.per_class.get(of, math.nan)
    return value if case.radius >= size else 0 * value


def alone(folder: Path, entry: ModelEntry, settings: Certification) -> tuple[list[Figure], Verdict, tuple[Flag, ...]]:
    """Of a smoothed model that was certified and not attacked: all figures, and how far they can be trusted."""
    cases = read_certified(Store(folder), entry.name, entry.cases)
    same = Flag(
        "repeat", "Does the network answer the same image alike?", "the network answers by chance", False,
        "Every case was given twice and answered alike; one that is not is refused.", "", "",
    )  # fmt: skip
    trust = verdict([same], entry.kind, sum(not math.isnan(case.score) for case in cases), FEWEST_RADII)
    return list(_figures(cases, entry, settings)), trust, (same,)


def _figures(cases: Sequence[Certified], entry: ModelEntry, settings: Certification) -> Iterable[Figure]:
    kind, seed = entry.kind, settings.seed
    word = "accuracy" if kind == "classification" else "mean Dice"
    yield _figure([case.clean for case in cases], kind, seed, measure=word, attack=CLEAN)
    for size in _radii(cases, kind, settings):
        level = f"l2-{size:g}" if size else ""
        scores = [(case, case.score if case.radius >= size else 0 * case.score) for case in cases]
        yield _figure([score for _, score in scores], kind, seed, level, size)
        for name in entry.classes:
            if kind == "segmentation":
                found = [case.per_class[name] for case in cases]
            else:
                found = [score for case, score in scores if name in case.per_class]
            yield _figure(found, kind, seed, level, size, name)
    yield _figure([case.abstained for case in cases], kind, seed, measure="share abstained")


def _radii(cases: Sequence[Certified], kind: Kind, settings: Certification) -> list[float]:
    """Of a segmentation the one that is shown; of a classifier steps of half a sigma, as far as n draws can show."""
    if kind == "segmentation":
        return [cases[0].radius]
    largest = float(radius(settings.alpha ** (1 / settings.n), settings.sigma))
    return [settings.sigma * k / 2 for k in range(int(2 * largest / settings.sigma) + 1)]


def _figure(
    values: Iterable[float],
    kind: Kind,
    seed: int,
    level: str = "",
    size: float = 0.0,
    of: str = "all",
    *,
    measure: str = CERTIFIED,
    attack: str = "certificate",
) -> Figure:
    known = [value for value in values if not math.isnan(value)]
    interval = bound_interval(known, kind, seed)
    return Figure(
        level=level, norm="l2" if size else None, eps=size or None, unit="norm" if size else None, attack=attack, of=of,
        measure=measure, value=mean_known(known), low=interval.low, high=interval.high, count=len(known),
    )  # fmt: skip
