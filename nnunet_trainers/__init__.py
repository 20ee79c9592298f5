"""nnU-Net trainers: ``nnUNetv2_train DATASET CONFIGURATION FOLD -tr IMATrainer``."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

_OLDEST_HOST = "2.8.0"  # the first release that looks for trainers in nnUNet_extTrainer
if Version(version("nnunetv2")) < Version(_OLDEST_HOST):
    raise ImportError(
        f"nnunetv2: received version {version('nnunetv2')}, allowed is {_OLDEST_HOST} or newer; "
        "run 'pip install --upgrade nnunetv2'."
    )

from nnunet_trainers.ima import IMATrainer  # noqa: E402  (the version check gives the clearer error)

__all__ = ["IMATrainer"]
