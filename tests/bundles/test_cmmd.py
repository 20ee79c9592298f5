"""The index of a CMMD download, from small DICOM files in its layout."""

from __future__ import annotations

import builtins
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from monai_adv.bundles import WithinRanged
from monai_adv.bundles.cmmd import main, read_diagnoses, write_index
from monai_adv.bundles.image_index import read_index
from monai_adv.bundles.transforms import GreySliced
from monai_adv.errors import InputError

HEADER = "ID1,LeftRight,Age,number,abnormality,classification,subtype\n"


def write_dicom(file: Path, patient: str, side: str | None, bits: int = 8, value: int = 3, **tags: Any) -> Path:
    """A mammogram of 6 columns and 4 rows; its brightest pixel, in row 1 and column 2, is the largest of the format."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.PatientID, header.Modality = patient, "MG"
    if side is not None:
        header.ImageLaterality = side
    pixels = np.full((4, 6), value, np.uint8 if bits == 8 else np.uint16)
    pixels[1, 2] = 2**bits - 1
    header.Rows, header.Columns, header.SamplesPerPixel, header.PixelRepresentation = 4, 6, 1, 0
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.PixelData = pixels.tobytes()
    for name, tag in tags.items():
        setattr(header, name, tag)
    file.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(file, enforce_file_format=True)
    return file


@pytest.fixture
def download(tmp_path: Path) -> tuple[Path, Path]:
    """20 patients, 8 with cancer in the left breast, the other benign; two images show a breast without a diagnosis."""
    folder, table = tmp_path / "CMMD", tmp_path / "CMMD_clinicaldata_revision.csv"
    lines = [HEADER]
    for number in range(20):
        patient = f"D1-{number:04}"
        lines.append(f"{patient},L,44,2,mass,{'Malignant' if number < 8 else 'Benign'},\n")
        sides = "LR" if number < 19 else "L"
        if number < 18:
            lines.append(f"{patient},R,44,2,mass,Benign,\n")
        for side in sides:
            write_dicom(folder / patient / "study" / "series" / f"{side}.dcm", patient, side)
    write_dicom(folder / "D1-0018" / "study" / "series" / "R2.DCM", "D1-0018", "R")
    table.write_text("".join(lines))
    return folder, table


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_every_image_has_the_label_of_its_breast(download: tuple[Path, Path]) -> None:
    before = {file: file.read_bytes() for file in download[0].rglob("*") if file.is_file()}
    found = write_index(*download)
    rows = rows_of(found.file)
    assert (found.images, found.malignant, found.patients, found.left_out) == (38, 8, 20, 2)
    assert found.intensity_high == 255
    for row in rows:
        malignant = row["side"] == "L" and int(row["patient"][-4:]) < 8
        assert row["malignant"] == str(int(malignant))
        header = pydicom.dcmread(download[0] / row["image"])
        assert (header.PatientID, header.ImageLaterality) == (row["patient"], row["side"])
    assert {file: file.read_bytes() for file in before} == before


def test_breasts_without_a_diagnosis_can_be_taken_as_not_malignant(download: tuple[Path, Path]) -> None:
    found = write_index(*download, other_breast="not_malignant")
    assert (found.images, found.malignant, found.left_out) == (40, 8, 0)
    assert [row["malignant"] for row in rows_of(found.file) if row["patient"] == "D1-0018"] == ["0", "0", "0"]


def test_folds_keep_patients_whole_and_classes_even(download: tuple[Path, Path], tmp_path: Path) -> None:
    found = write_index(*download, output=tmp_path / "a")
    fold_of = defaultdict(set)
    malignant: dict[str, set[str]] = defaultdict(set)
    for row in rows_of(found.file):
        fold_of[row["patient"]].add(row["fold"])
        if row["malignant"] == "1":
            malignant[row["fold"]].add(row["patient"])
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert sorted(map(len, malignant.values())) == [1, 1, 2, 2, 2]
    sizes = [sum(folds == {str(fold)} for folds in fold_of.values()) for fold in range(5)]
    assert sizes == [4] * 5
    again = write_index(*download, output=tmp_path / "b")
    other = write_index(*download, output=tmp_path / "c", seed=1)
    assert again.file.read_bytes() == found.file.read_bytes()
    assert [row["fold"] for row in rows_of(other.file)] != [row["fold"] for row in rows_of(found.file)]


@pytest.mark.parametrize("place", ["CMMD", "elsewhere/index"])
def test_bundles_read_the_index(download: tuple[Path, Path], tmp_path: Path, place: str) -> None:
    found = write_index(*download, output=tmp_path / place)
    index = read_index(found.file.parent, "malignant", {"0": 0, "1": 1}, fold=0, group="patient")
    groups = [{item["group"] for item in index.part(part)} for part in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20
    image = LoadImaged("image")(index.part("train")[0])["image"]
    assert image.shape == (6, 4)  # MONAI's order: columns first
    assert image[2, 1] == 255


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("kind", ["dcm", "png"])
def test_intensities_of_all_formats_end_in_0_to_1(bits: int, kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"image.{kind}"
    highest = 2**bits - 1
    if kind == "dcm":
        write_dicom(file, "D1-0001", "L", bits=bits)
    else:
        pixels = np.full((4, 6), 3, np.uint8 if bits == 8 else np.uint16)
        pixels[1, 2] = highest
        Image.fromarray(pixels).save(file)

    def loaded(high: int) -> torch.Tensor:
        scale = ScaleIntensityRanged("image", 0, high, 0, 1)
        image: torch.Tensor = Compose([LoadImaged("image"), GreySliced("image"), WithinRanged("image", high), scale])(
            {"image": str(file)}
        )["image"]
        return image

    image = loaded(highest)
    assert image.shape == (1, 6, 4)
    assert float(image[0, 2, 1]) == 1.0
    assert float(image[0, 0, 0]) == pytest.approx(3 / highest)
    with pytest.raises(Exception) as caught:  # noqa: PT011 MONAI wraps it in kinds of its own
        loaded(highest // 2)
    cause = caught.value.__cause__
    assert isinstance(cause, InputError)
    assert f"{file} with intensities from 3 to {highest}" in str(cause)
    assert "--intensity_high" in str(cause)


def test_command_says_what_to_give_to_bundles(download: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(part) for part in download]) == 0
    said = capsys.readouterr().out
    assert "38 images (8 malignant) of 20 patients; left out: 2 images" in said
    assert f"--dataset_dir {download[0]} --intensity_high 255" in said
    assert main([str(part) for part in download]) == 2
    assert "a folder without index.csv" in capsys.readouterr().err


BAD_FILES: list[tuple[str, str]] = [
    ("no_side", "with ImageLaterality ''"),
    ("both_sides", "with ImageLaterality 'B'"),
    ("unknown_patient", "patient: received 'D9-0001 in"),
    ("no_patient", "without PatientID"),
    ("text", "a DICOM image that can be read"),
    ("empty", "a DICOM image that can be read"),
    ("cut_off", "a whole file"),
    ("inverted", "in MONOCHROME1"),
    ("more_bits", "BitsStored: received '8 in"),
]


@pytest.mark.parametrize(("kind", "message"), BAD_FILES)
def test_bad_files_are_named(kind: str, message: str, download: tuple[Path, Path]) -> None:
    folder, table = download
    bad = folder / "bad.dcm"
    if kind == "text":
        bad.write_text("no image")
    elif kind == "empty":
        bad.touch()
    elif kind == "cut_off":
        write_dicom(bad, "D1-0001", "L", Rows=4000, Columns=4000)
    else:
        patient = {"unknown_patient": "D9-0001", "no_patient": ""}.get(kind, "D1-0001")
        side = {"no_side": None, "both_sides": "B"}.get(kind, "L")
        tags = {"PhotometricInterpretation": "MONOCHROME1"} if kind == "inverted" else {}
        write_dicom(bad, patient, side, bits=12 if kind == "more_bits" else 8, **tags)
    with pytest.raises(InputError) as caught:
        write_index(folder, table)
    assert message in str(caught.value)
    assert str(bad) in str(caught.value)
    assert not list(folder.glob("index.csv*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns: received []"),
        ("ID1,Side,classification\n", "LeftRight"),
        (HEADER, "without rows"),
        (HEADER + "D1-0001,X,44,2,mass,Benign,\n", "line 2, LeftRight: received 'X', allowed is L or R"),
        (HEADER + "D1-0001,L,44,2,mass,Benign,\nD1-0002,L,44,2,mass,,\n", "line 3, classification: received ''"),
        (HEADER + ",L,44,2,mass,Benign,\n", "line 2, ID1"),
        (HEADER + "D1-0001,L,1,2,mass,Benign,\nD1-0001,L,1,2,mass,Malignant,\n", "another diagnosis of D1-0001 L"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(InputError) as caught:
        read_diagnoses(table)
    assert message in str(caught.value)


def test_tables_of_all_spreadsheet_programs(tmp_path: Path) -> None:
    """Semicolons, a byte order mark, empty lines at the end, a breast with two findings."""
    table = tmp_path / "table.csv"
    left = "D1-0001,L,1,2,mass,Malignant,\nD1-0001,L,1,2,calcification,Malignant,\n"
    rows = HEADER + left + "D1-0001,R,1,2,mass,benign,\n"
    table.write_text(rows.replace(",", ";") + ";;;;;;\n", encoding="utf-8-sig")
    assert read_diagnoses(table) == {("D1-0001", "L"): 1, ("D1-0001", "R"): 0}


def test_excel_table_without_openpyxl_says_how_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.xlsx"
    table.write_bytes(b"PK")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("openpyxl"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="save it as CSV"):
        read_diagnoses(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds: received 1"),
        ({"folds": 9}, "folds: received 9, allowed is at most 8, the number of patients with a malignant image"),
        ({"other_breast": "benign"}, "other_breast: received 'benign'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, download: tuple[Path, Path]) -> None:
    with pytest.raises(InputError) as caught:
        write_index(*download, **options)
    assert message in str(caught.value)
    assert not (download[0] / "index.csv").exists()


def test_missing_folder_and_table_are_named(download: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder: received .*nowhere"):
        write_index(tmp_path / "nowhere", download[1])
    with pytest.raises(InputError, match=r"table: received .*nowhere.csv"):
        write_index(download[0], tmp_path / "nowhere.csv")
