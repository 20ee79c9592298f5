"""The hosts: nnU-Net, MONAI bundles, and those of other packages, in the entry point group ``monai_adv.evaluate``.

A host is a module with the functions of :class:`Host`, and, to be reached from Python as well, of :class:`FolderHost`.
It is imported whenever the command line is parsed: torch only inside functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from monai_adv.errors import InputError
from monai_adv.given import Box

if TYPE_CHECKING:
    from monai_adv.evaluation.models.protocol import Source

ENTRY_POINTS = "monai_adv.evaluate"
T = TypeVar("T")
Options = Mapping[str, Any]
"""Further arguments of a model in a folder, as the user gives them: which there are only its host knows."""


class Host(Protocol):
    """What the command line asks of a host."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options by which its models are named."""

    def sources(self, args: argparse.Namespace) -> Sequence[Source]:
        """The models that were named; none if none of its own options were given.

        Args:
            args: of ``monai-adv evaluate``; ``device`` and ``box`` are already checked.
        """


@runtime_checkable
class FolderHost(Protocol):
    """What Python asks of a host."""

    def source_at(
        self,
        folder: Path,
        images: object,
        labels: object,
        *,
        device: str,
        box: Box | None,
        name: str | None,
        options: Options,
    ) -> Source | None:
        """The model in a folder; None if the folder is not one of this host."""


def load_hosts() -> tuple[dict[str, Host], dict[str, str]]:
    """The modules by name, and why others could not be imported: a broken host must not take the others with it."""
    hosts: dict[str, Host] = {}
    broken: dict[str, str] = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            hosts[entry.name] = entry.load()
        except Exception as error:
            broken[entry.name] = f"{type(error).__name__}: {error}"
    return hosts, broken


def with_options(source: Callable[..., T], options: Options, **given: Any) -> T:
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
