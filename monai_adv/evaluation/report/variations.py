"""Natural variations in the report: what each leaves, the worst first, and what of its modality was not tested."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import CORRUPTION, NOT_APPLICABLE, Record, is_variation, own_scores
from monai_adv.evaluation.report.curves import DASHES, DPI, MARKERS, MORE_COLOURS, SCORE, plain_text
from monai_adv.evaluation.store import read_pictures
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Kind, mean_known
from monai_adv.metrics.statistics import Scores, Summary
from monai_adv.variations import NOT_OFFERED, VARIATIONS, Modality

if TYPE_CHECKING:
    from monai_adv.evaluation.report.results import Figures

CALLED: Mapping[Modality, str] = {"ct": "CT", "mri": "MRI", "ultrasound": "ultrasound", "xray": "X-ray"}


@dataclass(frozen=True)
class Strength:
    """A variation at one severity.

    Attributes:
        severity: from 1.
        level: in words, with its unit.
        summary: of the scores.
        clean: mean score of the same cases, unchanged.
    """

    severity: int
    level: str
    summary: Summary
    clean: float

    @property
    def kept(self) -> float:
        """Share of the clean score; NaN where that is 0 or not known."""
        return self.summary.mean / self.clean if self.clean > 0 else math.nan


@dataclass(frozen=True)
class VariationRow:
    """One variation of a model's images.

    Attributes:
        attack: of its records.
        name, meaning, source: for tables.
        strengths: the severities that were measured, mildest first.
        missing: why it does not exist for some cases -> how many records say so.
    """

    attack: str
    name: str
    meaning: str
    source: str
    strengths: tuple[Strength, ...]
    missing: Mapping[str, int]

    @property
    def lowest(self) -> float:
        """Smallest share of the clean score that is kept; NaN without scores."""
        return min((s.kept for s in self.strengths if not math.isnan(s.kept)), default=math.nan)


@dataclass(frozen=True)
class Inventory:
    """The variations of one model.

    Attributes:
        modality: of all of them.
        at: where the images were changed, in words.
        rows: those with scores, the one that costs most first.
        untested: (what, why) of all others that are known.
    """

    modality: str
    at: str
    rows: tuple[VariationRow, ...]
    untested: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> list[int]:
        """All severities that were measured."""
        return sorted({strength.severity for row in self.rows for strength in row.strengths})


def inventory(records: Sequence[Record], model: str, clean: Scores, kind: Kind, seed: int) -> Inventory | None:
    """What the records say; None if no variations were asked for."""
    mine = [r for r in records if r.model == model and is_variation(r.attack)]
    if not mine:
        return None
    attacks = dict.fromkeys(r.attack for r in mine)
    rows = [_row([r for r in mine if r.attack == attack], clean, kind, seed) for attack in attacks]
    tested = [row for row in rows if not math.isnan(row.lowest)]
    modality: Any = mine[0].attack.removeprefix(CORRUPTION).partition(":")[0]
    untested = [(row.name, "; ".join(row.missing) or "no score") for row in rows if row not in tested]
    untested += [(_called(v.name), "not asked for") for v in VARIATIONS[modality] if CORRUPTION + v.key not in attacks]
    return Inventory(
        CALLED[modality], str(mine[0].settings["at"]), tuple(sorted(tested, key=lambda row: row.lowest)),
        (*untested, *NOT_OFFERED[modality].items()),
    )  # fmt: skip


def _row(records: Sequence[Record], clean: Scores, kind: Kind, seed: int) -> VariationRow:
    first, strengths = records[0], []
    missing: dict[str, int] = {}
    for record in records:
        if reason := record.settings.get(NOT_APPLICABLE):
            missing[str(reason)] = missing.get(str(reason), 0) + 1
    for severity in sorted({r.level for r in records if r.own}, key=int):
        found = own_scores(records, first.model, first.attack, severity)
        level = next(str(r.settings["level"]) for r in records if r.level == severity)
        same = mean_known(clean[case].score for case in found)
        strengths.append(Strength(int(severity), level, statistics.summarise(found, kind, seed=seed), same))
    name = _called(first.attack.rpartition(":")[2])
    meaning, source = (str(first.settings[part]) for part in ("meaning", "source"))
    return VariationRow(first.attack, name, meaning, source, tuple(strengths), missing)


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


def _called(name: str) -> str:
    return name.replace("_", " ")


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
