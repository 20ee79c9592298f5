"""The slices of one volume, attacked one by one, judged by what they do to the Dice of the volume.

A 2D network segments a volume slice by slice, and each slice has a radius of its own, but the Dice that counts,
``D = 2 TP / S`` with ``S`` predicted plus true voxels, is a ratio of sums over all slices. Attacking every slice's own
Dice is not attacking D: a slice whose Dice is 0 can still lower D by false positives, and a slice without foreground
has no Dice at all. By Dinkelbach, "On nonlinear fractional programming", Management Science 1967, the smallest ratio D
is found by minimising ``2 TP - D * predicted``, a sum over slices: each slice minimises its own part. D is that of the
worst volume known, and is set again when a worse one is found.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.tasks import dice_score
from monai_adv.tasks.base import Output, Target, first_resolution
from monai_adv.tasks.segmentation import SegmentationTask


@dataclass(frozen=True, eq=False)
class VolumeSlicesTask(SegmentationTask):
    """A segmentation task whose margin and loss are a slice's share of the Dice of its volume; see :meth:`towards`.

    Attributes:
        volume_dice: ``(K,)`` Dice D of each foreground class or region in the worst volume known, 0 to 1.
        weight: ``(K,)`` what a voxel of each class weighs, see below.
        new_class: ``(K,)`` what the first voxel of a class takes off the margin that the volume lacks.
        score: mean Dice of that volume.

    The margin of a slice is the mean over the n classes with S > 0 of ``slices / S * (2 TP - D * predicted)``. The mean
    Dice of the volume changes by the sum of the changes of margins, over ``slices``, to first order; and with one class
    it falls exactly if that sum is below 0. The first voxel of a class with S = 0 makes n + 1 classes of n, one of them
    with Dice 0: it takes ``slices`` times the mean D / (n + 1) off the margin of its slice.

    A slice is right until its margin cannot fall further, which is never, unless D is 0: then no false positive is
    worth anything, and a slice without a true positive is finished.

    Example:
        Two slices, one voxel right and one missed in each; D = 2 * 2 / (2 + 4):

        >>> target = torch.tensor([[[1, 1, 0]], [[1, 1, 0]]])
        >>> found = torch.tensor([[[1, 0, 0]], [[1, 0, 0]]])
        >>> logits = torch.cat([1 - found, found], 1).float()
        >>> judge = SegmentationTask(lambda output, target: output.mean())
        >>> task = VolumeSlicesTask.of(judge, logits, target)
        >>> [round(float(v), 4) for v in (*task.volume_dice, *task.margin(logits, target))]
        [0.6667, 0.4444, 0.4444]
    """

    volume_dice: Tensor = field(kw_only=True)
    weight: Tensor = field(kw_only=True)
    new_class: Tensor = field(kw_only=True)
    score: float = field(kw_only=True)

    @classmethod
    def towards(cls, task: SegmentationTask, dice: Tensor, size: Tensor, slices: int) -> VolumeSlicesTask:
        """The task for a volume of which this is known.

        Args:
            task: how one slice is judged: regions, ignore label, settings.
            dice: ``(K,)`` Dice D of each foreground class or region in the worst volume known, 0 to 1.
            size: ``(K,)`` S of each class in that volume; 0 for one that is neither there nor found.
            slices: number of slices, a factor that keeps margins and losses of the order of 1.

        Raises:
            InputError: no Dice, or no size.
        """
        if dice.shape != size.shape or not bool(((dice >= 0) & (dice <= 1) & (size >= 0)).all()):
            raise InputError.of("dice and size", (dice, size), "one number in [0, 1] and one >= 0 for each class")
        dice, counted = dice.float(), size > 0
        count = counted.sum()
        # A volume that has no class at all is right, with score 1, until something is found.
        score = (dice * counted).sum() / count if count else torch.ones(())
        scored = task.settings.absent_classes == "score"
        return cls(
            **{each.name: getattr(task, each.name) for each in fields(SegmentationTask)},
            volume_dice=dice,
            weight=torch.where(counted, slices / size.clamp(min=1), 0.0).float() / count.clamp(min=1),
            new_class=torch.where(counted, 0.0, scored * slices * score / (count + 1)).float(),
            score=float(score),
        )

    @property
    def lowest_margin(self) -> float:
        """None, unless the volume's Dice is 0."""
        return -torch.inf if self.score > 0 else 0.0

    @classmethod
    def of(cls, task: SegmentationTask, output: Output, target: Target, expected: float = 1.0) -> VolumeSlicesTask:
        """The task for a volume whose worst known version is segmented like this.

        Args:
            task: how one slice is judged.
            output, target: of all slices of the volume.
            expected: the Dice that an attack will reach, as a share of the present one. False positives weigh too much
                while D is too high, so for a clean volume a guess below 1 is better.
        """
        true_positive, predicted, there = (n.sum(0) for n in counts(task, output, target))
        size = predicted + there
        return cls.towards(task, expected * 2 * true_positive / size.clamp(min=1), size, len(first_resolution(target)))

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` minus the margin, of probabilities instead of decisions."""
        logits = first_resolution(output)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        probability = self.probability(logits)
        labels, valid = self._foreground(first_resolution(target), logits.shape[1])
        probability = probability * valid
        share = self._share((probability * labels).flatten(2).sum(-1), probability.flatten(2).sum(-1))
        leads = self._leads(logits, valid)
        return dice_score.within_reach(leads, self._absent(labels)) - share

    @torch.no_grad()
    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` see the class; lower is worse for the volume."""
        true_positive, predicted, _ = counts(self, output, target)
        return self._share(true_positive, predicted) - ((predicted > 0) * self.new_class.to(predicted.device)).sum(1)

    def correct(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` bool: can the margin fall further?"""
        return self.margin(output, target) > self.lowest_margin

    def scorable(self, target: Target) -> Tensor:
        """``(B,)`` bool: a slice without foreground matters to its volume, one without a voxel that counts does not."""
        return self._valid(first_resolution(target)).flatten(1).any(1)

    def _absent(self, labels: Tensor) -> Tensor:
        """``(B, K)`` bool: the same classes for all slices, those that the whole volume has not."""
        return (self.new_class > 0).to(labels.device).expand(labels.shape[:2])

    def _share(self, true_positive: Tensor, predicted: Tensor) -> Tensor:
        dice, weight = self.volume_dice.to(predicted.device), self.weight.to(predicted.device)
        return ((2 * true_positive - dice * predicted) * weight).sum(1)


def counts(task: SegmentationTask, output: Output, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, K)`` voxels of each class that are found and there, found, there."""
    found, there = task.masks(output, target)
    return (found & there).flatten(2).sum(-1), found.flatten(2).sum(-1), there.flatten(2).sum(-1)
