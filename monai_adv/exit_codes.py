"""What the commands end with, for scripts."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``monai-adv``; the end of each command's ``--help`` says what they mean there.

    Two commands have their own: ``monai-adv verify`` (1, something differs, and 2, something could not be checked) and
    ``monai-adv doctor`` (1, something is not in order).
    """

    FINISHED = 0
    CASES_LEFT_OUT = 1
    BAD_INPUT = 2
    NOT_RELIABLE = 3
    """A check FAILED, or an attack beat a certificate."""
    UNEXPECTED = 4
    """An error that none of us foresaw; 1, Python's own, is a result here."""
    WORSE = 5
    INTERRUPTED = 130
    """As of any program that is ended by Ctrl-C."""
    BROKEN_PIPE = 141
    """As of any program that writes to ``| head`` when that has ended."""
