"""Reading an index of images: which images are in which part, and every way in which data can be wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from monai_adv.bundles import image_files, read_index
from monai_adv.bundles.image_index import _by_fold
from monai_adv.errors import InputError
from tests.places import SHARED

CLASSES = {"0": 0, "1": 1}
Rows = list[dict[str, Any]]


def write(folder: Path, rows: Rows, image: np.ndarray[Any, Any] | None = None) -> Path:
    """A folder with grey images of 4 x 3 pixels."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        Image.fromarray(np.zeros((4, 3), np.uint8) if image is None else image).save(folder / row["image"])
    with (folder / "index.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def rows() -> Rows:
    """Two images of each class in each part; patients have two images."""
    return [
        {"image": f"{part}{i}.png", "sick": i % 2, "split": part, "fold": fold, "patient": f"{part}-{i % 2}"}
        for fold, part in enumerate(("train", "val", "test"))
        for i in range(4)
    ]


def test_parts_by_split_have_paths_classes_and_positions(tmp_path: Path) -> None:
    index = read_index(write(tmp_path, rows()), "sick", {"1": 0, "0": 1})
    items = index.part("val")
    assert [Path(item["image"]).name for item in items] == ["val0.png", "val1.png", "val2.png", "val3.png"]
    assert [item["label"] for item in items] == [1, 0, 1, 0]
    assert [item["index"] for item in items] == [0, 1, 2, 3]
    with pytest.raises(InputError, match="part: received 'all'"):
        index.part("all")


def test_groups_are_numbers_that_images_of_a_patient_share(tmp_path: Path) -> None:
    index = read_index(write(tmp_path, rows()), "sick", CLASSES, group="patient")
    assert [[item["group"] for item in index.part(part)] for part in ("train", "val", "test")] == [
        [0, 1, 0, 1], [2, 3, 2, 3], [4, 5, 4, 5],
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=30, max_size=60),
    st.integers(0, 9),
    st.floats(0.05, 0.5),
)
def test_folds_never_split_a_patient_and_use_every_image_once(
    patients: list[tuple[int, int]], seed: int, share: float
) -> None:
    made = [
        {"image": f"{p}-{i}", "sick": str(sick), "fold": str(fold), "patient": str(p)}
        for p, (fold, sick) in enumerate(patients)
        for i in range(1 + p % 3)
    ]
    fold = patients[0][0]
    parts = _by_fold(made, "sick", fold, share, "patient", seed)
    assert sorted(r["image"] for part in parts.values() for r in part) == sorted(r["image"] for r in made)
    assert {r["fold"] for r in parts["test"]} == {str(fold)}
    seen = [{r["patient"] for r in part} for part in parts.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))
    for sick in "01":
        rest = {str(p) for p, (f, s) in enumerate(patients) if f != fold and str(s) == sick}
        chosen = {r["patient"] for r in parts["val"] if r["sick"] == sick}
        assert len(chosen) == (max(1, round(share * len(rest))) if rest else 0)


def test_left_out_labels_are_not_used_and_masks_are_paths(tmp_path: Path) -> None:
    made = rows()
    for row in made:
        row["sick"] = {0: "benign", 1: "malignant"}[row["sick"]]
        row["mask"] = row["image"]
    made.append({**made[0], "image": "normal.png", "sick": "normal"})
    index = read_index(write(tmp_path, made), "sick", {"benign": 0, "malignant": 1}, mask="mask", leave_out=["normal"])
    assert [len(index.part(part)) for part in ("train", "val", "test")] == [4, 4, 4]
    assert index.part("train")[0]["mask"] == str(tmp_path / "train0.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sick": ""}, "index.csv, line 3, sick: received ''"),
        ({"sick": "2"}, "index.csv, line 3, sick: received '2', allowed is one of 0, 1"),
        ({"image": "train0.png"}, "index.csv, image: received ['train0.png'], allowed is each image once"),
        ({"split": "training"}, "index.csv, line 3, split: received 'training'"),
        ({"patient": "test-1"}, "index.csv, patient test-1: received 'images in train and test'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, str], said: str) -> None:
    made = rows()
    made[1].update(change)
    with pytest.raises(InputError) as caught:
        read_index(write(tmp_path, made), "sick", CLASSES, group="patient")
    assert said in str(caught.value)


def test_absent_folder_table_and_column_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder; data: www.example.org"):
        read_index(tmp_path / "none", "sick", CLASSES, source="www.example.org")
    with pytest.raises(InputError, match="give --dataset_dir"):
        read_index("", "sick", CLASSES)
    with pytest.raises(InputError, match="index.csv is not in it"):
        read_index(tmp_path, "sick", CLASSES)
    folder = write(tmp_path, rows())
    with pytest.raises(InputError, match="did you mean 'sick'?"):
        read_index(folder, "sik", CLASSES)
    with pytest.raises(InputError, match="fold: received 3, allowed is one of 0, 1, 2"):
        read_index(folder, "sick", CLASSES, fold=3)


def test_part_without_a_class_is_refused(tmp_path: Path) -> None:
    made = [row for row in rows() if not (row["split"] == "test" and row["sick"])]
    with pytest.raises(InputError, match="received 'no image of 1 in test'"):
        read_index(write(tmp_path, made), "sick", CLASSES)


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, rows())
    image = folder / "val1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])  # the header is in order
    with pytest.raises(InputError, match=r"val1.png', allowed is an image that can be read"):
        read_index(folder, "sick", CLASSES)
    Image.fromarray(np.zeros((4, 3, 3), np.uint8)).save(image)
    with pytest.raises(InputError, match=r"val1.png', allowed is one grey slice; this one is in colours"):
        read_index(folder, "sick", CLASSES)
    image.unlink()
    with pytest.raises(InputError, match=r"val1.png', allowed is an existing file"):
        read_index(folder, "sick", CLASSES)


def test_dicom_and_nifti_slices_are_read_and_volumes_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 1), np.float32), np.eye(4)), tmp_path / "b.nii.gz")
    assert [Path(file).name for file in image_files(tmp_path)] == ["a.dcm", "b.nii.gz"]
    write_dicom(tmp_path / "c.dcm", frames=2)
    with pytest.raises(InputError, match=r"c.dcm', allowed is one grey slice; this one is 2 slices"):
        image_files(tmp_path)
    (tmp_path / "c.dcm").write_text("no DICOM")
    with pytest.raises(InputError, match=r"c.dcm', allowed is an image that can be read"):
        image_files(tmp_path)
    (tmp_path / "c.dcm").unlink()
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 2), np.float32), np.eye(4)), tmp_path / "d.nii.gz")
    with pytest.raises(InputError, match=r"d.nii.gz', allowed is one grey slice; this one is of shape \(3, 4, 2\)"):
        image_files(tmp_path)


def test_inference_needs_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(InputError, match="dataset_dir"):
        image_files(tmp_path)
    with pytest.raises(InputError, match="give --dataset_dir"):
        image_files("")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_data_have_the_counts_of_their_papers() -> None:
    covid = read_index(SHARED / "sars_cov2_ct_224", "covid", CLASSES)
    counts = {p: [sum(i["label"] == k for i in covid.part(p)) for k in (0, 1)] for p in ("val", "test")}
    assert counts == {"val": [30, 30], "test": [200, 200]}


def write_dicom(file: Path, frames: int = 1) -> None:
    """A CT slice of 4 x 3 pixels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.SamplesPerPixel, data.NumberOfFrames = 4, 3, 1, frames
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = 15, 0, "MONOCHROME2"
    data.PixelData = np.arange(12 * frames, dtype=np.uint16).tobytes()
    data.save_as(file, enforce_file_format=True)
