"""A run file: the options of ``monai-adv evaluate`` in YAML, under their long names.

Its values become words of the command line before those are parsed, so they are checked like them. ``--run`` and not
``-c``, which is nnU-Net's word for a configuration.

Example::

    norm: linf
    eps: [0.01, 0.03]
    factory: my_model.py:model
    output: report
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from monai_adv.errors import InputError, first_cause
from monai_adv.yaml_text import read_words, read_yaml

OPTION = "--run"
NOT_KEPT = ("help", "run_file", "dry_run", "yes")
"""Options that decide nothing about an evaluation."""
RADIUS = ("norm", "eps", "unit")
"""Options that mean something together only."""
MAPPINGS = ("acceptance",)
"""Options whose values are mappings: words of the command line in JSON, which is YAML as well."""


class Parser(argparse.ArgumentParser):
    """If it has the option ``--run``, the words of that file come before the other ones."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's.

        Raises:
            InputError: a file that cannot be read, or with a key that is no option; one that is given with ``-c``.
        """
        if args is not None and OPTION in self._option_string_actions:
            args = expanded(list(args), self)
        return super().parse_known_args(args, namespace)


def expanded(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The words with those of the run file in front; an option that is given on the command line hides the file's."""
    for word, value in pairwise(words):
        if word == "-c" and value.lower().endswith((".yaml", ".yml", ".json")):
            raise InputError.of("-c", value, "nnU-Net's configuration, such as 2d", f"a run file is --run {value}")
    files = [words[i + 1] for i, word in enumerate(words[:-1]) if word == OPTION]
    files += [word.partition("=")[2] for word in words if word.startswith(OPTION + "=")]
    if not files:
        return words
    if len(files) > 1:
        raise InputError.of(OPTION, files, "one file")
    given = {id(action) for word in words for action in _actions_of(word, parser)}
    found: list[str] = []
    seen: dict[int, str] = {}
    options = _options(parser)
    content = _read(files[0])
    radius = {name for name in RADIUS if id(options.get(name)) in given}
    _check_radius(radius, {written: text for written, text, _ in content}, files[0])
    for written, text, value in content:
        # YAML reads the word yes as true, and Python's underscores are as good as dashes.
        key = "yes" if written is True else str(written)
        key = key if key in options else key.replace("_", "-")
        if key not in options:
            raise InputError.unknown(str(written), f"key in {files[0]}", options)
        action = options[key]
        if id(action) in seen:
            raise InputError.of(files[0], f"{seen[id(action)]} and {key}", "one of the two", "they are the same option")
        seen[id(action)] = key
        if id(action) not in given:
            found += _words(key, value if action.dest in MAPPINGS else text, action, files[0])
    return found + words


def as_run_file(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """What was asked for, as a run file that asks for it again; what is left to the default is left out."""
    names: dict[str, str] = {}
    for name, action in _options(parser).items():
        if action.dest not in NOT_KEPT:
            names[action.dest] = max(name, names.get(action.dest, ""), key=len)
    content = {name: getattr(args, dest) for dest, name in names.items()}
    plain = {name: value for name, value in content.items() if value != parser.get_default(_dest(name, parser))}
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))


def _dest(name: str, parser: argparse.ArgumentParser) -> str:
    return _options(parser)[name].dest


def _check_radius(given: set[str], content: Mapping[Any, Any], file: str) -> None:
    """Refuse options of the command line that would give a number of the file, or of their own, another meaning.

    Args:
        given: those of ``RADIUS`` on the command line.
        content: of the file.
        file: its name.

    Raises:
        InputError: a norm or a unit without radii, radii for one of several norms, a norm beside a unit of the file.
    """
    for name in ("norm", "unit"):
        if name in given and "eps" not in given and "eps" in content:
            todo = f"the radii in {file} are of its own norm and unit"
            raise InputError.of(f"--{name}", "no --eps", f"--{name} with --eps", todo)
    norms = content.get("norm")
    if "eps" in given and "norm" not in given and isinstance(norms, list) and len(norms) > 1:
        todo = f"{file} has several norms: {', '.join(map(str, norms))}"
        raise InputError.of("--eps", "no --norm", "--norm with --eps", todo)
    if "norm" in given and "unit" not in given and "unit" in content:
        todo = f"the unit {content['unit']} in {file} is that of its own radii"
        raise InputError.of("--norm", "no --unit", "--norm with --eps and --unit", todo)


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Without their dashes, but for what a file cannot say."""
    actions = parser._option_string_actions.items()
    return {word.lstrip("-"): a for word, a in actions if a.dest not in ("help", "run_file")}


def _actions_of(word: str, parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Those that a word of the command line may mean; argparse takes shortened ones."""
    name = word.partition("=")[0]
    if name in parser._option_string_actions:
        return [parser._option_string_actions[name]]
    return [a for option, a in parser._option_string_actions.items() if name[:2] == "--" and option.startswith(name)]


def _read(file: str) -> list[tuple[Any, Any, Any]]:
    """Each key, its value as it is written, which is what a command line says (case 007), and its value in YAML."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        content, values = read_words(text), read_yaml(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError.of(OPTION, file, "a YAML file that can be read", first_cause(error)) from error
    if not isinstance(content, dict):
        raise InputError.of(OPTION, file, "a YAML file with a line 'option: value' for each option")
    return list(zip(content, content.values(), values.values(), strict=True))


def _words(key: str, value: Any, action: argparse.Action, file: str) -> list[str]:
    option = next(word for word in action.option_strings if word.lstrip("-") == key)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError.of(f"{key} in {file}", value, "true or false")
        return [option] if value else []
    values = value if isinstance(value, list) else [value]
    repeated = isinstance(action, argparse._AppendAction)
    if action.nargs is None and not repeated and len(values) != 1:
        raise InputError.of(f"{key} in {file}", value, "one value")
    groups = [values] if action.nargs is not None else [[each] for each in values]
    if repeated and action.nargs is not None and all(isinstance(each, list) for each in values):
        groups = values
    if action.dest in MAPPINGS:
        groups = [[json.dumps(each) if isinstance(each, dict) else each for each in group] for group in groups]
    words = []
    for group in groups:
        for each in group:
            if not isinstance(each, str):
                raise InputError.of(f"{key} in {file}", each, "text or a number", "text that YAML reads needs quotes")
        words += [f"{option}={group[0]}"] if len(group) == 1 and option[:2] == "--" else [option, *group]
    return words
