"""index.html: one file with everything in it, readable without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from monai_adv.evaluation.records import CLEAN, WORST
from nnunet_trainers.demo.progress import clock
from nnunet_trainers.demo.summary import NOISE


def render(results: dict[str, Any], factor: float, settings_file: str, pictures: Mapping[str, Path]) -> str:
    """The page as text.

    Args:
        results: see ``summary.summarise``.
        factor: how many times stronger than it is the noise is shown.
        settings_file: the text of IMATrainer's settings file.
        pictures: "picture" and "curve" -> PNG files, which become part of the page.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, points=_points, clock=clock)
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    images = {name: base64.b64encode(path.read_bytes()).decode("ascii") for name, path in pictures.items()}
    lines = {(line["condition"], line["rms"]): line["dice"] for line in results["table"]}
    strongest = results["radii"][-1]
    return template.render(
        **results,
        factor=factor,
        settings_file=settings_file,
        images=images,
        worst_case=WORST,
        l2={entry["rms"]: entry["l2"] for entry in results["radii"]},
        strongest=strongest,
        clean=lines[CLEAN, 0.0],
        noisy=lines[NOISE, strongest["rms"]],
        attacked=lines[WORST, strongest["rms"]],
        total_seconds=sum(stage["seconds"] for stage in results["stages"]),
    )


def _percent(dice: Mapping[str, float]) -> str:
    """Mean ± standard deviation."""
    return f"{100 * dice['mean']:.1f} ± {100 * dice['sd']:.1f}"


def _points(difference: float) -> str:
    """A difference of two Dice in percentage points, with a real minus sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")
