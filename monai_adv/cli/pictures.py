"""What commands that draw a picture share: where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_adv.errors import InputError


def png_file(word: str) -> Path:
    """The file of ``-o``, looked at before the work.

    Raises:
        InputError: another ending, a folder, or a folder that is not there.
    """
    found = Path(word)
    if found.suffix.lower() != ".png" or not found.resolve().parent.is_dir() or found.is_dir():
        raise InputError.of("-o", word, "a file that ends in .png, in a folder that exists")
    return found


@contextmanager
def writing(word: str) -> Iterator[None]:
    """Say of the file of ``-o`` why it could not be written.

    Raises:
        InputError: so.
    """
    try:
        yield
    except OSError as error:
        raise InputError.of("-o", word, f"a file that can be written ({error.strerror})") from error
