"""The certificates of an evaluation: a table, a curve, a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from monai_adv.certificates import Certification
from monai_adv.evaluation.certify.cases import Certified
from monai_adv.evaluation.evidence.decisions import Decision
from monai_adv.evaluation.evidence.decisions import told as outcomes
from monai_adv.evaluation.frame_columns import COLUMNS
from monai_adv.foreign_text import printable
from monai_adv.metrics.score import Kind, mean_known
from monai_adv.optional import require

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Certificates:
    """What is proven about the smoothed versions of models. It says nothing about the models themselves.

    Attributes:
        kind: classification or segmentation.
        settings: noise and draws.
        cases: of all models.
        problems: (model, case, reason) of what could not be used; it is in no figure.
        decisions: what became of the acceptance criteria, by model: passed, or not decided.
    """

    kind: Kind
    settings: Certification
    cases: tuple[Certified, ...]
    problems: tuple[tuple[str, str, str], ...] = ()
    decisions: Mapping[str, tuple[Decision, ...]] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Names, in the order in which they were given."""
        return tuple(dict.fromkeys(case.model for case in self.cases))

    def frame(self) -> pandas.DataFrame:
        """A row per model, case and measure, in the columns of ``Results.frame``.

        Returns:
            ``attack`` is "certificate", ``norm`` "l2", ``unit`` "norm" and ``eps`` the certified radius of the case
            (different for each image of a classifier, the same for all volumes); ``measure``: "score" within that
            radius, "dice C" or, of an image of class C, "sensitivity C" (lower bounds), "clean" of the smoothed model,
            "abstained", "radius rms" (per voxel).
        """
        require("results.frame()", "pandas")
        import pandas as pd

        rows = []
        for case in self.cases:
            place = (case.model, case.case, f"l2-{case.radius:g}", "l2", case.radius, "norm", "certificate")
            measures = {"score": case.score, "clean": case.clean, "abstained": case.abstained}
            each = "dice" if self.kind == "segmentation" else "sensitivity"
            measures |= {f"{each} {name}": value for name, value in case.per_class.items()}
            measures["radius rms"] = case.radius / math.sqrt(case.voxels)
            rows += [(*place, measure, value) for measure, value in measures.items()]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)

    def at(self, radius: float, model: str | None = None) -> float:
        """Mean certified score at an L2 radius: of a classifier the certified accuracy, else the certified Dice.

        Args:
            radius: L2 norm in network inputs.
            model: one of :attr:`models`; default: the first.
        """
        mine = [case for case in self.cases if case.model == (model or self.models[0])]
        return mean_known(case.score if case.radius >= radius else case.score * 0 for case in mine)

    def plot(self) -> Figure:
        """Mean certified score against the L2 radius, a step line per model."""
        require("results.plot()", "matplotlib")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for model in self.models:
            radii = sorted({0.0, *(case.radius for case in self.cases if case.model == model)})
            axes.step([*radii, radii[-1]], [*(100 * self.at(r, model) for r in radii), 0], where="pre", label=model)
        axes.set(xlabel="L2 radius, in network inputs", ylabel=f"certified {self.word}, %", ylim=(0, 100))
        axes.legend()
        return figure

    @property
    def word(self) -> str:
        """What the score is."""
        return "accuracy" if self.kind == "classification" else "Dice"

    def __repr__(self) -> str:
        told = [
            "Certified is the smoothed model: the majority vote over copies of the input with noise of standard "
            f"deviation {self.settings.sigma:g}. It says nothing about the network without the noise."
        ]
        told += [self._line(model) for model in self.models]
        for model, decisions in self.decisions.items():
            told += outcomes(model, decisions)
            for each in decisions:
                place = f", {each.criterion.level}" if each.criterion.level else ""
                why = f" ({each.why})" if each.why else ""
                told.append(f"  {each.criterion.text}{place}: {each.outcome}{why}")
        if self.problems:
            told.append(f"not used: {len(self.problems)}, see problems")
        return printable("\n".join(told))

    def _line(self, model: str) -> str:
        mine = [case for case in self.cases if case.model == model]
        clean = 100 * mean_known(case.clean for case in mine)
        head = f"{model}: {self.word} of the smoothed model {clean:.1f} without an attack"
        if self.kind == "segmentation":
            largest, rms = _range([c.radius for c in mine]), _range([c.radius / math.sqrt(c.voxels) for c in mine])
            share = 100 * mean_known(case.abstained for case in mine)
            bound = 100 * mean_known(case.score for case in mine)
            what = "" if all(case.inputs == 1 for case in mine) else " of each slice"
            return (
                f"{head}; at least {bound:.1f} under every change{what} up to L2 {largest} (RMS {rms} per voxel); "
                f"it abstains in {share:.1f} % of the voxels; {_count(mine, 'case')}."
            )
        radii = sorted(case.radius for case in mine if case.score)
        middle = radii[len(radii) // 2] if radii else 0.0
        classes = sorted({name for case in mine for name in case.per_class})
        shares = {name: mean_known(case.per_class[name] for case in mine if name in case.per_class) for name in classes}
        wrong = [name for name, share in shares.items() if share == 0]
        never = f"; no image of {', '.join(wrong)} is right" if wrong else ""
        return (
            f"{head}{never}; half of the right images are certified up to L2 {middle:.3g} or more; "
            f"{_count(mine, 'image')}."
        )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _count(found: Sequence[Certified], what: str) -> str:
    return f"{len(found)} {what}{'' if len(found) == 1 else 's'}"
