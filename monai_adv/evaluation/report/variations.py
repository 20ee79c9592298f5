"""Natural variations in the report: the curve, and one case at every severity."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from monai_adv.evaluation.figures.variation_rows import Inventory, VariationRow
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.report.curves import DASHES, DPI, MARKERS, MORE_COLOURS, SCORE, plain_text
from monai_adv.evaluation.store import read_pictures
from monai_adv.metrics.score import Kind

if TYPE_CHECKING:
    from monai_adv.evaluation.figures.results import Figures


@dataclass(frozen=True)
class VariationFigures:
    """PNG files.

    Attributes:
        curve: score against severity; None without scores.
        pictures: of one case at every severity; None without them.
        case: which.
    """

    curve: bytes | None = None
    pictures: bytes | None = None
    case: str = ""


def variation_figures(folder: Path, results: Figures) -> dict[str, VariationFigures]:
    """Of each model with variations."""
    found = {}
    for model in results.models:
        if model.variations is not None:
            rows = model.variations.rows
            drawn, case = _drawn(folder, results, model.name, rows)
            found[model.name] = VariationFigures(
                variation_curve(model.variations, model.kind) if rows else None,
                variation_pictures(drawn) if drawn else None, case,
            )  # fmt: skip
    return found


def _drawn(
    folder: Path, results: Figures, model: str, rows: Sequence[VariationRow]
) -> tuple[list[tuple[VariationRow, dict[int, Picture]]], str]:
    """Pictures by severity, of the case that has them."""
    cases = dict.fromkeys(r.case for r in results.records if r.model == model)
    for case in cases:
        drawn = []
        for row in rows:
            places = {s.severity: f"{s.severity}.{row.attack}" for s in row.strengths}
            pictures = {
                s: kept[0] for s, place in places.items() if (kept := read_pictures(folder, model, case, place))
            }
            if pictures:
                drawn.append((row, pictures))
        if drawn:
            return drawn, next(iter(drawn[0][1].values())).case
    return [], ""


@matplotlib.style.context("default")  # nnU-Net's logger enlarges every font of the process
def variation_curve(found: Inventory, kind: Kind) -> bytes:
    """Score against severity, a line per variation, as a PNG file; severity 0 is the unchanged image."""
    figure = Figure(figsize=(4.6, 3.2 + 0.12 * len(found.rows)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.subplots()
    for row, colour, marker, dashes in zip(
        found.rows, cycle(MORE_COLOURS), cycle(MARKERS), cycle(DASHES), strict=False
    ):
        x = [0, *(s.severity for s in row.strengths)]
        y = [row.strengths[0].clean, *(s.summary.mean for s in row.strengths)]
        plot.plot(
            x, [100 * v for v in y], color=colour, marker=marker, linestyle=dashes, markersize=4,
            label=plain_text(row.name),
        )  # fmt: skip
    plot.set(xlabel="severity", ylabel=SCORE[kind], ylim=(-1, 101), xticks=[0, *found.columns])
    plot.grid(alpha=0.3)
    plot.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=9, frameon=False, loc="outside upper center", ncols=2)
    return _png(figure)


@matplotlib.style.context("default")
def variation_pictures(rows: Sequence[tuple[VariationRow, Mapping[int, Picture]]]) -> bytes:
    """A slice unchanged and at every severity, a line of pictures per variation, on one grey scale; as a PNG file."""
    count = 1 + max(len(pictures) for _, pictures in rows)
    clean = np.asarray(next(iter(rows[0][1].values())).clean, dtype=float)
    low, high = (float(v) for v in np.percentile(clean, (0.5, 99.8)))
    height = min(1.6, 7.5 / count * clean.shape[0] / clean.shape[1])
    figure = Figure(figsize=(7.5, len(rows) * (height + 0.35)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (row, pictures) in zip(axes, rows, strict=True):
        levels = {s.severity: s.level for s in row.strengths}
        drawn = [("unchanged", clean), *((levels[s], np.asarray(pictures[s].attacked)) for s in sorted(pictures))]
        for plot in line:
            plot.axis("off")
        for plot, (title, image) in zip(line, drawn, strict=False):
            plot.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
            plot.set_title("\n".join(wrap(plain_text(title), 18)), fontsize=8)
        line[0].text(
            -0.08, 0.5, "\n".join(wrap(plain_text(row.name), 12)), rotation=90, fontsize=8, ha="right", va="center",
            transform=line[0].transAxes,
        )  # fmt: skip
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
