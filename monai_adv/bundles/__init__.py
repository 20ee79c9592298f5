"""What the bundles in ``bundles/`` share.

Their configs say ``$import monai_adv.bundles as bundles`` and use the names below. Nothing is imported before it is
needed, because ``monai-adv bundle`` builds its parser at every start of ``monai-adv``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from monai_adv.errors import say_it_last

if TYPE_CHECKING:
    from monai_adv.bundles.image_index import file_cells, image_files, read_index
    from monai_adv.bundles.phantoms import write_phantom
    from monai_adv.bundles.start import check_keys, device
    from monai_adv.bundles.transforms import GreySliced, WithinRanged
    from monai_adv.bundles.weights import load_weights
    from monai_adv.evaluation.models.bundle.live import evaluate

say_it_last()

_PLACES = {
    "GreySliced": "monai_adv.bundles.transforms",
    "WithinRanged": "monai_adv.bundles.transforms",
    "check_keys": "monai_adv.bundles.start",
    "device": "monai_adv.bundles.start",
    "evaluate": "monai_adv.evaluation.models.bundle.live",
    "load_weights": "monai_adv.bundles.weights",
    "file_cells": "monai_adv.bundles.image_index",
    "image_files": "monai_adv.bundles.image_index",
    "read_index": "monai_adv.bundles.image_index",
    "write_phantom": "monai_adv.bundles.phantoms",
}
__all__ = [
    "GreySliced",
    "WithinRanged",
    "check_keys",
    "device",
    "evaluate",
    "file_cells",
    "image_files",
    "load_weights",
    "read_index",
    "write_phantom",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_PLACES[name]), name)
