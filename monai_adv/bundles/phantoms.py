"""Small synthetic data sets, so that a bundle runs offline right after it was installed.

They have the layout of the real data and nothing else in common with them: figures on phantoms say that a pipeline
works, not how good a method is. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms.intensity.array import GaussianSmooth
from PIL import Image

from monai_adv.bundles.image_index import FILE, write_table
from monai_adv.errors import InputError, did_you_mean
from monai_adv.files import whole_folder

SIZE = 96
Array = npt.NDArray[np.float64]
Random = np.random.RandomState
Row = dict[str, Any]


def write_phantom(kind: str, folder: str | Path, seed: int = 0) -> str:
    """Write a data set, unless its folder is there already.

    Args:
        kind: ``breast_ultrasound``, ``mammography`` or ``covid_ct``: which bundle's layout.
        folder: for the data set.
        seed: of the images.

    Returns:
        the folder, for ``dataset_dir``.

    Raises:
        InputError: a kind that is not known.
    """
    if kind not in PHANTOMS:
        raise InputError.of("kind", kind, f"one of {', '.join(PHANTOMS)}", did_you_mean(kind, PHANTOMS))
    folder = Path(folder)
    if (folder / FILE).is_file():
        return str(folder)
    with whole_folder(folder) as unfinished:
        write_table(unfinished, PHANTOMS[kind](unfinished, np.random.RandomState(seed)))
    return str(folder)


def breast_ultrasound(folder: Path, random: Random) -> list[Row]:
    """Dark lesions in speckle: smooth and wide (benign), or ragged and upright (malignant); some images have none."""
    rows = []
    for number in range(100):
        label = ("benign", "malignant", "benign", "malignant", "normal")[number % 5]
        mask = np.zeros((SIZE, SIZE))
        if label != "normal":
            ragged = 0.3 if label == "malignant" else 0.03
            height, width = (0.26, 0.13) if label == "malignant" else (0.11, 0.24)
            mask = blob(random, height, width, ragged)
        tissue = 0.6 + 0.1 * texture(random, 6) - 0.5 * smooth(mask, 1.5)
        image = tissue * random.rayleigh(0.8, (SIZE, SIZE))
        name = f"{label}_{number:03d}.png"
        save(folder / "images" / name, smooth(image, 1))
        save(folder / "masks" / name, mask)
        # Pairs of images stand for near-duplicates: they stay together.
        group = number // 10 * 5 + number % 5
        fold = number // 10 % 5
        rows.append({"image": f"images/{name}", "mask": f"masks/{name}", "label": label,
                     "near_duplicate_group": group, "fold": fold})  # fmt: skip
    return rows


def mammography(folder: Path, random: Random) -> list[Row]:
    """Two views of each breast; a bright ragged mass in the malignant ones."""
    rows = []
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, 0 : 1.2 : SIZE * 1j]
    breast = smooth((x**2 + y**2 < 0.9).astype(float), 2)
    for patient in range(30):
        malignant = int(patient % 3 == 0)
        for view in range(2):
            image = breast * (0.4 + 0.12 * texture(random, 4))
            if malignant:
                image = image + 0.4 * smooth(breast * blob(random, 0.12, 0.12, 0.3), 1)
            name = f"patient_{patient:02d}_{view}.png"
            save(folder / name, image + 0.02 * random.standard_normal((SIZE, SIZE)))
            rows.append({"image": name, "malignant": malignant, "patient": patient, "fold": patient // 3 % 5})
    return rows


def covid_ct(folder: Path, random: Random) -> list[Row]:
    """A slice through the chest with two lungs; hazy patches in them are the disease."""
    rows = []
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    body = smooth((x**2 / 0.8 + y**2 / 0.5 < 1).astype(float), 1)
    lungs = smooth(((np.abs(x) - 0.42) ** 2 / 0.08 + y**2 / 0.25 < 1).astype(float), 1)
    for number in range(80):
        covid = number % 2
        image = 0.6 * body - 0.5 * lungs + 0.05 * texture(random, 3) * body
        for _ in range(3 * covid):
            image = image + 0.3 * lungs * smooth(blob(random, 0.12, 0.12, 0.2), 3)
        name = f"slice_{number:03d}.png"
        save(folder / name, image + 0.02 * random.standard_normal((SIZE, SIZE)))
        split = "train" if number < 48 else "val" if number < 60 else "test"
        rows.append({"image": name, "covid": covid, "split": split})
    return rows


PHANTOMS: dict[str, Callable[[Path, Random], list[Row]]] = {
    "breast_ultrasound": breast_ultrasound,
    "covid_ct": covid_ct,
    "mammography": mammography,
}


def blob(random: Random, height: float, width: float, ragged: float) -> Array:
    """A disc near the middle, 1 inside; half axes in shares of the image, an outline that varies by ``ragged``."""
    y, x = np.mgrid[0 : 1 : SIZE * 1j, 0 : 1 : SIZE * 1j]
    centre = random.uniform(0.35, 0.65, 2)
    angle = np.arctan2(y - centre[0], x - centre[1])
    waves = sum(np.cos(k * angle + random.uniform(0, 2 * np.pi)) / 2 for k in range(5, 9))
    distance = np.hypot((y - centre[0]) / height, (x - centre[1]) / width)
    inside: Array = (distance < 1 + ragged * waves).astype(float)
    return inside


def texture(random: Random, sigma: float) -> Array:
    """Smooth noise of standard deviation 1."""
    noise = smooth(random.standard_normal((SIZE, SIZE)), sigma)
    varied: Array = noise / noise.std()
    return varied


def smooth(image: Array, sigma: float) -> Array:
    """Gaussian blur."""
    return np.asarray(GaussianSmooth(sigma)(image[None])[0], dtype=float)


def save(file: Path, image: Array) -> None:
    """An 8-bit grey PNG of intensities in [0, 1]."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8)).save(file)
