"""A data set of volumes with label maps in nnU-Net's raw layout: ``dataset.json``, ``imagesTr`` and ``labelsTr``.

A fold's training and validation cases are those that nnU-Net takes, so that models of both hosts can be compared.

Everything that can be wrong is found here, before a training starts, and named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from monai_adv.bundles.parts import Parts
from monai_adv.errors import InputError, first_cause

FOLDS, SEED = 5, 12345
"""Of nnU-Net's cross-validation."""
NIFTI = (".nii", ".nii.gz")
logger = logging.getLogger(__name__)


def read_volumes(
    folder: str | Path,
    classes: int,
    *,
    channels: int = 1,
    fold: int = 0,
    splits_file: str | Path | None = None,
    source: str = "",
) -> Parts:
    """Read and check a data set.

    Args:
        folder: ``nnUNet_raw/DatasetXXX_Name``.
        classes: number of labels, background included: what the network tells apart.
        channels: input channels of the network.
        fold: of the cross-validation.
        splits_file: nnU-Net's ``splits_final.json``; None: the split that nnU-Net makes when there is none.
        source: where the data can be had; for the error message.

    Returns:
        ``train`` and ``val`` of the fold. Of each case ``image`` is a path, or a list of a path per channel; ``label``
        is a path; ``index`` is the position in the list.

    Raises:
        InputError: a folder or file that is missing; other channels or labels than the network has; an image without a
            label map or the other way round; a file that cannot be read; a label map of another geometry or with
            unknown values; a fold that does not exist; a split that names other cases.
    """
    folder = Path(folder)
    ending = _described(folder, classes, channels, source)
    files = _cases(folder, ending, channels)
    train, val = _split(sorted(files), fold, splits_file)
    for images, label in files.values():
        _check_case(images, label, classes)
    logger.info(f"fold {fold}: {len(train)} training and {len(val)} validation cases")
    return Parts({"train": _items(train, files), "val": _items(val, files)})


def nnunet_split(names: Sequence[str], fold: int) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold, as nnU-Net splits when it is not told how.

    Source: nnunetv2.utilities.crossval_split: scikit-learn's ``KFold(5, shuffle=True, random_state=12345)`` of the
    sorted names.

    Raises:
        InputError: a fold that does not exist, or fewer cases than folds.

    Example:
        >>> train, val = nnunet_split([f"case_{i}" for i in range(10)], fold=0)
        >>> len(train), len(val), set(train) & set(val)
        (8, 2, set())
    """
    if not 0 <= fold < FOLDS:
        raise InputError.of("fold", fold, f"a whole number from 0 to {FOLDS - 1}")
    if len(names) < FOLDS:
        raise InputError.of("cases", list(names), f"at least {FOLDS} for {FOLDS} folds", "or give splits_file")
    ordered = sorted(names)
    places = set(np.array_split(np.random.RandomState(SEED).permutation(len(ordered)), FOLDS)[fold].tolist())
    return (
        [name for i, name in enumerate(ordered) if i not in places],
        [name for i, name in enumerate(ordered) if i in places],
    )


def volume_files(folder: str | Path, pattern: str = "**/*.nii*") -> list[str]:
    """The volumes of a folder, sorted and checked, for inference.

    Args:
        folder: with NIfTI files of one channel each.
        pattern: as of ``pathlib.Path.glob``.

    Raises:
        InputError: no folder, no volume in it, or one that cannot be read or has another number of axes.
    """
    if str(folder) == "" or not Path(folder).is_dir():
        raise InputError.of("dataset_dir", str(folder), "a folder with NIfTI volumes", "give --dataset_dir")
    files = sorted(file for file in Path(folder).glob(pattern) if file.name.endswith(NIFTI))
    if not files:
        raise InputError.of("dataset_dir", str(folder), f"a folder with NIfTI volumes that fit {pattern}")
    for file in files:
        _volume("image", file)
    return [str(file) for file in files]


def _described(folder: Path, classes: int, channels: int, source: str) -> str:
    """What dataset.json says fits the network; returns the files' ending."""
    layout = "a folder in nnU-Net's raw layout: dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz"
    todo = f"data: {source}" if source else "see the bundle's docs/README.md"
    if str(folder) in ("", "."):
        raise InputError.of("dataset_dir", "", layout, f"give --dataset_dir; {todo}")
    missing = [name for name in ("dataset.json", "imagesTr", "labelsTr") if not (folder / name).exists()]
    if missing:
        found = f"{', '.join(missing)} is not in it" if folder.is_dir() else "there is no such folder"
        raise InputError.of("dataset_dir", str(folder), layout, f"{found}; {todo}")
    file = folder / "dataset.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names, labels, ending = content["channel_names"], content["labels"], content["file_ending"]
        values = sorted(value for key, value in labels.items() if key != "ignore")
    except Exception as error:  # unreadable, no JSON, another version's layout, regions
        allowed = "nnU-Net's dataset.json with channel_names, labels (one number each) and file_ending"
        raise InputError.of("dataset.json", str(file), allowed, first_cause(error)) from error
    if ending not in NIFTI:
        raise InputError.of("dataset.json, file_ending", ending, " or ".join(NIFTI), "convert the images")
    if len(names) != channels:
        raise InputError.of(
            "dataset.json, channel_names", names, f"{channels}, the input channels of the network",
            "the bundle's network is for other images, or set its in_channels",
        )  # fmt: skip
    if "ignore" in labels or values != list(range(classes)):
        allowed = f"the numbers 0 to {classes - 1}, the output channels of the network, without ignore"
        raise InputError.of("dataset.json, labels", labels, allowed)
    return str(ending)


def _cases(folder: Path, ending: str, channels: int) -> dict[str, tuple[list[Path], Path]]:
    """Image files and label file of each case."""
    found = {file.name.removesuffix(ending) for file in (folder / "imagesTr").glob(f"*{ending}")}
    odd = sorted(name for name in found if not (name[-4:].isdigit() and name[-5:-4] == "_" and name[:-5]))
    if odd:
        raise InputError.of("imagesTr", odd[0] + ending, f"CASE_0000{ending}, with the channel in four digits")
    names = sorted({name[:-5] for name in found})
    if not names:
        raise InputError.of("imagesTr", str(folder / "imagesTr"), f"images CASE_0000{ending}", "there is none")
    wanted = [f"{case}_{channel:04}" for case in names for channel in range(channels)]
    for name in sorted(found.symmetric_difference(wanted)):
        state = "a file that is missing" if name not in found else "a file of a channel too many"
        raise InputError.of("imagesTr", f"{state}, {name}{ending}", f"{channels} per case, as in dataset.json")
    labelled = {file.name.removesuffix(ending) for file in (folder / "labelsTr").glob(f"*{ending}")}
    for name in sorted(labelled.symmetric_difference(names)):
        lacks = "label map" if name not in labelled else "image"
        todo = f"add it or take the case away; {len(names)} cases have images, {len(labelled)} have label maps"
        raise InputError.of("dataset_dir", f"case {name} without its {lacks}", "both for each case", todo)
    return {
        case: (
            [folder / "imagesTr" / f"{case}_{channel:04}{ending}" for channel in range(channels)],
            folder / "labelsTr" / f"{case}{ending}",
        )
        for case in names
    }


def _split(names: Sequence[str], fold: int, splits_file: str | Path | None) -> tuple[list[str], list[str]]:
    if splits_file is None:
        return nnunet_split(names, fold)
    file = Path(splits_file)
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
        parts = [(list(map(str, split["train"])), list(map(str, split["val"]))) for split in splits]
        if not parts:
            raise ValueError("there is no fold in it")
    except Exception as error:  # unreadable, no JSON, another layout
        allowed = "nnU-Net's splits_final.json: a list of folds with train and val"
        raise InputError.of("splits_file", str(file), allowed, first_cause(error)) from error
    if not 0 <= fold < len(parts):
        raise InputError.of("fold", fold, f"a whole number from 0 to {len(parts) - 1}, the folds of {file.name}")
    train, val = parts[fold]
    unknown = sorted({*train, *val} - set(names))
    if unknown:
        raise InputError.of("splits_file", f"{file} with {unknown[0]}", f"the {len(names)} cases of imagesTr")
    both = sorted(set(train) & set(val))
    if both or not train or not val:
        found = f"{both[0]} in both parts" if both else f"{len(train)} training and {len(val)} validation cases"
        raise InputError.of("splits_file", f"{file}, fold {fold}: {found}", "two parts with different cases")
    return train, val


def _check_case(images: Sequence[Path], label: Path, classes: int) -> None:
    truth = _volume("label", label)
    values = np.unique(truth.values)
    unknown = [f"{value:g}" for value in values.tolist() if value not in range(classes)]
    if unknown:
        found = f"{label} with the values {', '.join(unknown[:10])}"
        raise InputError.of("label", found, f"0 to {classes - 1}", "see labels in dataset.json")
    for file in images:
        image = _volume("image", file)
        if image.values.shape != truth.values.shape or not np.allclose(image.affine, truth.affine, atol=1e-3):
            raise InputError.of(
                "image", f"{file} of shape {image.values.shape} and label map {label} of shape {truth.values.shape}",
                "the same shape and affine matrix", "resample the label map onto the image",
            )  # fmt: skip


@dataclass(frozen=True)
class _Volume:
    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]


def _volume(name: str, file: Path) -> _Volume:
    """A volume that can be read to its end; whole files are read, so that a broken one is found now."""
    try:
        image: Any = nib.load(file)
        values = np.asanyarray(image.dataobj)
        finite = bool(np.isfinite(values).all())
    except Exception as error:  # nibabel, gzip and zlib raise kinds of their own
        raise InputError.of(name, str(file), "a NIfTI volume that can be read", first_cause(error)) from error
    if values.ndim != 3:
        raise InputError.of(name, f"{file} of shape {values.shape}", "one volume with three axes", "split it")
    if not finite:
        raise InputError.of(name, str(file), "finite intensities", "there is NaN or infinity in it")
    return _Volume(values, image.affine)


def _items(names: Sequence[str], files: Mapping[str, tuple[list[Path], Path]]) -> list[dict[str, Any]]:
    items = []
    for i, name in enumerate(names):
        images, label = files[name]
        paths = [str(file) for file in images]
        items.append({"image": paths[0] if len(paths) == 1 else paths, "label": str(label), "index": i})
    return items
