"""Files that are there completely or not at all, also after a crash, a full disk or a power cut."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"


@contextmanager
def whole_file(path: str | Path, suffix: str = TEMPORARY) -> Iterator[BinaryIO]:
    """Open a file for writing; it replaces ``path`` when all is written, and is removed if an error comes before.

    Args:
        path: of the file; folders are made.
        suffix: of the file's name while it is written, in the same folder. Where several processes may write the
            same path at once each needs one of its own.

    Raises:
        OSError: the file cannot be written; what was there before is intact.

    Example::

        with whole_file("models/state.pt") as file:
            torch.save(state, file)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name[:80] + suffix)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill; it becomes ``path`` when all is in it, and is removed if an error comes before.

    Every process gets one of its own, as when all ranks of a training come here at once; the first to end keeps it.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}-{secrets.token_hex(4)}{TEMPORARY}")
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
