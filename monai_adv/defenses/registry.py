"""All defences in one table: the trainers of both hosts, the command line and the docs are generated from it.

A method is one file in this package and one entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from monai_adv.defenses import ima, sat, standard, trades
from monai_adv.defenses.base import Defense
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError, did_you_mean

TaskName = Literal["classification", "segmentation"]


@dataclass(frozen=True)
class Method:
    """What is to be known of a defence.

    Attributes:
        name: its name; ``<name>Trainer`` is its trainer in both hosts.
        defense: the class; its settings class is ``defense.settings_class``.
        family: the page of the docs that describes it.
        idea: what it trains on, in a few words.
        paper: authors, place, year.
        state: what it keeps from step to step.
        cost: network passes per sample and step in forwards (a clean step costs 3), with K steps of the attack.
        presets: named settings.
        not_for: tasks that it has no meaning for, and why.
    """

    name: str
    defense: type[Defense]
    family: str
    idea: str
    paper: str
    state: str
    cost: str
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_for: Mapping[TaskName, str] = field(default_factory=dict)

    @property
    def settings(self) -> type[DefenseSettings]:
        """The class of its settings."""
        return self.defense.settings_class

    @property
    def key(self) -> str:
        """Its key in :data:`METHODS`: the name in lower case."""
        return self.name.lower()

    @property
    def trainer(self) -> str:
        """Its trainer's name in both hosts."""
        return f"{self.name}Trainer"

    def check_task(self, task: TaskName) -> None:
        """Refuse a task that the method has no meaning for.

        Raises:
            InputError: says why.
        """
        if task in self.not_for:
            others = ", ".join(m.name for m in METHODS.values() if task not in m.not_for)
            raise InputError.of("method", f"{self.name} for {task}", f"one of {others}", self.not_for[task])


_METHODS = [
    Method("Standard", standard.Standard, "adversarial", "clean images", "", "nothing", "3"),
    Method("SAT", sat.SAT, "adversarial", "attacked images", "Madry et al., ICLR 2018", "nothing", "2K + 3",
           sat.PRESETS),
    Method("TRADES", trades.TRADES, "adversarial", "clean images, and outputs that stay the same under attack",
           "Zhang et al., ICML 2019", "nothing", "2K + 7", trades.PRESETS),
    Method("IMA", ima.IMA, "margins", "clean images, and images on the boundary within a margin that grows",
           "Ma & Liang, CMPB 2023", "a margin per sample", "up to 2K + 7 + searches", ima.PRESETS),
]  # fmt: skip

METHODS: dict[str, Method] = {m.key: m for m in _METHODS}


def method(name: str) -> Method:
    """The method of that name, in any case.

    Raises:
        InputError: there is none.
    """
    if name.lower() not in METHODS:
        known = [m.name for m in METHODS.values()]
        raise InputError.of("method", name, "one of " + ", ".join(known), did_you_mean(name, known))
    return METHODS[name.lower()]
