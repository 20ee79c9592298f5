"""Trained nnU-Net folders in miniature: random weights, made from plans, without a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_trainers.evaluation.case_files import CaseFiles

CLASSES: dict[str, Any] = {"background": 0, "front": 1, "back": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


def configuration(patch_size: tuple[int, ...], spacing: tuple[float, ...]) -> dict[str, Any]:
    """One entry of a plan's configurations: three resolutions, 4 to 8 features."""
    n, order = len(patch_size), {"order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    return {
        "data_identifier": f"tiny_{n}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": list(patch_size),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": name,
        "resampling_fn_seg": name,
        "resampling_fn_probabilities": name,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **order},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **order},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **order},
        "batch_dice": n == 2,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{n}d",
                "kernel_sizes": [[3] * n] * 3,
                "strides": [[1] * n, [2] * n, [2] * n],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def plans(patch_size: tuple[int, ...] = (16, 12)) -> dict[str, Any]:
    """Plans whose axes are permuted, so that a forgotten transposition shows."""
    name = "2d" if len(patch_size) == 2 else "3d_fullres"
    return {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "tinyPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [10, 16, 12],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 0, 1],
        "transpose_backward": [1, 2, 0],
        "configurations": {name: configuration(patch_size, (1.0,) * len(patch_size))},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(("mean", "std"), 1.0)},
    }


def dataset_json(labels: dict[str, Any]) -> dict[str, Any]:
    """With ``regions_class_order`` where a label is a list."""
    regions = [v[-1] for v in labels.values() if isinstance(v, list)]
    order = {"regions_class_order": list(range(1, len(regions) + 1))} if regions else {}
    return {
        "channel_names": {"0": "MRI"},
        "labels": labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
        **order,
    }


def write_model(
    folder: Path,
    patch_size: tuple[int, ...] = (16, 12),
    labels: dict[str, Any] | None = None,
    trainer: str = "nnUNetTrainer",
    **extra: Any,
) -> Path:
    """A folder as ``nnUNetv2_train`` leaves it; ``extra`` goes into the checkpoint."""
    (folder / "fold_0").mkdir(parents=True)
    described, plan = dataset_json(labels or CLASSES), plans(patch_size)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(described))
    manager = PlansManager(plan)
    (name,) = plan["configurations"]
    heads = manager.get_label_manager(described).num_segmentation_heads
    torch.manual_seed(0)
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration(name), 1, heads, False)
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": name, "plans": plan, "fold": 0, "dataset_json": described},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": tuple(range(len(patch_size))),
        # nnU-Net's own trainer leaves numpy numbers
        "_best_ema": np.float32(0.5),
        "logging": {"mean_fg_dice": [np.float64(0.5)]},
        **extra,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def write_case(folder: Path, shape: tuple[int, int, int] = (14, 11, 9), name: str = "case", rim: int = 1) -> CaseFiles:
    """A noisy image with cubes of labels 1 and 2.

    A dark rim, so that it is cropped; voxels that are not cubes, so that it is resampled.
    """
    generator = np.random.default_rng(len(name))
    z, y, x = shape
    labels = np.zeros(shape, np.uint8)
    labels[z // 4 : z // 2, y // 4 : -2, x // 4 : -2] = 1
    labels[z // 2 : -2, y // 4 : -2, x // 4 : -2] = 2
    image = generator.normal(100, 10, [n - 2 * rim for n in shape])
    image = np.pad(image, rim) + 30 * (labels > 0)
    files = (folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz")
    for file, values in zip(files, (image.astype(np.float32), labels), strict=True):
        file.parent.mkdir(exist_ok=True)
        volume = SimpleITK.GetImageFromArray(values)
        volume.SetSpacing((0.8, 1.0, 1.25))
        SimpleITK.WriteImage(volume, str(file))
    return CaseFiles(name, files[:1], files[1])


def write_planned(tmp_path: Path, schemes: list[str], masked: bool = False, channels: int = 1) -> Path:
    """A 2D model in ``tmp_path / "model"`` whose plan normalises like this; CT is clipped at 0 and 500."""
    folder = write_model(tmp_path / "model")
    plan, described = plans(), json.loads((folder / "dataset.json").read_text())
    configuration = plan["configurations"]["2d"]
    configuration["normalization_schemes"], configuration["use_mask_for_norm"] = schemes, [masked] * channels
    intensities = {"mean": 90.0, "std": 40.0, "percentile_00_5": 0.0, "percentile_99_5": 500.0}
    plan["foreground_intensity_properties_per_channel"] = {str(c): intensities for c in range(channels)}
    described["channel_names"] = {str(c): f"channel {c}" for c in range(channels)}
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(described))
    if channels > 1:
        file = folder / "fold_0" / "checkpoint_final.pth"
        content = torch.load(file, weights_only=False)
        name = next(n for n, w in content["network_weights"].items() if w.shape[1:2] == (1,))
        first = content["network_weights"][name]
        for name, weights in content["network_weights"].items():
            if weights.shape == first.shape and weights.shape[1] == 1:
                content["network_weights"][name] = weights.repeat(1, channels, 1, 1)
        torch.save(content, file)
    return folder
