"""What a defence's file says of it: from this entry follow its trainers, its row of ``monai-adv methods``, its docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from monai_adv.defenses.base import Defense
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError

TaskName = Literal["classification", "segmentation"]
Family = Literal["adversarial", "early_stop", "margins", "ensembling", "cheap", "dual", "gradient", "smoothing"]
"""What methods are sorted by, and the pages of docs/methods that describe them."""
CLEAN_PASSES = 3.0
"""Forwards per sample of a plain step: one forward, one backward to the weights, which costs two."""
T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """The entry of a defence, ``METHOD`` at the end of its file.

    Attributes:
        name: its name; ``<name>Trainer`` is its trainer in both hosts.
        defense: the class; its settings class is ``defense.settings_class``.
        family: the kind of method.
        idea: what it trains on, in a few words.
        paper: authors, place, year.
        state: what it keeps from step to step.
        cost: network passes per sample and step in forwards (a clean step costs 3), with K steps of the attack.
        most: the same as a number, for given settings; methods that stop early or search need less.
        presets: named settings.
        not_for: tasks that it has no meaning for, and why.
        not_recommended: tasks for which it was measured to do harm with its defaults, and the figures.
        harmless: settings with which it was measured to do none, even there.

    Raises:
        InputError: a name that is no Python name, or an unknown family.
    """

    name: str
    defense: type[Defense]
    family: Family
    idea: str
    paper: str
    state: str
    cost: str
    most: Callable[[Any], float]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_for: Mapping[TaskName, str] = field(default_factory=dict)
    not_recommended: Mapping[TaskName, str] = field(default_factory=dict)
    harmless: Callable[[Any], bool] = lambda settings: False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError.of("name", self.name, "letters, digits and _: the trainer is called after it")
        if self.family not in get_args(Family):
            raise InputError.of("family", self.family, "one of " + ", ".join(get_args(Family)))

    @property
    def settings(self) -> type[DefenseSettings]:
        """The class of its settings."""
        return self.defense.settings_class

    def times_plain(self, settings: DefenseSettings) -> float:
        """How many times as much a step costs as one of plain training, at most."""
        return self.most(settings) / CLEAN_PASSES

    @property
    def key(self) -> str:
        """Its key in the registry: the name in lower case."""
        return self.name.lower()

    @property
    def trainer(self) -> str:
        """Its trainer's name in both hosts."""
        return f"{self.name}Trainer"

    def trainer_class(self, base: type[T], module: str, what: str) -> type[T]:
        """The method's trainer in a host.

        Args:
            base: the host's trainer for any method; it reads the class attribute ``method``.
            module: whose global name the class will be, so that pickle finds it.
            what: the host and its docs, for the docstring: ``"{what}: trains on ..."``.
        """
        paper = f" ({self.paper})" if self.paper else ""
        doc = f"{self.name}{paper} in {what}: trains on {self.idea}."
        return type(self.trainer, (base,), {"method": self, "__module__": module, "__doc__": doc})

    def warning(self, task: TaskName, settings: DefenseSettings) -> str | None:
        """What to say before a training that is likely to do harm; None without a reason, or with harmless settings.

        Example:
            >>> from monai_adv.defenses import method
            >>> trades = method("TRADES")
            >>> trades.warning("segmentation", trades.settings())[:42]
            'TRADES is not recommended for segmentation'
            >>> trades.warning("classification", trades.settings()) is None
            True
            >>> trades.warning("segmentation", trades.settings(**trades.presets["finetune"])) is None
            True
        """
        if task not in self.not_recommended or settings.eps == 0 or self.harmless(settings):
            return None
        return f"{self.name} is not recommended for {task}: {self.not_recommended[task]}."

    def check_task(self, task: TaskName) -> None:
        """Refuse a task that the method has no meaning for.

        Raises:
            InputError: says why.
        """
        if task in self.not_for:
            raise InputError.of(
                "method", f"{self.name} for {task}", f"one not marked 'not for {task}' in `monai-adv methods`",
                self.not_for[task],
            )  # fmt: skip
