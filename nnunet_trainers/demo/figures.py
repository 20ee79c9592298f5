"""The two figures of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nnunet_trainers.noise_example import Example

CLASS_COLOURS = ("#2f9be8", "#e69f00")  # told apart by colour-blind readers too
MODEL_COLOURS = {"nnUNetTrainer": "#c1440e", "IMATrainer": "#1b6ca8"}
OPACITY = 0.55


@matplotlib.style.context("default")  # nnU-Net's logger enlarges every font of the process
def picture(examples: Sequence[Example], classes: Sequence[str], rms: float, path: Path) -> float:
    """One row per model: scan, truth, prediction, noise, attacked scan, prediction.

    Returns:
        the factor by which the noise is shown stronger than it is.
    """
    first = examples[0]
    low, high = (float(v) for v in np.percentile(first.image[0], (0.5, 99.8)))
    factor = _factor(max(float(np.percentile(np.abs(e.noise[0]), 99.5)) for e in examples), (high - low) / 2)
    figure = Figure(figsize=(12, 2.05 * len(examples) + 0.85), dpi=110)
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(examples), 6, squeeze=False)
    for row, shown in zip(axes, examples, strict=True):
        scan, attacked = (_grey(image, low, high) for image in (shown.image[0], shown.adversarial[0]))
        noise = _grey(factor * shown.noise[0], -(high - low) / 2, (high - low) / 2)
        panels = [
            ("scan", scan),
            ("ground truth", _overlay(scan, shown.ground_truth)),
            (f"on the scan: Dice {100 * shown.dice['image']:.0f} %", _overlay(scan, shown.on_image)),
            (f"noise, shown {factor:g} times stronger", noise),
            ("attacked scan", attacked),
            (f"on it: Dice {100 * shown.dice['adversarial']:.0f} %", _overlay(attacked, shown.on_adversarial)),
        ]
        for axis, (title, pixels) in zip(row, panels, strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(False)
        row[0].set_ylabel(shown.model, fontsize=11, fontweight="bold", color=MODEL_COLOURS.get(shown.model, "black"))
    figure.subplots_adjust(left=0.025, right=0.995, top=0.93, bottom=0.075, wspace=0.04, hspace=0.14)
    figure.text(
        0.025, 0.015, f"{first.case}, slice {first.slice}. Each model meets the noise made against it, RMS {rms:g}.",
        fontsize=9, color="#444444",
    )  # fmt: skip
    for position, (name, colour) in enumerate(reversed(list(zip(classes, CLASS_COLOURS, strict=False)))):
        figure.text(0.99 - 0.115 * position, 0.015, f"■ {name}", fontsize=9, color=colour, ha="right")
    figure.savefig(path)
    return factor


@matplotlib.style.context("default")
def curve(results: dict[str, Any], path: Path) -> None:
    """Dice against the radius, mean and standard deviation over the cases; the clean image is radius 0."""
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    rms = {0.0: 0.0, **{entry["l2"]: entry["rms"] for entry in results["radii"]}}
    for trainer in results["trainers"]:
        for condition, style in ((results["attack"], "-"), ("white noise", ":")):
            lines = [line for line in results["table"] if line["condition"] in ("clean", condition)]
            x = [rms[line["l2"]] for line in lines]
            mean = [100 * line["dice"][trainer]["mean"] for line in lines]
            sd = [100 * line["dice"][trainer]["sd"] for line in lines]
            axis.errorbar(
                x, mean, sd if style == "-" else None, linestyle=style, marker="o", markersize=4, capsize=3,
                color=MODEL_COLOURS[trainer], label=f"{trainer}, {condition}",
            )  # fmt: skip
    axis.set(xlabel="noise: RMS per voxel, in standard deviations of the image", ylabel="Dice in %", ylim=(0, 100))
    axis.set_xticks([0.0, *(entry["rms"] for entry in results["radii"])])
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def _factor(noise: float, half_window: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, ... at which the noise still fits the grey scale."""
    ratio = max(1.0, half_window / max(noise, 1e-12))
    decade = 10.0 ** math.floor(math.log10(ratio))
    return decade * max(step for step in (1, 2, 5) if step * decade <= ratio)


def _grey(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[Any]:
    return np.repeat(np.clip((image - low) / (high - low), 0, 1)[..., None], 3, axis=2)


def _overlay(image: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The label map in colour over a grey image."""
    result = image.copy()
    for label, colour in enumerate(CLASS_COLOURS, start=1):
        inside = labels == label
        result[inside] = (1 - OPACITY) * result[inside] + OPACITY * np.array(to_rgb(colour))
    return result
