"""Files that are there completely or not at all, also after a crash, a full disk or a power cut."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"
PARTIAL = ".partial"
LOCK = "lock"


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


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write by :func:`whole_file` what is there already; several processes may write the same path.

    Args:
        path: of the file.
        content: text is written in UTF-8; what that does not have, as in file names of other code pages, ``\\udcff``.

    Raises:
        OSError: see :func:`whole_file`.
    """
    with whole_file(path, f"-{secrets.token_hex(4)}{PARTIAL}") as file:
        file.write(content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content)


def locked(folder: Path) -> TextIO | None:
    """Take a folder for this process alone, until the file that is returned is given to :func:`unlocked`.

    The system frees the lock when the process ends, however it ends: a lock file that is left behind means nothing.

    Returns:
        the open lock file, or None where the system or the file system has no locks.

    Raises:
        BlockingIOError: another process has it; the message says which.
        OSError: the folder cannot be written.
    """
    if fcntl is None:
        return None
    path = folder / LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise BlockingIOError(holder) from None
        except OSError:  # a network file system without locks
            file.close()
            return None
        # The one before may have deleted the file between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            return file
        file.close()


def unlocked(file: TextIO | None) -> None:
    """Give a folder free again."""
    if file is not None:
        with suppress(OSError):  # the folder may be gone
            os.unlink(file.name)
        file.close()
