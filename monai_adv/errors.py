"""The exception that this package raises for input it cannot accept, and errors of others in one sentence."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import FrameType, TracebackType

from monai_adv.foreign_text import printable


class InputError(ValueError):
    """Something given to us cannot be used; the message is one sentence a user can act on.

    It names the argument, what was received, what is allowed, and what to do next. Names in it may come from elsewhere:
    control characters are written out.

    Example:
        >>> str(InputError.of("eps", -1.0, "a finite number > 0", "give 0.1"))
        'eps: received -1.0, allowed is a finite number > 0; give 0.1.'
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))

    @classmethod
    def of(cls, name: str, received: object, allowed: str, todo: str = "") -> InputError:
        """Build the sentence from its four parts."""
        sentence = f"{name}: received {received!r}, allowed is {allowed}" + (f"; {todo}" if todo else "")
        return cls(sentence if sentence.endswith(("?", "...")) else f"{sentence}.")

    def about(self, model: str) -> InputError:
        """The same of one of several models, which is named in front."""
        return self if str(self).startswith(f"{model}: ") else InputError(f"{model}: {self}")

    @classmethod
    def unknown(cls, name: str, what: str, known: Iterable[str]) -> InputError:
        """Something that does not exist, with what comes near it.

        Example:
            >>> str(InputError.unknown("step", "setting", ["eps", "steps"]))
            "step: unknown setting; did you mean 'steps'?"
        """
        sentence = f"{name}: unknown {what}; {did_you_mean(name, known)}"
        return cls(sentence if sentence.endswith("?") else f"{sentence}.")


class PlaceError(InputError):
    """A folder that was written to cannot be written any more: no fault of a case, so nothing can go on."""


class AttackError(InputError):
    """A plan or an attack of the user's own cannot be used: no fault of a case, so nothing can go on."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'eps'?"`` for a near miss, otherwise the list of what is known."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def first_cause(error: BaseException) -> str:
    """The first cause of an error in one line: MONAI wraps errors in others that only say where.

    Example:
        >>> first_cause(ValueError("no such axis."))
        'ValueError: no such axis'
    """
    if (sentence := own_sentence(error)) is not None:
        return sentence.rstrip(".")
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".: ")


def own_sentence(error: BaseException) -> str | None:
    """The sentence of the :class:`InputError` that others wrapped, or None: MONAI adds whole configs to it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, InputError):
            return str(found)
        found = found.__cause__
    return None


def in_a_sentence(error: BaseException, *, given: bool = False) -> str:
    """Any error in one line: our own sentence, or what was raised and in which line of whose code.

    Args:
        error: whatever was raised.
        given: by code that a user gave: lines of ours, which only called it, are not named.

    Example:
        >>> in_a_sentence(InputError.of("eps", -1.0, "a number > 0"))
        'eps: received -1.0, allowed is a number > 0.'
    """
    if (sentence := own_sentence(error)) is not None:
        return sentence
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [(f, line) for f, line in traceback.walk_tb(error.__traceback__) if not (given and _is_ours(f))]
    where = f" ({Path(lines[-1][0].f_code.co_filename).name}, line {lines[-1][1]})" if lines else ""
    return f"{first_cause(error)}{where}."


def is_of_ours(error: BaseException) -> bool:
    """Whether an error was raised in a line of this package, not in what that called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and _is_ours(frames[-1])


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("monai_adv", "nnunet_trainers")


def say_it_last() -> None:
    """Let an uncaught error that wraps our sentence end with it: MONAI's own message prints 50 lines of a config."""
    shown = sys.excepthook
    if getattr(shown, "says_it_last", False):
        return

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        sentence = own_sentence(error)
        if sentence is not None and not isinstance(error, InputError):
            print(f"monai-adv: {sentence}", file=sys.stderr)

    show.says_it_last = True  # type: ignore[attr-defined]
    sys.excepthook = show
