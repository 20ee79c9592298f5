"""Score against radius, for the page and as PNG. One norm and unit per figure; the clean score is radius 0."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, groupby
from textwrap import wrap

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from monai_adv.evaluation.records import WORST, Level, Record, level_name, own_scores, scores_at
from monai_adv.evaluation.report.inline_svg import inline_svg
from monai_adv.foreign_text import printable
from monai_adv.metrics.score import Kind, mean_known
from monai_adv.metrics.statistics import Scores, quartiles, summarise

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe & Ito: told apart by colour-blind readers; markers and dashes tell the same once more."""
MORE_COLOURS = (*COLOURS[:-1], "#777777", "#8c6d31", "#332288")
"""For attacks; black is the worst case."""
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (8, 2)))
SCORE: dict[Kind, str] = {"classification": "accuracy in %", "segmentation": "Dice in %"}
DPI = 165
UNCHANGED, NOISE = "unchanged", "random noise"


@dataclass(frozen=True)
class Curve:
    """A figure.

    Attributes:
        name: of its file, without ending.
        png: the file.
        svg: the same as an element of the page, with the values at its points.
    """

    name: str
    png: bytes
    svg: str


class ShownFigure(Figure):
    """A notebook shows it also where nobody has set up pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def chains(levels: Sequence[Level]) -> list[list[Level]]:
    """The levels, sorted as a report has them, in groups that share an axis: one norm and one unit."""
    return [list(group) for _, group in groupby(levels, key=lambda v: (v.norm, v.unit))]


def worst_case_curve(records: Sequence[Record], chain: Sequence[Level], kind: Kind, axis: str, noise: str) -> Curve:
    """:func:`worst_case_figure`, drawn."""
    figure = worst_case_figure(records, chain, kind, axis, noise)
    return _drawn(figure, "curve", chain, f"{SCORE[kind]} against {axis}, worst case for each model")


def worst_case_figure(
    records: Sequence[Record], chain: Sequence[Level], kind: Kind, axis: str, noise: str
) -> ShownFigure:
    """One thick line per model: the mean worst case. Dotted: random noise of the same size.

    The band is the middle half of the cases for Dice, the 95 % interval for accuracy. Models that differ only in a
    final "seed N" or "fold N" share a colour: their mean is thick, each one thin, and the band is their range.

    Args:
        records: of all models.
        chain: levels of one axis.
        kind: classification or segmentation.
        axis: label of the horizontal axis.
        noise: name of the attack that is random noise; "" if there is none.
    """
    figure, plot = _figure(kind, axis, chain)
    x = [0.0, *(level.eps for level in chain)]
    groups = repetitions(list(dict.fromkeys(r.model for r in records)))
    for (name, members), colour, marker, dashes in zip(
        groups.items(), cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False
    ):
        lines = [_line(records, member, chain, kind) for member in members]
        means = np.array([line.mean for line in lines])
        if len(members) > 1:
            low, high = np.fmin.reduce(means), np.fmax.reduce(means)
            for line in means:
                plot.plot(x, line, color=colour, linewidth=0.8, alpha=0.6)
        else:
            low, high = lines[0].low, lines[0].high
        plot.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        plot.plot(
            x, means.mean(axis=0), color=colour, marker=marker, linestyle=dashes, linewidth=2.4, markersize=5.5,
            label=plain_text(name),
        )  # fmt: skip
        random = _mean_under(records, members, noise, chain) if noise else []
        if any(not math.isnan(v) for v in random):
            clean = float(means.mean(axis=0)[0])
            label = plain_text(f"{name}, {NOISE}")
            plot.plot(x, [clean, *random], color=colour, linestyle=":", marker=".", linewidth=1.3, label=label)
    _legend(figure, plot)
    return figure


def per_attack_curve(
    records: Sequence[Record], model: str, chain: Sequence[Level], kind: Kind, axis: str, number: int
) -> Curve:
    """One model: a thin line for what each attack alone leaves, a thick one for the worst case over all.

    The bands are as in :func:`worst_case_curve`. An attack is not run on inputs that an earlier one has finished;
    those count with their worst score.
    """
    figure, plot = _figure(kind, axis, chain)
    x = [0.0, *(level.eps for level in chain)]
    keys = {level.key for level in chain}
    names = dict.fromkeys(r.attack for r in records if r.model == model and r.level in keys)
    worst = _line(records, model, chain, kind)
    styles = zip(names, cycle(MORE_COLOURS), cycle(MARKERS), cycle(DASHES[1:]), strict=False)
    for name, colour, marker, dashes in styles:
        line = _line(records, model, chain, kind, name)
        plot.fill_between(x, line.low, line.high, color=colour, alpha=0.07, linewidth=0)
        plot.plot(
            x, line.mean, color=colour, marker=marker, linestyle=dashes, linewidth=1.1, markersize=3.5,
            label=plain_text(name),
        )  # fmt: skip
    plot.fill_between(x, worst.low, worst.high, color="#000000", alpha=0.1, linewidth=0, zorder=0)
    plot.plot(
        x, worst.mean, color="#000000", linewidth=2.6, marker="o", markersize=5, zorder=0, alpha=0.85,
        label=WORST,
    )  # fmt: skip
    _legend(figure, plot)
    return _drawn(figure, f"attacks-{number}", chain, f"{SCORE[kind]} of {model} against {axis}, one line per attack")


def repetitions(names: Sequence[str]) -> dict[str, list[str]]:
    """Models that are the same up to a seed or a fold.

    Example:
        >>> repetitions(["IMA seed 0", "IMA seed 1", "plain, fold 0"])
        {'IMA (2 seeds)': ['IMA seed 0', 'IMA seed 1'], 'plain, fold 0': ['plain, fold 0']}
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)[\s,_-]*\b(seed|fold)[\s_=]*\d+", name)
        groups.setdefault((match[1], match[2]) if match and match[1] else (name, ""), []).append(name)
    return {
        f"{name} ({len(members)} {what}s)" if len(members) > 1 else members[0]: members
        for (name, what), members in groups.items()
    }


@dataclass(frozen=True)
class _Line:
    mean: list[float]
    low: list[float]
    high: list[float]


def _line(records: Sequence[Record], model: str, chain: Sequence[Level], kind: Kind, attack: str = "") -> _Line:
    """Percent at radius 0 and at each level, of one attack or of the worst case."""
    columns = [scores_at(records, model, "")]
    for level in chain:
        columns.append(
            own_scores(records, model, attack, level.key) if attack else scores_at(records, model, level.key)
        )
    mean, low, high = [], [], []
    for scores in columns:
        mean.append(100 * _mean(scores))
        if kind == "classification":
            interval = summarise(scores, kind).interval
            bounds = interval.low, interval.high
        else:
            bounds = quartiles(scores)
        low.append(100 * bounds[0])
        high.append(100 * bounds[1])
    return _Line(mean, low, high)


def _mean_under(records: Sequence[Record], members: Sequence[str], attack: str, chain: Sequence[Level]) -> list[float]:
    return [
        100 * float(np.mean([_mean(own_scores(records, member, attack, level.key)) for member in members]))
        for level in chain
    ]


def _mean(scores: Scores) -> float:
    return mean_known(s.score for s in scores.values())


@matplotlib.style.context("default")  # nnU-Net's logger enlarges every font of the process
def _figure(kind: Kind, axis: str, chain: Sequence[Level]) -> tuple[ShownFigure, Axes]:
    figure = ShownFigure(figsize=(4.6, 3.5), dpi=DPI, layout="constrained")  # narrow: a telephone shows it as it is
    FigureCanvasAgg(figure)
    plot = figure.subplots()
    plot.set(
        xlabel="\n".join(wrap(plain_text(axis), 50)), ylabel=SCORE[kind], ylim=(-1, 101), xlim=(0, chain[-1].eps * 1.02)
    )
    ticks = [0.0]
    for level in chain:
        if level.eps - ticks[-1] > (0.2 if len(ticks) == 1 else 0.08) * chain[-1].eps:
            ticks.append(level.eps)
    written = {level.eps: "\n".join(wrap(plain_text(level.radius), 14)) for level in chain}
    plot.set_xticks(ticks, labels=[UNCHANGED, *(written[eps] for eps in ticks[1:])])
    plot.grid(alpha=0.3)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot


@matplotlib.style.context("default")
def _legend(figure: Figure, plot: Axes) -> None:
    """Above the plot, which keeps its height; random noise is there once, not once more for every model."""
    drawn = [(handle, label) for handle, label in zip(*plot.get_legend_handles_labels(), strict=True)]
    shown = [(handle, label) for handle, label in drawn if not label.endswith(f", {NOISE}")]
    if len(shown) < len(drawn):
        shown.append((Line2D([], [], color="#555555", linestyle=":", marker="."), f"dotted: {NOISE}"))
    handles, labels = zip(*shown, strict=True)
    longest = max(map(len, labels), default=0)
    columns = 1 if longest > 20 else 2 if longest > 12 else 3
    figure.set_figheight(2.7 + 0.2 * (math.ceil(len(labels) / columns) + 1 + plot.get_xlabel().count("\n")))
    figure.legend(handles, labels, fontsize=9, frameon=False, loc="outside upper center", ncols=columns)


@matplotlib.style.context("default")
def _drawn(figure: ShownFigure, name: str, chain: Sequence[Level], title: str) -> Curve:
    name = f"{name}-{chain[0].norm}" + ("" if chain[0].unit == "norm" else f"-{chain[0].unit}")
    radii = {0.0: UNCHANGED} | {level.eps: level_name(level) for level in chain}
    return Curve(name, figure._repr_png_(), inline_svg(figure, name, title, radii))


def plain_text(name: str) -> str:
    """A name as matplotlib has to get it: ``$...$`` would be a formula, and a leading underscore hides a label.

    Example:
        >>> plain_text("_a"), plain_text("a$b")
        (' _a', 'a\\\\$b')
    """
    return (" " if name.startswith("_") else "") + printable(name).replace("$", r"\$")
