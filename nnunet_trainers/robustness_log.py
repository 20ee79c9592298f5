"""One row of figures per epoch: kept in the checkpoint, written as JSON, drawn beside nnU-Net's progress.png."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from monai_adv.files import whole_file

PANELS: list[tuple[str, dict[str, str]]] = [
    (
        "pseudo Dice",
        {"mean_fg_dice": "clean", "robust_dice": "attacked", "robust_dice_ema": "attacked, moving average"},
    ),
    (
        "share of samples",
        {
            "clean_right": "right on clean images",
            "noisy_right": "right on attacked images",
            "attacked": "attacked",
            "crossed": "crossed the boundary",
            "dead_gradient": "dead gradient",
        },
    ),
    (
        "network passes per sample (in forwards)",
        {"passes_per_sample": "this training", "passes_clean": "clean training"},
    ),
]
SMOOTHING = 0.9  # of the moving average that picks the best robust checkpoint, as nnU-Net's own


class RobustnessLog:
    """Rows of ``{"epoch": ..., "attacked": ..., "robust_dice": ..., ...}``; NaN where an epoch has no value."""

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows: list[dict[str, float]] = rows or []

    def add(self, epoch: int, figures: dict[str, float]) -> None:
        """Append the row of an epoch; a row of the same or a later epoch (before a resume) is dropped."""
        self.rows = [r for r in self.rows if r["epoch"] < epoch]
        robust = figures.get("robust_dice", math.nan)
        before = self.rows[-1]["robust_dice_ema"] if self.rows else math.nan
        if math.isnan(robust):
            ema = before  # an epoch without a value neither moves nor restarts the average
        else:
            ema = robust if math.isnan(before) else SMOOTHING * before + (1 - SMOOTHING) * robust
        self.rows.append({"epoch": epoch, **figures, "robust_dice_ema": ema})

    def last_is_best(self) -> bool:
        """Whether the last epoch has the highest moving average of the robust pseudo Dice so far."""
        values = [r["robust_dice_ema"] for r in self.rows]
        return not math.isnan(values[-1]) and all(math.isnan(v) or values[-1] > v for v in values[:-1])

    def write(self, folder: str | Path) -> None:
        """Write ``robustness.json`` and ``robustness.png``."""
        rows = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in self.rows]
        with whole_file(Path(folder) / "robustness.json") as file:
            file.write(json.dumps(rows, indent=1).encode())
        with plt.style.context("default"):  # nnU-Net's figure leaves its large fonts behind
            self._draw(Path(folder) / "robustness.png")

    def _draw(self, path: Path) -> None:
        known = {"epoch", *(key for _, lines in PANELS for key in lines)}
        own = dict.fromkeys(key for row in self.rows for key in row if key not in known)
        panels = [*PANELS, ("of the method", {key: key for key in own if not key.endswith("_std")})]
        figure, axes = plt.subplots(2, 2, figsize=(13, 9), constrained_layout=True)
        epochs = self._column("epoch")
        for axis, (title, lines) in zip(axes.flat, panels, strict=True):
            for key, label in lines.items():
                values = self._column(key)
                if any(key in row for row in self.rows):
                    axis.plot(epochs, values, label=label, marker="." if len(epochs) < 30 else "")
                spread = key.removesuffix("_mean") + "_std"
                if spread in own:
                    band = [(v - s, v + s) for v, s in zip(values, self._column(spread), strict=True)]
                    axis.fill_between(epochs, *zip(*band, strict=True), alpha=0.2, label="spread (1 SD)")
            axis.set(title=title, xlabel="epoch")
            axis.set_ylim(bottom=0)
            if axis.has_data():
                axis.legend()
        figure.savefig(path)
        plt.close(figure)

    def _column(self, key: str) -> list[Any]:
        return [r.get(key, math.nan) for r in self.rows]
