"""Settings: frozen, validated dataclasses that come from a file, the environment or Python.

A *section* is a dataclass derived from :class:`Settings`; a host combines several sections (defence, task, run) into
one flat namespace, so that a user writes ``eps: 15`` without knowing which class owns it. Names are unique over the
sections.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from monai_adv import given
from monai_adv.errors import InputError, did_you_mean
from monai_adv.given import Box
from monai_adv.yaml_text import read_yaml

ENV_PREFIX = "MONAI_ADV_"
ENV_FILE = "MONAI_ADV_SETTINGS"
ENV_NOT_SETTINGS = {ENV_FILE, "MONAI_ADV_NO_DISCOVERY"}

LARGEST_WHOLE = 2**31 - 1
LARGEST, SMALLEST = 1e30, 1e-30
"""What single precision holds: beyond, a number silently becomes infinity or 0."""

S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    help: str,
    allowed: str = "",
    check: Callable[[Any], bool] | None = None,
    *,
    radius: bool = False,
) -> Any:
    """A dataclass field with what a user needs to know: its meaning, the allowed values, and the check for them.

    Args:
        default, help, allowed, check: as said.
        radius: the value is in the unit of the attack's radius.
    """
    metadata = {"help": help, "allowed": allowed, "check": check, "radius": radius}
    return dataclasses.field(default=default, metadata=metadata)


def positive(value: float) -> bool:
    """A check for :func:`setting`."""
    return value > 0


def not_negative(value: float) -> bool:
    """A check for :func:`setting`."""
    return value >= 0


@dataclass(frozen=True)
class Settings:
    """Base of every section: types and ranges are checked when an instance is made.

    Raises:
        InputError: one sentence that names the setting, the value, what is allowed.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            adapter, type_name = _adapter(hints[field.name])
            allowed = field.metadata.get("allowed") or type_name
            try:
                # Strict: 2.5 steps are not 2 steps, and 1 is not true.
                value = adapter.validate_python(_read(field, value, hints[field.name], allowed), strict=True)
            except ValidationError:
                raise InputError.of(field.name, value, allowed, f"it is: {field.metadata['help']}") from None
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError.of(field.name, value, allowed, "NaN and infinity are not numbers to train with")
            if isinstance(value, int | float) and not _in_range(value):
                todo = f"numbers are at most {LARGEST_WHOLE} (whole), or from {SMALLEST:g} to {LARGEST:g}, or 0"
                raise InputError.of(field.name, value, allowed, todo)
            check = field.metadata.get("check")
            if value is not None and check is not None and not check(value):
                raise InputError.of(field.name, value, allowed, f"it is: {field.metadata['help']}")
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Rules between settings; sections override it."""

    @classmethod
    def names(cls) -> list[str]:
        """The settings of this section, in the order of their definition."""
        return [f.name for f in dataclasses.fields(cls)]


@cache
def _adapter(hint: Any) -> tuple[TypeAdapter[Any], str]:
    """The validator of a setting's type, and that type in words."""
    if hint is bool:
        return TypeAdapter(hint), "true or false"
    options = choices(hint)
    words = f"one of {', '.join(map(repr, options))}" if options else getattr(hint, "__name__", str(hint))
    return TypeAdapter(hint), words


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a ``Literal`` allows, or an optional one; none for other types.

    Example:
        >>> choices(Literal["l2", "linf"] | None)
        ('l2', 'linf', None)
    """
    if get_origin(hint) is Literal:
        return get_args(hint)
    kinds = get_args(hint)
    return tuple(c for kind in kinds for c in choices(kind) or [None]) if any(map(choices, kinds)) else ()


def _in_range(value: float) -> bool:
    if isinstance(value, int):
        return abs(value) <= LARGEST_WHOLE
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


def _read(field: dataclasses.Field[Any], value: Any, hint: Any, allowed: str) -> Any:
    """A value as its setting wants it: YAML reads ``8/255`` as a string, and a box is a list there."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if Box in kinds and value is not None:
        return given.box(field.name, value)
    if isinstance(value, str) and float in kinds:
        try:
            return given.number(field.name, value, allowed, f"it is: {field.metadata['help']}")
        except InputError:
            if str not in kinds:  # a word may be allowed, such as `plain`
                raise
    return value


def combine(sections: Mapping[str, type[Settings]], values: Mapping[str, Any]) -> dict[str, Settings]:
    """Make every section from one flat mapping.

    Args:
        sections: name of the section -> its class.
        values: setting -> value, see :func:`expand_preset`.

    Raises:
        InputError: unknown setting (with the nearest known name), or a value that is not allowed.
    """
    owner = owners(sections)
    for name in values:
        if name not in owner:
            raise InputError.unknown(name, "setting", [*owner, "preset"])
    return {key: cls(**{n: values[n] for n in cls.names() if n in values}) for key, cls in sections.items()}


def owners(sections: Mapping[str, type[Settings]]) -> dict[str, str]:
    """Setting -> the section that has it.

    Raises:
        TypeError: two sections have a setting of one name: what a user gives would set both.
    """
    owner: dict[str, str] = {}
    for key, cls in sections.items():
        for name in cls.names():
            if name in owner:
                raise TypeError(f"the setting {name} of {cls.__name__} is also one of the section {owner[name]!r}")
            owner[name] = key
    return owner


def with_fine_tuning(presets: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Presets of a method, of which "finetune", there or not, gets what a host's run adds to it.

    Args:
        presets: of the method, whose own values count.
        run: settings of the run.

    Example:
        >>> with_fine_tuning({"finetune": {"steps": 3}}, {"budget": 1.0})
        {'finetune': {'budget': 1.0, 'steps': 3}}
    """
    return {**presets, "finetune": {**run, **presets.get("finetune", {})}}


def expand_preset(
    sections: Mapping[str, type[Settings]], values: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """``values`` with ``preset`` replaced by what it stands for: a value for every setting that any preset sets.

    So choosing a preset for a run that was started with another one really changes it. Values given beside it win.

    Raises:
        InputError: unknown preset.
    """
    if values.get("preset") is None:
        return {k: v for k, v in values.items() if k != "preset"}
    name = values["preset"]
    if not presets:
        raise InputError.of("preset", name, "none", "there are no presets")
    if not isinstance(name, str) or name not in presets:
        raise InputError.of("preset", name, "one of " + ", ".join(presets), did_you_mean(str(name), presets))
    defaults = {f.name: f.default for cls in sections.values() for f in dataclasses.fields(cls)}
    touched = {n: defaults[n] for preset in presets.values() for n in preset if n in defaults}
    return {**touched, **presets[name], **{k: v for k, v in values.items() if k != "preset"}}


def read_settings(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The settings a user gave: the file named by ``MONAI_ADV_SETTINGS``, overridden by ``MONAI_ADV_<NAME>`` variables.

    Raises:
        InputError: the file is missing, unreadable, malformed, or is not a flat mapping; or a variable's name only
            looks like ours.
    """
    environment = os.environ if environment is None else environment
    for name in sorted(environment):
        _refuse_near_miss(name)
    values = read_file(Path(environment[ENV_FILE]).expanduser()) if environment.get(ENV_FILE) else {}
    for name, value in sorted(environment.items()):
        if name.startswith(ENV_PREFIX) and name not in ENV_NOT_SETTINGS:
            values[name[len(ENV_PREFIX) :].lower()] = _none(_parse(value))
    return values


def _refuse_near_miss(name: str) -> None:
    """A variable whose name is nearly one of ours would be ignored without a word."""
    head, word = ENV_PREFIX.rstrip("_").replace("_", ""), "".join(c for c in name.upper() if c.isalnum())
    ours = name.startswith(ENV_PREFIX)
    if ours and name == name.upper():
        return
    if ours or word.startswith(head) or sorted(word[: len(head)]) == sorted(head):  # transposed letters
        setting_name = name[len(ENV_PREFIX) :] if ours else word[len(head) :]
        raise InputError.of(
            name, "a variable of this name", f"{ENV_PREFIX}<NAME> in capitals",
            f"write {ENV_PREFIX}{setting_name.upper() or '<NAME>'}, or unset it",
        )  # fmt: skip


def read_file(path: Path) -> dict[str, Any]:
    """Settings from a YAML or JSON file (JSON is YAML)."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError.of(ENV_FILE, str(path), "an existing YAML or JSON file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError.of(ENV_FILE, str(path), "a readable YAML or JSON file", f"the system says: {error}") from None
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise InputError.of(ENV_FILE, str(path), "well-formed YAML or JSON", f"the parser says: {where}") from None
    if not isinstance(values, dict) or any(isinstance(v, dict) for v in values.values()):
        raise InputError.of(
            ENV_FILE, str(path), "a flat mapping of settings to values, such as 'eps: 0.1'", "put one setting on a line"
        )
    return {str(k): _none(v) for k, v in values.items()}


def _parse(text: str) -> Any:
    """A variable's text by the rules of the file: ``15`` is a number, ``true`` a boolean."""
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def _none(value: Any) -> Any:
    """``none`` is what Python and our messages call YAML's ``null``."""
    return None if isinstance(value, str) and value.lower() == "none" else value


def as_dict(sections: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    """Plain nested dict for the checkpoint."""
    return {key: dataclasses.asdict(section) for key, section in sections.items()}


def flat(saved: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One flat mapping from a saved nested one."""
    return {name: value for section in saved.values() for name, value in section.items()}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase per setting that differs, ``"eps: 15.0 in the checkpoint, 10.0 now"``."""
    names = [*now, *(n for n in saved if n not in now)]
    return [
        f"{n}: {json.dumps(saved.get(n))} in the checkpoint, {json.dumps(now.get(n))} now"
        for n in names
        if saved.get(n) != now.get(n)
    ]


def table(sections: Mapping[str, Settings]) -> str:
    """The settings as text, one a line with its meaning; those that differ from the default are marked."""
    lines = []
    for key, section in sections.items():
        lines.append(f"{key}:")
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            mark = "*" if value != field.default else " "
            lines.append(f" {mark} {field.name} = {value}    ({field.metadata['help']})")
    return "\n".join(lines)
