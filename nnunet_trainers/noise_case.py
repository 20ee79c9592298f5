"""One patient of the noise report: in the network space of a model, under noise, and scored."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder
from torch import Tensor

from monai_adv.attacks import PGD, WhiteNoise
from monai_adv.errors import InputError
from monai_adv.tasks import Output, SegmentationSettings, SegmentationTask, Target
from monai_adv.threats import Threat
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.volume_dice import dice_per_class, label_values, mean_dice

Loss = Literal["dice", "ce"]
LOSSES: tuple[Loss, ...] = ("dice", "ce")
NORM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """One patient: the image files (one per channel) and the ground truth."""

    name: str
    image_files: tuple[Path, ...]
    ground_truth_file: Path


def find_cases(
    images_folder: str | Path, labels_folder: str | Path, file_ending: str, names: Sequence[str] | None = None
) -> list[Case]:
    """The cases of two folders in nnU-Net's raw layout (imagesTr, labelsTr).

    Args:
        file_ending: as in dataset.json, such as ".nii.gz".
        names: which cases; default: all.

    Raises:
        InputError: no such folder or case, or a case without ground truth.
    """
    images, labels = Path(images_folder), Path(labels_folder)
    if not images.is_dir():
        raise InputError.of("images_folder", str(images), "an existing folder", "check the path")
    if names is None:
        names = sorted(map(str, get_identifiers_from_splitted_dataset_folder(str(images), file_ending)))
    cases = []
    for name in names:
        files = tuple(sorted(images.glob(f"{escape(name)}_[0-9][0-9][0-9][0-9]{file_ending}")))
        truth = labels / f"{name}{file_ending}"
        if not files or not truth.is_file():
            missing = str(truth) if files else str(images / f"{name}_0000{file_ending}")
            raise InputError.of("cases", name, "a case with image and ground truth", f"there is no {missing}")
        cases.append(Case(name, files, truth))
    return cases


class PreparedCase:
    """A case in the network space of one model.

    Args:
        batch_size: network inputs that are predicted or attacked together (2D: slices).

    Attributes:
        inputs: ``(B, C, *spatial)`` on the CPU.
        labels: ``(B, 1, *spatial)`` ground truth.
        truth: ground truth in the original geometry.
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
            return torch.cat(
                [self.network(x.to(self.model.device)).cpu() for x in torch.split(inputs, self.batch_size)]
            )

    def score(self, inputs: Tensor) -> dict[str, Any]:
        """``dice`` and ``dice_per_class`` of the segmentation in the original geometry."""
        segmentation = self.model.segmentation(self.model.to_volume(self.logits(inputs)), self.properties)
        per_class = dice_per_class(segmentation, self.truth, self.model.dataset_json["labels"])
        return {"dice": mean_dice(per_class), "dice_per_class": per_class}

    def with_white_noise(self, radius: float, seed: int) -> Tensor:
        """Zero-mean noise on the sphere of each input; drawn on the CPU, so that every device gets the same."""
        generator = torch.Generator().manual_seed(seed + zlib.crc32(self.case.name.encode()))
        return WhiteNoise(Threat("l2", radius)).draw(self.inputs, generator)

    def attacked(self, radius: float, loss: Loss, steps: int, only: slice = slice(None)) -> tuple[Tensor, float]:
        """Inputs after PGD, and the share of them on which it met a zero gradient; ``only``: a range of the inputs."""
        pgd = PGD(Threat("l2", radius), steps=steps, keep="strongest")
        task = segmentation_task(self.model, loss)
        images, dead = [], 0
        images_and_labels = (torch.split(values[only], self.batch_size) for values in (self.inputs, self.labels))
        for x, labels in zip(*images_and_labels, strict=True):
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
        return torch.cat([torch.isin(labels, torch.tensor(label_values(r))) for r in regions], dim=1).long()

    def largest_norm(self, inputs: Tensor, radius: float, only: slice = slice(None)) -> float:
        """Largest L2 norm of a perturbation, in double precision; the honest budget is checked, not assumed."""
        largest = float((inputs.double() - self.inputs[only].double()).flatten(1).norm(dim=1).max())
        if not largest <= radius * (1 + NORM_TOLERANCE):
            raise RuntimeError(f"a perturbation of norm {largest} left the ball of radius {radius}")
        return largest


def segmentation_task(model: DeployedModel, loss: Loss) -> SegmentationTask:
    """What the attack raises, and how it tells its strongest image; slices without foreground are attacked."""
    settings = SegmentationSettings(attack_loss=loss, empty_target="empty_prediction")
    manager = model.label_manager
    return SegmentationTask(_no_training, settings, regions=manager.has_regions, ignore_label=manager.ignore_label)


def _no_training(output: Output, target: Target) -> Tensor:
    raise NotImplementedError("an evaluation trains nothing")
