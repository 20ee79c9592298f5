"""A data set of two-dimensional images with labels: a folder with images and one table, ``index.csv``.

The table has one row per image. ``image`` is the file, relative to the folder; a column of the user's choice has the
label; ``split`` (train, val, test) or ``fold`` (0, 1, 2, ...) says which part an image belongs to. Further columns may
name a mask, and a group, such as the patient, that may not be in two parts.

Everything that can be wrong is found here, before a training starts, and named.
"""

from __future__ import annotations

import csv
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from monai_adv.bundles.parts import Parts
from monai_adv.errors import InputError, did_you_mean
from monai_adv.files import whole_file
from monai_adv.foreign_text import csv_text, from_cell
from monai_adv.optional import require

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
FILE = "index.csv"
Row = Mapping[str, str]
logger = logging.getLogger(__name__)


def read_index(
    folder: str | Path,
    label: str,
    classes: Mapping[str, int],
    *,
    fold: int | None = None,
    validation: float = 0.125,
    group: str | None = None,
    mask: str | None = None,
    leave_out: Sequence[str] = (),
    seed: int = 0,
    source: str = "",
) -> Parts:
    """Read and check a data set.

    Args:
        folder: with ``index.csv`` and the images.
        label: column of the label.
        classes: class of each value of that column.
        fold: the test part of a cross-validation, by the column ``fold``; None: the parts by the column ``split``.
        validation: with ``fold``: share of the other folds' groups that is taken for validation, at random, from the
            groups of every class (that of a group's first image).
        group: column whose values may not be in two parts, such as the patient; default: each image is its own.
        mask: column of a mask's file.
        leave_out: values of the label column whose images are not used.
        seed: of the validation part.
        source: where the data can be had; for the error message.

    Returns:
        ``train``, ``val`` and ``test``. Of each item ``image`` and, where there is one, ``mask`` are paths; ``label``
        is the class; ``index`` is the position in the list; ``group`` is a number that images of one group share.

    Raises:
        InputError: a folder, table, column or file that is missing; an image that cannot be read or has colours; an
            empty or unknown label; a group in two parts; a part without one of the classes.
    """
    folder = Path(folder)
    rows = _read_table(folder, [label, *filter(None, [group, mask])], "split" if fold is None else "fold", source)
    rows = _labelled(rows, label, classes, leave_out)
    parts = _by_split(rows) if fold is None else _by_fold(rows, label, fold, validation, group, seed)
    if group is not None:
        _check_groups(parts, group)
    _check_classes(parts, label, classes)
    for row in rows:
        for column in filter(None, ["image", mask]):
            check_image(folder / row[column])
    groups: dict[str, int] = {}
    lists: dict[str, list[dict[str, Any]]] = {
        name: _items(folder, part, label, classes, group, mask, groups) for name, part in parts.items()
    }
    for name, part in parts.items():
        counts = Counter(row[label] for row in part)
        logger.info(f"{name}: {len(part)} images ({', '.join(f'{value}: {counts[value]}' for value in classes)})")
    return Parts(lists)


def write_table(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``index.csv``.

    Args:
        folder: of the data set.
        rows: one per image, all with the same columns.
    """
    with whole_file(Path(folder) / FILE) as file:
        file.write(csv_text(list(rows[0]), rows).encode())
    return Path(folder) / FILE


def check_image(file: Path) -> None:
    """An image that can be read and is grey; whole files are read, so that a broken one is found now.

    Raises:
        InputError: names the file.
    """
    if not file.is_file():
        raise InputError.of("image", str(file), "an existing file", f"correct {FILE}")
    kind = next((reader for ending, reader in READERS.items() if file.name.lower().endswith(ending)), _check_picture)
    try:
        problem = kind(file)
    except InputError:
        raise
    except Exception as error:  # every format has kinds of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError.of("image", str(file), "an image that can be read", reason.rstrip(".")) from error
    if problem:
        raise InputError.of("image", str(file), "one grey slice", f"this one is {problem}; convert it")


def _check_picture(file: Path) -> str:
    from PIL import Image

    with Image.open(file) as picture:
        mode = picture.mode
        picture.verify()
    return "" if mode in ("1", "L", "I", "F") or mode.startswith("I;16") else f"in colours (mode {mode})"


def _check_dicom(file: Path) -> str:
    require(f"image {str(file)!r}", "pydicom")
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True)
    if int(header.get("SamplesPerPixel", 1)) != 1:
        return "in colours"
    frames = int(header.get("NumberOfFrames", 1))
    return f"{frames} slices" if frames > 1 else ""


def _check_nifti(file: Path) -> str:
    import nibabel as nib

    image = nib.load(file)
    image.get_fdata()  # type: ignore[attr-defined]
    shape = tuple(image.shape)  # type: ignore[attr-defined]
    return "" if len(shape) == 2 or set(shape[2:]) == {1} else f"of shape {shape}"


READERS: dict[str, Callable[[Path], str]] = {".dcm": _check_dicom, ".nii": _check_nifti, ".nii.gz": _check_nifti}
"""What each ending's check finds wrong; pictures for all others."""


def _read_table(folder: Path, columns: Sequence[str], parts: str, source: str) -> list[dict[str, str]]:
    wanted = ["image", *columns, parts]
    layout = f"a folder with images and {FILE}, a table with the columns {', '.join(wanted)}"
    todo = f"data: {source}" if source else "see the bundle's docs/README.md"
    if str(folder) in ("", "."):
        raise InputError.of("dataset_dir", "", layout, f"give --dataset_dir; {todo}")
    if not folder.is_dir():
        raise InputError.of("dataset_dir", str(folder), layout, f"there is no such folder; {todo}")
    table = folder / FILE
    if not table.is_file():
        raise InputError.of("dataset_dir", str(folder), layout, f"{FILE} is not in it; {todo}")
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            rows = [{k: from_cell(v) if isinstance(v, str) else v for k, v in row.items()} for row in reader]
            found = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError.of(FILE, str(table), "a table in UTF-8 with commas", str(error)) from error
    for column in wanted:
        if column not in found:
            raise InputError.of(f"{FILE}, columns", found, f"{', '.join(wanted)}", did_you_mean(column, found))
    if not rows:
        raise InputError.of(FILE, "no rows", "one row per image")
    for number, row in enumerate(rows, start=2):
        for column in wanted:
            if not (row[column] or "").strip():
                raise InputError.of(f"{FILE}, line {number}, {column}", row[column] or "", "a value", "fill it in")
    repeated = [name for name, count in Counter(row["image"] for row in rows).items() if count > 1]
    if repeated:
        raise InputError.of(f"{FILE}, image", repeated[:3], "each image once")
    return rows


def _labelled(
    rows: Sequence[dict[str, str]], label: str, classes: Mapping[str, int], leave_out: Sequence[str]
) -> list[dict[str, str]]:
    known = [*classes, *leave_out]
    for number, row in enumerate(rows, start=2):
        if row[label] not in known:
            todo = did_you_mean(row[label], known)
            raise InputError.of(f"{FILE}, line {number}, {label}", row[label], f"one of {', '.join(known)}", todo)
    used = [row for row in rows if row[label] not in leave_out]
    if len(used) < len(rows):
        logger.info(f"left out: {len(rows) - len(used)} images with {label} {', '.join(leave_out)}")
    return used


def _by_split(rows: Sequence[Row]) -> dict[Part, list[Row]]:
    for number, row in enumerate(rows, start=2):
        if row["split"] not in PARTS:
            raise InputError.of(f"{FILE}, line {number}, split", row["split"], "train, val or test")
    return {part: [row for row in rows if row["split"] == part] for part in PARTS}


def _by_fold(
    rows: Sequence[Row], label: str, fold: int, validation: float, group: str | None, seed: int
) -> dict[Part, list[Row]]:
    folds = sorted({row["fold"] for row in rows})
    if str(fold) not in folds:
        raise InputError.of("fold", fold, f"one of {', '.join(folds)}, the values of the column fold")
    if not 0 < validation < 1:
        raise InputError.of("validation", validation, "a share between 0 and 1")
    key = group or "image"
    rest = [row for row in rows if row["fold"] != str(fold)]
    label_of = {row[key]: row[label] for row in reversed(rest)}
    kept: set[str] = set()
    for value in sorted(set(label_of.values())):
        groups = sorted(name for name, own in label_of.items() if own == value)
        random.Random(seed).shuffle(groups)
        kept |= set(groups[: max(1, round(validation * len(groups)))])
    return {
        "train": [row for row in rest if row[key] not in kept],
        "val": [row for row in rest if row[key] in kept],
        "test": [row for row in rows if row["fold"] == str(fold)],
    }


def _check_groups(parts: Mapping[Part, Sequence[Row]], group: str) -> None:
    seen: dict[str, str] = {}
    for name, rows in parts.items():
        for row in rows:
            other = seen.setdefault(row[group], name)
            if other != name:
                raise InputError.of(
                    f"{FILE}, {group} {row[group]}", f"images in {other} and {name}", "all images of it in one part",
                    "otherwise the test images were seen in training",
                )  # fmt: skip


def _check_classes(parts: Mapping[Part, Sequence[Row]], label: str, classes: Mapping[str, int]) -> None:
    for name, rows in parts.items():
        found = {classes[row[label]] for row in rows}
        missing = [value for value, number in classes.items() if number not in found]
        if missing:
            raise InputError.of(
                f"{FILE}, {label}", f"no image of {', '.join(missing)} in {name}",
                "images of every class in every part",
                "change the fold or the split",
            )  # fmt: skip


def _items(
    folder: Path, rows: Sequence[Row], label: str, classes: Mapping[str, int], group: str | None, mask: str | None,
    groups: dict[str, int],
) -> list[dict[str, Any]]:  # fmt: skip
    return [
        {
            "image": str(folder / row["image"]),
            **({"mask": str(folder / row[mask])} if mask else {}),
            "label": classes[row[label]],
            "group": groups.setdefault(row[group or "image"], len(groups)),
            "index": i,
        }
        for i, row in enumerate(rows)
    ]


def image_files(folder: str | Path, pattern: str = "**/*.*") -> list[str]:
    """The images of a folder, sorted and checked, for inference.

    Args:
        folder: of the images.
        pattern: as of ``pathlib.Path.glob``.

    Raises:
        InputError: no folder, no image in it, or one that cannot be read or is not one grey slice.
    """
    endings = (*READERS, ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm")
    if str(folder) == "" or not Path(folder).is_dir():
        raise InputError.of("dataset_dir", str(folder), "a folder with images", "give --dataset_dir")
    files = sorted(file for file in Path(folder).glob(pattern) if file.name.lower().endswith(endings))
    if not files:
        raise InputError.of(
            "dataset_dir", str(folder), f"a folder with images ({', '.join(endings)}) that fit {pattern}"
        )
    for file in files:
        check_image(file)
    return [str(file) for file in files]


def file_cells(batch: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The files of a batch as MONAI's savers shall write them: into a CSV file they put names as they are.

    Args:
        batch: items whose ``image`` is a MetaTensor.
    """
    key = "filename_or_obj"  # MONAI's
    return [{key: csv_text([str(item["image"].meta[key])], []).rstrip("\r\n")} for item in batch]
