"""Rows of the noise report as JSON and as Markdown tables."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunet_trainers.noise_report import Row


def to_json(rows: Sequence[Row], file: str | Path | None = None) -> str:
    """A list of objects, one per row, NaN as null; also written to ``file`` if given."""
    text = json.dumps([_plain(dataclasses.asdict(row)) for row in rows], indent=1)
    if file is not None:
        Path(file).write_text(text + "\n", encoding="utf-8")
    return text


def from_json(text: str) -> list[Row]:
    """The way back."""
    return [Row(**_with_nan(row)) for row in json.loads(text)]


def table(rows: Sequence[Row]) -> str:
    """Markdown: Dice in %, mean ± standard deviation over the cases; a line per condition, a column per model."""
    return _table(rows, lambda row: row.dice)


def table_per_class(rows: Sequence[Row]) -> str:
    """Markdown: one table per class, under its name.

    A case in which neither the ground truth nor the prediction has the class is left out of its mean.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.dice_per_class))
    return "\n\n".join(f"**{name}**\n\n{_table(rows, _dice_of(name))}" for name in names)


def _table(rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    models = list(dict.fromkeys(row.model for row in rows))
    conditions = list(dict.fromkeys((row.condition, row.radius) for row in rows))
    lines = ["| condition | L2 radius | " + " | ".join(models) + " |", "|---|---:|" + "---:|" * len(models)]
    for condition, radius in conditions:
        chosen = [r for r in rows if (r.condition, r.radius) == (condition, radius)]
        cells = [_mean_and_deviation([value(r) for r in chosen if r.model == m]) for m in models]
        lines.append(f"| {condition} | {f'{radius:g}' if radius else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _dice_of(name: str) -> Callable[[Row], float]:
    return lambda row: row.dice_per_class.get(name, math.nan)


def _mean_and_deviation(values: Sequence[float]) -> str:
    known = [100 * v for v in values if not math.isnan(v)]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _with_nan(v) for k, v in value.items()}
    return math.nan if value is None else value
