"""Slices judged by their volume: the Dinkelbach identity, first order, finishing, and a better attack on the volume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks.apgd import APGD
from monai_adv.tasks import SegmentationSettings, SegmentationTask
from monai_adv.tasks.volume_slices import VolumeSlicesTask


def judge(regions: bool = False, ignore_label: int | None = None) -> SegmentationTask:
    settings = SegmentationSettings(empty_target="empty_prediction")
    return SegmentationTask(lambda o, t: o.mean(), settings, regions=regions, ignore_label=ignore_label)


def volume(seed: int, classes: int, slices: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Two versions of the logits of all slices, and the ground truth."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (slices, 1, 4, 3), generator=generator)
    one, other = (torch.randn(slices, classes, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return one, other, target


def dice_of_volume(logits: Tensor, target: Tensor) -> Tensor:
    """``(K,)`` Dice of each class over all slices, in one sum."""
    found, there = judge().masks(logits.transpose(0, 1)[None], target.transpose(0, 1)[None])
    return 2 * (found & there)[0].flatten(1).sum(1) / (found[0].flatten(1).sum(1) + there[0].flatten(1).sum(1))


@given(st.integers(0, 10_000))
def test_one_class_the_volume_falls_exactly_if_the_sum_of_the_margins_does(seed: int) -> None:
    one, other, target = volume(seed, classes=2)
    task = VolumeSlicesTask.of(judge(), one, target)
    torch.testing.assert_close(task.volume_dice, dice_of_volume(one, target).float())
    change = float((task.margin(other, target) - task.margin(one, target)).sum())
    falls = float(dice_of_volume(other, target) - dice_of_volume(one, target))
    assert (change < -1e-6) == (falls < -1e-6)


def test_to_first_order_the_margins_add_up_to_the_mean_dice() -> None:
    """One voxel changed in a large volume: the mean over two classes moves by change / slices."""
    one, _, target = volume(0, classes=3, slices=500)
    other = one.clone()
    other[7, :, 0, 0] = -other[7, :, 0, 0]
    task = VolumeSlicesTask.of(judge(), one, target)
    change = (task.margin(other, target) - task.margin(one, target)) / 500
    falls = (dice_of_volume(other, target) - dice_of_volume(one, target)).mean()
    assert float(falls) != 0
    assert float(change.sum()) == pytest.approx(float(falls), rel=2e-3)
    assert change.nonzero()[:, 0].tolist() == [7]


def test_each_slice_for_itself() -> None:
    one, _, target = volume(1, classes=3)
    task = VolumeSlicesTask.of(judge(), one, target)
    for i in range(len(one)):
        torch.testing.assert_close(task.margin(one[i : i + 1], target[i : i + 1]), task.margin(one, target)[i : i + 1])
        torch.testing.assert_close(
            task.sample_loss(one[i : i + 1], target[i : i + 1]), task.sample_loss(one, target)[i : i + 1]
        )


@pytest.mark.parametrize("regions", [False, True])
def test_the_loss_of_a_sure_prediction_is_minus_its_margin(regions: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 1000.0 * torch.rand(4, 2 if regions else 3, 3, 4, 5, generator=generator).argsort(1) - 500  # no ties
    target = torch.randint(0, 2 if regions else 3, (4, 2 if regions else 1, 3, 4, 5), generator=generator)
    task = VolumeSlicesTask.of(judge(regions), logits, target)
    torch.testing.assert_close(task.sample_loss(logits, target), -task.margin(logits, target), atol=1e-4, rtol=0)


def test_ignored_voxels_count_nowhere() -> None:
    target = torch.tensor([[[[1, 1, 0, 9]]], [[[0, 1, 9, 9]]]])
    found = torch.tensor([[[[1, 0, 1, 1]]], [[[0, 1, 1, 0]]]])
    logits = torch.cat([1 - found, found], 1).float()
    task = VolumeSlicesTask.of(judge(ignore_label=9), logits, target)
    assert float(task.volume_dice) == pytest.approx(2 * 2 / (3 + 3))
    # slices / S = 2 / 6; 2 TP - D * predicted: 2 - 4/3 and 2 - 2/3
    assert task.margin(logits, target).tolist() == pytest.approx([2 / 9, 4 / 9])


def test_false_positives_in_a_slice_without_foreground_count_while_there_is_dice_left() -> None:
    nothing, everything = torch.tensor([[1.0, 0.0]]).view(1, 2, 1, 1), torch.tensor([[0.0, 1.0]]).view(1, 2, 1, 1)
    empty = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    some = VolumeSlicesTask.towards(judge(), torch.tensor([0.5]), torch.tensor([10]), slices=5)
    assert float(some.margin(everything, empty)) == pytest.approx(-0.25)
    assert float(some.margin(nothing, empty)) == 0
    assert some.correct(everything, empty).all()
    assert some.lowest_margin == -torch.inf


def test_a_slice_without_true_positives_is_finished_once_the_volume_is_lost() -> None:
    one, _, target = volume(2, classes=2)
    lost = VolumeSlicesTask.towards(judge(), torch.tensor([0.0]), torch.tensor([10]), slices=6)
    hit = (one.argmax(1, keepdim=True) == target) & (target == 1)
    assert lost.lowest_margin == 0
    assert torch.equal(lost.correct(one, target), hit.flatten(1).any(1))


def test_a_class_that_nobody_has_counts_nowhere() -> None:
    one, _, target = volume(4, classes=2)
    with_absent = torch.cat([one, torch.full_like(one[:, :1], -50.0)], 1)
    task, plain = VolumeSlicesTask.of(judge(), with_absent, target), VolumeSlicesTask.of(judge(), one, target)
    torch.testing.assert_close(task.margin(with_absent, target), plain.margin(one, target))


class Blur(nn.Module):
    """Two classes; the logit of a voxel is a mean over its neighbourhood, so voxels compete for the budget."""

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([torch.zeros_like(z), z], 1)


def attacked(task: Any, images: Tensor, target: Tensor) -> float:
    result = APGD(Threat("l2", 1.0, unit="norm"), 25, until="lowest", start="clean")(Blur(), images, target, task)
    return float(dice_of_volume(Blur()(result.images), target))


def test_the_volume_suffers_more_than_under_attacks_on_each_slice() -> None:
    """Three slices are easily lost, three have no foreground, two are out of reach: only false positives are left."""
    generator = torch.Generator().manual_seed(0)
    images = 0.2 * torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64) - 0.05
    images[:2] *= 20
    target = Blur()(images).argmax(1, keepdim=True)
    target[5:] = 0
    task = VolumeSlicesTask.of(judge(), Blur()(images), target, expected=0.5)
    assert attacked(task, images, target) < attacked(judge(), images, target) - 0.05


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="dice and size"):
        VolumeSlicesTask.towards(judge(), torch.tensor([1.5]), torch.tensor([3]), slices=2)
    with pytest.raises(InputError, match="dice and size"):
        VolumeSlicesTask.towards(judge(), torch.tensor([0.5, 0.5]), torch.tensor([3]), slices=2)
