"""The time as an evaluation writes it down."""

from __future__ import annotations

from datetime import datetime


def now() -> str:
    """Date and time with the zone, to the second, in ISO 8601: two files of one second have the same.

    Example:
        >>> from datetime import datetime
        >>> datetime.fromisoformat(now()).tzinfo is None
        False
    """
    return datetime.now().astimezone().isoformat(timespec="seconds")
