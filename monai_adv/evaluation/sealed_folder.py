"""A folder whose files cannot be mistaken for others: each is whole, and says by a checksum where it belongs.

Every file is written beside its place and then moved into it, so a file that is there is complete. It carries a
checksum over its content and its place (see seal.py), also over the evaluation that it belongs to: what was edited,
copied or shortened is refused, with its name. Nothing outside the folder is read or deleted, whatever the files say.

Numbers are written so that reading gives the same bits; NaN is written as ``NaN``, as Python's json does.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

from monai_adv.errors import InputError, PlaceError, first_cause
from monai_adv.evaluation import seal
from monai_adv.evaluation.codec import Json, plain, typed
from monai_adv.evaluation.differences import NOT_COMPARED
from monai_adv.files import LOCK, PARTIAL, locked, write_whole

FORMAT = 3
NAME = "evaluation.json"
"""Of the file that says what is evaluated."""
EVALUATION = "evaluation"
"""Its place, wherever the folder is."""
AGAIN = "delete it and give the same command again"
T = TypeVar("T")


def is_begun(folder: str | Path) -> bool:
    """Whether a folder holds an evaluation, or certificates, that somebody has begun."""
    return (Path(folder) / NAME).exists()


def read_beginning(folder: str | Path, kind: type[T]) -> T:
    """What is evaluated and how.

    Args:
        folder: of an evaluation.
        kind: of the content.

    Raises:
        InputError: no such file, or not ours.
    """
    path = Path(folder) / NAME
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
        known = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: not the folder of an evaluation, its evaluation.json gives {error!r}.") from error
    if known != FORMAT:
        raise InputError.of(str(path), f"format {known}", f"format {FORMAT}", "use the monai-adv that wrote it")
    with reading(path, "bring back the file as it was, or give a new folder"):
        return typed(kind, seal.opened(content, EVALUATION))


def safe_name(name: str) -> str:
    """A file name for any text, on any file system; two texts never share one.

    Example:
        >>> safe_name("hippocampus_001"), safe_name("l2-5")
        ('hippocampus_001', 'l2-5')
        >>> safe_name("a/b") == safe_name("a-b"), safe_name("IMA").lower() == safe_name("ima")
        (False, False)
    """
    if re.fullmatch(r"[a-z0-9_-]([a-z0-9._-]{0,78}[a-z0-9_-])?", name):
        return name
    # Some file systems do not tell capitals apart, and all bound the length: the hash does the telling.
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".")
    return f"{readable}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


class SealedFolder:
    """Reads and writes the files of one evaluation.

    Args:
        folder: where they lie.
        write: writes one file, wholly or not at all.
    """

    def __init__(self, folder: str | Path, write: Callable[[Path, bytes], None] = write_whole) -> None:
        self.folder, self._write_whole = Path(folder), write

    @cached_property
    def _identity(self) -> str:
        """Of the evaluation: what belongs to another one does not belong here."""
        content = read_beginning(self.folder, Json)
        return seal.checksum({name: value for name, value in content.items() if name not in NOT_COMPARED})

    def check_place(self) -> None:
        """Refuse, before anything is computed, a folder that cannot be written or is somebody else's.

        Raises:
            InputError: says which.
        """
        try:
            new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_whole(self.folder / "trial", b"")
            (self.folder / "trial").unlink()
            names = [p.name for p in self.folder.iterdir() if p.name != LOCK and not p.name.endswith(PARTIAL)]
            for folder in new:  # they come with the first file, when all input has been accepted
                folder.rmdir()
        except OSError as error:
            todo = "choose a folder that you may write to"
            raise InputError.of(
                "folder", str(self.folder), f"a folder that can be written ({error.strerror})", todo
            ) from (error)
        if names and NAME not in names:
            raise InputError.of(
                "folder", str(self.folder), "a new or empty folder, or that of an evaluation",
                f"this one holds {', '.join(sorted(names)[:3])} and no evaluation.json",
            )  # fmt: skip

    def lock(self) -> TextIO | None:
        """Make the folder, and take it for this process alone; see :func:`~monai_adv.files.locked`.

        Raises:
            InputError: it cannot be used, or another process uses it.
        """
        self.check_place()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return locked(self.folder)
        except BlockingIOError as error:
            raise InputError.of(
                "folder", str(self.folder), f"a folder in which no other evaluation runs, here {error}",
                "wait for its end, or give another folder",
            ) from error  # fmt: skip

    def path(self, kind: str, *names: str, suffix: str = ".json") -> Path:
        """Where a file of these names lies.

        Raises:
            InputError: a link leads out of the folder: what is not ours is neither read nor deleted.
        """
        *above, last = map(safe_name, names)
        path = self.folder.joinpath(kind, *above, last + suffix)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{path}: leads out of the folder, to {path.resolve()}; remove this link.")
        return path

    def drop_partials(self, age: float = 0.0) -> None:
        """Delete what killed processes had not finished writing.

        Args:
            age: in seconds, of the youngest: a younger file may belong to a worker that still lives.
        """
        for path in self.folder.rglob(f"*{PARTIAL}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime >= age:
                    path.unlink()

    def begin(self, evaluation: Any) -> None:
        """Write what is evaluated, into a folder that has no such file.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            self._write_whole(self.folder / NAME, _json(seal.sealed(plain(evaluation), EVALUATION)))
        except OSError as error:
            raise InputError.of(
                "folder", str(self.folder), f"a folder that can be written ({error.strerror})"
            ) from error

    def _place(self, path: Path) -> tuple[str, str]:
        return self._identity, path.relative_to(self.folder).as_posix()

    def write(self, path: Path, content: Any) -> None:
        """Keep a dataclass, or a dictionary of plain values.

        Raises:
            PlaceError: see :meth:`_write_bytes`.
        """
        self._write_bytes(path, _json(seal.sealed(plain(content), *self._place(path))))

    def read(self, path: Path, kind: type[T], todo: str = AGAIN) -> T:
        """What :meth:`write` wrote there.

        Args:
            path: of the file.
            kind: of the dataclass.
            todo: what to do about another file.

        Raises:
            InputError: something else lies there; says what to do.
        """
        with reading(path, todo):
            return typed(kind, seal.opened(json.loads(path.read_text(encoding="utf-8")), *self._place(path)))

    def write_arrays(self, path: Path, compressed: bool = False, **arrays: np.ndarray[Any, Any]) -> None:
        """Keep arrays by their names.

        Raises:
            PlaceError: see :meth:`_write_bytes`.
        """
        self._write_bytes(path, _npz(compressed, **seal.sealed_arrays(arrays, *self._place(path))))

    def read_arrays(self, path: Path, todo: str) -> dict[str, np.ndarray[Any, Any]]:
        """What :meth:`write_arrays` wrote there.

        Raises:
            InputError: something else lies there; says what to do.
        """
        with reading(path, todo), np.load(path) as file:
            return seal.opened_arrays(dict(file), *self._place(path))

    def _write_bytes(self, path: Path, content: bytes) -> None:
        """Write a file of an evaluation that has begun.

        Raises:
            PlaceError: it cannot be written, or somebody deleted the folder.
        """
        if not is_begun(self.folder):
            raise PlaceError(f"{self.folder}: was deleted or moved away while the evaluation ran; start it again.")
        try:
            self._write_whole(path, content)
        except OSError as error:
            raise PlaceError(
                f"{path}: cannot be written ({error.strerror or error}); make room or give the permission, and go on "
                "with the same command. What was finished is kept."
            ) from error


@contextmanager
def reading(path: Path, todo: str) -> Iterator[None]:
    """Name the file that is not as it was written, and what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zip, numpy and json raise kinds of their own
        reason = str(error) if type(error) is ValueError else first_cause(error)
        raise InputError(f"{path}: is not as it was written ({reason.rstrip('.')}); {todo}.") from error


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _npz(compressed: bool = False, **arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
