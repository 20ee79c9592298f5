"""What is proven of smoothed models, as figures of the evidence: lower bounds, each with its interval over cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from monai_adv.certificates import Certification
from monai_adv.certificates.bounds import radius
from monai_adv.evaluation.certify.both_bounds import read_bounds
from monai_adv.evaluation.certify.cases import Certified
from monai_adv.evaluation.certify.kept import read_certified
from monai_adv.evaluation.checks.verdict import FEWEST_RADII, Flag, Verdict, verdict
from monai_adv.evaluation.described import ModelEntry
from monai_adv.evaluation.evidence.content import Figure
from monai_adv.evaluation.records import CLEAN
from monai_adv.evaluation.report.results import Figures, ModelResults
from monai_adv.evaluation.store import Store
from monai_adv.metrics.score import Kind, mean_known
from monai_adv.metrics.statistics import bootstrap, wilson

CERTIFIED = "certified lower bound"
"""Measure of what is proven."""
NOT_ATTACKED = "certified, not attacked"
"""In place of a word for how robust a model is."""


def beside_attacks(folder: Path, figures: Figures, model: ModelResults) -> list[Figure]:
    """Of a smoothed model that was attacked, at the radii of the attacks; of a model itself nothing is proven."""
    settings = figures.evaluation.settings
    if not settings.smooth:
        return []
    cases = list(dict.fromkeys(r.case for r in figures.records if r.model == model.name))
    kept = read_bounds(folder, settings.smooth, model.name, cases, figures.levels)
    rows = []
    for level in (None, *(v for v in figures.levels if v.norm == "l2")):
        key = CLEAN if level is None else level.key
        found = [c.attacked[key].certified for c in kept if key in c.attacked]
        rows.append(_figure(found, model.kind, settings.seed, level.key if level else ""))
    return rows


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
    yield _figure([case.clean for case in cases], kind, seed, measure=word, attack="clean")
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
    interval = wilson(round(sum(known)), len(known)) if kind == "classification" else bootstrap(known, seed=seed)
    return Figure(
        level=level, norm="l2" if size else None, eps=size or None, unit="norm" if size else None, attack=attack, of=of,
        measure=measure, value=mean_known(known), low=interval.low, high=interval.high, count=len(known),
    )  # fmt: skip
