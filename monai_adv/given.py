"""Numbers as users write them, in files, in variables, on the command line and in Python: one reading for all."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import Any

from monai_adv.errors import InputError

Box = tuple[float, float]
LARGEST_SEED = 2**63 - 1
"""That torch's generators take."""

A_NUMBER = "a number such as 0.03 or 8/255"
A_BOX = "two numbers, lowest and highest, such as 0, 1"


def number(name: str, given: Any, allowed: str = A_NUMBER, todo: str = "") -> float:
    """A number, or the quotient of two.

    Args:
        name: of the argument, for the message.
        given: a number, or its text.
        allowed, todo: for the message about what is not even a number.

    Raises:
        InputError: anything else, or a quotient by 0.

    Example:
        >>> number("eps", "8/255") == 8 / 255
        True
    """
    try:
        if isinstance(given, bool):
            raise TypeError
        parts = [float(part) for part in given.split("/")] if isinstance(given, str) else [float(given)]
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor with several numbers
        raise InputError.of(name, given, allowed, todo) from None
    if len(parts) == 1:
        return parts[0]
    if len(parts) > 2 or not all(map(math.isfinite, parts)):
        raise InputError.of(name, given, allowed, "a quotient has two numbers and one stroke")
    if parts[1] == 0:
        raise InputError.of(name, given, allowed, "nothing can be divided by 0")
    return parts[0] / parts[1]


def whole(name: str, given: Any, least: int, most: int | None = None, allowed: str = "") -> int:
    """A whole number, also one of NumPy's: neither a fraction nor a truth value, which would count as 1.

    Args:
        name: of the argument, for the message.
        given: the number.
        least, most: of what is allowed; None: there is no largest.
        allowed: for the message; default: says ``least`` and ``most``.

    Raises:
        InputError: anything else.

    Example:
        >>> whole("cases", 3, 1)
        3
        >>> whole("cases", 2.5, 1)
        Traceback (most recent call last):
        monai_adv.errors.InputError: cases: received 2.5, allowed is a whole number >= 1.
    """
    allowed = allowed or f"a whole number {f'>= {least}' if most is None else f'from {least} to {most}'}"
    try:
        found = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        found = None
    if found is None or found < least or (most is not None and found > most):
        raise InputError.of(name, given, allowed)
    return found


def box(name: str, given: Any) -> Box:
    """Lowest and highest intensity of an attacked image.

    Args:
        name: of the argument, for the message.
        given: two numbers, or their text with a comma or a space between them.

    Raises:
        InputError: not two finite numbers in ascending order.

    Example:
        >>> box("box", "0, 1"), box("box", [-1, "8/255"]) == (-1.0, 8 / 255)
        ((0.0, 1.0), True)
    """
    parts = re.split(r"\s*[,\s]\s*", given.strip().strip("[]()").strip()) if isinstance(given, str) else given
    todo = "give none for z-scored images, which have no bounds"
    if not isinstance(parts, Sequence) or len(parts) != 2:
        raise InputError.of(name, given, A_BOX, todo)
    low, high = (number(name, part) for part in parts)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError.of(name, given, f"{A_BOX}, LOW < HIGH", todo)
    return low, high
