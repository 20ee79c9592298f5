"""What :func:`monai_adv.evaluate` gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from monai_adv.errors import InputError, did_you_mean
from monai_adv.evaluation.certified_outcome import Certificates
from monai_adv.evaluation.checks.verdict import Verdict
from monai_adv.evaluation.evidence.group_table import GroupTable
from monai_adv.evaluation.figures import tables
from monai_adv.evaluation.figures.results import Figures, ModelResults, gather
from monai_adv.evaluation.figures.sentences import opening, robustness
from monai_adv.evaluation.frame_columns import COLUMNS
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Level, level_name
from monai_adv.evaluation.sealed_folder import is_begun
from monai_adv.evaluation.store import read_pictures
from monai_adv.foreign_text import printable
from monai_adv.given import number
from monai_adv.metrics.score import Score
from monai_adv.optional import require
from monai_adv.threats import Norm

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from monai_adv.evaluation.evidence.subgroups import Subgroups
    from monai_adv.evaluation.report.bounds import ModelBounds


@dataclass(frozen=True)
class Worst:
    """The worst image that was found of a case; a notebook draws it.

    Attributes:
        model, case, level: names, and the radius.
        clean, attacked: scores.
        picture: arrays of one slice, or of the image: ``clean``, ``attacked``, ``truth``, ``on_clean``,
            ``on_attacked``.
    """

    model: ModelResults
    case: str
    level: Level
    clean: Score
    attacked: Score
    picture: Picture

    def __repr__(self) -> str:
        before, after = (_percent(s.score) for s in (self.clean, self.attacked))
        what = f"{self.model.name}, {self.case}, {level_name(self.level)}"
        return printable(f"{what}: {_word(self.model)} {before} before and {after} after the attack")

    def png(self) -> bytes:
        """Scan, attacked scan, their difference and, of a segmentation, what was found, as a file."""
        pictures: Any = import_module("monai_adv.evaluation.report.worst_cases")
        drawn: bytes = pictures.draw_case(self.picture, self.model, self.clean, self.attacked)
        return drawn

    _repr_png_ = png


class Results:
    """One evaluation, finished.

    Args:
        folder: of the store.
        temporary: the folder, where it goes with this object; nothing else is left on disk.
        numbers: found in the folder; None: they are read and computed here.

    Attributes:
        folder: see above.
        numbers: all of them, as the report shows them.
    """

    def __init__(
        self, folder: Path, temporary: TemporaryDirectory[str] | None = None, numbers: Figures | None = None
    ) -> None:
        self.folder, self._temporary = folder, temporary
        self.numbers = gather(folder) if numbers is None else numbers

    @property
    def problems(self) -> list[tuple[str, str, str]]:
        """(model, case, reason) of what could not be used; it is in no figure."""
        return self.numbers.problems

    @property
    def verdict(self) -> dict[str, Verdict]:
        """Of each model: whether its figures can be trusted, and why not."""
        return {model.name: model.verdict for model in self.numbers.models}

    @cached_property
    def _rows(self) -> list[tuple[Any, ...]]:
        levels = {level.key: (level.norm, level.eps, level.unit) for level in self.numbers.levels}
        rows = []
        for model, _, key, attack, score in tables.all_scores(self.numbers):
            place = ("", 0.0, "") if not key else levels.get(key, ("", math.nan, ""))
            for measure, value in tables.measures_of(score, model.classes).items():
                rows.append((model.name, score.case, key, *place, attack, measure, float(value)))
        return rows

    def frame(self) -> pandas.DataFrame:
        """All scores, a row per model, case, level, attack and measure.

        Returns:
            ``eps`` and ``value`` are float64, all other columns text (:data:`COLUMNS`): ``model``; ``case``, a patient
            or an image; ``level``, such as "l2-0.1-rms", with its ``norm``, ``eps`` and ``unit`` ("" and eps 0 for the
            clean images); ``attack``: "clean", a name, or "worst case" over all attacks at the level; ``measure``:
            "score" (Dice, or 1 for a right class and 0 for a wrong one), and "dice C", "hd95_mm C",
            "false_positive C" or "probability C" of a class C; ``value``, scores between 0 and 1, NaN where not
            defined.

        Example:
            >>> frame = results.frame()  # doctest: +SKIP
            >>> frame.query("attack == 'worst case' and measure == 'score'").pivot_table(  # doctest: +SKIP
            ...     "value", "model", "eps")
        """
        require("results.frame()", "pandas")
        import pandas

        return pandas.DataFrame(self._rows, columns=list(COLUMNS)).astype(COLUMNS)

    @property
    def certificates(self) -> Certificates:
        """What is proven about the models, which ``smooth`` makes smoothed ones; its frame has the columns of ours.

        Raises:
            InputError: the models themselves were measured.
        """
        smooth = self.numbers.evaluation.settings.smooth
        if not smooth:
            raise InputError.of("smooth", None, "given to evaluate(...)", "a certificate is about a smoothed model")
        cases = tuple(case.certified for model in self.bounds for case in model.cases)
        return Certificates(self.numbers.kind, smooth, cases, tuple(self.problems))

    @property
    def bounds(self) -> tuple[ModelBounds, ...]:
        """Of smoothed models, what is proven beside what was found, case by case; else empty."""
        drawn: Any = import_module("monai_adv.evaluation.report.bounds")
        found: tuple[ModelBounds, ...] = drawn.bounds_of(self.folder, self.numbers)
        return found

    def subgroups(self, table: Any, edges: Mapping[str, Sequence[float]] | None = None) -> Subgroups:
        """Scores per group of cases, such as sites or ages, and how far groups are apart.

        Args:
            table: a CSV file, pandas frame or mapping, with a column ``case`` as in :meth:`frame` and others.
            edges: column -> edges of the bins of a column of numbers; default: quartiles.

        Raises:
            InputError: a table whose cases are not those of the evaluation; names them.
        """
        found: Any = import_module("monai_adv.evaluation.evidence.subgroups")
        read = GroupTable.read(table, edges)
        found.check_cases(read, self.numbers)
        groups: Subgroups = found.subgroups_of(read, self.numbers)
        return groups

    def plot(self, norm: Norm | None = None) -> Figure:
        """Mean worst-case score against the radius, a line per model; dotted: random noise of the same size.

        Args:
            norm: which of several.

        Raises:
            InputError: several norms, and none was chosen; one that was not measured.
        """
        require("results.plot()", "matplotlib", "jinja2")
        curves: Any = import_module("monai_adv.evaluation.report.curves")
        text: Any = import_module("monai_adv.evaluation.report.as_text")
        found = {chain[0].norm: chain for chain in curves.chains(self.numbers.levels)}
        if (norm is None and len(found) > 1) or (norm is not None and norm not in found):
            raise InputError.of("norm", norm, " or ".join(map(repr, found)))
        chain = found[norm or next(iter(found))]
        units = {model.unit for model in self.numbers.models}
        axis = text.axis_name(chain[0], units.pop() if len(units) == 1 else "units of each model's input")
        noise = self.numbers.models[0].noise
        figure: Figure = curves.worst_case_figure(self.numbers.joint, chain, self.numbers.kind, axis, noise)
        return figure

    def report(self, folder: str | Path) -> Path:
        """Write the page with its curves and tables.

        Args:
            folder: new, or that of an earlier report, which is written over.

        Returns:
            ``report.html``.

        Raises:
            InputError: a folder that cannot be written, or is that of another evaluation.
        """
        require("results.report()", "matplotlib", "jinja2")
        output = Path(folder).resolve()
        if output != self.folder.resolve() and is_begun(output):
            raise InputError.of("folder", str(folder), "a folder that no other evaluation uses", "give a new one")
        page: Any = import_module("monai_adv.evaluation.report.page")
        written: Path = page.write_report(self.folder, self.numbers, output)
        return written

    def worst(self, case: str | int, *, model: str | None = None, eps: float | str | None = None) -> Worst:
        """The worst image found of a case.

        Args:
            case: a patient or an image, as :meth:`frame` calls it.
            model: which of several; default: the first.
            eps: at which radius, as it was given; default: the largest.

        Raises:
            InputError: an unknown case, model or radius.
        """
        of = _chosen("model", model, {m.name: m for m in self.numbers.models}, self.numbers.models[0])
        levels = self.numbers.levels
        level = _chosen(
            "eps", None if eps is None else f"{number('eps', eps):g}", {f"{v.eps:g}": v for v in levels}, levels[-1]
        )
        clean, attacked = (self.numbers.scores(of.name, key) for key in ("", level.key))
        group, name = _chosen("case", str(case), {name: (group, name) for group, name in attacked}, ("", ""))
        pictures = {p.case: p for p in read_pictures(self.folder, of.name, group, level.key)}
        return Worst(of, name, level, clean[group, name], attacked[group, name], pictures[name])

    def log_to(self, logger: Any) -> None:
        """Hand the mean scores, the curves, the page and the three sentences to a tracker.

        Args:
            logger: "tensorboard", "mlflow" or "wandb": into the run that is open, otherwise into a new one. Or what is
                open: a ``SummaryWriter``, a run of W&B.

        Raises:
            InputError: a name that is misspelt, a package that is not installed.

        Example:
            >>> results.log_to("mlflow")  # doctest: +SKIP
        """
        require("results.log_to()", "PIL")
        loggers: Any = import_module("monai_adv.evaluation.report.loggers")
        log = loggers.logger_of(logger)
        norms = {level.norm: None for level in self.numbers.levels}
        curves = {f"robustness {norm}": self.plot(norm) for norm in norms}
        with TemporaryDirectory(prefix="monai-adv-") as place:
            page, text = self.report(Path(place)), " ".join(opening(self.numbers))
            log(loggers.Tracked(loggers.metrics_of(self.numbers), text, curves, page))

    @property
    def _said(self) -> list[str]:
        """What was found; of each model, how far that can be trusted and how robust it is; what is missing."""
        lines = [opening(self.numbers)[1]]
        for model in self.numbers.models:
            trust = f"figures {model.verdict.word}"
            trust += f" ({'; '.join(model.verdict.reasons)})" if model.verdict.reasons else ""
            lines.append(f"{model.name}: {trust}; {robustness(model, self.numbers.levels).word}")
        if self.problems:
            lines.append(f"not used: {len(self.problems)}, see problems")
        return lines

    def __repr__(self) -> str:
        lines = [*tables.summary_table(self.numbers).splitlines(), *self._said]
        return "\n".join(printable(line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        numbers, shown = self.numbers, partial(escape, quote=True)
        found, *others = (shown(printable(line)) for line in self._said)
        head = ["", "unchanged", *(level_name(level) for level in numbers.levels)]
        rows = [
            [model.name, *(_percent(model.summaries[key].mean) for key in ["", *(v.key for v in numbers.levels)])]
            for model in numbers.models
        ]
        table = [
            "".join(f"<{tag}>{shown(printable(cell))}</{tag}>" for cell in row)
            for tag, row in (("th", head), *(("td", row) for row in rows))
        ]
        body = "".join(f"<tr>{row}</tr>" for row in table)
        caption = f"worst-case {_word(numbers.models[0])} in %"
        lines = "".join(f"<br>{line}" for line in others)
        return f"<p><b>{found}</b>{lines}</p><table><caption>{caption}</caption>{body}</table>"


def _chosen(word: str, given: str | None, known: Mapping[str, Any], default: Any) -> Any:
    if given is None:
        return default
    if given not in known:
        raise InputError.of(word, given, f"one of {len(known)} that were measured", did_you_mean(given, known))
    return known[given]


def _word(model: ModelResults) -> str:
    return "accuracy" if model.kind == "classification" else "Dice"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
