"""How an evaluation differs from the one that a folder holds, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from monai_adv.evaluation.models.fingerprint import same_computed

NOT_COMPARED = ("started", "machine", "run_file", "words")
"""Entries of ``evaluation.json`` that may differ when an evaluation goes on."""


def differences(here: Any, new: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Where two contents of ``evaluation.json`` differ, and how.

    Args:
        here: plain values, of the file.
        new: plain values, of the evaluation that would go on with it.
        name: of the part.

    Yields:
        names of parts, and sentences.
    """
    if name.endswith(".computes") and isinstance(here, dict) and isinstance(new, dict):
        if not same_computed(here, new):
            parts = [part for part in here if part in new and not same_computed({part: here[part]}, new)]
            yield name, f"another {' and '.join(parts)} for the same case: the code, its settings or its data changed"
    elif isinstance(here, dict) and isinstance(new, dict):
        for key in [*here, *(k for k in new if k not in here)]:
            if name or key not in NOT_COMPARED:
                yield from differences(here.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(here, list) and isinstance(new, list) and len(here) == len(new):
        for i, (a, b) in enumerate(zip(here, new, strict=True)):
            label = _label(a) or i
            if _label(a) != _label(b):  # something else altogether: how it differs otherwise is no news
                yield f"{name}[{label}]", f"{_short(a)} there, {_short(b)} now"
            else:
                yield from differences(a, b, f"{name}[{label}]")
    elif name.endswith(".fingerprint"):
        if here != new:
            yield name, "other weights, other data, or deployed in another way"
    elif name.endswith(".files"):
        if here != new:
            yield name, "the contents of files"
    elif here != new:
        yield name, f"{_short(here)} there, {_short(new)} now"


def _label(value: Any) -> str | None:
    """What an entry of a list is called."""
    return value.get("name", value.get("key")) if isinstance(value, dict) else None


def _short(value: Any) -> str:
    if _label(value):
        value = _label(value)
    elif isinstance(value, list) and any(map(_label, value)):
        value = list(map(_label, value))
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
