"""Files of certificates in a folder: each is whole, and says by a checksum where it belongs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation import seal
from monai_adv.evaluation.certify.cases import Certified
from monai_adv.evaluation.codec import plain, typed
from monai_adv.files import write_whole

T = TypeVar("T")


@dataclass(frozen=True)
class Proven:
    """What is proven about a patient, or about each image of a case."""

    cases: tuple[Certified, ...]


def keep(path: Path, content: object, *place: str) -> None:
    """Write a dataclass.

    Args:
        path: of the file; its folder is made.
        content: a dataclass.
        place: words that say where it belongs.
    """
    write_whole(path, json.dumps(seal.sealed(plain(content), *place), indent=1))


def read_kept(path: Path, kind: type[T], *place: str, todo: str = "delete it") -> T:
    """What :func:`keep` wrote there.

    Raises:
        InputError: a file that was changed or is damaged; names it and the field.
    """
    try:
        return typed(kind, seal.opened(json.loads(path.read_text(encoding="utf-8")), *place))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError.of(str(path), in_a_sentence(error), "the file as it was written", todo) from error
