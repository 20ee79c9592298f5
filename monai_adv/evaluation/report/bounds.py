"""Both bounds of smoothed models, as a report shows them: what is proven and what was found, on one L2 axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style

from monai_adv.evaluation.certify.both_bounds import Bounds, read_bounds
from monai_adv.evaluation.figures.results import Figures
from monai_adv.evaluation.records import CLEAN, Level
from monai_adv.evaluation.report.curves import COLOURS, SCORE, Curve, ShownFigure
from monai_adv.evaluation.report.inline_svg import inline_svg
from monai_adv.foreign_text import csv_text, printable
from monai_adv.metrics.score import Kind, mean_known

POINTS = 200
"""Of the line of what is proven, between the radii that were attacked."""


@dataclass(frozen=True)
class Row:
    """Means at one radius; shares between 0 and 1.

    Attributes:
        level: the radius, None: unchanged images.
        radius: L2 norm in network inputs; of volumes of several sizes the range, in words.
        certified: at least this much is left, whatever the attack.
        attacked: at most this much is left.
        count: cases.
    """

    level: Level | None
    radius: str
    certified: float
    attacked: float
    count: int


@dataclass(frozen=True)
class ModelBounds:
    """One smoothed model.

    Attributes:
        name: of the model.
        rows: unchanged images, then each L2 level.
        cases: of all patients or images, the least certain first.
        abstained: share of voxels or images about which nothing is proven.
        beaten: sentences about certificates that an attack beats.
        curve: certified and attacked against the L2 radius.
    """

    name: str
    rows: tuple[Row, ...]
    cases: tuple[Bounds, ...]
    abstained: float
    beaten: tuple[str, ...]
    curve: Curve


def bounds_of(folder: Path, results: Figures) -> tuple[ModelBounds, ...]:
    """Of every model with some; empty unless the models were smoothed.

    Raises:
        InputError: a file that was changed or is damaged.
    """
    smooth = results.evaluation.settings.smooth
    if not smooth:
        return ()
    levels = [level for level in results.levels if level.norm == "l2"]
    found = []
    for number, model in enumerate(results.models, start=1):
        finished = list(dict.fromkeys(r.case for r in results.records if r.model == model.name))
        if cases := read_bounds(folder, smooth, model.name, finished, levels):
            found.append(_of_model(model.name, number, results.kind, cases, levels))
    return tuple(found)


def certified_at(cases: Sequence[Bounds], radius: float) -> float:
    """Mean of what is proven at a radius."""
    return mean_known(c.certified.score if c.certified.radius >= radius else 0 * c.certified.score for c in cases)


def _of_model(name: str, number: int, kind: Kind, cases: list[Bounds], levels: Sequence[Level]) -> ModelBounds:
    rows, places = [], []
    for level in (None, *levels):
        key = CLEAN if level is None else level.key
        seen = [c.attacked[key] for c in cases if key in c.attacked]
        if seen:
            radii = [a.radius for a in seen]
            words = {f"{min(radii):.3g}": None, f"{max(radii):.3g}": None}
            certified, attacked = mean_known(a.certified for a in seen), mean_known(a.score for a in seen)
            rows.append(Row(level, " to ".join(words), certified, attacked, len(seen)))
            places.append(sum(radii) / len(radii))
    beaten = tuple(
        f"{c.certified.case}: {100 * a.certified:.1f} % is certified at L2 {a.radius:.3g}, and the attack left "
        f"{100 * a.score:.1f} %"
        for c in cases
        for a in c.attacked.values()
        if a.beaten
    )
    ordered = tuple(sorted(cases, key=lambda c: (c.certified.radius * c.certified.score, c.certified.score)))
    abstained = mean_known(c.certified.abstained for c in cases)
    return ModelBounds(name, tuple(rows), ordered, abstained, beaten, _curve(name, number, kind, cases, rows, places))


@matplotlib.style.context("default")
def _curve(
    name: str, number: int, kind: Kind, cases: Sequence[Bounds], rows: Sequence[Row], places: Sequence[float]
) -> Curve:
    figure = ShownFigure(figsize=(4.6, 3.3), dpi=165, layout="constrained")
    plot = figure.subplots()
    end = 1.05 * max([*places, *(c.certified.radius for c in cases)]) or 1.0
    fine = [end * i / POINTS for i in range(POINTS + 1)]
    proven = [100 * certified_at(cases, radius) for radius in fine]
    plot.plot(fine, proven, color=COLOURS[2], linewidth=1.4)
    plot.fill_between(fine, 0, proven, color=COLOURS[2], alpha=0.12, linewidth=0)
    for values, label, colour, marker in (
        ([r.attacked for r in rows], "attacked: at most", COLOURS[1], "s"),
        ([r.certified for r in rows], "certified: at least", COLOURS[2], "o"),
    ):
        line = "-" if marker == "s" else ""
        shown = [100 * value for value in values]
        plot.plot(places, shown, color=colour, marker=marker, linestyle=line, linewidth=2, label=label)
    plot.set(xlabel="L2 radius, in network inputs", ylabel=SCORE[kind], ylim=(-1, 101), xlim=(0, end))
    plot.grid(alpha=0.3)
    plot.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=9, frameon=False, loc="outside upper center", ncols=2)
    file = f"bounds-{number}"
    title = f"{SCORE[kind]} of {name} against the L2 radius: certified at least, attacked at most"
    svg = inline_svg(figure, file, title, {place: f"L2 {place:.3g}" for place in places})
    return Curve(file, figure._repr_png_(), svg)


def as_csv(bounds: Sequence[ModelBounds]) -> str:
    """A row for every patient or image: what is proven, and by level what an attack left; shares between 0 and 1."""
    keys = list(dict.fromkeys(key for model in bounds for case in model.cases for key in case.attacked))
    head = ["model", "case", "certified_radius", "certified_radius_rms", "certified", "abstained"]
    rows = []
    for model in bounds:
        for case in model.cases:
            proven = case.certified
            values = (
                printable(model.name), printable(proven.case), proven.radius,
                proven.radius / math.sqrt(proven.voxels), proven.score, proven.abstained,
            )  # fmt: skip
            attacked = {f"attacked {key}": found.score for key, found in case.attacked.items()}
            cells = dict(zip(head, values, strict=True)) | attacked
            rows.append({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in cells.items()})
    return csv_text([*head, *(f"attacked {key}" for key in keys)], rows)


def told(bounds: Sequence[ModelBounds]) -> list[str]:
    """A line for each model, for a terminal, and one for each certificate that is beaten."""
    lines = []
    for model in bounds:
        pairs = [
            f"{100 * row.certified:.1f} to {100 * row.attacked:.1f} % at L2 {row.radius}"
            for row in model.rows
            if not math.isnan(row.attacked)
        ]
        lines.append(
            f"{model.name}: certified to attacked {', '.join(pairs)}; it abstains in {100 * model.abstained:.1f} %"
        )
        lines += [f"{model.name}: a certificate is beaten, so something is wrong; {one}" for one in model.beaten]
    return lines
