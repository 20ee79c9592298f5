"""A small data set of volumes in nnU-Net's raw layout, so that a bundle runs offline right after it was installed.

Balls of two kinds, from MONAI's ``create_test_image_3d``, in smooth noise. Figures on phantoms say that a pipeline
works, not how good a method is. Everything follows from the seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data.synthetic import create_test_image_3d
from monai.transforms.intensity.array import GaussianSmooth

from monai_adv.files import whole_folder

CASES, SHAPE = 20, (24, 28, 20)
LEVELS = (100.0, 60.0, 160.0)
"""Intensities of background, first and second kind."""


def write_volume_phantom(folder: str | Path, seed: int = 0) -> str:
    """Write a data set, unless its folder is there already.

    Args:
        folder: for the data set.
        seed: of the volumes.

    Returns:
        the folder, for ``dataset_dir``.

    Example:
        >>> import tempfile
        >>> folder = write_volume_phantom(Path(tempfile.mkdtemp()) / "phantom")
        >>> sorted(file.name for file in Path(folder).iterdir())
        ['dataset.json', 'imagesTr', 'labelsTr']
    """
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        return str(folder)
    described = {
        "channel_names": {"0": "phantom"},
        "labels": {"background": 0, "dark": 1, "bright": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    with whole_folder(folder) as unfinished:
        for number in range(CASES):
            random = np.random.RandomState([seed, number])
            _, labels = create_test_image_3d(
                *SHAPE, num_objs=4, rad_max=7, rad_min=4, num_seg_classes=2, random_state=random
            )
            noise = random.standard_normal(SHAPE)
            image = np.array(LEVELS)[labels.astype(int)] + 60 * np.asarray(GaussianSmooth(0.8)(noise[None]))[0]
            _save(image.astype(np.float32), unfinished / "imagesTr" / f"phantom_{number:02}_0000.nii.gz")
            _save(labels.astype(np.uint8), unfinished / "labelsTr" / f"phantom_{number:02}.nii.gz")
        (unfinished / "dataset.json").write_text(json.dumps(described, indent=4), encoding="utf-8")
    return str(folder)


def _save(values: npt.NDArray[Any], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), file)  # type: ignore[no-untyped-call]
