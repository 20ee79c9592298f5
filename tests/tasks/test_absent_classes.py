"""What is scored is what is attacked: planted networks whose lowest score is known, with a class that is not there.

Every voxel decides for itself (a 1 x 1 network), so the lowest score within a radius is a matter of counting.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_adv import Threat
from monai_adv.attacks.base import Strongest
from monai_adv.attacks.segmentation_ensemble import SegmentationEnsemble
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.metrics.segmentation import volume_score
from monai_adv.tasks import SegmentationTask, dice_score
from monai_adv.tasks.volume_slices import VolumeSlicesTask
from nnunet_trainers.evaluation.slice_choice import worst_slices
from tests.voxel_networks import seed

STANDARD = 54 / 56
"""56 voxels of an organ, of which 2 can be lost, and 2 of the background that can be won for it."""
LOWEST = STANDARD / 2
"""One false voxel of the other class makes two classes of one, the second with Dice 0."""


class Planted(nn.Module):
    """Above 1.5 a voxel is the organ, below -1 the other class; the logits are 20 times the distance."""

    def __init__(self, regions: bool) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, x: Tensor) -> Tensor:
        logits = 20 * torch.cat([x - 1.5, -1 - x], 1)
        return logits if self.regions else torch.cat([torch.zeros_like(x), logits], 1)


def planted(dims: int) -> tuple[Tensor, Tensor]:
    """Image and label map. The voxel at -0.5 comes within reach of the other class, and no other does."""
    values = torch.zeros(128, dtype=torch.float64)
    values[:54], values[54:56] = 3.0, 1.6  # the organ
    values[56:58], values[100] = 1.4, -0.5
    shape = (1, 1, 8, 16) if dims == 2 else (1, 1, 4, 4, 8)
    target = (torch.arange(128) < 56).long()
    return values.view(shape), target.view(shape)


def layout(target: Tensor, regions: bool, ignore: Tensor | None) -> Tensor:
    """Label maps, or a map for each region, with the ignored voxels where the host has them."""
    if not regions:
        return target if ignore is None else torch.where(ignore, 9, target)
    maps = [target, torch.zeros_like(target)] + ([] if ignore is None else [ignore.long()])
    return torch.cat(maps, 1)


def score(network: nn.Module, images: Tensor, target: Tensor, ignore: Tensor | None) -> float:
    """As a report scores it, written down here once more."""
    logits = network(images)[0]
    found = logits > 0 if network.regions else torch.stack([logits.argmax(0) == c for c in (1, 2)])
    counted = torch.ones_like(target[0, 0], dtype=torch.bool) if ignore is None else ~ignore[0, 0]
    masks = {str(c): ((f & counted).numpy(), ((target[0, 0] == c) & counted).numpy()) for c, f in enumerate(found, 1)}
    return volume_score("", masks, (1.0,) * target[0, 0].ndim).score


@pytest.mark.parametrize(
    ("norm", "dims", "regions", "ignored"),
    [("l2", 2, False, False), ("linf", 3, False, True), ("l2", 3, True, True), ("linf", 2, True, False)],
)
def test_standard_finds_the_one_false_voxel_that_halves_the_score(
    norm: Any, dims: int, regions: bool, ignored: bool
) -> None:
    images, target = planted(dims)
    ignore = None
    if ignored:  # a voxel that is nearer still, and counts nowhere
        images.view(-1)[101] = -0.9
        ignore = torch.zeros_like(target, dtype=torch.bool)
        ignore.view(-1)[101] = True
    network = Planted(regions)
    task = SegmentationTask.for_evaluation(regions=regions, ignore_label=9 if ignored else None)
    labels = layout(target, regions, ignore)
    result = SegmentationEnsemble(Threat(norm, 0.6, unit="norm"))(network, images, labels, task, generator=seed())
    assert score(network, result.images, target, ignore) == pytest.approx(LOWEST)
    assert float(result.margin) == pytest.approx(LOWEST - 0.6)


def test_without_the_policy_of_the_reports_the_voxel_is_worth_nothing() -> None:
    """The margin of a training, whose Dice is that of the classes in the patch (Ma & Liang 2023)."""
    images, target = planted(2)
    training = SegmentationTask(lambda o, t: o.mean())
    images.view(-1)[100] = -1.1
    assert float(training.margin(Planted(False)(images), target)) == pytest.approx(0.4)
    assert float(SegmentationTask.for_evaluation().margin(Planted(False)(images), target)) == pytest.approx(0.5 - 0.6)


def test_an_image_of_nothing_is_lost_by_one_voxel() -> None:
    images = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    images[0, 0, 1, 2] = -0.5
    task, target = SegmentationTask.for_evaluation(), torch.zeros(1, 1, 4, 4).long()
    assert float(task.margin(Planted(False)(images), target)) == pytest.approx(0.4)
    result = SharpDice(Threat("l2", 0.55, unit="norm"), steps=30)(Planted(False), images, target, task)
    assert float(result.margin) == pytest.approx(task.lowest_margin)
    assert bool(result.wrong)


def test_the_margin_of_the_task_is_the_score_of_the_report_for_every_mixture_of_empty_classes() -> None:
    """Two classes, each there or not, found or not; and the choice of the worst follows it."""
    task = SegmentationTask.for_evaluation()
    for there, found in product(product((0, 1), repeat=2), repeat=2):
        target, labels = torch.zeros(2, 1, 2, 3).long(), torch.zeros(1, 2, 3).long()
        for c in (1, 2):
            target[:, 0, 0, :c] = torch.where(torch.tensor(bool(there[c - 1])), c, target[:, 0, 0, :c])
            labels[0, 0, c] = c * found[c - 1]
        logits = 9.0 * torch.eye(3)[labels].movedim(-1, 1)
        clean = 9.0 * torch.eye(3)[target[:1, 0]].movedim(-1, 1)
        masks = {str(c): ((labels[0] == c).numpy(), (target[0, 0] == c).numpy()) for c in (1, 2)}
        expected = volume_score("", masks, (1.0, 1.0)).remaining  # what attacks push down
        margin = task.margin(torch.cat([clean, logits]), target)
        assert float(margin[0]) == pytest.approx(0.4)
        assert float(margin[1]) == pytest.approx(expected - 0.6)
        best = Strongest(torch.zeros(1, 1, 2, 3), task, "lowest")
        for number, output in enumerate((clean, logits)):
            best.update(torch.tensor([0]), torch.full((1, 1, 2, 3), number + 1.0), output, target[:1])
        assert float(best.images[0, 0, 0, 0]) == (2 if float(margin[1]) < float(margin[0]) else 1)


def test_leads_and_what_is_raised_by_hand() -> None:
    """Leads of two classes: 0.5 (found) and -3; only what is absent counts, and only what is near without being led."""
    logits = torch.tensor([[[0.0, 1.0], [0.5, 1.5], [-2.5, -2.0]]]).double()
    leads = dice_score.lead(logits, torch.ones(1, 1, 2, dtype=torch.bool), alone=False)
    assert leads.tolist() == [[0.5, -3.0]]  # the first voxel's best other class is 0.5, the second's 1.5
    both, second = torch.tensor([[True, True]]), torch.tensor([[False, True]])
    assert dice_score.within_reach(leads, both).tolist() == pytest.approx([0.25 - 1 - 0.01 * 2])
    assert dice_score.within_reach(leads, second).tolist() == pytest.approx([-1 - 0.01 * 2])
    assert dice_score.nearest(leads, both).tolist() == [-3.0]
    assert dice_score.nearest(leads, torch.tensor([[True, False]])).tolist() == [0.0]
    nothing = dice_score.lead(logits, torch.zeros(1, 1, 2, dtype=torch.bool), alone=True)
    assert nothing.tolist() == [[-math.inf] * 3]
    assert dice_score.within_reach(nothing, torch.ones(1, 3, dtype=torch.bool)).tolist() == [0.0]
    assert dice_score.nearest(nothing, torch.ones(1, 3, dtype=torch.bool)).tolist() == [0.0]


def volume(scored: int) -> tuple[Tensor, Tensor]:
    """Four slices with one voxel of class 1 each, ``scored`` of them found; class 2 is nowhere."""
    target = torch.zeros(4, 1, 2, 2).long()
    target[:, 0, 0, 0] = 1
    labels = torch.zeros(4, 2, 2).long()
    labels[:scored, 0, 0] = 1
    return 9.0 * torch.eye(3).double()[labels].movedim(-1, 1), target


def test_the_first_voxel_of_a_new_class_costs_a_slice_what_it_costs_the_volume() -> None:
    """Dice 6 / 7 of one class becomes 3 / 7 of two; over the 4 slices the margins fall by 4 times that."""
    logits, target = volume(3)
    task = VolumeSlicesTask.of(SegmentationTask.for_evaluation(), logits, target)
    changed = logits.clone()
    changed[1, :, 1, 1] = torch.tensor([0.0, 0.0, 9.0])
    change = task.margin(changed, target) - task.margin(logits, target)
    assert change.tolist() == pytest.approx([0, 4 * (3 / 7 - 6 / 7), 0, 0])
    again = VolumeSlicesTask.of(SegmentationTask.for_evaluation(), changed, target)
    assert again.margin(changed, target).tolist() == pytest.approx(again.margin(logits, target).tolist())


def test_the_mixture_of_slices_keeps_the_false_voxel() -> None:
    """Version 2 loses a slice; version 1 has a false voxel of another class in the next slice: take both."""
    true_positive = np.array([[[1, 0], [1, 0]], [[0, 0], [1, 0]]])
    size = np.array([[[2, 0], [2, 1]], [[1, 0], [2, 0]]])
    chosen: Any = worst_slices(torch.from_numpy(true_positive), torch.from_numpy(size))
    assert chosen.tolist() == [True, False]
