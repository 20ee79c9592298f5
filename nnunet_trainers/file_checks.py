"""Files that readers would take for something else than what they are, without a word."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from monai_adv.errors import InputError
from monai_adv.tasks.base import whole_labels


def check_complete(name: str, file: str | Path) -> None:
    """Read a compressed file to its end: some readers fill up what a broken copy lacks, without a word.

    Raises:
        InputError: it is cut off or damaged.
    """
    if str(file).endswith(".gz"):
        try:
            with gzip.open(file) as opened:
                while opened.read(2**24):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            reason = str(error).rstrip(".")
            raise InputError.of(name, str(file), "a whole gzip file", f"{reason}; copy it again") from error


def check_no_nan(name: str, file: str | Path) -> None:
    """ITK reads NaN in a NIfTI file as 0, so that it would become background without a word."""
    if str(file).endswith((".nii", ".nii.gz")):
        image: Any = nibabel.load(file)
        if image.get_data_dtype().kind == "f":
            whole_labels(name, torch.from_numpy(image.get_fdata(dtype=np.float32)))
