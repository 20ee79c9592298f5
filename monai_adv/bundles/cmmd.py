"""Make the index of a CMMD download: the Chinese Mammography Database, doi.org/10.7937/tcia.eqde-4b16.

The Cancer Imaging Archive gives DICOM files and a table of the diagnoses. The table has a row per breast: patient
(``ID1``), side (``LeftRight``) and diagnosis (``classification``); a file says in its header whose breast it shows.
This writes the ``index.csv`` that bundles read, with a label per image and folds by patient. Images stay where and as
they are::

    python -m monai_adv.bundles.cmmd CMMD CMMD_clinicaldata_revision.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from monai_adv.bundles.image_index import FILE, write_table
from monai_adv.errors import InputError, did_you_mean
from monai_adv.optional import require

OtherBreast = Literal["leave_out", "not_malignant"]
COLUMNS = ("ID1", "LeftRight", "classification")
CLASSES = {"benign": 0, "malignant": 1}
Breast = tuple[str, str]
"""Patient, and L or R."""


@dataclass(frozen=True)
class CMMDIndex:
    """What was written.

    Attributes:
        file: ``index.csv``.
        images, malignant, patients: their numbers.
        left_out: images of breasts without a diagnosis.
        intensity_high: the largest value that the files' format allows, for the bundle's key of that name.
    """

    file: Path
    images: int
    malignant: int
    patients: int
    left_out: int
    intensity_high: int


def write_index(
    folder: str | Path,
    table: str | Path,
    output: str | Path | None = None,
    other_breast: OtherBreast = "leave_out",
    folds: int = 5,
    seed: int = 0,
) -> CMMDIndex:
    """Write ``index.csv``: image, malignant, patient, side, fold.

    Args:
        folder: of the download; ``.dcm`` files are looked for in all folders below it.
        table: CMMD_clinicaldata_revision, as CSV, or as xlsx where openpyxl is installed.
        output: folder for the index, to be given to bundles as ``dataset_dir``; default: that of the download.
        other_breast: what becomes of images of a breast without a diagnosis, whose patient has one for the other
            breast: left out, or taken as not malignant.
        folds: number of parts, of whole patients; each has the same share of patients with a malignant image.
        seed: of the folds.

    Raises:
        InputError: names the file or the line. Then nothing was written.
    """
    folder, table = Path(folder), Path(table)
    if other_breast not in get_args(OtherBreast):
        raise InputError.of("other_breast", other_breast, "leave_out or not_malignant")
    if folds < 2:
        raise InputError.of("folds", folds, "a whole number >= 2")
    place = Path(output or folder)
    if (place / FILE).exists():
        raise InputError.of("output", str(place), f"a folder without {FILE}", "remove the old one, or give --output")
    labels = read_diagnoses(table)
    diagnosed = {patient for patient, _ in labels}
    rows: list[dict[str, Any]] = []
    left_out = 0
    bits: tuple[int, Path] | None = None
    for file in _dicom_files(folder):
        (patient, side), stored = read_header(file)
        if patient not in diagnosed:
            raise InputError.of("patient", f"{patient} in {file}", f"a patient in {table}", "see PatientID and ID1")
        bits = bits or (stored, file)
        if stored != bits[0]:
            raise InputError.of(
                "BitsStored", f"{bits[0]} in {bits[1]} and {stored} in {file}", "the same in all files",
                "bundles scale all images alike; convert them",
            )  # fmt: skip
        if (patient, side) not in labels and other_breast == "leave_out":
            left_out += 1
            continue
        image = Path(os.path.relpath(file.resolve(), place.resolve())).as_posix()
        rows.append({"image": image, "malignant": labels.get((patient, side), 0), "patient": patient, "side": side})
    if bits is None or not rows:
        raise InputError.of("folder", str(folder), f"DICOM files of breasts in {table}")
    fold_of = patient_folds(rows, folds, seed)
    written = write_table(place, [{**row, "fold": fold_of[row["patient"]]} for row in rows])
    malignant = sum(row["malignant"] for row in rows)
    return CMMDIndex(written, len(rows), malignant, len(fold_of), left_out, 2 ** bits[0] - 1)


def read_diagnoses(table: Path) -> dict[Breast, int]:
    """1 for a malignant breast, 0 for a benign one.

    Raises:
        InputError: names the line.
    """
    if not table.is_file():
        raise InputError.of("table", str(table), "an existing file", "TCIA has it as CMMD_clinicaldata_revision.xlsx")
    lines = _excel_lines(table) if table.suffix.lower() == ".xlsx" else _csv_lines(table)
    header = next(lines, [])
    for column in COLUMNS:
        if column not in header:
            raise InputError.of(f"{table}, columns", header, ", ".join(COLUMNS), did_you_mean(column, header))
    labels: dict[Breast, int] = {}
    for number, line in enumerate(lines, start=2):
        if not any(line):
            continue
        row = dict(zip(header, line, strict=False))
        patient, side, diagnosis = (row.get(column, "") for column in COLUMNS)
        where = f"{table}, line {number}"
        if not patient:
            raise InputError.of(f"{where}, ID1", patient, "a patient")
        if side not in ("L", "R"):
            raise InputError.of(f"{where}, LeftRight", side, "L or R")
        if diagnosis.lower() not in CLASSES:
            raise InputError.of(f"{where}, classification", diagnosis, "Benign or Malignant")
        label = CLASSES[diagnosis.lower()]
        if labels.setdefault((patient, side), label) != label:
            raise InputError.of(where, f"another diagnosis of {patient} {side}", "one diagnosis per breast")
    if not labels:
        raise InputError.of("table", f"{table} without rows", "a row per breast")
    return labels


def read_header(file: Path) -> tuple[Breast, int]:
    """Whose breast it is, and how many bits a pixel has.

    Raises:
        InputError: a file that is no DICOM image, is cut off, lacks what is needed, or is not grey with bright tissue.
    """
    require(f"image {str(file)!r}", "pydicom")
    import pydicom

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        syntax = header.file_meta.TransferSyntaxUID
        pixels = int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8
        bits, photometric = int(header.BitsStored), str(header.PhotometricInterpretation)
    except Exception as error:  # pydicom raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError.of("image", str(file), "a DICOM image that can be read", reason.rstrip(".")) from error
    if not syntax.is_compressed and file.stat().st_size < pixels:
        raise InputError.of("image", str(file), f"a whole file, of more than {pixels} bytes", "download it again")
    if photometric != "MONOCHROME2":
        raise InputError.of("image", f"{file} in {photometric}", "MONOCHROME2 (grey, tissue bright)", "convert it")
    patient, side = (str(header.get(tag, "") or "").strip() for tag in ("PatientID", "ImageLaterality"))
    if not patient:
        raise InputError.of("image", f"{file} without PatientID", "a file that names its patient")
    if side not in ("L", "R"):
        raise InputError.of("image", f"{file} with ImageLaterality {side!r}", "L or R: the label is that of the breast")
    return (patient, side), bits


def patient_folds(rows: Sequence[Mapping[str, Any]], folds: int, seed: int) -> dict[str, int]:
    """The fold of each patient; patients with a malignant image are dealt out first, then the others.

    Raises:
        InputError: fewer patients of a class than folds.

    Example:
        >>> rows = [{"patient": name, "malignant": name < "c"} for name in "abcdef"]
        >>> found = patient_folds(rows, 2, seed=0)
        >>> [sum(found[name] == fold for name in "ab") for fold in (0, 1)]
        [1, 1]
    """
    malignant: dict[str, bool] = {}
    for row in rows:
        malignant[row["patient"]] = malignant.get(row["patient"], False) or bool(row["malignant"])
    found: dict[str, int] = {}
    for label, word in ((True, "a malignant image"), (False, "no malignant image")):
        patients = sorted(patient for patient, own in malignant.items() if own == label)
        if len(patients) < folds:
            raise InputError.of("folds", folds, f"at most {len(patients)}, the number of patients with {word}")
        random.Random(seed).shuffle(patients)
        # The others go on where these ended, so that folds differ by one patient at most.
        found.update({patient: i % folds for i, patient in enumerate(patients, start=len(found))})
    return found


def _dicom_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".dcm") if folder.is_dir() else []
    if not files:
        raise InputError.of("folder", str(folder), "a folder with .dcm files", "see doi.org/10.7937/tcia.eqde-4b16")
    return files


def _csv_lines(table: Path) -> Iterator[list[str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as text:
            first = text.readline()
            text.seek(0)
            delimiter = max(",;\t", key=first.count)
            for line in csv.reader(text, delimiter=delimiter):
                yield [value.strip() for value in line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError.of("table", str(table), "a table in UTF-8", str(error).rstrip(".")) from error


def _excel_lines(table: Path) -> Iterator[list[str]]:
    todo = "open it in a spreadsheet program, save it as CSV (UTF-8), and give that file"
    try:
        from openpyxl import load_workbook  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        allowed = "a CSV file, because openpyxl is not installed"
        raise InputError.of("table", str(table), allowed, f"{todo}, or pip install openpyxl") from error
    try:
        rows = [list(row) for row in load_workbook(table, read_only=True, data_only=True).active.values]
    except Exception as error:  # openpyxl and zipfile raise many kinds
        raise InputError.of("table", str(table), "a spreadsheet that can be read", todo) from error
    for row in rows:
        yield ["" if value is None else str(value).strip() for value in row]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m monai_adv.bundles.cmmd", description="Write a CMMD index.csv.")
    parser.add_argument("folder", help="the download, with .dcm files below it")
    parser.add_argument("table", help="CMMD_clinicaldata_revision.csv, or .xlsx with openpyxl")
    parser.add_argument("--output", help="folder for index.csv (default: the download)")
    parser.add_argument(
        "--other-breast", default="leave_out", help="images of breasts without a diagnosis: leave_out, not_malignant"
    )
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    try:
        found = write_index(**vars(parser.parse_args(argv)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{found.file}: {found.images} images ({found.malignant} malignant) of {found.patients} patients; left out: "
        f"{found.left_out} images of breasts without a diagnosis.\n"
        f"Give bundles --dataset_dir {found.file.parent} --intensity_high {found.intensity_high}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
