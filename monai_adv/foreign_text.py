"""Text from elsewhere (names of files, patients, classes, models) that a terminal or a spreadsheet could obey.

A file called ``=HYPERLINK("http://...")`` becomes a link in a spreadsheet, and one with an escape sequence in its name
can clear a terminal or rewrite what was printed before.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

_CONTROLS = [c for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\t\n"]
_HIDDEN = [0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF]  # they reorder what is read
_BYTES = range(0xDC80, 0xDD00)  # what Python makes of a name that is not UTF-8
_HALVES = [c for c in range(0xD800, 0xE000) if c not in _BYTES]
_SHOWN = {
    **{c: f"\\x{c:02x}" for c in _CONTROLS},
    **{c: f"\\u{c:04x}" for c in (*_HIDDEN, *_HALVES)},
    **{c: f"\\x{c - 0xDC00:02x}" for c in _BYTES},
}
# Spreadsheets split at semicolons and tabs as well, and read the wide forms of the four signs.
_FORMULA = r"(?=\s*['=+\-@＝＋－＠])"
_BEFORE_FORMULA = re.compile(rf"(^|[;\t\r\n]){_FORMULA}")
_MARKED = re.compile(rf"(^|[;\t\r\n])'{_FORMULA}")


def printable(text: str) -> str:
    r"""Text with its control characters, except line ends and tabs, written as Python writes them.

    Example:
        >>> print(printable("scan\x1b[2J, \u202egpj.exe"))
        scan\x1b[2J, \u202egpj.exe
    """
    return text.translate(_SHOWN)


def say(text: str, file: TextIO | None = None) -> None:
    """Print what may hold names from elsewhere."""
    print(printable(text), file=file)


def cell(value: Any) -> Any:
    """What a CSV file may hold: an apostrophe before text that a spreadsheet would compute, as it marks text itself.

    Numbers stay what they are; :func:`from_cell` is the way back.

    Example:
        >>> cell("=1+1"), cell("liver"), cell("-0.5"), cell(-0.5), cell("a;@b")
        ("'=1+1", 'liver', '-0.5', -0.5, "a;'@b")
    """
    if not isinstance(value, str):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return _BEFORE_FORMULA.sub(r"\1'", value)


def from_cell(text: str) -> str:
    """The text that :func:`cell` was given.

    Example:
        >>> from_cell("'=1+1"), from_cell("'tis")
        ('=1+1', "'tis")
    """
    return _MARKED.sub(r"\1", text)


def csv_text(head: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a head, through :func:`cell`; what a row lacks is empty."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)  # only with its own line ends does Python quote every line end in a cell
    writer.writerow(map(cell, head))
    writer.writerows([cell(row.get(name, "")) for name in head] for row in rows)
    return buffer.getvalue()
