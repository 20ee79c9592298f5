"""The phantom in nnU-Net's raw format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from monai_adv.first_look.phantom import LABELS, Phantom, make_case

SPACING = (1.5, 1.5, 3.0)


def write_dataset(phantom: Phantom, folder: Path, after_each: Callable[[], object] = lambda: None) -> None:
    """Write imagesTr, labelsTr, imagesTs, labelsTs and dataset.json, as nnU-Net wants them."""
    total = phantom.training_cases + phantom.test_cases
    for number in range(total):
        part = "Tr" if number < phantom.training_cases else "Ts"
        image, labels = make_case(phantom, number)
        _save(image, folder / f"images{part}" / f"phantom_{number:03d}_0000.nii.gz")
        _save(labels, folder / f"labels{part}" / f"phantom_{number:03d}.nii.gz")
        after_each()
    generate_dataset_json(
        str(folder), {0: "MR"}, LABELS, phantom.training_cases, ".nii.gz", description="phantom, made by monai-adv demo"
    )


def _save(values: npt.NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.diag([*SPACING, 1.0]))  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    nib.save(image, path)
