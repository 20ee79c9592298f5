"""All defences: every file of this package that holds a ``METHOD``, and those of other packages.

Another package adds a method by an entry point that names its :class:`Method`; in its pyproject.toml::

    [project.entry-points."monai_adv.defenses"]
    mine = "my_package.mine:METHOD"
"""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import get_args

from monai_adv.defenses.method import Family, Method
from monai_adv.errors import InputError, did_you_mean, first_cause

ENTRY_POINTS = "monai_adv.defenses"


def _own() -> Iterator[Method]:
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if file.name != Path(__file__).stem:
            found = getattr(import_module(f"{__package__}.{file.name}"), "METHOD", None)
            if found is not None:
                yield found


def _of_others(taken: Iterable[str]) -> Iterator[Method]:
    """Methods of other packages; a broken one is told and left out: it must not take the others with it."""
    known = set(taken)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            found = entry.load()
            if not isinstance(found, Method):
                raise TypeError(f"{entry.value} is no monai_adv.defenses.Method")
            if found.key in known:
                raise ValueError(f"there is a method {found.name} already")
        except Exception as error:
            warnings.warn(f"defence '{entry.name}' is left out: {first_cause(error)}", stacklevel=2)
        else:
            known.add(found.key)
            yield found


def _collected() -> dict[str, Method]:
    own = list(_own())
    families = get_args(Family)
    found = [*own, *_of_others(m.key for m in own)]
    return {m.key: m for m in sorted(found, key=lambda m: (families.index(m.family), m.key))}


METHODS: dict[str, Method] = _collected()
"""By name in lower case, family by family."""


def method(name: str) -> Method:
    """The method of that name, in any case.

    Raises:
        InputError: there is none.
    """
    if name.lower() not in METHODS:
        known = [m.name for m in METHODS.values()]
        raise InputError.of("method", name, "one of " + ", ".join(known), did_you_mean(name, known))
    return METHODS[name.lower()]
