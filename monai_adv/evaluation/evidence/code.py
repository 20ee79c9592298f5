"""Which code measured: the version can stay while somebody edits a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("monai_adv", "nnunet_trainers")


def files_hash(named: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names and contents of files, in the order in which they come."""
    digest = hashlib.sha256()
    for name, file in named:
        digest.update(f"{name}\0".encode(errors="surrogatepass"))
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@cache
def code_hash() -> str:
    """SHA-256 over the names and contents of our own source files, as they are installed here."""
    return files_hash(
        (f"{package}/{file.relative_to(place).as_posix()}", file)
        for package in PACKAGES
        if (spec := find_spec(package))
        for place in spec.submodule_search_locations or []
        for file in sorted(Path(place).rglob("*.py"))
    )
