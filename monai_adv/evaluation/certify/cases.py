"""What is certified about one case of a model: a patient's volume, or a group of images."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monai_adv.certificates import (
    NO_CLASS,
    Certification,
    certified_dice,
    certified_region_dice,
    certified_score,
    certify_classes,
    certify_labels,
)
from monai_adv.evaluation.models.protocol import Case, Model
from monai_adv.evaluation.records import Level
from monai_adv.tasks import SegmentationTask


@dataclass(frozen=True)
class Certified:
    """What is proven about a patient or an image.

    Attributes:
        model, case: names; of a classifier an image.
        radius: L2 norm, in network inputs, within which it holds; 0 where the smoothed model abstains from a class.
        score: certified within the radius: 1 or 0 for a class, a lower bound of the mean Dice.
        clean: of the smoothed model without an attack; where it abstains it counts as wrong.
        per_class: lower bound of the Dice of each class; NaN for classes that are not there and proven to stay away.
        abstained: share of voxels, or 1 or 0 for a class.
        voxels: numbers of one input that may change: ``radius / sqrt(voxels)`` is the RMS change per voxel.
        draws: noisy copies of each input.
        seconds: that it took.
    """

    model: str
    case: str
    radius: float
    score: float
    clean: float
    per_class: dict[str, float]
    abstained: float
    voxels: int
    draws: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def certify_case(model: Model, case: Case, settings: Certification) -> list[Certified]:
    """Certify a case: of a classifier each image, of a segmentation the volume.

    The Dice is that of the network's inputs and outputs, before a host resamples them to the file's geometry. The
    slices of a 2D model have noise, and a radius, each for itself; together they are one volume with one Dice.

    Raises:
        InputError: see :func:`~monai_adv.certificates.certify_labels`.
    """
    start = time.perf_counter()
    channels = case.threat(Level("l2", 1.0, "norm")).channels
    settings = replace(settings, channels=channels)
    voxels = case.images[0, 0].numel() * (case.images.shape[1] if channels is None else len(channels))
    draws = settings.n0 + settings.n
    if model.kind == "classification":
        found = certify_classes(case.network, case.images, settings)
        names = [score.case for score in case.scores(case.images)]
        assert isinstance(case.target, Tensor)
        right = (found.label == case.target).double()
        seconds = (time.perf_counter() - start) / len(names)
        return [
            Certified(model.name, name, radius, score, score, {}, float(label == NO_CLASS), voxels, draws, seconds)
            for name, radius, score, label in zip(
                names, found.radius.tolist(), right.tolist(), found.label.tolist(), strict=True
            )
        ]
    task = case.task
    assert isinstance(task, SegmentationTask)
    alone = task.regions or task.sigmoid  # a yes or no for each channel
    certificate = certify_labels(case.network, case.images, settings, regions=alone)
    labels, target, valid = certificate.labels, *_truth(task, case.target, len(model.classes))
    if task.sigmoid:  # whose first channel is the background, at which nobody looks
        labels = labels[:, 1:]
    certain = labels.clamp(min=0)
    if alone:  # (B, R, *spatial): slices of a volume side by side
        bound = certified_region_dice
        labels, certain, target = (maps.transpose(0, 1) for maps in (labels, certain, target))
        there = (target.bool() & valid).flatten(1).any(1)
    else:
        bound = partial(certified_dice, classes=len(model.classes))
        there = torch.stack([((target == k + 1) & valid).any() for k in range(len(model.classes))])
    per_class, clean = (bound(maps[None], target[None], valid=valid[None])[0] for maps in (labels, certain))
    score, score_clean = (float(certified_score(each[None], there[None])[0]) for each in (per_class, clean))
    return [
        Certified(
            model.name,
            case.name,
            certificate.radius,
            score,
            score_clean,
            dict(zip(model.classes, per_class.tolist(), strict=True)),
            float(certificate.abstained.mean()),
            voxels,
            draws,
            time.perf_counter() - start,
        )
    ]


def _truth(task: SegmentationTask, target: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Labels ``(B, *spatial)``, of yes or no ``(B, R, *spatial)``; and which voxels count ``(B, *spatial)``."""
    maps = target if isinstance(target, Tensor) else target[0]
    if task.regions:
        ignored = maps[:, -1] > 0 if task.ignore_label is not None else torch.zeros_like(maps[:, 0], dtype=torch.bool)
        return (maps if task.ignore_label is None else maps[:, :-1]).long(), ~ignored
    labels = maps[:, 0].long()
    valid = torch.ones_like(labels, dtype=torch.bool) if task.ignore_label is None else labels != task.ignore_label
    if task.sigmoid:
        labels = torch.stack([(labels == k + 1).long() for k in range(classes)], 1)
    return labels, valid
