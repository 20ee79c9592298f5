"""Cases of two folders in nnU-Net's raw layout (imagesTr, labelsTr), or of the paths in a dataset.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_adv.errors import InputError


@dataclass(frozen=True)
class CaseFiles:
    """One patient: the image files (one per channel) and the ground truth."""

    name: str
    image_files: tuple[Path, ...]
    ground_truth_file: Path


def find_cases(
    images_folder: str | Path,
    labels_folder: str | Path,
    file_ending: str,
    names: Sequence[str] | None = None,
    *,
    files: int = 1,
) -> tuple[list[CaseFiles], list[str]]:
    """The cases that have all their files, and what is wrong with the others.

    Args:
        file_ending: as in dataset.json, such as ".nii.gz".
        names: which cases; default: all.
        files: image files per case.

    Raises:
        InputError: no such folder, or no case at all.
    """
    images, labels = Path(images_folder), Path(labels_folder)
    for name, folder in (("images_folder", images), ("labels_folder", labels)):
        if not folder.is_dir():
            raise InputError.of(name, str(folder), "an existing folder", "check the path")
    cases: list[CaseFiles] = []
    problems: list[str] = []
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(file_ending)}")
    split = {p.name: pattern.fullmatch(p.name) for p in sorted(images.iterdir()) if p.is_file()}
    if names is None:
        names = sorted({match[1] for match in split.values() if match})
        misnamed = [name for name, match in split.items() if not match]
        if not names:
            allowed = f"a folder with files like CASE_0000{file_ending}"
            raise InputError.of(
                "images_folder", str(images), allowed, f"it holds {', '.join(misnamed[:3]) or 'no files'}"
            )
        # Other files may lie there, but what looks like an image was meant to be one.
        problems += [f"{n}: not called CASE_0000{file_ending}" for n in misnamed if n.endswith(file_ending)]
    too_many = {match[1]: name for name, match in split.items() if match and int(match[2]) >= files}
    for name in names:
        paths = tuple(images / f"{name}_{number:04d}{file_ending}" for number in range(files))
        case = CaseFiles(name, paths, labels / f"{name}{file_ending}")
        wrong = _wrong(case)
        if name in too_many:
            wrong.insert(0, f"{images / too_many[name]} is one channel more than the {files} of the model")
        if wrong:
            problems.append(f"{name}: {', '.join(wrong)}")
        else:
            cases.append(case)
    return cases, problems


def listed_cases(
    dataset_json: str | Path, names: Sequence[str] | None = None, *, files: int = 1
) -> tuple[list[CaseFiles], list[str]]:
    """As :func:`find_cases`, from the paths under ``dataset`` in a dataset.json, by nnU-Net's own rules for them.

    Raises:
        InputError: no such file, or no such list in it.
    """
    listed = listed_files(dataset_json)
    if listed is None:
        raise InputError.of("dataset.json", str(dataset_json), 'one with "dataset": {case: {"images", "label"}}')
    cases: list[CaseFiles] = []
    problems: list[str] = []
    for name in sorted(listed) if names is None else names:
        if name not in listed:
            problems.append(f"{name}: not listed in {dataset_json}")
            continue
        case = listed[name]
        wrong = _wrong(case)
        if len(case.image_files) != files:
            wrong.insert(0, f"{len(case.image_files)} image files in {dataset_json}, not {files}")
        if wrong:
            problems.append(f"{name}: {', '.join(wrong)}")
        else:
            cases.append(case)
    return cases, problems


def listed_files(dataset_json: str | Path) -> dict[str, CaseFiles] | None:
    """What a dataset.json lists under ``dataset``; None if it has no such list.

    Raises:
        InputError: it cannot be read, or an entry without ``images`` or ``label``.
    """
    path = Path(dataset_json)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "dataset" not in content:
            return None
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        found = get_filenames_of_train_images_and_targets(str(path.parent), content)
        return {
            str(name): CaseFiles(str(name), tuple(map(Path, entry["images"])), Path(entry["label"]))
            for name, entry in found.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        allowed = 'a data set description, where "dataset" has "images" and "label" for each case'
        raise InputError.of("dataset.json", str(path), allowed, reason) from error


def _wrong(case: CaseFiles) -> list[str]:
    """Files that are missing or empty."""
    files = (*case.image_files, case.ground_truth_file)
    wrong = [f"there is no {f}" for f in files if not f.is_file()]
    return wrong + [f"{f} is empty" for f in files if f.is_file() and f.stat().st_size == 0]
