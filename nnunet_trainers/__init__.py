"""nnU-Net trainers (``nnUNetv2_train DATASET CONFIGURATION FOLD -tr IMATrainer``), and nnU-Net's models for MONAI."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from packaging.version import Version

if TYPE_CHECKING:
    from nnunet_trainers.monai_network import NNUNetModel as NNUNetModel

# The trainers, one per defence of the registry (a test compares): discovery takes every name here for one. Written out
# because the registry imports torch, and the doctor must start where torch or nnU-Net is broken.
__all__ = [
    "ARFLTrainer",
    "ATESTrainer",
    "CATTrainer",
    "CustomizedATTrainer",
    "DATTrainer",
    "DSBNTrainer",
    "DualTrainer",
    "FATTrainer",
    "FGSMRSTrainer",
    "FGSMSDITrainer",
    "FreeATTrainer",
    "GAIRATTrainer",
    "GRTrainer",
    "IAATTrainer",
    "IMATrainer",
    "LBGATTrainer",
    "LLRTrainer",
    "MARTTrainer",
    "MIRSTTrainer",
    "MMATrainer",
    "RSTTrainer",
    "SATTrainer",
    "StandardTrainer",
    "TETrainer",
    "TRADESTrainer",
]

_MODULES = {**dict.fromkeys(__all__, "nnunet_trainers.trainers"), "NNUNetModel": "nnunet_trainers.monai_network"}
_OLDEST_HOST = "2.8.0"  # the first release that looks for trainers in nnUNet_extTrainer


def __getattr__(name: str) -> object:
    """Import a trainer when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = version("nnunetv2")
    if Version(found) < Version(_OLDEST_HOST):
        raise ImportError(
            f"nnunetv2: received version {found}, allowed is {_OLDEST_HOST} or newer; "
            "run 'pip install --upgrade nnunetv2'."
        )
    return getattr(import_module(_MODULES[name]), name)
