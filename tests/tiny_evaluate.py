"""``monai-adv evaluate`` without what takes long and has tests of its own: the probes and the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from planted_evaluation import probed

from monai_adv.cli import main
from monai_adv.evaluation.checks.verdict import Verdict
from monai_adv.evaluation.report import results
from monai_adv.evaluation.run import workers

SUBJECTS = Path(__file__).with_name("tiny_models.py")


@contextmanager
def figures_only(word: str = "reliable") -> Iterator[None]:
    """Attacks as they are, without the probes and the page."""
    report: Any = ModuleType("monai_adv.evaluation.report.page")
    report.write_report = lambda folder, results: (Path(folder) / "report.html").write_text("report")
    with (
        patch.dict(sys.modules, {"monai_adv.evaluation.report.page": report}),
        patch.object(workers, "probe", lambda model, levels, seed, cases, steps, once: probed(cases=tuple(cases))),
        patch.object(results, "find_flags", lambda *_: []),
        patch.object(results, "verdict", lambda *_: Verdict(word, ("a reason",))),  # type: ignore[arg-type]
    ):
        yield


def evaluate(folder: Path, *words: str, models: Sequence[str] = ("classifier",), word: str = "reliable") -> int:
    """The exit code of a small evaluation."""
    factories = [w for model in models for w in ("--factory", f"{SUBJECTS}:{model}")]
    if "--eps" not in words:
        words = ("--norm", "linf", "--eps", "0.02", "0.06", *words)
    with figures_only(word):
        device = [] if "--device" in words else ["--device", "cpu"]
        return main(["evaluate", *factories, "--attacks", "quick", *device, "-o", str(folder), *words])


if __name__ == "__main__":
    sys.exit(evaluate(Path(sys.argv[1]), *sys.argv[2:]))
