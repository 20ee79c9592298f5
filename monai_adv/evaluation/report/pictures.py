"""Pictures of single cases: scan, attacked scan, their difference with its scale, ground truth and segmentations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.report.curves import DPI, plain_text

CONTOURS = ("#2f9be8", "#e69f00", "#4bd47f", "#e377c2", "#f0e442", "#ff5533")
"""Bright on grey, and told apart by colour-blind readers for the first two; later classes start anew, dashed."""

WIDTH = 6.0
"""Inches: narrow, so that its text can be read on a telephone."""

DIFFERENCE = "difference (attacked − scan)"

FINE = 8
"""Voxels are divided by this for their contours, which would cut corners otherwise."""

Image = npt.NDArray[Any]


@matplotlib.style.context("default")  # nnU-Net's logger enlarges every font of the process
def draw(picture: Picture, classes: Sequence[str], before: str, after: str, unit: str = "") -> bytes:
    """One case as a PNG file: the scan at the left, the attacked one at the right.

    Below them the segmentation of either, then the ground truth and the difference; of a classification the difference
    stands beside them. Both scans share one grey scale, so that what is seen is the change; the difference has a
    diverging scale around 0, whose numbers stand below it.

    Args:
        picture: as the store keeps it.
        classes: names of the foreground; label k is the k-th of them, counted from 1.
        before, after: scores, as text for the titles.
        unit: of the difference, for its scale.
    """
    clean, attacked = np.asarray(picture.clean, dtype=float), np.asarray(picture.attacked, dtype=float)
    segmented = picture.truth is not None
    rows, columns = (3, 2) if segmented else (1, 3)
    panel = min(3.4, max(1.2, WIDTH / columns * clean.shape[0] / clean.shape[1]))
    figure = Figure(figsize=(WIDTH, rows * (panel + 0.3) + (0.8 if segmented else 0.6)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [*np.ravel(figure.subplots(rows, columns))]
    low, high = _window(clean)
    grey = {"cmap": "gray", "vmin": low, "vmax": high, "interpolation": "nearest"}
    if segmented:
        titles = ["scan", "attacked scan", f"found in the scan: {before}", f"in the attacked scan: {after}"]
        titles += ["ground truth", DIFFERENCE]
        scans = [clean, attacked, clean, attacked, clean]
        for plot, labels in zip(axes[2:], (picture.on_clean, picture.on_attacked, picture.truth), strict=False):
            _outline(plot, np.asarray(labels), len(classes))
        handles = [_handle(k, name) for k, name in enumerate(classes)]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(classes), 4), fontsize=10, frameon=False
        )
    else:
        titles = [f"scan: {before}", f"attacked scan: {after}", DIFFERENCE]
        scans = [clean, attacked]
    for plot, scan in zip(axes, scans, strict=False):
        plot.imshow(scan, **grey)
    _difference(figure, axes[-1], attacked - clean, unit)
    for plot, title in zip(axes, titles, strict=True):
        plot.set_title("\n".join(wrap(plain_text(title), 68 // columns)), fontsize=10)
        plot.set(xticks=[], yticks=[])
        plot.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _difference(figure: Figure, plot: Axes, difference: Image, unit: str) -> None:
    finite = np.abs(difference[np.isfinite(difference)])
    largest = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    shown = plot.imshow(difference, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    below = plot.inset_axes((0.0, -0.07, 1.0, 0.04))
    bar = figure.colorbar(shown, cax=below, orientation="horizontal", ticks=[-largest, 0, largest], format="%.2g")
    bar.ax.tick_params(labelsize=9)
    bar.set_label("\n".join(wrap(plain_text(unit), 30)), fontsize=9, labelpad=1)


def largest_change(picture: Picture) -> float:
    """Of a voxel, in network units; what the colour scale ends at."""
    difference = np.abs(np.asarray(picture.attacked, dtype=float) - np.asarray(picture.clean, dtype=float))
    finite = difference[np.isfinite(difference)]
    return float(finite.max()) if finite.size else 0.0


def _window(image: Image) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (0.5, 99.8)))
    return low, high if high > low else low + 1.0


def _outline(plot: Axes, labels: Image, count: int) -> None:
    """Along the edges of the voxels, also of a single one and of one at the border."""
    padded = np.pad(labels, 1).repeat(FINE, axis=0).repeat(FINE, axis=1)
    row, column = ((np.arange(n) + 0.5) / FINE - 1.5 for n in padded.shape)
    for k in range(count):
        inside = padded == k + 1
        if inside.any():
            style = "solid" if k < len(CONTOURS) else "dashed"
            colour = CONTOURS[k % len(CONTOURS)]
            plot.contour(
                column, row, inside.astype(float), levels=[0.5], colors=[colour], linewidths=1.6, linestyles=style
            )
    plot.set(xlim=(-0.5, labels.shape[1] - 0.5), ylim=(labels.shape[0] - 0.5, -0.5))


def _handle(k: int, name: str) -> Line2D:
    dashes = "-" if k < len(CONTOURS) else "--"
    return Line2D([], [], color=CONTOURS[k % len(CONTOURS)], linewidth=2.5, ls=dashes, label=plain_text(name))
