"""``monai-adv evaluate`` without what takes long and has tests of its own: the probes and the report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from monai_adv.cli import main
from monai_adv.evaluation.checks.probed import ModelProbe
from monai_adv.evaluation.checks.verdict import Verdict, Word
from monai_adv.evaluation.figures.results import Figures, gather
from monai_adv.evaluation.run.parts import Parts
from tests.planted_evaluation import probed

SUBJECTS = Path(__file__).with_name("tiny_models.py")


def _probe(model: Any, levels: Any, seed: int, cases: Sequence[str], steps: int, once: Any) -> ModelProbe:
    return probed(cases=tuple(cases))


def _gather(folder: Path, word: Word) -> Figures:
    """Figures as they are, and no flags, since there were no probes."""
    found, said = gather(folder), Verdict(word, ("a reason",))
    return replace(found, models=[replace(model, flags=[], verdict=said) for model in found.models])


def _write_page(folder: Path, figures: Figures, bounds: Any) -> Path:
    page = folder / "report.html"
    page.write_text("report")
    return page


def figures_only(word: Word = "reliable", **others: Any) -> Parts:
    """Attacks as they are, without the probes and the page."""
    return replace(Parts(_probe, gather=partial(_gather, word=word), write_page=_write_page), **others)


def evaluate(
    folder: Path,
    *words: str,
    models: Sequence[str] = ("classifier",),
    parts: Parts = figures_only(),  # noqa: B008  frozen
    **handed: Any,
) -> int:
    """The exit code of a small evaluation."""
    factories = [w for model in models for w in ("--factory", f"{SUBJECTS}:{model}")]
    if "--eps" not in words:
        words = ("--norm", "linf", "--eps", "0.02", "0.06", *words)
    device = [] if "--device" in words else ["--device", "cpu"]
    arguments = ["evaluate", *factories, "--attacks", "quick", *device, "-o", str(folder), *words]
    return main(arguments, parts=parts, **handed)


if __name__ == "__main__":
    sys.exit(evaluate(Path(sys.argv[1]), *sys.argv[2:]))
