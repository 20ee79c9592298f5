"""What is kept of certificates, in the store of an evaluation.

certificates/MODEL/CASE.json           what is proven about a case
certificates/MODEL/CASE/LEVEL.json     what draws that no attack knew say about its worst images, "clean" of the
                                       unchanged ones; only where the smoothed model was attacked
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from monai_adv.evaluation.certify.cases import Certified
from monai_adv.evaluation.sealed_folder import SealedFolder

FOLDER = "certificates"
T = TypeVar("T")


@dataclass(frozen=True)
class Proven:
    """What is proven about a patient, or about each image of a case."""

    cases: tuple[Certified, ...]


@dataclass(frozen=True)
class Judged:
    """What other draws say about the worst images of a case at a level.

    Attributes:
        radius: L2 norm in network inputs.
        scores: by patient or image.
        labels: of each that were voted on.
    """

    radius: float
    scores: dict[str, float]
    labels: int


def is_certified(store: SealedFolder, model: str, case: str) -> bool:
    """Whether a case is kept already."""
    return store.path(FOLDER, model, case).exists()


def keep(store: SealedFolder, content: Proven | Judged, *place: str) -> None:
    """Write what belongs to a model, a case and, if something was judged, a level.

    Raises:
        PlaceError: it cannot be written.
    """
    store.write(store.path(FOLDER, *place), content)


def read(store: SealedFolder, kind: type[T], *place: str) -> T | None:
    """What :func:`keep` wrote there, or None.

    Raises:
        InputError: a file that was changed, is damaged or is of another evaluation; names it.
    """
    path = store.path(FOLDER, *place)
    return store.read(path, kind) if path.exists() else None


def read_certified(store: SealedFolder, model: str, cases: Iterable[str]) -> list[Certified]:
    """What is proven about each patient or image of these cases, as far as it is kept.

    Raises:
        InputError: see :func:`read`.
    """
    found = (read(store, Proven, model, case) for case in cases)
    return [one for proven in found if proven for one in proven.cases]
