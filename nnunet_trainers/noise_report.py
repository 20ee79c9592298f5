"""How robust are deployed nnU-Nets? Dice per case on the whole volume: clean, under white noise, under PGD.

Source: the noise evaluation of Ma & Liang, CMPB 2023, section 3 (L2 radius per network input). Unlike the
authors' code, nothing is clamped to [0, 1]: the images are z-scored, and the clamp alone destroys them.

What is measured is the function that is deployed: host preprocessing, sliding window, host export, and Dice in the
original geometry. The enemy changes the preprocessed image, each network input (2D: a slice, 3D: the volume) by at most
the radius. PGD raises the soft Dice loss and, in a second run, cross-entropy; a case counts with the worse of the two.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder
from torch import Tensor
from tqdm import tqdm

from monai_adv.attacks import PGD, WhiteNoise
from monai_adv.errors import InputError
from monai_adv.tasks import Output, SegmentationSettings, SegmentationTask, Target
from monai_adv.threats import Threat
from nnunet_trainers.deployed import DeployedModel

Loss = Literal["dice", "ce"]
LOSSES: tuple[Loss, ...] = ("dice", "ce")
NORM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """One patient: the image files (one per channel) and the ground truth."""

    name: str
    image_files: tuple[Path, ...]
    ground_truth_file: Path


@dataclass(frozen=True)
class Row:
    """One model on one case under one condition.

    Attributes:
        condition: "clean", "white noise" or "PGD-<steps>".
        radius: L2 radius per network input, in standard deviations of the normalised image.
        dice: mean over the classes of ``dice_per_class`` that are not NaN.
        dice_per_class: hard Dice on the whole volume in the original geometry; NaN for a class that neither the ground
            truth nor the prediction has (0 if only one of them has it).
        dice_per_loss: PGD only: ``dice`` under the attack on each loss; ``dice`` and the rest are of the smallest.
        largest_norm: the largest L2 norm of a perturbation, measured on the images that the network saw.
        dead_gradient: share of the network inputs on which PGD met a zero gradient: a sign of gradient masking.
    """

    model: str
    case: str
    condition: str
    radius: float
    dice: float
    dice_per_class: dict[str, float]
    dice_per_loss: dict[str, float] = field(default_factory=dict)
    largest_norm: float = 0.0
    dead_gradient: float = 0.0


def find_cases(
    images_folder: str | Path, labels_folder: str | Path, file_ending: str, names: Sequence[str] | None = None
) -> list[Case]:
    """The cases of two folders in nnU-Net's raw layout (imagesTr, labelsTr).

    Args:
        file_ending: as in dataset.json, such as ".nii.gz".
        names: which cases; default: all.

    Raises:
        InputError: no such case, or a case without ground truth.
    """
    images, labels = Path(images_folder), Path(labels_folder)
    known = get_identifiers_from_splitted_dataset_folder(str(images), file_ending) if images.is_dir() else []
    cases = []
    for name in sorted(known) if names is None else names:
        files = tuple(sorted(images.glob(f"{name}_[0-9][0-9][0-9][0-9]{file_ending}")))
        truth = labels / f"{name}{file_ending}"
        if not files or not truth.is_file():
            missing = str(truth) if files else str(images / f"{name}_0000{file_ending}")
            raise InputError.of("cases", name, "a case with image and ground truth", f"there is no {missing}")
        cases.append(Case(name, files, truth))
    return cases


def evaluate(
    models: Sequence[DeployedModel],
    cases: Sequence[Case],
    radii: Sequence[float],
    *,
    steps: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Measure every model on every case: clean, then white noise and PGD at each radius.

    Args:
        models: with different names.
        cases: see :func:`find_cases`.
        radii: L2 radii per network input, in standard deviations of the normalised image.
        steps: of PGD.
        batch_size: network inputs attacked together (2D: slices).
        seed: of the white noise; a case gets the same noise for every model, and at every radius up to its length.
        progress: show a progress bar.

    Returns:
        rows in the order case, model, condition.

    Raises:
        InputError: nothing to measure, model names that repeat, or a radius that is not a finite number > 0.
    """
    names = [m.name for m in models]
    if not models or not cases:
        raise InputError.of("models and cases", f"{len(models)} and {len(cases)}", "at least one of each")
    if len(set(names)) < len(names):
        raise InputError.of("models", names, "models with different names", "give from_folder a name")
    for radius in radii:
        if not (math.isfinite(radius) and radius > 0):
            raise InputError.of("radii", radius, "finite numbers > 0", "the clean image is measured in any case")
    rows = []
    with tqdm(total=len(models) * len(cases) * (1 + 2 * len(radii)), disable=not progress) as bar:
        for case in cases:
            for model in models:
                bar.set_description(f"{case.name}, {model.name}")
                for row in _rows(model, case, radii, steps, batch_size, seed):
                    rows.append(row)
                    bar.update()
    return rows


def _rows(
    model: DeployedModel, case: Case, radii: Sequence[float], steps: int, batch_size: int, seed: int
) -> Iterator[Row]:
    prepared = PreparedCase(model, case, batch_size)
    yield Row(model.name, case.name, "clean", 0.0, **prepared.score(prepared.inputs))
    for radius in radii:
        noisy = prepared.with_white_noise(radius, seed)
        norm = prepared.largest_norm(noisy, radius)
        yield Row(model.name, case.name, "white noise", radius, **prepared.score(noisy), largest_norm=norm)
    for radius in radii:
        found = []
        for loss in LOSSES:
            attacked, dead = prepared.attacked(radius, loss, steps)
            norm = prepared.largest_norm(attacked, radius)
            found.append({**prepared.score(attacked), "largest_norm": norm, "dead_gradient": dead})
        per_loss = {loss: score["dice"] for loss, score in zip(LOSSES, found, strict=True)}
        worst = min(found, key=lambda score: math.inf if math.isnan(score["dice"]) else score["dice"])
        yield Row(model.name, case.name, f"PGD-{steps}", radius, **worst, dice_per_loss=per_loss)


class PreparedCase:
    """A case in the network space of one model.

    Args:
        inputs: which of the network's inputs to keep (2D: slices); default: all, which :meth:`score` needs.

    Attributes:
        inputs: ``(B, C, *spatial)`` on the CPU.
        labels: ``(B, 1, *spatial)`` ground truth.
    """

    def __init__(self, model: DeployedModel, case: Case, batch_size: int = 64) -> None:
        self.model, self.case, self.batch_size = model, case, batch_size
        self.network = model.as_network()
        volume, labels, self.properties = model.preprocess_labelled(case.image_files, case.ground_truth_file)
        reader = model.plans_manager.image_reader_writer_class()
        self.truth: npt.NDArray[Any] = reader.read_seg(str(case.ground_truth_file))[0][0]
        self.inputs = model.to_inputs(volume).contiguous()
        self.labels = model.to_inputs(labels).contiguous()

    def logits(self, inputs: Tensor) -> Tensor:
        """``(B, K, *spatial)`` on the CPU, without gradient."""
        with torch.no_grad():
            return torch.cat([self.network(x.to(self.model.device)).cpu() for x in inputs.split(self.batch_size)])

    def score(self, inputs: Tensor) -> dict[str, Any]:
        """``dice`` and ``dice_per_class`` of the segmentation in the original geometry."""
        segmentation = self.model.segmentation(self.model.to_volume(self.logits(inputs)), self.properties)
        per_class = dice_per_class(segmentation, self.truth, self.model.dataset_json["labels"])
        return {"dice": mean_dice(per_class), "dice_per_class": per_class}

    def with_white_noise(self, radius: float, seed: int) -> Tensor:
        """Zero-mean noise on the sphere of each input; drawn on the CPU, so that every device gets the same."""
        generator = torch.Generator().manual_seed(seed + zlib.crc32(self.case.name.encode()))
        return WhiteNoise(Threat("l2", radius))(self.inputs, generator)

    def attacked(self, radius: float, loss: Loss, steps: int, only: slice = slice(None)) -> tuple[Tensor, float]:
        """Inputs after PGD, and the share of them on which it met a zero gradient; ``only``: a range of the inputs."""
        pgd = PGD(Threat("l2", radius), steps=steps, keep="strongest")
        task = segmentation_task(self.model, loss)
        images, dead = [], 0
        parts = zip(self.inputs[only].split(self.batch_size), self.labels[only].split(self.batch_size), strict=True)
        for x, labels in parts:
            result = pgd(self.network, x.to(self.model.device), self.target(labels).to(self.model.device), task)
            images.append(result.images.cpu())
            dead += int(result.dead.sum())
        return torch.cat(images), dead / sum(map(len, images))

    def target(self, labels: Tensor) -> Tensor:
        """Ground truth in the task's layout: labels, or 0/1 maps ``(B, R, *spatial)`` of the regions (and ignore)."""
        manager = self.model.label_manager
        if not manager.has_regions:
            return labels
        regions = [*manager.foreground_regions, *([manager.ignore_label] if manager.has_ignore_label else [])]
        return torch.cat([torch.isin(labels, torch.tensor(_values(r))) for r in regions], dim=1).long()

    def largest_norm(self, inputs: Tensor, radius: float) -> float:
        """Largest L2 norm of a perturbation, in double precision; the honest budget is checked, not assumed."""
        largest = float((inputs.double() - self.inputs.double()).flatten(1).norm(dim=1).max())
        if not largest <= radius * (1 + NORM_TOLERANCE):
            raise RuntimeError(f"a perturbation of norm {largest} left the ball of radius {radius}")
        return largest


def segmentation_task(model: DeployedModel, loss: Loss) -> SegmentationTask:
    """What the attack raises, and how it tells its strongest image; slices without foreground are attacked."""
    settings = SegmentationSettings(attack_loss=loss, empty_target="empty_prediction")
    manager = model.label_manager
    return SegmentationTask(_no_training, settings, regions=manager.has_regions, ignore_label=manager.ignore_label)


def dice_per_class(
    prediction: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Mapping[str, int | Sequence[int]]
) -> dict[str, float]:
    """Hard Dice ``2 TP / (2 TP + FP + FN)`` of each class or region of dataset.json's ``labels``.

    Voxels with the label "ignore" count nowhere. NaN where neither has the class.

    Example:
        >>> dice_per_class(np.array([1, 1, 0]), np.array([1, 0, 0]), {"background": 0, "organ": 1, "tumour": 2})
        {'organ': 0.6666666666666666, 'tumour': nan}
    """
    counted = np.ones(truth.shape, bool)
    if "ignore" in labels:
        counted = ~np.isin(truth, _values(labels["ignore"]))
    result = {}
    for name, value in labels.items():
        if name in ("background", "ignore") or set(_values(value)) == {0}:
            continue
        found, there = np.isin(prediction, _values(value)) & counted, np.isin(truth, _values(value)) & counted
        size = int(found.sum() + there.sum())
        result[name] = 2 * int((found & there).sum()) / size if size else math.nan
    return result


def mean_dice(per_class: Mapping[str, float]) -> float:
    """Mean over the classes that are not NaN; NaN if there is none."""
    known = [v for v in per_class.values() if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _values(label: int | Sequence[int]) -> list[int]:
    return [int(v) for v in label] if isinstance(label, list | tuple) else [int(label)]  # type: ignore[arg-type]


def _no_training(output: Output, target: Target) -> Tensor:
    raise NotImplementedError("an evaluation trains nothing")
