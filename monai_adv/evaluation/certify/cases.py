"""What is certified about one case of a model: a patient's volume, or a group of images."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.certificates import (
    NO_CLASS,
    Certification,
    certified_dice,
    certified_region_dice,
    certified_score,
    certify_classes,
    certify_labels,
)
from monai_adv.certificates.votes import count_votes
from monai_adv.evaluation.codec import optional
from monai_adv.evaluation.models.protocol import Case, Model
from monai_adv.evaluation.models.smoothed import attacked_only
from monai_adv.tasks import SegmentationTask
from monai_adv.tasks.base import first_resolution
from monai_adv.tasks.segmentation import judged_alone


@dataclass(frozen=True)
class Certified:
    """What is proven about a patient or an image.

    Attributes:
        model, case: names; of a classifier an image.
        radius: L2 norm, in network inputs, within which it holds; 0 where the smoothed model abstains from a class.
        score: certified within the radius: 1 or 0 for a class, a lower bound of the mean Dice.
        clean: of the smoothed model without an attack; a class from which it abstains counts as wrong, a voxel as
            background.
        per_class: of a segmentation the lower bound of the Dice of each class; NaN for classes that are not there and
            proven to stay away. Of a classifier the score by the true class, in which a constant answer shows.
        abstained: share of voxels, or 1 or 0 for a class.
        voxels: numbers of one input that may change: ``radius / sqrt(voxels)`` is the RMS change per voxel.
        draws: noisy copies of each input.
        seconds: that it took.
        inputs: of a segmentation: how many inputs are one volume, the slices of a 2D model; each may change by the
            radius.
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
    inputs: int = optional(1)


def certify_case(
    model: Model, case: Case, settings: Certification, network: nn.Module | None = None
) -> list[Certified]:
    """Certify a case: of a classifier each image, of a segmentation the volume.

    The Dice is that of the network's inputs and outputs, before a host resamples them to the file's geometry. The
    slices of a 2D model have noise, and a radius, each for itself; together they are one volume with one Dice, and what
    is said of all its voxels is wrong with probability ``alpha``.

    Args:
        model, case: what is certified.
        settings: noise and draws. Those of an image follow from its name and the seed, those of a slice from the
            volume's and its place in it.
        network: that is smoothed; default: the case's own.

    Raises:
        InputError: see :func:`~monai_adv.certificates.certify_labels`.
    """
    start = time.perf_counter()
    network = case.network if network is None else network
    settings = attacked_only(case, settings)
    voxels = case.images[0, 0].numel() * (len(settings.channels) if settings.channels else case.images.shape[1])
    draws = settings.n0 + settings.n
    if model.kind == "classification":
        names = _names(model, case)
        found = certify_classes(network, case.images, settings, ids=names)
        right = _right(case, names, found.label)
        assert isinstance(case.target, Tensor)
        truth = [model.classes[number] for number in case.target.tolist()]
        seconds = (time.perf_counter() - start) / len(right)
        return [
            Certified(
                model.name, name, radius, score, score, {true: score}, float(label == NO_CLASS), voxels, draws, seconds
            )
            for (name, score), true, radius, label in zip(
                right.items(), truth, found.radius.tolist(), found.label.tolist(), strict=True
            )
        ]  # fmt: skip
    certificate = certify_labels(
        network, case.images, settings, ids=_names(model, case), regions=judged_alone(case.task), together=True
    )
    per_class, score = _dice(model, case, certificate.labels)
    _, clean = _dice(model, case, certificate.labels.clamp(min=0))
    return [
        Certified(
            model.name, case.name, certificate.radius, score, clean,
            dict(zip(model.classes, per_class.tolist(), strict=True)), float(certificate.abstained.mean()), voxels,
            draws, time.perf_counter() - start, len(case.images),
        )
    ]  # fmt: skip


def voted_scores(
    model: Model, case: Case, images: Tensor, settings: Certification, network: nn.Module
) -> tuple[dict[str, float], int]:
    """What n draws of their own, which no attack knew, say about (attacked) images; judged as a certificate is.

    Returns:
        the score of the volume or of each image by name, and the number of labels voted on.
    """
    settings = attacked_only(case, settings)
    names = _names(model, case)
    votes = count_votes(
        network, images, replace(settings, n0=settings.n, n=1), ids=names, regions=judged_alone(case.task)
    )
    if model.kind == "classification":
        return _right(case, names, votes.chosen.reshape(len(images))), 1
    return {case.name: _dice(model, case, votes.chosen)[1]}, votes.chosen.numel()


def _names(model: Model, case: Case) -> list[str]:
    """What each input is, whatever it is grouped with."""
    if model.kind == "classification":
        return [score.case for score in case.scores(case.images)]
    return [f"{case.name}, input {number}" for number in range(len(case.images))]


def _right(case: Case, names: list[str], label: Tensor) -> dict[str, float]:
    assert isinstance(case.target, Tensor)
    return dict(zip(names, (label == case.target).double().tolist(), strict=True))


def _dice(model: Model, case: Case, labels: Tensor) -> tuple[Tensor, float]:
    """The Dice of each class and their mean, lower bounds where labels are :data:`NO_CLASS`; inputs are one volume."""
    task = case.task
    assert isinstance(task, SegmentationTask)
    target, valid = _truth(task, case.target, len(model.classes))
    if task.sigmoid:  # whose first channel is the background, at which nobody looks
        labels = labels[:, 1:]
    if task.alone:  # (B, R, *spatial): slices of a volume side by side
        labels, target = labels.transpose(0, 1), target.transpose(0, 1)
        there = (target.bool() & valid).flatten(1).any(1)
        per_class = certified_region_dice(labels[None], target[None], valid=valid[None])[0]
    else:
        there = torch.stack([((target == k + 1) & valid).any() for k in range(len(model.classes))])
        per_class = certified_dice(labels[None], target[None], len(model.classes), valid[None])[0]
    return per_class, float(certified_score(per_class[None], there[None])[0])


def _truth(task: SegmentationTask, target: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Labels ``(B, *spatial)``, of yes or no ``(B, R, *spatial)``; and which voxels count ``(B, *spatial)``."""
    maps = first_resolution(target)
    if task.regions:
        ignored = maps[:, -1] > 0 if task.ignore_label is not None else torch.zeros_like(maps[:, 0], dtype=torch.bool)
        return (maps if task.ignore_label is None else maps[:, :-1]).long(), ~ignored
    labels = maps[:, 0].long()
    valid = torch.ones_like(labels, dtype=torch.bool) if task.ignore_label is None else labels != task.ignore_label
    if task.sigmoid:
        labels = torch.stack([(labels == k + 1).long() for k in range(classes)], 1)
    return labels, valid
