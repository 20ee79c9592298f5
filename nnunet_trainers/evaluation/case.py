"""One patient in the network space of a deployed nnU-Net: attacked there, scored in the original geometry."""

from __future__ import annotations

import math
from copy import copy
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Level
from monai_adv.given import Box
from monai_adv.metrics.score import Score
from monai_adv.metrics.segmentation import overlap_score, volume_score
from monai_adv.tasks import SegmentationTask, Target
from monai_adv.tasks.volume_slices import VolumeSlicesTask, counts
from monai_adv.threats import Beyond, Threat, in_network_units
from monai_adv.variations.scan import Change
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.case_files import CaseFiles
from nnunet_trainers.evaluation.slice_choice import worst_slices
from nnunet_trainers.sliding_window import SlidingWindow
from nnunet_trainers.volume_dice import class_masks, dice_per_class, label_values, mean_dice

LabelMap = npt.NDArray[Any]
C = TypeVar("C", bound="NNUNetCase")
EXPECTED_DICE = 0.3
"""Share of the clean Dice that a first attack on the slices of a volume aims below; later ones know what was found."""


class NNUNetCase:
    """See :class:`monai_adv.evaluation.models.protocol.Case`. Each input is a slice (2D network) or the volume (3D).

    Scores are those of the host's export in the original geometry, as in :func:`volume_score`. An input on which the
    network gives NaN or infinity counts as segmented wrong in every voxel.

    Args:
        model: what is deployed.
        files: the patient.
        network: the model's sliding window.
        box: lowest and highest intensity that an attacked image may have, in network units; default: the range to which
            the plan clips or scales the files, if there is one. A patch outside of it is no image that a file can hold.
        change: what happens to the image that the files hold, before all preprocessing; the labels stay.

    Raises:
        InputError: files that cannot be used.
    """

    part = ""

    def __init__(
        self,
        model: DeployedModel,
        files: CaseFiles,
        network: SlidingWindow,
        box: Box | None = None,
        change: Change | None = None,
    ) -> None:
        self.name, self.model, self.inputs_per_pass = files.name, model, network.patches_per_pass
        self.bounds = bounds_of(model, box)
        volume, labels, self.properties = model.preprocess_labelled(files.image_files, files.ground_truth_file, change)
        self.truth, self.spacing = self.properties.pop("truth"), self.properties.pop("truth_spacing")
        self.notes: tuple[str, ...] = self.properties.pop("notes")
        volume, labels = self._attacked_part(volume, labels)
        self.images = model.to_inputs(volume).contiguous()
        self.labels = model.to_inputs(labels).contiguous()
        self.target: Target = _target(model, self.labels)
        self._use(network)

    def with_network(self: C, network: nn.Module) -> C:
        """The same patient for another network with the same inputs and outputs."""
        other = copy(self)
        other._use(network)
        return other

    def _use(self, network: nn.Module) -> None:
        self.network: nn.Module = network
        manager = self.model.label_manager
        self.task = SegmentationTask.for_evaluation(regions=manager.has_regions, ignore_label=manager.ignore_label)
        if len(self.images) > 1:
            self.task = VolumeSlicesTask.of(self.task, self.logits(self.images), self.target, EXPECTED_DICE)

    def threat(self, level: Level) -> Threat:
        """The level for this patient; ``raw`` radii are divided by the standard deviation of its normalisation.

        Raises:
            InputError: a raw radius where the channels differ in scale or the normalisation is unknown.
        """
        raw_unit = self.raw_unit() if level.unit == "raw" else None
        eps, unit = in_network_units(level.norm, level.eps, level.unit, raw_unit)
        box, beyond, boxed = self.bounds
        return Threat(level.norm, eps, box, unit, beyond=beyond, boxed=boxed)

    def raw_unit(self) -> float:
        """Intensity in the files (HU for CT) of one network unit.

        Raises:
            InputError: see :meth:`threat`.
        """
        units: list[float | None] = self.properties["raw_units"]
        plans = self.model.configuration_manager.normalization_schemes
        known = [unit for unit in units if unit is not None]
        if not known or len(known) < len(units):
            allowed = "'norm' or 'rms' for a model whose normalisation is not one of nnU-Net's"
            raise InputError.of("unit", f"raw for {plans}", allowed)
        if max(known) > min(known) * (1 + 1e-6):
            found = ", ".join(f"{n} {u:.4g}" for n, u in zip(self.model.channel_names, known, strict=True))
            raise InputError.of(
                "unit", "raw", f"'norm' or 'rms' for channels of different scales; {self.name}: one unit is {found}"
            )
        return known[0]

    def aim(self, images: Tensor) -> SegmentationTask:
        """The task for an attack that shall lower the Dice of the volume below that of these attacked images."""
        return VolumeSlicesTask.of(self.task, self.logits(images), self.target) if len(images) > 1 else self.task

    def scores(self, images: Tensor) -> list[Score]:
        """The score of the volume; ``images`` in the layout of ``self.images``."""
        masks = class_masks(self.segment(self.logits(images)), self.truth, self.model.dataset_json["labels"])
        return [volume_score(self.name, masks, self.spacing, counted=self._counted)]

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        """Slice by slice (2D) or as a whole (3D) what makes the volume's Dice small, never above either version's."""
        logits = self.logits(images), self.logits(others)
        versions = [(images, logits[0]), (others, logits[1])]
        if len(images) > 1:
            both = zip(*(counts(self.task, version, self.target) for version in logits), strict=True)
            true_positive, found, there = (torch.stack(versions) for versions in both)
            taken = worst_slices(true_positive, found + there)

            def mixed(one: Tensor, other: Tensor) -> Tensor:
                return torch.where(taken.view(-1, *[1] * (one.ndim - 1)), other, one)

            versions.insert(0, (mixed(images, others), mixed(*logits)))
        return min(versions, key=lambda version: self._remaining(version[1]))[0]

    def picture(self, images: Tensor) -> list[Picture]:
        """Of a volume the slice with most foreground; of single slices the worst among those with much foreground."""
        model = self.model
        truth = _numbers(model.to_volume(self.labels)[0])
        clean, attacked = (self.slice_labels(self.logits(inputs)) for inputs in (self.images, images))
        foreground = _per_slice(_foreground(model, truth))
        index = int(foreground.argmax()) if foreground.any() else len(truth) // 2
        if model.is_2d and foreground.any():
            labels = model.dataset_json["labels"]
            much = np.flatnonzero(2 * foreground >= foreground.max())
            index = int(min(much, key=lambda i: _or_infinity(mean_dice(dice_per_class(attacked[i], truth[i], labels)))))
        return [
            Picture(
                self.name,
                clean=_numbers(model.to_volume(self.images)[0, index]),
                attacked=_numbers(model.to_volume(images)[0, index]),
                truth=truth[index],
                on_clean=clean[index],
                on_attacked=attacked[index],
                caption=f"{self.part}slice {index + 1} of {len(truth)}",
            )
        ]

    # ---------------------------------------------------------------- outputs

    def logits(self, images: Tensor) -> Tensor:
        """``(B, K, *spatial)`` on the CPU, without gradient; of broken inputs those of a wholly wrong segmentation."""
        device = self.model.device
        with torch.no_grad():
            parts = torch.split(images, self.inputs_per_pass)
            logits = torch.cat([self.network(part.to(device)).float().cpu() for part in parts])
        broken = ~logits.flatten(1).isfinite().all(1)
        if bool(broken.any()):
            logits[broken] = self._wrong()[broken]
        return logits

    def segment(self, logits: Tensor) -> LabelMap:
        """The label map in the geometry of ``self.truth``."""
        return self.model.segmentation(self.model.to_volume(logits), self.properties)

    def slice_labels(self, logits: Tensor) -> LabelMap:
        """``(X, Y, Z)`` label map in network space, by the host's rule (regions included)."""
        return _numbers(self.model.label_manager.convert_logits_to_segmentation(self.model.to_volume(logits)))

    def _remaining(self, logits: Tensor) -> float:
        """Of the volume's score, see :class:`Score`."""
        masks = class_masks(self.segment(logits), self.truth, self.model.dataset_json["labels"])
        return overlap_score(self.name, masks, counted=self._counted).remaining

    @property
    def _heads(self) -> int:
        """Channels of the network's output."""
        return int(self.model.label_manager.num_segmentation_heads)

    @property
    def _counted(self) -> bool:
        """Whether any voxel of the truth counts."""
        return bool((self.truth != self.model.label_manager.ignore_label).any())

    def _attacked_part(self, volume: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``(C, X, Y, Z)`` image and labels in network space; scores belong to it."""
        return volume, labels

    def _wrong(self) -> Tensor:
        """Logits that miss all foreground and call all background foreground."""
        background = (self.labels == 0).float()
        if self.task.regions:
            return (2 * background - 1).repeat(1, self._heads, *[1] * (self.labels.ndim - 2))
        others = torch.zeros_like(background).repeat(1, self._heads - 2, *[1] * (self.labels.ndim - 2))
        return torch.cat([1 - background, background, others], 1)


class NNUNetPatch(NNUNetCase):
    """One patch per patient, of the plan's size around the centre of the foreground, scored in network space.

    Faster than the volume, and not what is deployed: no window overlaps another, and Dice is that of the patch.
    """

    part = "patch, "

    def _attacked_part(self, volume: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        size = (1, *model.patch_size) if model.is_2d else model.patch_size
        patch = (slice(None), *_around(_foreground(model, labels[0]), size))
        self.truth = _numbers(labels[patch][0])
        spacing = tuple(float(s) for s in model.configuration_manager.spacing)
        self.spacing = (1.0, *spacing) if model.is_2d else spacing
        return volume[patch], labels[patch]

    def segment(self, logits: Tensor) -> LabelMap:
        """The label map of the patch."""
        return self.slice_labels(logits)


def bounds_of(model: DeployedModel, given: Box | None) -> tuple[Box | None, Beyond, tuple[int, ...] | None]:
    """The box of attacked images, what becomes of voxels beyond it, and its channels, see :class:`Threat`.

    The plan's own range, written with fewer digits, is taken for the plan's.
    """
    if (known := model.plan_range) is None:
        return given, "refuse", None
    low, high, beyond, channels = known
    boxed = channels if len(channels) < len(model.channel_names) else None
    if given is None or all(abs(a - b) < 1e-4 * (high - low) for a, b in zip(given, (low, high), strict=True)):
        return (low, high), beyond, boxed
    return given, "refuse", None


def _target(model: DeployedModel, labels: Tensor) -> Tensor:
    """Ground truth in the task's layout: labels, or 0/1 maps ``(B, R, *spatial)`` of the regions (and ignore)."""
    manager = model.label_manager
    if not manager.has_regions:
        return labels
    regions = [*manager.foreground_regions, *([manager.ignore_label] if manager.has_ignore_label else [])]
    return torch.cat([torch.isin(labels, torch.tensor(label_values(r))) for r in regions], dim=1).long()


def _foreground(model: DeployedModel, labels: Any) -> Any:
    """Tensor or array: what is neither background nor ignored."""
    return (labels > 0) & (labels != (model.label_manager.ignore_label or 0))


def _around(foreground: Tensor, size: tuple[int, ...]) -> tuple[slice, ...]:
    """A window of this size, as far as there is room, with the foreground's centre of gravity in its middle."""
    places = foreground.nonzero().double()
    centre = places.mean(0).round().long().tolist() if len(places) else [n // 2 for n in foreground.shape]
    starts = (max(0, min(c - n // 2, total - n)) for c, n, total in zip(centre, size, foreground.shape, strict=True))
    return tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))


def _per_slice(mask: LabelMap) -> LabelMap:
    counts: LabelMap = mask.reshape(len(mask), -1).sum(1)
    return counts


def _numbers(values: Tensor | LabelMap) -> LabelMap:
    numbers: LabelMap = np.asarray(values)
    return numbers


def _or_infinity(value: float) -> float:
    return math.inf if math.isnan(value) else value
