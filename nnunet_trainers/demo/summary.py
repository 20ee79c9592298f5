"""From rows to what the page and results.json say."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from nnunet_trainers.demo.progress import Timing
from nnunet_trainers.demo.recipe import TRAINERS, Recipe
from nnunet_trainers.noise_report import Row

PACKAGES = ("monai-adv", "nnunetv2", "monai", "torch", "numpy")


def versions() -> dict[str, str]:
    """Of the packages whose versions can change the figures."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source checkout"
    return found


def summarise(rows: Sequence[Row], recipe: Recipe, timings: Sequence[Timing], date: str) -> dict[str, Any]:
    """Everything on the page but the pictures, as plain values.

    Args:
        rows: of both trainers on the same cases.
        date: of the measurement.
    """
    attack = f"PGD-{recipe.attack_steps}"
    table = condition_table(rows)
    attacked = [line for line in table if line["condition"] == attack]
    higher = sum(line["dice"]["IMATrainer"]["mean"] > line["dice"]["nnUNetTrainer"]["mean"] for line in attacked)
    return {
        "date": date,
        "seed": {"phantom": recipe.phantom.seed, "training and noise": recipe.seed},
        "versions": versions(),
        "trainers": list(TRAINERS),
        "attack": attack,
        "cases": len({row.case for row in rows}),
        "classes": list(rows[0].dice_per_class),
        "table": table,
        "radii_where_ima_is_higher": higher,
        "radii": [{"rms": rms, "l2": recipe.l2(rms)} for rms in recipe.radii],
        "largest_norm": max((row.largest_norm for row in rows), default=0.0),
        "dead_gradient": max((row.dead_gradient for row in rows), default=0.0),
        "recipe": dataclasses.asdict(recipe),
        "ima_settings": recipe.ima_settings(),
        "stages": [dataclasses.asdict(timing) for timing in timings],
        "rows": [_plain(dataclasses.asdict(row)) for row in rows],
    }


def condition_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line per condition and radius: mean and standard deviation over the cases, and the values, per trainer."""
    lines = []
    for condition, radius in dict.fromkeys((row.condition, row.radius) for row in rows):
        chosen = [row for row in rows if (row.condition, row.radius) == (condition, radius)]
        dice = {t: _spread([row.dice for row in chosen if row.model == t]) for t in TRAINERS}
        lines.append({"condition": condition, "l2": radius, "dice": dice})
    return lines


def text_table(results: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'Dice in %, mean ± sd':<28}" + "".join(f"{t:>16}" for t in results["trainers"])]
    rms = {entry["l2"]: entry["rms"] for entry in results["radii"]}
    for line in results["table"]:
        radius = f", RMS {rms[line['l2']]:g}" if line["l2"] else ""
        cells = (line["dice"][t] for t in results["trainers"])
        lines.append(
            f"{line['condition'] + radius:<28}"
            + "".join(f"{100 * c['mean']:>9.1f} ± {100 * c['sd']:<4.1f}" for c in cells)
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    known = [v for v in values if not math.isnan(v)]
    return {
        "mean": statistics.mean(known),
        "sd": statistics.stdev(known) if len(known) > 1 else 0.0,
        "values": list(known),
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
