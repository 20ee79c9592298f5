"""Which method, by what was measured: ``monai-adv methods --recommend``, and the table "Which one?" of docs/methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from monai_adv.cli.measured import MEASURED, Experiment, Measured, Start, TaskName
from monai_adv.errors import InputError
from monai_adv.yaml_text import read_yaml

CONSTANT = 60.0
"""A balanced accuracy below it is near the 50 of a classifier that always says the same."""
FAR = 3.0
"""Data sets that are so many times larger or smaller tell less."""

NEAR = 0.01
"""So much over a budget is within it: the trainings that were measured round to whole epochs, a preset rounds down."""


@dataclass(frozen=True)
class Question:
    """What a user has and wants; None: not said.

    Attributes:
        task: what the network does.
        start: a trained model, or none.
        samples: training images of a classifier, cases of a segmentation.
        budget: network passes as a multiple of a plain training's, at most.
        may_lose: points of the clean score, at most.

    Raises:
        InputError: a value that is not allowed.
    """

    task: TaskName
    start: Start | None = None
    samples: int | None = None
    budget: float | None = None
    may_lose: float | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise InputError.of("samples", self.samples, "a whole number >= 1")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InputError.of("budget", self.budget, "a number > 0", "1 is the price of one plain training")
        if self.may_lose is not None and not 0 <= self.may_lose <= 100:
            raise InputError.of("may-lose", self.may_lose, "a number from 0 to 100", "points of the clean score in %")


@dataclass(frozen=True)
class Answer:
    """A measured method, and what speaks against it here; nothing: it fits."""

    row: Measured
    against: tuple[str, ...]

    @property
    def figures(self) -> str:
        """Scores and cost in one phrase."""
        row, plain = self.row, self.row.experiment
        return (
            f"under attack {plain.robust:g} to {row.robust:g}, clean {plain.clean:g} to {row.clean:g}, "
            f"{_told(row.cost)} times the plain training"
        )


def answers(question: Question, not_recommended: Mapping[str, Mapping[str, str]]) -> list[Answer]:
    """All that was measured for such a question: what fits first, by the share of the damage that it gives back.

    Args:
        question: what is asked.
        not_recommended: method -> task -> reason, as the methods' files say it.
    """
    chosen = experiments(question)
    found = [
        Answer(row, tuple(_against(row, question, not_recommended))) for row in MEASURED if row.experiment in chosen
    ]
    return sorted(found, key=lambda a: (bool(a.against), -a.row.given_back))


def experiments(question: Question) -> list[Experiment]:
    """Those of the task and the start; of these, the ones on the nearest number of samples, and what is near that."""
    kept = list(dict.fromkeys(row.experiment for row in MEASURED if row.experiment.task == question.task))
    same = [e for e in kept if question.start in (None, e.start)]
    kept = same or kept  # nothing measured from this start: the other one is better than nothing, and remarks() says it
    if question.samples is None:
        return kept
    nearest = min(_times(e.samples, question.samples) for e in kept)
    return [e for e in kept if _times(e.samples, question.samples) <= FAR * nearest]


def remarks(question: Question) -> list[str]:
    """In what the measurements differ from the question."""
    chosen = experiments(question)
    said = []
    if question.start is not None and all(e.start != question.start for e in chosen):
        measured = {"trained": "from trained weights", "scratch": "from random weights"}[chosen[0].start]
        said.append(f"All figures for {question.task} are of trainings {measured}.")
    sizes = sorted({e.samples for e in chosen})
    if question.samples is not None and all(_times(size, question.samples) > FAR for size in sizes):
        said.append(f"Measured on {', '.join(map(str, sizes))} samples, far from your {question.samples}.")
    return said


def which_one(not_recommended: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Rows of the docs' table: what you have, want and take, where it was measured, its scores and price."""
    rows = []
    for have, want, question in QUESTIONS:
        fits = [a.row for a in answers(question, not_recommended) if not a.against][:3]
        above = None
        for row in fits:
            plain = row.experiment
            where = "" if plain == above else f"[{plain.data}](../results/{plain.page})"
            scores = (f"{plain.robust} to {row.robust}", f"{plain.clean} to {row.clean}", _told(row.cost))
            rows.append([have, want, f"`{name_of(row)}`", where, *scores])
            have, want, above = "", "", plain
    return rows


def name_of(row: Measured) -> str:
    """Method and what differs from its defaults."""
    return row.method + (f" ({row.settings})" if row.settings else "")


def commands(row: Measured) -> list[str]:
    """How to train what was measured, in both hosts.

    Example:
        >>> row = next(row for row in MEASURED if row.settings.endswith("clean_weight: 0.6"))
        >>> commands(row)[0]
        'MONAI_ADV_PRESET=finetune MONAI_ADV_CLEAN_WEIGHT=0.6 nnUNetv2_train ... -tr SATTrainer'
    """
    settings, _, later = row.settings.partition(", then ")
    given = read_yaml(f"{{{settings}}}")
    variables = "".join(f"MONAI_ADV_{name.upper()}={value} " for name, value in given.items())
    found = [f"{variables}nnUNetv2_train ... -tr {row.method}Trainer"] * (row.experiment.task == "segmentation")
    given.pop("augmentation", None)  # nnU-Net's alone: a bundle's config holds its transforms
    monai = f"python -m monai.bundle run ... --train#trainer#_target_ monai_adv.engines.{row.method}Trainer"
    found.append(monai + (f' --train#trainer#settings "{given}"' if given else ""))
    return found + ([f"{later} ..."] if later else [])


def warnings_in(entries: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, str]]:
    """Method -> task -> reason, from the entries of the methods' files."""
    return {entry["name"]: entry.get("not_recommended", {}) for entry in entries}


def _against(row: Measured, question: Question, not_recommended: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    if not row.settings and question.task in not_recommended.get(row.method, {}):  # which is said of the defaults
        yield "not recommended"
    if question.task == "classification" and row.clean < CONSTANT:
        yield "nearly always says the same class"
    if question.budget is not None and row.cost > question.budget + NEAR + 1e-9:
        yield f"costs {_told(row.cost)} times the plain training"
    if question.may_lose is not None and row.lost > question.may_lose + 1e-9:
        yield f"lost {row.lost:.1f} points"


def _told(cost: float) -> str:
    """Two digits of what is long, hundredths of what is near 1, so that 1.04 is not said to exceed 1 by being 1."""
    return f"{cost:.2g}" if cost >= 1.5 else f"{cost:.2f}"


def _times(one: int, other: int) -> float:
    return max(one, other) / min(one, other)


QUESTIONS: tuple[tuple[str, str, Question], ...] = (
    ("a trained segmentation model", "robustness for at most the price of its training",
     Question("segmentation", "trained", budget=1.0, may_lose=3.0)),
    ("the same, and more time", "as much robustness as there is", Question("segmentation", "trained", may_lose=5.0)),
    ("the same", "at most 1 point of clean Dice lost", Question("segmentation", "trained", may_lose=1.0)),
    ("a segmentation that is not trained yet", "robustness", Question("segmentation", "scratch")),
    ("a classifier, some hundred images", "accuracy under attack above all",
     Question("classification", samples=500)),
    ("the same", "the same at 3 times a plain training", Question("classification", samples=500, budget=3.0)),
    ("the same", "at most 3 points of clean accuracy lost", Question("classification", samples=500, may_lose=3.0)),
    ("a classifier, some thousand images", "accuracy under attack above all",
     Question("classification", samples=5000)),
    ("the same", "the same at 3 times a plain training", Question("classification", samples=5000, budget=3.0)),
)  # fmt: skip
