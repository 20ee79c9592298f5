"""A phantom: balls of two kinds inside a body, made to look like a scan.

The balls come from MONAI's ``create_test_image_3d``. Around them: an elliptic body, soft edges, slow variations of the
tissue, the uneven field of a coil and Rician noise, the noise of magnitude MR images. Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data.synthetic import create_test_image_3d
from monai.transforms.intensity.array import GaussianSmooth, RandBiasField, RandRicianNoise

LABELS = {"background": 0, "dark insert": 1, "bright insert": 2}
BODY, DARK, BRIGHT = 0.45, 0.15, 0.75  # intensities; air is 0

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Phantom:
    """What the dataset is made from."""

    training_cases: int = 16
    test_cases: int = 4
    shape: tuple[int, int, int] = (64, 64, 24)
    objects: int = 8
    largest_radius: int = 11
    smallest_radius: int = 5
    texture: float = 0.03
    noise: float = 0.025
    seed: int = 20


def make_case(phantom: Phantom, number: int) -> tuple[Image, Labels]:
    """Image and label map of one case, a pure function of the seed and the case's number."""
    random = np.random.RandomState([phantom.seed, number])
    _, classes = create_test_image_3d(
        *phantom.shape,
        num_objs=phantom.objects,
        rad_max=phantom.largest_radius,
        rad_min=phantom.smallest_radius,
        num_seg_classes=len(LABELS) - 1,
        random_state=random,
    )
    body = _body(phantom.shape, random)
    labels = np.where(body, classes, 0).astype(np.uint8)
    image = np.where(body, np.array([BODY, DARK, BRIGHT])[labels], 0.0)
    texture = _smooth(random.standard_normal(phantom.shape), 3, 3, 3)
    image = _smooth(image + body * phantom.texture * texture / texture.std(), 0.7, 0.7, 0.35)
    shading = RandBiasField(prob=1.0, coeff_range=(-0.1, 0.1))
    noise = RandRicianNoise(prob=1.0, std=phantom.noise, sample_std=False)
    scan = image[None]
    for transform in (shading, noise):
        transform.set_random_state(state=random)
        scan = np.asarray(transform(scan), dtype=np.float32)
    return 1000 * scan[0], labels


def _body(shape: tuple[int, int, int], random: np.random.RandomState) -> npt.NDArray[np.bool_]:
    """An ellipse in each slice, a little wider in the middle of the stack."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    half = random.uniform(0.85, 0.97, size=2)
    inside: npt.NDArray[np.bool_] = (axes[0] / half[0]) ** 2 + (axes[1] / half[1]) ** 2 + 0.15 * axes[2] ** 2 < 1
    return inside


def _smooth(values: npt.NDArray[Any], *sigma: float) -> Image:
    smoothed: Image = np.asarray(GaussianSmooth(sigma)(values[None].astype(np.float32)), dtype=np.float32)[0]
    return smoothed
