"""Cases of two folders in nnU-Net's raw layout (imagesTr, labelsTr)."""

from __future__ import annotations

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
    channels: int = 1,
) -> tuple[list[CaseFiles], list[str]]:
    """The cases that have all their files, and what is wrong with the others.

    Args:
        file_ending: as in dataset.json, such as ".nii.gz".
        names: which cases; default: all.
        channels: image files per case.

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
    too_many = {match[1]: name for name, match in split.items() if match and int(match[2]) >= channels}
    for name in names:
        files = tuple(images / f"{name}_{channel:04d}{file_ending}" for channel in range(channels))
        truth = labels / f"{name}{file_ending}"
        wrong = [f"there is no {f}" for f in (*files, truth) if not f.is_file()]
        if name in too_many:
            wrong.append(f"{images / too_many[name]} is one channel more than the {channels} of the model")
        wrong += [f"{f} is empty" for f in (*files, truth) if f.is_file() and f.stat().st_size == 0]
        if wrong:
            problems.append(f"{name}: {', '.join(wrong)}")
        else:
            cases.append(CaseFiles(name, files, truth))
    return cases, problems
