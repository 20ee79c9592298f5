"""Frozen dataclasses as JSON and back: the one place that says how what an evaluation keeps is written and read.

Not pydantic's: names may come from file names whose bytes are no Unicode, and those it refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import JsonValue

T = TypeVar("T")
Json = dict[str, Any]
"""What json has read, before it is known to be what it should be."""
Plain = dict[str, JsonValue]
"""Settings of an attack: what they are is the attack's own affair."""


def optional(default: Any = None) -> Any:
    """A field of a dataclass that is left out of the file while it has its default; all others stand in it."""
    return field(default=default, metadata={"optional": True})


def keyed(key: str) -> Any:
    """A field that has this name in the file, where Python has another use for the word."""
    return field(metadata={"key": key})


def plain(value: Any) -> Any:
    """Nested plain values: a dataclass as a dictionary, a tuple as a list; NaN stays NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = ((f, getattr(value, f.name)) for f in fields(value))
        return {_key(f): plain(v) for f, v in parts if not (f.metadata.get("optional") and v == f.default)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def plain_values(value: Any) -> Any:
    """As :func:`plain`, with NaN and infinity as None: for files that others read, whose JSON has no NaN."""
    return _finite(plain(value))


def typed(kind: type[T], content: Any, *, null_is_nan: bool = False) -> T:
    """What :func:`plain` made plain.

    Args:
        kind: a dataclass, or another type that its fields may have.
        content: as json has read it.
        null_is_nan: it was made by :func:`plain_values`: a float that is None is NaN.

    Raises:
        ValueError: a field that is missing, unknown or of another type; names it.

    Example:
        >>> from monai_adv.metrics.score import Score
        >>> content = plain(Score("a", 0.5))
        >>> typed(Score, content) == Score("a", 0.5)
        True
        >>> typed(Score, content | {"score": "0.5"})
        Traceback (most recent call last):
        ValueError: score: received '0.5', allowed is float
        >>> typed(Score, {"case": "a", "score": 0.5})
        Traceback (most recent call last):
        ValueError: dice is missing
    """
    found: T = _read(kind, content, "", null_is_nan)
    return found


def _read(kind: Any, content: Any, place: str, nan: bool) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is JsonValue or kind is Any:
        return content
    if kind is float and type(content) in (int, float):
        return float(content)
    if kind is float and content is None and nan:
        return math.nan
    if kind in (int, str, bool, NoneType) and type(content) is kind:
        return content
    if origin is Literal and content in parts:
        return content
    if origin in (Union, UnionType):
        return _one_of(parts, kind, content, place, nan)
    if origin in (tuple, list) and isinstance(content, list):
        kinds = parts if origin is tuple and parts[-1] is not Ellipsis else parts[:1] * len(content)
        if len(kinds) == len(content):
            pairs = enumerate(zip(kinds, content, strict=True))
            return origin(_read(k, each, f"{place}[{i}]", nan) for i, (k, each) in pairs)
    if origin is dict and isinstance(content, dict):
        key, value = parts
        return {
            _read(key, name, place, nan): _read(value, each, _inside(place, name), nan)
            for name, each in content.items()
        }
    if hasattr(kind, "_fields") and isinstance(content, list) and len(content) == len(kind._fields):
        return kind(*(_read(k, v, place, nan) for k, v in zip(get_type_hints(kind).values(), content, strict=True)))
    if is_dataclass(kind) and isinstance(content, dict):
        return _dataclass(kind, content, place, nan)
    raise _refused(kind, content, place)


def _dataclass(kind: Any, content: Mapping[str, Any], place: str, nan: bool) -> Any:
    """Neither a default nor silence takes the place of a field."""
    known = _fields(kind)
    if missing := [name for name, field in known.items() if name not in content and not field.optional]:
        raise ValueError(f"{_inside(place, missing[0])} is missing")
    if unknown := [name for name in content if name not in known]:
        raise ValueError(f"{_inside(place, unknown[0])} is not known")
    found = {known[name].name: _read(known[name].kind, v, _inside(place, name), nan) for name, v in content.items()}
    return kind(**found)


def _one_of(parts: tuple[Any, ...], kind: Any, content: Any, place: str, nan: bool) -> Any:
    """The first kind that fits; if one alone is no None, what does not fit in it."""
    others = [part for part in parts if part is not NoneType]
    if content is None and len(others) < len(parts):
        return None
    if len(others) == 1:
        return _read(others[0], content, place, nan)
    for part in others:
        try:
            return _read(part, content, place, nan)
        except ValueError:
            continue
    raise _refused(kind, content, place)


class _Known(NamedTuple):
    """A field of a dataclass; ``optional``: a file may leave it out."""

    name: str
    kind: Any
    optional: bool


@cache
def _fields(kind: Any) -> dict[str, _Known]:
    """By their names in a file."""
    hints = get_type_hints(kind)
    return {_key(f): _Known(f.name, hints[f.name], bool(f.metadata.get("optional"))) for f in fields(kind)}


def _key(one: Field[Any]) -> str:
    return str(one.metadata.get("key", one.name))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _refused(kind: Any, content: Any, place: str) -> ValueError:
    shown = repr(content)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    allowed = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    return ValueError(f"{place}: received {shown}, allowed is {allowed}".removeprefix(": "))
