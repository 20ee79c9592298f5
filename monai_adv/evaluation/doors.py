"""What the functions that a user calls from Python share."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from monai_adv import given
from monai_adv.evaluation.settings import CASES


def chosen_cases(cases: Any) -> int | tuple[str, ...] | None:
    """A number, or names, as :class:`~monai_adv.evaluation.settings.EvaluationSettings` takes them.

    Raises:
        InputError: neither of them.

    Example:
        >>> chosen_cases("patient 1"), chosen_cases(["a", "b"]), chosen_cases(3)
        (('patient 1',), ('a', 'b'), 3)
    """
    if cases is None:
        return None
    if isinstance(cases, str) or not hasattr(cases, "__iter__"):
        return (cases,) if isinstance(cases, str) else given.whole("cases", cases, 1, allowed=CASES)
    return tuple(map(str, cases))


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def warn_of(problems: Sequence[tuple[str, str, str]], place: str) -> None:
    """Warn whoever called the function that calls this one; nothing without a problem.

    Args:
        problems: (model, case, reason) of what could not be used.
        place: where all of them stand.

    Warns:
        UserWarning: names the first three.
    """
    if problems:
        which = "; ".join(f"{m}{', ' + c if c else ''}: {reason}" for m, c, reason in problems[:3])
        warnings.warn(f"{len(problems)} could not be used, see {place}: {which}", stacklevel=3)
