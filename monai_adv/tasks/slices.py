"""The slices of one volume: each has a budget of its own, but they share one Dice.

A 2D network segments a volume slice by slice, and what counts is the Dice of the volume. Attacking the Dice of each
slice is a weaker attack: a slice that is lost has no gradient any more, though every further false positive in it still
lowers the Dice of the volume (measured on Hippocampus at L2 radius 5: mean Dice 20 instead of 12).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.tasks.base import Output, Target
from monai_adv.tasks.segmentation import SegmentationSettings, SegmentationTask


class SlicesTask(SegmentationTask):
    """Slices of one volume, judged by what each contributes to the volume's Dice.

    The Dice of class k is ``2 TP / (P + G)``, with true positives TP, predicted voxels P and true voxels G summed over
    the slices. It is below d exactly when the sum over the slices of ``2 TP_s - d P_s`` is below ``d G``. So loss and
    margin of slice s are the mean over the classes of ``(2 TP_s - d P_s) / G`` (the loss with probabilities, and
    negative), which depends on slice s alone. Classes that the volume does not have are left out.

    No slice is ever right or wrong, and none is ever finished: ``correct`` is always true, ``lowest_margin`` is -inf.

    Args:
        volume: ground truth of the whole volume in the task's layout, slices as batch.
        expected_dice: d, about the Dice that the attack ends with. It weighs false positives against true ones;
            between 0.03 and 0.1 the attack hardly depends on it.
        channels: of the output, for softmax classes.
        settings, regions, ignore_label: as in :class:`SegmentationTask`; only the layout counts, not the threshold.

    Example:
        Finding nothing contributes 0, finding all of a class that is only in this slice 2 - d:

        >>> target = torch.tensor([[[0, 1]], [[0, 0]]])[:, None]
        >>> logits = torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]]], [[[9.0, 9.0]], [[0.0, 0.0]]]])
        >>> SlicesTask(target, channels=2, expected_dice=0.5).margin(logits, target)
        tensor([1.5000, 0.0000])
    """

    def __init__(
        self,
        volume: Tensor,
        *,
        channels: int,
        expected_dice: float = 0.1,
        settings: SegmentationSettings | None = None,
        regions: bool = False,
        ignore_label: int | None = None,
        loss: Callable[[Output, Target], Tensor] | None = None,
    ) -> None:
        if not 0 <= expected_dice <= 1:
            raise InputError.of("expected_dice", expected_dice, "a number in [0, 1]")
        super().__init__(loss or _no_training, settings, regions=regions, ignore_label=ignore_label)
        self.expected_dice = expected_dice
        self.lowest_margin = -torch.inf
        labels, valid = self._foreground(volume, channels)
        self.voxels = (labels & valid).flatten(2).sum(-1).sum(0)
        """``(K,)`` G, true voxels of each class in the volume."""

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` minus the soft contribution of each slice."""
        logits = output if isinstance(output, Tensor) else output[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        probability = logits.sigmoid() if self.regions else logits.softmax(1)[:, 1:]
        return -self._contribution(probability, target)

    @torch.no_grad()
    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` the hard contribution of each slice."""
        logits = output if isinstance(output, Tensor) else output[0]
        if self.regions:
            predicted = logits > 0
        else:
            classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
            predicted = logits.argmax(1, keepdim=True) == classes
        return self._contribution(predicted.to(logits if logits.dtype == torch.float64 else torch.float32), target)

    def correct(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` bool, all true: see the class."""
        values = output if isinstance(output, Tensor) else output[0]
        return torch.ones(len(values), dtype=torch.bool, device=values.device)

    def _contribution(self, predicted: Tensor, target: Target) -> Tensor:
        full = target if isinstance(target, Tensor) else target[0]
        labels, valid = self._foreground(full, predicted.shape[1] + (not self.regions))
        predicted = (predicted * valid).flatten(2)
        true_positive = (predicted * labels.flatten(2)).sum(-1)
        voxels = self.voxels.to(predicted)
        there = voxels > 0
        # A volume without any foreground: every predicted voxel counts the same.
        contribution = (2 * true_positive - self.expected_dice * predicted.sum(-1)) / voxels.clamp(min=1)
        return torch.where(there.any(), (contribution * there).sum(1) / there.sum().clamp(min=1), contribution.mean(1))


def _no_training(output: Output, target: Target) -> Tensor:
    raise NotImplementedError("an evaluation trains nothing")
