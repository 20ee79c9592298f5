"""Checksums of what lies in a store, over its content and its place.

They tell a file that was edited, shortened, damaged or copied from another case, level, model or evaluation from the
one that was written there: what a report says about a case must have been measured on it. They are no signature: who
wants to deceive can compute them anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from monai_adv.evaluation.codec import Json

KEY = "checksum"
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def sealed(content: Mapping[str, Any], *place: str) -> Json:
    """The content with its checksum.

    Args:
        content: what json can write.
        place: words that say where it belongs.

    Example:
        >>> record = sealed({"score": 0.5}, "case 1")
        >>> opened(record, "case 1")
        {'score': 0.5}
        >>> opened(record, "case 2")
        Traceback (most recent call last):
        ValueError: its checksum does not fit: it was changed, damaged or copied from elsewhere
        >>> opened(record | {"score": 0.6}, "case 1")
        Traceback (most recent call last):
        ValueError: its checksum does not fit: it was changed, damaged or copied from elsewhere
    """
    return {**content, KEY: checksum(content, *place)}


def opened(content: Mapping[str, Any], *place: str) -> Json:
    """The content without its checksum.

    Raises:
        ValueError: it is not what :func:`sealed` made for this place.
    """
    bare = {name: value for name, value in content.items() if name != KEY}
    _compare(content.get(KEY), checksum(bare, *place))
    return bare


def sealed_arrays(arrays: Arrays, *place: str) -> dict[str, np.ndarray[Any, Any]]:
    """As :func:`sealed`, for arrays."""
    return {**arrays, KEY: np.array(_of_arrays(arrays, *place))}


def opened_arrays(arrays: Arrays, *place: str) -> dict[str, np.ndarray[Any, Any]]:
    """As :func:`opened`, for arrays.

    Raises:
        ValueError: they are not what :func:`sealed_arrays` made for this place.
    """
    bare = {name: values for name, values in arrays.items() if name != KEY}
    _compare(str(arrays[KEY]) if KEY in arrays else None, _of_arrays(bare, *place))
    return bare


def checksum(content: Mapping[str, Any], *place: str) -> str:
    """SHA-256 of a content that json can write, in whatever order and spacing, and of its place."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps([place, plain], sort_keys=True).encode()).hexdigest()


def _of_arrays(arrays: Arrays, *place: str) -> str:
    heads = {name: [values.dtype.str, list(values.shape)] for name, values in arrays.items()}
    digest = hashlib.sha256(checksum(heads, *place).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _compare(found: Any, expected: str) -> None:
    if found is None:
        raise ValueError("it has no checksum")
    if found != expected:
        raise ValueError("its checksum does not fit: it was changed, damaged or copied from elsewhere")
