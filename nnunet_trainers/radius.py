"""Scans of an nnU-Net data set as a network sees them, for a radius by their noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from monai_adv.errors import InputError, did_you_mean
from monai_adv.radius import Scan, spaced
from nnunet_trainers.raw_units import note_raw_units

LOSSY = (".jpg", ".jpeg")


def scans(dataset: str, configuration: str, plans: str, count: int) -> Iterator[Scan]:
    """The training images of a data set through nnU-Net's own preprocessing.

    Args:
        dataset: number or name, in nnUNet_raw and nnUNet_preprocessed.
        configuration: such as 3d_fullres.
        plans: such as nnUNetPlans.
        count: at most so many, evenly over the list of cases.

    Raises:
        InputError: no such data set, plans or configuration.
    """
    for variable, place in (("nnUNet_raw", nnUNet_raw), ("nnUNet_preprocessed", nnUNet_preprocessed)):
        if not place.is_set():
            raise InputError.of(variable, None, "the folder of nnU-Net's data", "set the environment variable")
    try:
        name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdecimal() else dataset)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError.of("-d", dataset, "a data set in nnUNet_raw", f"nnU-Net says: {reason}") from None
    file = Path(nnUNet_preprocessed.require()) / name / f"{plans}.json"
    if not file.is_file():
        there = ", ".join(sorted(p.stem for p in file.parent.glob("*lans*.json"))) or "none"
        raise InputError.of(
            "-p", plans, f"plans of {name}", f"{file.parent} has {there}; run nnUNetv2_plan_and_preprocess -d {dataset}"
        )
    manager = PlansManager(json.loads(file.read_text(encoding="utf-8")))
    known = manager.available_configurations
    if configuration not in known:
        raise InputError.of("-c", configuration, f"one of {', '.join(known)}", did_you_mean(configuration, known))
    raw = Path(nnUNet_raw.require()) / name
    try:
        description = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError.of("-d", dataset, f"a readable {raw / 'dataset.json'}", str(error)) from error
    files = get_filenames_of_train_images_and_targets(str(raw), description)
    if not files:
        raise InputError.of("-d", dataset, f"a data set with training images in {raw}")
    return _preprocessed(files, spaced(sorted(files), count), manager, configuration, description)


def _preprocessed(
    files: dict[str, Any], names: list[str], manager: PlansManager, configuration: str, description: dict[str, Any]
) -> Iterator[Scan]:
    chosen = manager.get_configuration(configuration)
    preprocessor = chosen.preprocessor_class(verbose=False)
    units = note_raw_units(preprocessor)
    for name in names:
        data, _, properties = preprocessor.run_case(files[name]["images"], None, manager, chosen, description)
        spacing = [properties["spacing"][axis] for axis in manager.transpose_forward][-len(chosen.spacing) :]
        notes = []
        if not np.allclose(spacing, chosen.spacing, rtol=0.01):
            notes.append(
                "nnU-Net resamples these scans to the plan's spacing, which averages neighbours: in the scans "
                "themselves the noise is larger."
            )
        if description["file_ending"].lower() in LOSSY:
            notes.append("The files are JPEG: compression has removed part of the noise.")
        yield Scan(name, np.asarray(data), tuple(units) or (None,) * len(data), tuple(notes))
