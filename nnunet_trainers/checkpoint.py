"""Checkpoints that survive a crash and load anywhere."""

from __future__ import annotations

import io
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch

from monai_adv.defenses import METHODS
from monai_adv.errors import InputError
from monai_adv.files import whole_file

SECTION = "monai_adv"
"""Our part of an nnU-Net checkpoint: settings, state of the defence, log."""

KEPT = ("threat", "interpolated")
"""Of it, what a checkpoint keeps that nobody trains on: what the model was trained against, and how it was made."""

FINAL = "checkpoint_final.pth"
LATEST = "checkpoint_latest.pth"
BEST_ROBUST = "checkpoint_best_robust.pth"
_UNFINISHED = (LATEST, "checkpoint_best.pth")
"""What ``--c`` goes on from where there is no :data:`FINAL`, in this order."""

# nnU-Net's own trainers leave numpy scalars in the log. They are data: allowing them keeps weights_only=True possible.
_SCALAR = np.float32(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 calls it
    np.dtype,
    *(type(np.dtype(t)) for t in (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)),
]


def plain(value: Any) -> Any:
    """numpy numbers as Python numbers, recursively: MONAI loads with ``weights_only=True``, which refuses numpy."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if type(value) in (dict, OrderedDict):
        return type(value)((plain(k), plain(v)) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    return value


def as_written(save: Callable[[Any], None]) -> dict[str, Any] | None:
    """The checkpoint that nnU-Net's ``save_checkpoint`` writes, onto the CPU: nnU-Net has no hook to add to it.

    Args:
        save: writes into the file that it is given.

    Returns:
        None if it wrote nothing.
    """
    buffer = io.BytesIO()
    save(buffer)
    if not buffer.getbuffer():
        return None
    buffer.seek(0)
    checkpoint: dict[str, Any] = torch.load(buffer, map_location="cpu", weights_only=False)
    return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], filename: str | Path, then: str = "then continue with --c") -> None:
    """Write a checkpoint; whatever happens, one whole checkpoint remains.

    Args:
        checkpoint: anything that torch saves.
        filename: where.
        then: what to do once there is room for it.

    Raises:
        InputError: the checkpoint could not be written (disk full, no permission); the previous one is intact.
    """
    path = Path(filename)
    try:
        with whole_file(path) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        kept = "the previous checkpoint is intact" if path.exists() else "there is no earlier one"
        raise InputError(
            f"{path}: the checkpoint could not be written ({error}); {kept}; free space or fix the permissions, {then}."
        ) from error


def load_data(filename: str | Path, mmap: bool = False) -> Any:
    """``torch.load`` onto the CPU of tensors, text and numbers, those of numpy as well; reading them runs no code.

    Once this has passed, the same file is safe for nnU-Net's own loader, which does not check.

    Args:
        filename: of the checkpoint.
        mmap: leave the tensors in the file, for a look at what else there is.

    Raises:
        InputError: there are other Python objects in the file.
        Exception: torch and pickle raise a dozen kinds for damaged files.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(filename, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        unknown = re.search(r"GLOBAL (\S+)", str(error))  # as torch calls what it refuses to make
        if not unknown:
            raise
        raise InputError.of(
            "checkpoint", f"{filename} with a Python object {unknown[1]}", "tensors, text and numbers only",
            "such a file can run code when it is read; take the checkpoint as its trainer wrote it",
        ) from error  # fmt: skip


def is_nnunet(filename: str | Path) -> bool:
    """Whether a file is a readable checkpoint of nnU-Net."""
    try:
        content = load_data(filename, mmap=is_zipfile(filename))  # as torch writes them since 1.6
    except Exception:  # torch and pickle raise a dozen kinds for what they cannot read
        return False
    return isinstance(content, dict) and {"trainer_name", "network_weights"} <= content.keys()


def trained_by(checkpoint: Mapping[str, Any]) -> str:
    """The trainer's name; of an exported model that of the one that has trained it."""
    return str(checkpoint.get("exported_from", checkpoint["trainer_name"]))


def is_plain(checkpoint: Mapping[str, Any]) -> bool:
    """Whether no defence has trained a model, nor one that it was exported or interpolated from.

    Example:
        >>> is_plain({"trainer_name": "nnUNetTrainer_250epochs"})
        True
        >>> is_plain({"trainer_name": "nnUNetTrainer", "exported_from": "SATTrainer"})
        False
    """
    return SECTION not in checkpoint and trained_by(checkpoint) not in {m.trainer for m in METHODS.values()}


def kept(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Our part for a checkpoint that nobody trains on; nothing if it has none. It names no cases."""
    if SECTION not in checkpoint:
        return {}
    return {SECTION: {name: checkpoint[SECTION][name] for name in KEPT if name in checkpoint[SECTION]}}


def read_any(filename: str | Path) -> dict[str, Any]:
    """Read the checkpoint of any nnU-Net trainer, onto the CPU.

    Raises:
        InputError: the file is missing or damaged, or holds more than data.
    """
    try:
        checkpoint: dict[str, Any] = load_data(filename)
        checkpoint["trainer_name"], checkpoint["network_weights"]
    except InputError:
        raise
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
        raise InputError(
            f"{filename}: not a readable nnU-Net checkpoint ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}); "
            "take another one: --c goes on from the next (final, latest, best) once this one is moved away."
        ) from error
    return checkpoint


def read_checkpoint(filename: str | Path, trainer: str) -> dict[str, Any]:
    """Read a checkpoint of ``trainer``.

    Raises:
        InputError: the file is damaged, or was written by another trainer.
    """
    checkpoint = read_any(filename)
    if checkpoint["trainer_name"] != trainer or SECTION not in checkpoint:
        raise InputError.of(
            "checkpoint", f"{filename} of {checkpoint['trainer_name']}", f"a checkpoint of {trainer}",
            f"start from another trainer's weights with -pretrained_weights or {SECTION.upper()}_INITIAL_WEIGHTS",
        )  # fmt: skip
    return checkpoint


def read_of_run(file: Path, began: float) -> dict[str, Any] | None:
    """Read a checkpoint if this run wrote it; None where there is none, or one that another run has left behind.

    Args:
        file: of the checkpoint.
        began: when the run's first epoch did, as nnU-Net logs it, in seconds since 1970.

    Raises:
        InputError: the file is damaged.
    """
    checkpoint = read_any(file) if file.exists() else None
    if checkpoint is None or checkpoint["logging"]["epoch_start_timestamps"][0] != began:
        return None
    return checkpoint


def goes_on_in(folder: str) -> bool:
    """Whether ``--c`` finds something to go on from in a fold's folder; otherwise it begins anew."""
    return any((Path(folder) / name).is_file() for name in (FINAL, *_UNFINISHED))


def refuse_later_run(file: Path) -> None:
    """Refuse to go on with a finished run beside another one: ``--c`` prefers it, and then deletes the other's.

    The epochs' own times are compared: those of files change when a folder is copied.

    Args:
        file: that ``--c`` goes on from.

    Raises:
        InputError: a checkpoint of later epochs lies beside it; says which to move away.
    """
    others = [other for other in map(file.with_name, _UNFINISHED) if other.exists()] if file.name == FINAL else []
    if not others:
        return
    ended = _last_epoch_ended(read_any(file))
    for other in others:
        if _last_epoch_ended(read_any(other)) > ended:
            raise InputError.of(
                "--c", f"{file} beside {other.name}, whose epochs are later", "one run to go on with",
                f"nnU-Net would go on with {FINAL}, overwrite it and delete the other; move {FINAL} away to go on with "
                f"{other.name}, or {other.name} to go on with {FINAL}",
            )  # fmt: skip


def _last_epoch_ended(checkpoint: Mapping[str, Any]) -> float:
    """Seconds since 1970, as nnU-Net logs them; before all others if the checkpoint does not say."""
    logged = checkpoint.get("logging")
    ends = logged.get("epoch_end_timestamps") if isinstance(logged, Mapping) else None
    return float(ends[-1]) if isinstance(ends, list) and ends else -math.inf
