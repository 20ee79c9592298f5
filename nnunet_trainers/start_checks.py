"""What a training is refused for before it makes a folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from monai_adv.errors import InputError
from nnunet_trainers.mixing import Mixing, defining


def check_device(device: torch.device) -> None:
    """nnU-Net's default is a GPU; on a machine without one it would fail deep in its constructor.

    Raises:
        InputError: says which device there is.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError.of(
            "-device", device.type, "a device of this machine, where PyTorch finds no NVIDIA GPU",
            "add '-device cpu' to nnUNetv2_train ('mps' on a Mac), or fix the driver if there is a GPU",
        )  # fmt: skip


def check_mixture(trainer: type) -> None:
    """Two training steps cannot be one: an attack would be missing, or the variant's own idea."""
    for name in ("train_step", "validation_step"):
        mixed = [c for c in defining(trainer, name) if issubclass(c, nnUNetTrainer) and not isinstance(c, Mixing)]
        others = [c.__name__ for c in mixed]
        if others:
            raise InputError.of(
                "trainer", f"{trainer.__name__} with the {name} of {', '.join(others)}", f"nnU-Net's own {name}",
                "a robust trainer has its own; write what yours does into a subclass of both, calling super()",
            )  # fmt: skip


def check_writable() -> None:
    """nnU-Net makes its folders in the constructor; say it before a stack of calls does."""
    if not nnUNet_results.is_set():
        return
    folder = Path(nnUNet_results.require())
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError.of("nnUNet_results", str(folder), f"a folder you may write to ({existing} is not)",
                            "set the variable to another folder or fix the permissions")  # fmt: skip
