"""Segmentation as a task: a sample is right when its hard Dice is above a threshold.

Source: Ma & Liang, "Increasing-margin adversarial (IMA) training", CMPB 2023, section 2.6 (Dice in place of class
equality, threshold 0.6). The official code differs in three points, each a setting here: it takes the *maximum* over
the foreground classes, accepts equality with the threshold, and scores a patch without foreground as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.settings import Settings, setting
from monai_adv.tasks import dice_score
from monai_adv.tasks.base import (
    Output,
    Points,
    Target,
    Task,
    TrainingLoss,
    check_labels,
    first_resolution,
    full_resolution,
)

SMOOTH = 1e-5  # nnU-Net's own smoothing of the soft Dice


@dataclass(frozen=True)
class SegmentationSettings(Settings):
    """How a segmentation is judged, and what an attack on it raises."""

    threshold: float = setting(
        0.6, "a sample is right when its Dice is above this", "a number in (0, 1)", lambda v: 0 < v < 1
    )
    threshold_included: bool = setting(False, "Dice equal to the threshold counts as right (official code: true)")
    dice: Literal["mean", "max"] = setting("mean", "over the foreground classes present in the sample (official: max)")
    empty_target: Literal["skip", "empty_prediction", "wrong"] = setting(
        "skip",
        "a patch without foreground is never attacked (skip), right when nothing is predicted (empty_prediction), or "
        "always wrong (wrong: the official code)",
    )
    attack_loss: Literal["dice", "dice_ce", "ce"] = setting(
        "dice",
        "per-sample loss that the attack raises: soft Dice (paper), Dice + cross-entropy (official), or the latter",
    )
    absent_classes: Literal["skip", "count", "score"] = setting(
        "skip",
        "classes that the sample lacks: left out (skip), in the attack's soft Dice as in nnU-Net (count: official), or "
        "Dice 0 as soon as one voxel of them is found, as in reports (score)",
    )
    attack_deep_supervision: bool = setting(
        False, "the attack also sees the lower resolutions, with the training loss's weights (official: true)"
    )


ALONE = SegmentationSettings(attack_loss="dice_ce", absent_classes="count", attack_deep_supervision=True)
"""With these the attack's loss is nnU-Net's training loss of each sample alone."""


@dataclass(frozen=True)
class SegmentationTask:
    """Dice-based task for softmax classes or overlapping sigmoid regions, 2D and 3D.

    Args:
        loss: the host's training loss, ``loss(output, target) -> scalar``; lists under deep supervision go through as
            they are.
        settings: see :class:`SegmentationSettings`.
        regions: ``False``: channels are exclusive classes, channel 0 is background, targets are label maps
            ``(B, 1, *spatial)``. ``True``: each channel is a region of its own (sigmoid), targets are ``(B, R,
            *spatial)`` 0/1 maps; with ``ignore_label`` one more channel marks the ignored voxels (nnU-Net's layout).
        ignore_label: label (or, for regions, any integer: the last target channel) whose voxels count nowhere.
        deep_supervision_weights: weights of the resolutions for ``attack_deep_supervision``.
        sigmoid: label maps, but a voxel belongs to every class whose own logit is above 0, as with a sigmoid loss on
            one-hot labels; channel 0, the background, is not looked at. Without meaning for regions.

    Example:
        Predicting exactly the ground truth has Dice 1, hence margin 1 - 0.6:

        >>> target = torch.tensor([[[[0, 1], [1, 1]]]])
        >>> logits = F.one_hot(target[:, 0], 2).movedim(-1, 1).float()
        >>> task = SegmentationTask(loss=lambda output, target: output.mean())
        >>> round(float(task.margin(logits, target)), 6)
        0.4
    """

    loss: TrainingLoss
    settings: SegmentationSettings = SegmentationSettings()
    regions: bool = field(default=False, kw_only=True)
    ignore_label: int | None = field(default=None, kw_only=True)
    deep_supervision_weights: Sequence[float] | None = field(default=None, kw_only=True)
    sigmoid: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.deep_supervision_weights is not None:  # nnU-Net's is an array, of which nobody can say if it is equal
            object.__setattr__(self, "deep_supervision_weights", tuple(map(float, self.deep_supervision_weights)))

    @property
    def alone(self) -> bool:
        """Whether each channel is judged for itself (a sigmoid), not against the others."""
        return self.regions or self.sigmoid

    @property
    def lowest_margin(self) -> float:
        """Of Dice 0."""
        return -self.settings.threshold

    def with_loss(self, loss: TrainingLoss) -> SegmentationTask:
        """The same task with another training loss."""
        return replace(self, loss=loss)

    def training_loss(self, output: Output, target: Target) -> Tensor:
        """Scalar: the host's loss."""
        return self.loss(output, target)

    @staticmethod
    def for_evaluation(
        *, regions: bool = False, ignore_label: int | None = None, sigmoid: bool = False
    ) -> SegmentationTask:
        """As reports score (:mod:`monai_adv.tasks.dice_score`), samples without foreground as well. It cannot train."""
        settings = SegmentationSettings(attack_loss="dice", empty_target="empty_prediction", absent_classes="score")
        return SegmentationTask(_no_training, settings, regions=regions, ignore_label=ignore_label, sigmoid=sigmoid)

    def check(self, output: Output, target: Target) -> None:
        """Refuse labels that no class has, and layouts that do not fit. Waits for the device: not in a loop.

        Raises:
            InputError: says what came.
        """
        logits, labels = full_resolution(output), first_resolution(target)
        heads = logits.shape[1]
        if heads == 1 and not self.regions:
            raise InputError.of(
                "regions", False, "True for a network with one output channel",
                "a single logit is a sigmoid; give SegmentationTask(..., regions=True)",
            )  # fmt: skip
        channels = 1 if not self.regions else heads + (self.ignore_label is not None)
        if labels.shape[1:] != (channels, *logits.shape[2:]):
            what = "a 0/1 map for each output channel" if self.regions else "class indices"
            todo = "one-hot maps: take argmax(1, keepdim=True); maps without a channel axis: add it"
            if labels.ndim == logits.ndim and labels.shape[1] == channels:
                todo = "output and target are of different sizes; of several resolutions the full one comes first"
            raise InputError.of(
                "target", f"{tuple(labels.shape)} for a network output {tuple(logits.shape)}",
                f"(B, {channels}, *spatial) with {what}",
                todo,
            )  # fmt: skip
        ignored = None if self.regions else self.ignore_label
        todo = "see the label's transforms, or give ignore_label"
        check_labels("target", labels, 1 if self.regions else heads - 1, todo, ignored)

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)``; soft Dice enters as ``-Dice``, so the loss of a perfect prediction is -1 (Dice) or about 0 (CE)."""
        return self._losses(output, target, self.settings)

    def sample_training_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` Dice + cross-entropy of each sample alone over all resolutions, as nnU-Net without batch Dice."""
        return self._losses(output, target, ALONE)

    def soft_margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` soft Dice minus threshold, at full resolution."""
        logits = first_resolution(output)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return self._soft_dice(logits, _whole(target), self.settings) - self.settings.threshold

    @torch.no_grad()
    def dice(self, output: Output, target: Target) -> Tensor:
        """``(B, K)`` hard Dice of each foreground class or region; NaN where it is not scored.

        That is where the target lacks it, unless ``absent_classes`` is "score" and it was found all the same.
        """
        found, there = self.masks(output, target)
        true_positive = (found & there).flatten(2).sum(-1)
        sizes = there.flatten(2).sum(-1)
        dice = dice_score.dice(true_positive, found.flatten(2).sum(-1) + sizes).float()
        return dice if self.settings.absent_classes == "score" else dice.masked_fill(sizes == 0, torch.nan)

    @torch.no_grad()
    def masks(self, output: Output, target: Target) -> tuple[Tensor, Tensor]:
        """``(B, K, *spatial)`` bool: voxels found as each foreground class or region, and voxels that are it.

        Ignored voxels are in neither.
        """
        logits = first_resolution(output)
        there, valid = self._foreground(_whole(target), logits.shape[1])
        if self.alone:
            found = self._foreground_logits(logits) > 0  # sigmoid > 0.5
        else:
            found = logits.argmax(1, keepdim=True) == _foreground_classes(logits)
        return found & valid, there & valid

    def probability(self, logits: Tensor) -> Tensor:
        """``(B, K, *spatial)`` of each foreground class or region."""
        return self._foreground_logits(logits).sigmoid() if self.alone else logits.softmax(1)[:, 1:]

    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` Dice minus threshold; a sample without foreground follows ``empty_target``."""
        dice = self.dice(output, target)
        if self.settings.dice == "mean":
            score = dice_score.mean_dice(dice)
        else:
            score = dice.nan_to_num(nan=-torch.inf).amax(1)
        return torch.where(dice.isnan().all(1), self._empty_score(output, target), score) - self.settings.threshold

    def correct(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` bool, see :class:`SegmentationSettings`."""
        margin = self.margin(output, target)
        return margin >= 0 if self.settings.threshold_included else margin > 0

    @torch.no_grad()
    def scorable(self, target: Target) -> Tensor:
        """``(B,)`` bool: false without a voxel that counts, and without foreground under ``empty_target="skip"``."""
        full = _whole(target)
        if self.settings.empty_target != "skip":
            return self._valid(full).flatten(1).any(1)
        if self.regions:
            labels, valid = self._foreground(full, full.shape[1])
            return (labels & valid).flatten(1).any(1)
        return ((full > 0) & self._valid(full)).flatten(1).any(1)

    def all_points(self, output: Output, target: Target) -> list[tuple[float, Points]]:
        """Every resolution with the weight of deep supervision; lower ones without weight are left out."""
        if isinstance(output, Tensor) or isinstance(target, Tensor):
            return [(1.0, self.points(output, target))]
        weights = self.deep_supervision_weights or [2.0**-i for i in range(len(output))]
        pairs = [(w, self.points(o, t)) for w, o, t in zip(weights, output, target, strict=True) if w > 0]
        return [(float(w / sum(weights)), points) for w, points in pairs]

    def points(self, output: Output, target: Target) -> Points:
        """A point per voxel; with sigmoids one per voxel and region or class, between the logits 0 and z."""
        logits, labels = first_resolution(output), _whole(target)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        valid = self._valid(labels)
        if self.alone:
            there, _ = self._foreground(labels, logits.shape[1])
            logits = self._foreground_logits(logits)
            pairs = torch.stack([torch.zeros_like(logits), logits], 1)
            return Points(pairs.flatten(2), there.long().flatten(1), valid.expand_as(there).flatten(1))
        return Points(logits.flatten(2), torch.where(valid, labels, 0).long().flatten(1), valid.flatten(1))

    def missing_class(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` differentiable lead of the nearest class whose first voxel would lower the score; 0 without one.

        See :func:`monai_adv.tasks.dice_score.nearest`.
        """
        logits = first_resolution(output)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        labels, valid = self._foreground(_whole(target), logits.shape[1])
        return dice_score.nearest(self._leads(logits, valid), self._absent(labels & valid))

    def _leads(self, logits: Tensor, valid: Tensor) -> Tensor:
        """``(B, K)`` of :func:`monai_adv.tasks.dice_score.lead`."""
        return dice_score.lead(self._foreground_logits(logits) if self.alone else logits, valid, self.alone)

    def _absent(self, labels: Tensor) -> Tensor:
        """``(B, K)`` bool: classes whose first voxel lowers the score, from maps of where each is."""
        if self.settings.absent_classes != "score":
            return torch.zeros(labels.shape[:2], dtype=torch.bool, device=labels.device)
        return ~labels.flatten(2).any(-1)

    @torch.no_grad()
    def _empty_score(self, output: Output, target: Target) -> Tensor:
        """Score of a sample without foreground: 1 if it is right by the policy, otherwise 0."""
        logits = first_resolution(output)
        if self.settings.empty_target == "wrong":
            return torch.zeros(len(logits), device=logits.device)
        valid = self._valid(_whole(target))
        found = self._foreground_logits(logits) > 0 if self.alone else logits.argmax(1, keepdim=True) > 0
        return (~(found & valid).flatten(1).any(1)).float()

    def _losses(self, output: Output, target: Target, settings: SegmentationSettings) -> Tensor:
        """``(B,)`` the loss that these settings name, over the resolutions that they name."""
        if isinstance(output, Tensor) or isinstance(target, Tensor) or not settings.attack_deep_supervision:
            return self._loss(first_resolution(output), _whole(target), settings)
        weights = self.deep_supervision_weights or [2.0**-i for i in range(len(output))]
        return torch.stack(
            [w * self._loss(o, _whole(t), settings) for w, o, t in zip(weights, output, target, strict=True) if w > 0]
        ).sum(0) / sum(weights)

    def _loss(self, logits: Tensor, target: Tensor, settings: SegmentationSettings) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()  # half precision cannot sum over voxels
        loss = torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
        if settings.attack_loss in ("dice", "dice_ce"):
            loss = loss - self._soft_dice(logits, target, settings)
            if settings.absent_classes == "score":
                labels, valid = self._foreground(target, logits.shape[1])
                leads = self._leads(logits, valid)
                loss = loss + dice_score.within_reach(leads, self._absent(labels & valid))
        if settings.attack_loss in ("ce", "dice_ce"):
            loss = loss + self._cross_entropy(logits, target)
        return loss

    def _soft_dice(self, logits: Tensor, target: Tensor, settings: SegmentationSettings) -> Tensor:
        """``(B,)`` mean soft Dice over the foreground classes that the sample has (or over all, as nnU-Net's loss).

        An absent class is left out by default, as in the hard Dice: with nnU-Net's smoothing of 1e-5 its gradient would
        explode as its probability vanishes. A sample without any foreground then gets 1 minus the mean foreground
        probability instead.
        """
        probability = self.probability(logits)
        labels, valid = self._foreground(target, logits.shape[1])
        labels = labels & valid
        if self.ignore_label is not None:
            probability = probability * valid
        voxels = labels.flatten(2).sum(-1)
        predicted = probability.flatten(2).sum(-1)
        dice = (2 * (probability * labels).flatten(2).sum(-1) + SMOOTH) / (predicted + voxels + SMOOTH)
        if settings.absent_classes == "count":
            return dice.mean(1)
        present = voxels > 0
        mean_dice = (dice * present).sum(1) / present.sum(1).clamp(min=1)
        share = predicted.sum(1) / valid.flatten(1).sum(1).clamp(min=1)
        without = 1 - (share / labels.shape[1] if self.alone else share)
        return torch.where(present.any(1), mean_dice, without)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """``(B,)`` mean over the voxels that are not ignored (sigmoids: binary, also over regions or classes)."""
        valid = self._valid(target)
        if self.alone:
            labels, _ = self._foreground(target, logits.shape[1])
            logits = self._foreground_logits(logits)
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").mean(1, keepdim=True)
        else:
            labels = torch.where(valid, target, 0)[:, 0].long()
            loss = F.cross_entropy(logits, labels, reduction="none")[:, None]
        return (loss * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)

    def _foreground_logits(self, logits: Tensor) -> Tensor:
        """Of the channels that are judged each for itself."""
        return logits if self.regions else logits[:, 1:]

    def _foreground(self, target: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """``(B, K, *spatial)`` bool map of each foreground class, and ``(B, 1, *spatial)`` of the voxels that count."""
        valid = self._valid(target)
        if self.regions:
            return (target[:, :-1] if self.ignore_label is not None else target).bool(), valid
        if target.ndim < 3 or target.shape[1] != 1:
            raise InputError.of("target", tuple(target.shape), "a label map (B, 1, *spatial)", "give class indices")
        return target == torch.arange(1, channels, device=target.device).view(1, -1, *[1] * (target.ndim - 2)), valid

    def _valid(self, target: Tensor) -> Tensor:
        if self.ignore_label is None:
            return torch.ones_like(target[:, :1], dtype=torch.bool)
        return ~target[:, -1:].bool() if self.regions else target != self.ignore_label


def judged_alone(task: Task) -> bool:
    """Whether each channel of a task's output is judged for itself; see :attr:`SegmentationTask.alone`.

    Example:
        >>> [judged_alone(SegmentationTask.for_evaluation(regions=found)) for found in (False, True)]
        [False, True]
    """
    return isinstance(task, SegmentationTask) and task.alone


def _whole(target: Target) -> Tensor:
    """Labels at full resolution; those that :func:`whole_labels` lets pass may be a little off."""
    labels = first_resolution(target)
    return labels.round() if labels.is_floating_point() else labels


def _foreground_classes(logits: Tensor) -> Tensor:
    return torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))


def _no_training(output: Output, target: Target) -> Tensor:
    raise NotImplementedError("an evaluation trains nothing")
