"""Do an image and its label map lie in the same place? One rule for every host that reads geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_adv.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an array are.

    Attributes:
        source: the file that says so: an image with a header, or a JSON file beside it.
        spacing: of the array's axes, in mm.
        origin: of the first voxel, in mm; empty if the file does not tell.
        direction: of the axes, as unit vectors; empty if the file does not tell.
    """

    source: str
    spacing: tuple[float, ...]
    origin: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()

    @classmethod
    def from_affine(cls, source: str, affine: npt.ArrayLike, spacing: Sequence[float] | None = None) -> Geometry:
        """From the matrix that leads from voxels to mm.

        Example:
            >>> Geometry.from_affine("a.nii.gz", np.diag([2.0, 3, 4, 1])).spacing
            (2.0, 3.0, 4.0)
        """
        matrix = np.asarray(affine, dtype=float)
        axes, origin = matrix[:-1, :-1], matrix[:-1, -1]
        sizes = np.linalg.norm(axes, axis=0)
        direction = axes / np.where(sizes > 0, sizes, 1)
        known = sizes if spacing is None else spacing
        return cls(source, tuple(map(float, known)), tuple(origin.tolist()), tuple(direction.ravel().tolist()))


def told_spacing(*parts: Any) -> tuple[float, ...] | None:
    """In mm, of the first of MONAI's tensors whose meta data come from a file; what a transform makes anew says 1."""
    for part in parts:
        if {"original_affine", "filename_or_obj"} & set(getattr(part, "meta", ())):
            return Geometry.from_affine("", part.affine).spacing
    return None


def compare(image: Geometry, label: Geometry, *, refuse: bool = True) -> tuple[str, ...]:
    """What tells the geometry of a label map from that of its image, whose arrays have the same size.

    As nnU-Net's own verification of data sets has it (``verify_dataset_integrity``, and its tolerance of 1e-5): another
    spacing is refused; another origin or direction, which does not change what a network computes, is listed.

    Args:
        image, label: of a case.
        refuse: another spacing; otherwise it is listed too.

    Returns:
        a sentence for each difference.

    Raises:
        InputError: another spacing.

    Example:
        >>> image = Geometry("a_0000.nii.gz", (1.0, 1.0), (0.0, 0.0))
        >>> compare(image, Geometry("a.nii.gz", (1.0, 1.0), (0.0, 100.0)))
        ('the origin in a.nii.gz is (0, 100), that of its image in a_0000.nii.gz (0, 0); see whether they overlap',)
    """
    found = []
    if not _close(image.spacing, label.spacing):
        wrong = f"voxels of {_millimetres(label.spacing)} in {label.source}"
        allowed = f"the spacing of its image, {_millimetres(image.spacing)} in {image.source}"
        # Both arrays have the same size: resampled, a label that fits would fit no more.
        todo = "the arrays have the same size, so one of these two files is wrong: correct its spacing, do not resample"
        if refuse:
            raise InputError.of("ground_truth_file", wrong, allowed, todo)
        found.append(f"{wrong}, {allowed.removeprefix('the spacing of ')}")
    for name in ("origin", "direction"):
        here, there = getattr(image, name), getattr(label, name)
        if here and there and not _close(here, there):
            found.append(
                f"the {name} in {label.source} is {_vector(there)}, that of its image in {image.source} "
                f"{_vector(here)}; see whether they overlap"
            )
    return tuple(found)


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and bool(np.allclose(other, one, atol=1e-6))


def _vector(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value + 0.0:.6g}' for value in values)})"


def _millimetres(spacing: Sequence[float]) -> str:
    return " × ".join(f"{s:.7g}" for s in spacing) + " mm"
