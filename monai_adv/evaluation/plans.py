"""A plan of the user's own: a function of the threat and the number of classes that says which attacks are made.

Its code is part of what an evaluation is: where it changed, records of the old one are not gone on with.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from monai_adv.attacks.ensemble import Stage
from monai_adv.errors import AttackError, InputError, in_a_sentence
from monai_adv.evaluation.models.fingerprint import code_files, fingerprint
from monai_adv.evaluation.named import ALLOWED, absolute, find
from monai_adv.statistics import Passes
from monai_adv.threats import Threat

PlanFunction = Callable[[Threat, int], Iterable[Stage]]
"""Threat of a level and number of classes (of a segmentation: of foreground classes or regions) -> its stages."""


@dataclass(frozen=True)
class Plan:
    """A function that makes the stages of a level; see :data:`PlanFunction`.

    Attributes:
        name: how the store and the report call it.
        place: where another process finds it, ``package.module:function`` or ``/path/to/file.py:function``.
        code: hash of the function and of the user's own files that it comes from.
        function: itself.

    Example:
        >>> from monai_adv.attacks import PGD
        >>> def my_plan(threat, classes):
        ...     return [Stage("PGD-100", PGD(threat, steps=100))]
        >>> plan = Plan.of(my_plan)
        >>> [stage.name for stage in plan(Threat("linf", 0.1), 2)]
        ['PGD-100']
    """

    name: str
    place: str = field(compare=False)
    code: str
    function: PlanFunction = field(compare=False, repr=False)

    @classmethod
    def of(cls, function: PlanFunction) -> Plan:
        """A plan of a Python function, or of a ``functools.partial`` of one.

        Raises:
            InputError: something else, of which nobody could tell whether it has changed.
        """
        inner: Any = function.func if isinstance(function, partial) else function
        if not isinstance(inner, FunctionType):
            raise InputError.of("attacks", type(function).__name__, "a function (threat, classes) -> stages")
        name = f"{inner.__module__}:{inner.__qualname__}"
        return cls(name, name, _identity(function, inner.__module__), function)

    @classmethod
    def named(cls, word: str) -> Plan:
        """A plan by its name; its module is imported.

        Args:
            word: ``package.module:function`` or ``path/to/file.py:function``.

        Raises:
            InputError: there is none, or it is no function.
        """
        place = absolute(word)
        function = find("attacks", place, f"quick, standard, full, or a plan as {ALLOWED}")
        inner: Any = function.func if isinstance(function, partial) else function
        made = cls.of(function)
        file, _, own = place.rpartition(":")
        return cls(f"{Path(file).name}:{own}", place, _identity(function, inner.__module__), made.function)

    def __call__(self, threat: Threat, classes: int) -> list[Stage]:
        """The stages, checked.

        Raises:
            AttackError: the function fails, or returns what cannot be run against this threat; one sentence.
        """
        try:
            found: Any = self.function(threat, classes)
            stages = list(found) if isinstance(found, Iterable) else found  # a generator runs the function only here
        except Exception as error:
            raise AttackError(f"attacks: the plan {self.name} failed: {in_a_sentence(error, given=True)}") from error
        if stages is not None and not isinstance(stages, list):
            raise AttackError(
                f"attacks: the plan {self.name} returned a {type(found).__name__}, allowed is a list of "
                "Stage(name, attack)."
            )
        if not stages:
            raise AttackError(f"attacks: the plan {self.name} returned nothing; return a list of Stage(name, attack).")
        for stage in stages:
            self._check(stage, threat)
        return stages

    def __reduce__(self) -> tuple[Any, ...]:
        return _found_again, (self.name, self.place, self.code)

    def _check(self, stage: Any, threat: Threat) -> None:
        name, attack = getattr(stage, "name", None), getattr(stage, "attack", None)
        if not isinstance(name, str) or not name or attack is None:
            found = type(stage).__name__
            raise AttackError(f"attacks: the plan {self.name} returned a {found}, allowed is Stage(name, attack).")
        lacks = [part for part in ("threat", "most_passes") if not hasattr(attack, part)]
        if lacks or not callable(attack):
            raise AttackError(
                f"attacks: {name!r} of the plan {self.name} is no attack, it lacks {', '.join(lacks or ['a call'])}; "
                "a function of (model, inputs, labels) joins through monai_adv.attacks.foreign.Foreign."
            )
        if not _same(attack.threat, threat):
            found = _in_words(attack.threat, threat)
            raise AttackError(
                f"attacks: {name!r} of the plan {self.name} attacks within {found}, allowed is "
                f"{_in_words(threat, attack.threat)}; give it the threat that the plan gets."
            )
        try:
            known = isinstance(attack.most_passes(), Passes)
        except Exception as error:
            reason = in_a_sentence(error, given=True)
            raise AttackError(f"attacks: {name!r} of the plan {self.name}: most_passes failed: {reason}") from error
        if not known:
            raise AttackError(f"attacks: {name!r} of the plan {self.name}: most_passes() has to return Passes.")


def _found_again(name: str, place: str, code: str) -> Plan:
    """In another process."""
    try:
        plan = Plan.named(place)
    except InputError as error:
        raise AttackError(f"attacks: a worker does not find the plan {name}: {error}") from error
    if plan.code != code:
        raise AttackError(f"attacks: a worker has another version of the plan {name}; restart the workers.")
    return Plan(name, place, code, plan.function)


def _same(one: Any, other: Threat) -> bool:
    return isinstance(one, Threat) and one == other


def _in_words(threat: Any, other: Any) -> str:
    """What people call it, or everything where that does not tell the two apart."""
    if not (isinstance(threat, Threat) and isinstance(other, Threat)):
        return f"{threat!r}"
    return threat.describe() if threat.describe() != other.describe() else repr(threat)


def _identity(function: Any, module: str) -> str:
    """Of the code in memory, and of the user's files behind it."""
    paths = {path.resolve() for path in code_files([module])}
    name = module.partition(".")[0]
    package = sys.modules.get(name)
    if name not in ("monai_adv", "nnunet_trainers"):  # an installed package is no file of the user's own, its plan is
        for folder in getattr(package, "__path__", ()):
            paths |= {path.resolve() for path in Path(folder).rglob("*.py")}
    files = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)
    return fingerprint(_code(function), files)


def _code(value: Any, depth: int = 5) -> Any:
    """What a function does, in plain values: byte code, constants, defaults, what it closes over, what it calls beside.

    Of other objects only the type counts: what is in files of the user's own is compared besides, and the settings of
    the stages as well.
    """
    if depth == 0:  # two functions that call each other
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, partial):
        return [_code(part, depth - 1) for part in (value.func, list(value.args), value.keywords)]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        beside = [value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__]
        own = [b for b in beside if _is_plain(b) or getattr(b, "__module__", None) == value.__module__]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, cells, own)
        return [_code(part, depth - 1) for part in parts]
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [_code(constant, depth) for constant in value.co_consts]
    if isinstance(value, type):
        members = {name: each for name, each in vars(value).items() if isinstance(each, FunctionType)}
        return value.__qualname__, _code(members, depth - 1)
    if isinstance(value, list | tuple):
        return [_code(each, depth) for each in value]
    if isinstance(value, dict):
        return [(str(key), _code(each, depth)) for key, each in value.items()]
    return value if _is_plain(value) else f"{type(value).__module__}.{type(value).__qualname__}"


def _names(code: CodeType) -> list[str]:
    """Global names that a function and those within it use."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)
