"""The built-in data sets: the same on every machine, with the layout of the real ones, and safe for several ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from PIL import Image

from monai_adv.bundles import GreySliced, read_index, write_phantom
from monai_adv.bundles.phantoms import PHANTOMS
from monai_adv.errors import InputError

LAYOUTS = {
    "breast_ultrasound": {"label": "label", "classes": {"benign": 0, "malignant": 1}, "leave_out": ["normal"],
                          "group": "near_duplicate_group", "mask": "mask"},
    "covid_ct": {"label": "covid", "classes": {"0": 0, "1": 1}},
    "mammography": {"label": "malignant", "classes": {"0": 0, "1": 1}, "group": "patient"},
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(PHANTOMS))
def test_phantom_is_repeatable_and_has_the_layout_of_its_bundle(kind: str, tmp_path: Path) -> None:
    first, again, other = (
        Path(write_phantom(kind, tmp_path / name, seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert all((first / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert any((first / file).read_bytes() != (other / file).read_bytes() for file in files)
    for fold in [None] if kind == "covid_ct" else range(5):
        index = read_index(first, fold=fold, **LAYOUTS[kind])  # type: ignore[arg-type]
        items = [item for part in ("train", "val", "test") for item in index.part(part)]  # type: ignore[arg-type]
        assert len({item["image"] for item in items}) == len(items) >= 48


def test_phantom_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = write_phantom("covid_ct", tmp_path / "a")
    image = next(Path(folder).glob("*.png"))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(image)
    written = image.read_bytes()
    assert write_phantom("covid_ct", folder) == folder
    assert image.read_bytes() == written
    assert [p.name for p in tmp_path.iterdir()] == ["a"]  # nothing unfinished remains
    with pytest.raises(InputError, match="did you mean 'covid_ct'?"):
        write_phantom("covid", tmp_path / "b")


def test_slices_get_a_channel_and_all_else_is_refused_by_name() -> None:
    image = MetaTensor(torch.arange(6.0).reshape(3, 2, 1), meta={"filename_or_obj": "scan.png"})
    found = GreySliced("image")({"image": image, "label": 1})
    assert torch.equal(found["image"], image[..., 0][None])
    assert found["image"].meta["filename_or_obj"] == "scan.png"
    assert found["label"] == 1
    for shape in ((3, 2, 3), (3,), (3, 2, 1, 2)):
        with pytest.raises(InputError, match="scan.png of shape"):
            GreySliced("image")({"image": MetaTensor(torch.zeros(shape), meta={"filename_or_obj": "scan.png"})})
