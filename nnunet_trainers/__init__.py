"""nnU-Net trainers (``nnUNetv2_train DATASET CONFIGURATION FOLD -tr IMATrainer``), and nnU-Net's models for MONAI."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from packaging.version import Version

from monai_adv.optional import require

if TYPE_CHECKING:
    from nnunet_trainers.monai_network import NNUNetModel as NNUNetModel

__all__ = ["NNUNetModel"]

_OLDEST_HOST = "2.8.0"  # the first release that looks for trainers in nnUNet_extTrainer


def __getattr__(name: str) -> object:
    """Import a trainer, or the model, when it is asked for: the doctor must start where torch or nnU-Net is broken.

    The doctor and the demo are modules of this package, so a plain import would cost them what nnU-Net's costs, a
    hundred times their own start.
    """
    modules = {"NNUNetModel": "nnunet_trainers.monai_network"}
    if name not in modules and not name.endswith("Trainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require(f"nnunet_trainers.{name}", "nnunetv2")
    found = version("nnunetv2")
    if Version(found) < Version(_OLDEST_HOST):
        raise ImportError(
            f"nnunetv2: received version {found}, allowed is {_OLDEST_HOST} or newer; "
            "run 'pip install --upgrade nnunetv2'."
        )
    return getattr(import_module(modules.get(name, "nnunet_trainers.trainers")), name)
