"""Words about what a model is for and what it has to reach, for the commands that write evidence."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from monai_adv.errors import InputError, first_cause
from monai_adv.yaml_text import read_yaml


def add_run_file(parser: argparse.ArgumentParser) -> None:
    """Add ``--run``, see :mod:`monai_adv.cli.run_file`."""
    parser.add_argument(
        "--run", dest="run_file", metavar="FILE",
        help="YAML with these options under their long names (eps: [1, 2]); what is given here as well comes first",
    )  # fmt: skip


def add_purpose(group: argparse._ActionsContainer) -> None:
    """Add ``--intended-use`` and ``--acceptance``."""
    group.add_argument("--intended-use", metavar="TEXT", help="what the model is for; the report begins with it")
    group.add_argument(
        "--acceptance", nargs="+", metavar="CRITERION",
        help="figures to be reached, each as '{measure: score, norm: l2, eps: 0.1, at_least: 0.7, reason: ...}'",
    )  # fmt: skip


def criteria(words: list[str] | None) -> list[Any] | None:
    """Criteria of the command line, in YAML.

    Raises:
        InputError: a word that is no YAML.
    """
    return [_mapping(word) for word in words] if words else None


def _mapping(word: str) -> Any:
    try:
        return read_yaml(word)
    except yaml.YAMLError as error:
        raise InputError.of("acceptance", word, "a mapping in YAML", first_cause(error)) from error
