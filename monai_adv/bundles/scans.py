"""Images of a MONAI bundle or of a folder, for a radius by their noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms.io.array import LoadImage

from monai_adv.errors import InputError, first_cause
from monai_adv.evaluation.models.protocol import Source
from monai_adv.evaluation.models.radii import case_raw_unit
from monai_adv.radius import Array, Scan, spaced

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".dcm", ".npy")
LOSSY = (".jpg", ".jpeg")


def of_model(source: Source, count: int) -> Iterator[Scan]:
    """What a bundle's own transforms make of its validation images.

    Args:
        source: of the bundle.
        count: at most so many cases, evenly over the list.
    """
    model = source.open()
    for name in spaced(list(model.cases), count):
        case: Any = model.load(name)
        for number, image in enumerate(case.images):
            unit = case_raw_unit(case)
            title = name if len(case.images) == 1 else f"{name}, {number}"
            yield Scan(title, slices_first(image.numpy()), (unit,) * len(image))


def slices_first(image: Array) -> Array:
    """``(C, Z, Y, X)`` of ``(C, X, Y, Z)``: MONAI names axes as files do, slices last, and noise is that of a slice.

    Example:
        >>> slices_first(np.zeros((1, 512, 256, 40))).shape, slices_first(np.zeros((3, 512, 256))).shape
        ((1, 40, 256, 512), (3, 256, 512))
    """
    return image.transpose(0, *range(image.ndim - 1, 0, -1))


def of_folder(folder: Path, count: int, scale: float) -> Iterator[Scan]:
    """Image files, divided by one number.

    Args:
        folder: with pictures or volumes of one channel.
        count: at most so many, evenly over the list.
        scale: intensity of the files in one network unit.

    Raises:
        InputError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise InputError.of("--images", str(folder), "an existing folder")
    files = sorted(p for p in folder.iterdir() if p.name.lower().endswith((*PICTURES, *VOLUMES)))
    if not files:
        raise InputError.of("--images", str(folder), f"a folder with images ({', '.join((*PICTURES, *VOLUMES))})")
    by_name = {file.name: file for file in files}
    return (_read(by_name[name], scale) for name in spaced(list(by_name), count))


def _read(file: Path, scale: float) -> Scan:
    try:
        image = np.asarray(LoadImage(image_only=True)(str(file)), dtype=np.float64)
    except Exception as error:  # readers raise kinds of their own
        raise InputError.of("--images", str(file), "an image that can be read", first_cause(error)) from error
    lossy = ("The files are JPEG: compression has removed part of the noise.",)
    notes = lossy if file.name.lower().endswith(LOSSY) else ()
    if file.name.lower().endswith(PICTURES) and image.ndim == 3:
        image = image.mean(-1)  # colours of a grey picture
    return Scan(file.name, slices_first(image[None]) / scale, (scale,), notes)
