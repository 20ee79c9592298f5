"""What a run does around the attacks, as values that can be replaced: a test has probes and pages of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from monai_adv.evaluation.checks.probed import ModelProbe
from monai_adv.evaluation.checks.probes import Once, probe
from monai_adv.evaluation.models.protocol import Model
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.store import Store
from monai_adv.exit_codes import ExitCode

if TYPE_CHECKING:
    from monai_adv.evaluation.figures.results import Figures
    from monai_adv.evaluation.report.bounds import ModelBounds


class Probe(Protocol):
    """As :func:`monai_adv.evaluation.checks.probes.probe`, called by position."""

    def __call__(
        self, model: Model, levels: Sequence[Level], seed: int, cases: Sequence[str], steps: int, once: Once, /
    ) -> ModelProbe: ...


# The next two draw the statistics and the drawing of a report in with them, which a worker does without.


def _gather(folder: Path) -> Figures:
    results: Any = import_module("monai_adv.evaluation.figures.results")
    found: Figures = results.gather(folder)
    return found


def _write_page(folder: Path, figures: Figures, bounds: Sequence[ModelBounds]) -> Path:
    page: Any = import_module("monai_adv.evaluation.report.page")
    written: Path = page.write_report(folder, figures, bounds=bounds)
    return written


@dataclass(frozen=True)
class Parts:
    """Of a run.

    Attributes:
        probe: tries a model for the red flags.
        store: what a worker keeps finished stages in.
        gather: all figures and verdicts, from the folder.
        write_page: the report, from the figures and from what is proven of smoothed models.
    """

    probe: Probe = probe
    store: Callable[[str], Store] = Store
    gather: Callable[[Path], Figures] = _gather
    write_page: Callable[[Path, Figures, Sequence[ModelBounds]], Path] = _write_page


class Finished(NamedTuple):
    """How a run ended.

    Attributes:
        code: exit code of ``monai-adv evaluate``.
        figures: as its report has them.
    """

    code: ExitCode
    figures: Figures
