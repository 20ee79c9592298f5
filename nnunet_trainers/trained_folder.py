"""Find a checkpoint in a trained nnU-Net folder, and make sure that reading it runs no code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from monai_adv.errors import InputError

# nnU-Net's own trainers leave numpy scalars in the log. They are data: allowing them keeps weights_only=True possible.
_NUMPY_SCALARS = [
    np.float32(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(t)) for t in (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)),
]


def checkpoint_path(folder: Path, fold: int | str, checkpoint: str) -> Path:
    """The checkpoint's file.

    Raises:
        InputError: the folder, its plans, the fold or the checkpoint is missing; says what there is instead.
    """
    if not folder.is_dir():
        raise InputError.of(
            "model_folder", str(folder), "an existing folder of a trained nnU-Net model",
            "it is called nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION",
        )  # fmt: skip
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise InputError.of(
                "model_folder", str(folder), f"a folder with {name} in it",
                "name the folder that holds fold_0, fold_1, ..., not one of the folds",
            )  # fmt: skip
    if not (folder / f"fold_{fold}").is_dir():
        known = sorted(p.name.removeprefix("fold_") for p in folder.glob("fold_*"))
        raise InputError.of(
            "fold", fold, "one of " + ", ".join(known) if known else "none, nothing is trained here yet"
        )
    path = folder / f"fold_{fold}" / checkpoint
    if not path.is_file():
        known = sorted(p.name for p in path.parent.glob("*.pth"))
        allowed = "one of " + ", ".join(known) if known else f"none, {path.parent} has no checkpoint yet"
        raise InputError.of("checkpoint", checkpoint, allowed, "checkpoint_final.pth is written when training ends")
    return path


def check_weights_only(path: Path) -> str:
    """Read a checkpoint with ``weights_only=True``: tensors and plain values, nothing that could run code.

    The host's own loader does not check. Once this one has passed, the same file is safe for the host to read.

    Returns:
        the name of the trainer that wrote it.

    Raises:
        InputError: the file is damaged, is no nnU-Net checkpoint, or holds other Python objects.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        trainer = checkpoint["trainer_name"]
        if not isinstance(trainer, str) or "network_weights" not in checkpoint:
            raise KeyError("network_weights")
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
        if "Unsupported global" in str(error):
            what = str(error).split("Unsupported global: GLOBAL ")[-1].split()[0]
            raise InputError.of(
                "checkpoint", f"{path} with a Python object {what}", "tensors, text and numbers only",
                "such a file can run code when it is read; take the checkpoint as its trainer wrote it",
            ) from error  # fmt: skip
        text = str(error).splitlines()[0][:120] if str(error) else "the file is empty"
        raise InputError.of(
            "checkpoint", str(path), "a whole nnU-Net checkpoint",
            f"{type(error).__name__}: {text}; copy or train it again",
        ) from error  # fmt: skip
    return trainer
