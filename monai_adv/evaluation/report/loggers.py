"""Results for the trackers that people use already: TensorBoard, MLflow, Weights & Biases. One function each."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import PIL.Image

from monai_adv.errors import InputError, did_you_mean
from monai_adv.evaluation.figures.results import Figures
from monai_adv.evaluation.records import WORST
from monai_adv.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECT = "monai-adv"
"""What a run is called that nobody has begun before."""
FOREIGN = re.compile(r"[^\w\-./ ]")
"""What MLflow takes in no name; the other two take it, and are given the same names."""


@dataclass(frozen=True)
class Tracked:
    """What a tracker is given.

    Attributes:
        metrics: see :func:`metrics_of`.
        text: the three sentences.
        curves: name -> a figure.
        page: the report.
    """

    metrics: Mapping[str, float]
    text: str
    curves: Mapping[str, Figure]
    page: Path


def metrics_of(results: Figures) -> dict[str, float]:
    """Mean scores in percent, named ``MODEL/clean``, ``MODEL/LEVEL/ATTACK`` and ``MODEL/LEVEL/worst case``.

    Raises:
        InputError: models whose names a tracker could not tell apart.
    """
    found: dict[str, float] = {}
    names: dict[str, str] = {}
    for model in results.models:
        short = FOREIGN.sub("_", model.name)
        if (other := names.setdefault(short, model.name)) != model.name:
            raise InputError.of("models", f"{other} and {model.name}", "names that differ in letters and digits")
        found[f"{short}/clean"] = 100 * model.summaries[""].mean
        for level in results.levels:
            columns = {name: of[level.key] for name, of in model.attacks.items() if level.key in of}
            for attack, summary in (columns | {WORST: model.summaries[level.key]}).items():
                found[f"{short}/{level.key}/{FOREIGN.sub('_', attack)}"] = 100 * summary.mean
    return {name: value for name, value in found.items() if not math.isnan(value)}


def to_tensorboard(tracked: Tracked, given: Any = None) -> None:
    """Scalars, the curves as images and the sentences as text.

    Args:
        tracked: what.
        given: a ``SummaryWriter``, which stays open; default: a new one, whose folder is ``runs/...``.
    """
    writer = given or import_module("torch.utils.tensorboard").SummaryWriter()
    for name, value in tracked.metrics.items():
        writer.add_scalar(name, value)
    for name, figure in tracked.curves.items():
        writer.add_figure(name, figure, close=False)
    writer.add_text("robustness", tracked.text)
    writer.flush()
    if given is None:
        writer.close()


def to_mlflow(tracked: Tracked) -> None:
    """Metrics, the page and the curves as artifacts, the sentences as a tag, in the active run or in a new one."""
    mlflow = import_module("mlflow")
    own = mlflow.active_run() is None
    if own:
        mlflow.start_run(run_name=PROJECT)
    try:
        mlflow.log_metrics(dict(tracked.metrics))
        mlflow.log_artifact(str(tracked.page))
        for name, figure in tracked.curves.items():
            mlflow.log_figure(figure, f"{name}.png")
        mlflow.set_tag("robustness", tracked.text)
    finally:
        if own:
            mlflow.end_run()


def to_wandb(tracked: Tracked, given: Any = None) -> None:
    """Metrics, the curves as images, the page, and the sentences in the summary of the run: the open one or a new one.

    Args:
        tracked: what.
        given: a run, which stays open; default: the one that is, or a new one.
    """
    wandb = import_module("wandb")
    open_run = given or wandb.run
    run = open_run or wandb.init(project=PROJECT)
    try:
        images = {name: wandb.Image(_picture(figure)) for name, figure in tracked.curves.items()}
        run.log({**tracked.metrics, **images, "report": wandb.Html(tracked.page.read_text(encoding="utf-8"))})
        run.summary["robustness"] = tracked.text
    finally:
        if open_run is None:
            run.finish()


def _picture(figure: Figure) -> PIL.Image.Image:
    """W&B knows figures by the exact name of their class, and ours is derived."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return PIL.Image.open(file)


LOGGERS: dict[str, Callable[..., None]] = {"tensorboard": to_tensorboard, "mlflow": to_mlflow, "wandb": to_wandb}
"""Also the names of their packages."""


def logger_of(given: Any) -> Callable[[Tracked], None]:
    """The function for a name, or for something open.

    Args:
        given: one of :data:`LOGGERS` or the module itself, a ``SummaryWriter``, or a run of W&B.

    Raises:
        InputError: a name that is misspelt, a package that is not installed, something else.
    """
    name = given.__name__ if isinstance(given, ModuleType) else given
    if isinstance(name, str):
        if name not in LOGGERS:
            raise InputError.of("logger", name, " or ".join(map(repr, LOGGERS)), did_you_mean(name, LOGGERS))
        require(f"logger {name!r}", name)
        return LOGGERS[name]
    for name, method in (("tensorboard", "add_scalar"), ("wandb", "log")):
        if hasattr(given, method):
            return partial(LOGGERS[name], given=given)
    allowed = f"one of {', '.join(map(repr, LOGGERS))}, a SummaryWriter, or a run of W&B"
    raise InputError.of("logger", type(given).__name__, allowed)
