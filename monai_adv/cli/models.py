"""Words that commands about models share: which models, which cases, where."""

from __future__ import annotations

import argparse
import re
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from monai_adv.errors import InputError
from monai_adv.evaluation.models import factory
from monai_adv.evaluation.models.hosts import Host, load_hosts

if TYPE_CHECKING:
    from monai_adv.evaluation.models.protocol import Source


OPTIONS = {"folder": "-o", "batch_size": "batch-size", "inputs_per_pass": "inputs-per-pass"}
"""Arguments in Python that options call otherwise; errors about input name them."""


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options of all hosts by which a model is named."""
    factory.add_arguments(parser)
    hosts: list[Host] = [factory]
    others, broken = load_hosts()
    for name, host in others.items():
        try:
            host.add_arguments(parser)
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
        else:
            hosts.append(host)
    parser.set_defaults(hosts=hosts, broken_hosts=broken)


def models(args: argparse.Namespace) -> list[Source]:
    """The models that were named; ``args.device`` and ``args.box`` are already checked.

    Raises:
        InputError: none, or one that cannot be used.
    """
    for name, reason in args.broken_hosts.items():
        print(f"monai-adv: models of {name} cannot be opened here ({reason})", file=sys.stderr)
    found = list(chain.from_iterable(host.sources(args) for host in args.hosts))
    if not found:
        raise InputError("models: none were given; see --factory and the others in `monai-adv evaluate --help`.")
    return found


def cases(words: list[str] | None) -> int | tuple[str, ...] | None:
    """A number of cases, or their names; None: all."""
    if words is None:
        return None
    # A single number is a count, unless it has zeros in front, as names of files do.
    if len(words) == 1 and re.fullmatch("-?(0|[1-9][0-9]{0,17})", words[0]):
        return int(words[0])
    return tuple(words)


def folder(word: str) -> Path:
    """Absolute: a worker may have another current folder.

    Raises:
        InputError: no path.
    """
    try:
        found = Path(word).resolve()
        found.exists()
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError.of("-o", word, "the path of a folder", f"the system says: {reason}") from error
    return found


def device(name: str | None) -> str:
    """The device's name, the usual one if none is given.

    Raises:
        InputError: no name of a device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    allowed = "cpu, cuda, cuda:1, ..."
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise InputError.of("device", name, allowed) from error
    if kind == "meta":
        raise InputError.of("device", name, allowed, "a meta device has shapes and no numbers")
    return name
