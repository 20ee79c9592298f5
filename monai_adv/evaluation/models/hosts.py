"""The hosts: nnU-Net, MONAI bundles, and those of other packages, in the entry point group ``monai_adv.evaluate``.

A host is a module with

- ``add_arguments(parser) -> None`` and ``sources(args) -> list[Source]`` for the command line. ``args`` also holds the
  options of ``monai-adv evaluate``; ``device`` and ``box`` are already checked. No sources if none of its own options
  were given. It is imported whenever the command line is parsed: torch only inside functions.
- ``source_at(folder, images, labels, *, device, box, name, options) -> Source | None`` for Python: the model in a
  folder, or None if the folder is not one of this host. A host without it is reached by the command line alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import metadata
from typing import Any, TypeVar

from monai_adv.errors import InputError

ENTRY_POINTS = "monai_adv.evaluate"
T = TypeVar("T")


def load_hosts() -> tuple[dict[str, Any], dict[str, str]]:
    """The modules by name, and why others could not be imported: a broken host must not take the others with it."""
    hosts: dict[str, Any] = {}
    broken: dict[str, str] = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            hosts[entry.name] = entry.load()
        except Exception as error:
            broken[entry.name] = f"{type(error).__name__}: {error}"
    return hosts, broken


def with_options(source: Callable[..., T], options: Mapping[str, Any], **given: Any) -> T:
    """A host's source, a dataclass, with further arguments of the user's own; lists become tuples.

    Raises:
        InputError: an option that the source does not have, or that is given in another way.
    """
    known = [f.name for f in fields(source) if f.name not in given]  # type: ignore[arg-type]
    for name in options:
        if name in given:
            raise InputError.of("options", name, f"{', '.join(known)}", "this one has an argument of its own")
        if name not in known:
            raise InputError.unknown(name, "option of this model", known)
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return source(**given, **plain)
