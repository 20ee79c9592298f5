"""A tiny data set in nnU-Net's preprocessed layout, made directly: planning and preprocessing take a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from tests.tiny_nnunet import configuration

NAME = "Dataset777_Toy"
SHAPE = (5, 20, 18)  # slices, rows, columns of a case
SHORT = {
    "epochs": 2,
    "iterations": 2,
    "validation_iterations": 2,
    "robust_validation_batches": 1,
    "steps": 3,
    "searches": 2,
}


def _configuration(rank: int, identifier: str) -> dict[str, Any]:
    return {
        **configuration((16, 16) if rank == 2 else (8, 16, 16), (1.0,) * rank),
        "data_identifier": identifier,
        "batch_size": 4 if rank == 2 else 2,
    }


def plans() -> dict[str, Any]:
    """Plans with every configuration nnU-Net knows."""
    cascade = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(SHAPE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": _configuration(2, "toy_2d"),
            "3d_fullres": _configuration(3, "toy_3d_fullres"),
            "3d_lowres": {**_configuration(3, "toy_3d_lowres"), "next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": cascade,
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {k: 1.0 for k in ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")}
        },
    }


def dataset_json(kind: str = "labels") -> dict[str, Any]:
    """``labels``, ``ignore`` (label 3), or ``regions`` (whole contains core; label 3 is ignored)."""
    labels: dict[str, Any] = {"background": 0, "a": 1, "b": 2}
    if kind == "ignore":
        labels["ignore"] = 3
    content: dict[str, Any] = {
        "channel_names": {"0": "MRI"},
        "labels": labels,
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    if kind == "regions":
        content["labels"] = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
        content["regions_class_order"] = [1, 2]
    return content


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A z-scored image ``(1, *SHAPE)`` with two blocks that are easy to see, and its labels; slice 0 has none."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((1, *SHAPE), np.int16)
    row, column = generator.integers(2, 6, 2)
    labels[:, 1:, row : row + 10, column : column + 5] = 1
    labels[:, 1:, row : row + 10, column + 5 : column + 10] = 2
    image = (labels * 1.5 + generator.normal(0, 0.2, labels.shape)).astype(np.float32)
    return (image - image.mean()) / image.std(), labels


def make(root: Path, kind: str = "labels", cases: int = 6) -> Path:
    """Write the data set below ``root``; returns the folder for ``nnUNet_preprocessed``."""
    base = root / "preprocessed" / NAME
    content = dataset_json(kind)
    manager_labels: list[Any] = [1, 2] if kind != "regions" else [(1, 2), (2,)]
    if kind != "labels":
        manager_labels.append((-1, 0, 1, 2))  # nnU-Net samples annotated voxels where there is an ignore label
    for identifier in ("toy_2d", "toy_3d_fullres", "toy_3d_lowres"):
        (base / identifier).mkdir(parents=True)
        for number in range(cases):
            image, labels = case(number)
            if kind != "labels":
                labels[:, :, :2] = 3
            properties = {
                "class_locations": DefaultPreprocessor._sample_foreground_locations(labels, manager_labels),
                "spacing": [1.0, 1.0, 1.0],
            }
            nnUNetDatasetBlosc2.save_case(
                image,
                labels,
                properties,
                str(base / identifier / f"case_{number}"),
                chunks=image.shape,
                blocks=image.shape,
            )
    splits = [{"train": [f"case_{i}" for i in range(cases - 2)], "val": [f"case_{i}" for i in (cases - 2, cases - 1)]}]
    for name, value in (
        ("nnUNetPlans.json", plans()),
        ("dataset.json", content),
        ("dataset_fingerprint.json", {}),
        ("splits_final.json", splits),
    ):
        (base / name).write_text(json.dumps(value))
    return root / "preprocessed"


def trainer(
    cls: type[nnUNetTrainer],
    configuration: str = "2d",
    kind: str = "labels",
    fold: int | str = 0,
    goes_on: bool = False,
) -> Any:
    """A trainer as ``nnUNetv2_train`` makes it (``goes_on``: with --c), on the CPU, with fixed initial weights."""
    torch.manual_seed(0)
    return cls({**plans(), "continue_training": goes_on}, configuration, fold, dataset_json(kind), torch.device("cpu"))
