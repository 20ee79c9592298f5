"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """So many of something.

    Example:
        >>> counted(1, "case"), counted(0, "image")
        ('1 case', '0 images')
    """
    return f"{number} {what}" + "s" * (number != 1)
