"""One entry of a JSON file that somebody else wrote: all else in it stays as it is, letter by letter."""

from __future__ import annotations

import json
import re
from json.decoder import JSONDecoder

from pydantic import JsonValue


def with_entry(text: str, key: str, value: JsonValue) -> str:
    """The text of a JSON object with an entry, in the place of an older one or at the end.

    Args:
        text: of the object, as json can read it.
        key: of the entry.
        value: of the entry; laid out as the object is, on one line or indented.

    Example:
        >>> print(with_entry('{"b": [1, 2],\\n "a": 3}', "new", {"c": 4}))
        {"b": [1, 2],
         "a": 3,
         "new": {
          "c": 4
         }}
        >>> with_entry('{"new": 5, "a": 3}', "new", 6)
        '{"new": 6, "a": 3}'
    """
    decoder = JSONDecoder()
    begin = at = text.index("{") + 1
    place, end = None, begin
    while text[at := _next(text, at)] != "}":
        name, at = decoder.raw_decode(text, at)
        start = _next(text, at)
        _, end = decoder.raw_decode(text, start)
        place = (start, end) if name == key else place  # of several json takes the last
        at = end
    indent = found[1] if (found := re.search(r"\n([ \t]+)\S", text)) else None
    line = "\r\n" if "\r\n" in text else "\n"
    laid_out = json.dumps(value, indent=indent, ensure_ascii=False)
    laid_out = laid_out.replace("\n", f"{line}{indent}")
    if place:
        return text[: place[0]] + laid_out + text[place[1] :]
    comma = "," if end > begin else ""
    between = f"{comma}{line}{indent}" if indent else f"{comma} " * bool(comma)
    return f"{text[:end]}{between}{json.dumps(key)}: {laid_out}{text[end:]}"


def _next(text: str, at: int) -> int:
    """Behind blanks, commas and colons."""
    found = re.compile(r"[\s,:]*").match(text, at)
    assert found is not None
    return found.end()
