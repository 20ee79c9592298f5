"""What a training costs, in words: before it starts, while it runs, and what would be cheaper."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from monai_adv.defenses.method import CLEAN_PASSES, Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.settings import positive

DEAR = 3000
"""Plain epochs that a training may cost before a sentence names the cheaper way: three of nnU-Net's own."""
LOOK_AFTER = 3
"""Steps that are timed before the first forecast; the very first one is left out, which allocates and compiles."""


def in_hours(budget: float | str) -> float | None:
    """The number in "2h" or "0.5h"; None of a share.

    Example:
        >>> in_hours("0.5h"), in_hours(0.5)
        (0.5, None)
    """
    return float(budget.removesuffix("h")) if isinstance(budget, str) else None


def is_budget(value: float | str) -> bool:
    """Whether it is a share of a plain training, or hours.

    Example:
        >>> [is_budget(value) for value in (0.25, "2h", 0.0, "0h", "2 days")]
        [True, True, False, False, False]
    """
    if isinstance(value, str) and not re.fullmatch(r"\d*\.?\d+h", value):
        return False
    hours = in_hours(value)
    return positive(float(value) if hours is None else hours)


def price_line(method: Method, settings: DefenseSettings) -> str:
    """What a step costs, for the start of a log.

    Example:
        >>> from monai_adv.defenses import method
        >>> sat = method("SAT")
        >>> price_line(sat, sat.settings(steps=3))
        'Price: up to 9 network passes per sample and step (in forwards), about 3 times a plain epoch.'
    """
    forwards = method.most(settings)
    times = f"about {forwards / CLEAN_PASSES:.2g} times" if forwards > CLEAN_PASSES else "as much as"
    return f"Price: up to {forwards:.3g} network passes per sample and step (in forwards), {times} a plain epoch."


def cheaper_way(method: Method, settings: DefenseSettings, epochs: int, todo: str) -> str | None:
    """A sentence for a training that nobody waits for, or None.

    Args:
        method, settings: what is trained with.
        epochs: how many.
        todo: the cheaper way in this host.
    """
    plain = epochs * method.most(settings) / CLEAN_PASSES
    if plain < DEAR:
        return None
    return f"WARNING: {epochs} epochs of {method.name} cost as much as about {plain:.0f} plain ones. {todo}"


def refuse_another_price(
    method: Method, saved: Mapping[str, Any], now: Mapping[str, Any], of_run: Sequence[str], todo: str
) -> None:
    """Refuse to go on with other settings than those from which a budget's number of epochs has followed.

    Args:
        method: that trains.
        saved, now: settings by name, of the checkpoint and of the run that goes on.
        of_run: those of the host's run that count.
        todo: what to do in this host.

    Raises:
        InputError: names the first that differs.
    """
    names = [name for name in of_run if saved.get(name) != now.get(name)] or _of_another_price(method, saved, now)
    if names:
        name = names[0]
        raise InputError.of(
            name, now.get(name), f"that of the checkpoint ({saved.get(name)})",
            f"its epochs and learning rates follow from it: {todo}",
        )  # fmt: skip


def _of_another_price(method: Method, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The method's settings that make a step cost something else; none if it costs the same in the end."""
    known = method.settings.names()
    before, after = (method.settings(**{n: values[n] for n in known if n in values}) for values in (saved, now))
    if method.most(before) == method.most(after):
        return []
    changed = [name for name in known if getattr(before, name) != getattr(after, name)]

    def alone(name: str) -> float:
        one = copy(before)
        object.__setattr__(one, name, getattr(after, name))  # unchecked: one change may need another beside it
        return method.most(one)

    return [name for name in changed if alone(name) != method.most(before)] or changed


def whole_epochs(paid: float) -> int:
    """Epochs of which a budget pays for so many; a whole number that rounding has made a hair smaller stays whole.

    Example:
        >>> 0.29 * 100, whole_epochs(0.29 * 100), whole_epochs(2.9)
        (28.999999999999996, 29, 2)
    """
    return math.floor(paid * (1 + 1e-12))


@dataclass
class Clock:
    """Seconds of an epoch and hours of the rest, from the first steps, where an epoch has so many.

    Args:
        steps: of an epoch.
        now: a clock.

    Example:
        >>> ticks = iter([0.0, 9.0, 10.0, 11.0, 12.0])
        >>> clock = Clock(steps=100, now=lambda: next(ticks))
        >>> [clock.step(epochs_left=36) for _ in range(5)][-1]
        'About 100 s of training per epoch, 1.0 hours for the 36 that are left; validation comes on top.'
    """

    steps: int
    now: Callable[[], float] = time.perf_counter
    seconds: float = math.nan
    """Of an epoch, once it is known."""
    _seen: list[float] = field(default_factory=list)
    _epoch: int | None = None

    def step(self, epochs_left: int) -> str | None:
        """Call at the end of each step; the forecast, once.

        Args:
            epochs_left: with the running one.
        """
        self._epoch = epochs_left if self._epoch is None else self._epoch
        if len(self._seen) > LOOK_AFTER + 1 or epochs_left != self._epoch:  # a validation lies between two epochs
            return None
        self._seen.append(self.now())
        if len(self._seen) < LOOK_AFTER + 2:
            return None
        self.seconds = self.steps * (self._seen[-1] - self._seen[1]) / LOOK_AFTER
        left = _left(self.seconds, epochs_left)
        return f"About {self.seconds:.3g} s of training per epoch, {left}; validation comes on top."


def forecast(seconds: float, epochs_left: int) -> str:
    """Seconds of a whole epoch, and how long the rest takes."""
    return f"About {seconds:.3g} s per epoch, {_left(seconds, epochs_left)}."


def dearer_later(method: Method, settings: DefenseSettings, figures: Mapping[str, float]) -> str:
    """What to add to a forecast from steps in which nothing was attacked; nothing where something was.

    Args:
        method, settings: what is trained with.
        figures: of these steps, as ``Defense.on_epoch_end`` names them.

    Example:
        >>> from monai_adv.defenses import method
        >>> ima = method("IMA")
        >>> dearer_later(ima, ima.settings(), {"attacked": 0.0, "passes_per_sample": 3.0})
        ' Nothing was attacked in this time: once something is, up to 19 times as much.'
        >>> dearer_later(ima, ima.settings(), {"attacked": 0.1, "passes_per_sample": 5.0})
        ''
    """
    if settings.eps == 0 or figures.get("attacked") != 0 or not figures["passes_per_sample"] > 0:
        return ""
    times = method.most(settings) / figures["passes_per_sample"]
    return f" Nothing was attacked in this time: once something is, up to {times:.2g} times as much."


def _left(seconds: float, epochs_left: int) -> str:
    which = "the last one" if epochs_left == 1 else f"the {epochs_left} that are left"
    return f"{_duration(seconds * epochs_left)} for {which}"


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
