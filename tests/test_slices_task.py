"""The slices of a volume: contributions by hand, and what they say about the volume's Dice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from monai_adv import InputError
from monai_adv.tasks import SlicesTask


def volume(seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of five slices."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (5, 1, 4, 6), generator=generator)
    return torch.randn(5, classes, 4, 6, generator=generator, dtype=torch.float64), target


def dice_of(logits: torch.Tensor, target: torch.Tensor, k: int) -> float:
    found, there = logits.argmax(1) == k, target[:, 0] == k
    return float(2 * (found & there).sum() / (found.sum() + there.sum()))


@given(seed=st.integers(0, 1000), d=st.floats(0.01, 0.99))
def test_contributions_tell_whether_the_volumes_dice_is_below_d(seed: int, d: float) -> None:
    """One class: the sum of (2 TP - d P) / G is below d exactly when 2 TP / (P + G) is."""
    logits, target = volume(seed, classes=2)
    total = float(SlicesTask(target, channels=2, expected_dice=d).margin(logits, target).sum())
    if abs(total - d) > 1e-6:
        assert (total < d) == (dice_of(logits, target, 1) < d)


def test_classes_are_averaged_and_absent_ones_left_out() -> None:
    logits, target = volume(0, classes=4)
    target[target == 3] = 0
    by_hand = torch.zeros(5, dtype=torch.float64)
    for k in (1, 2):
        found, there = (logits.argmax(1) == k).flatten(1), (target[:, 0] == k).flatten(1)
        by_hand += (2 * (found & there).sum(1) - 0.1 * found.sum(1)) / there.sum() / 2
    margin = SlicesTask(target, channels=4).margin(logits, target)
    torch.testing.assert_close(margin.double(), by_hand, atol=1e-6, rtol=0)


def test_a_certain_prediction_has_the_same_loss_and_margin() -> None:
    logits, target = volume(1)
    certain = 1000 * F.one_hot(logits.argmax(1), 3).movedim(-1, 1).double()
    task = SlicesTask(target, channels=3)
    torch.testing.assert_close(-task.sample_loss(certain, target), task.margin(certain, target).double())


def test_each_slice_depends_on_itself_only() -> None:
    logits, target = volume(2)
    task = SlicesTask(target, channels=3)
    whole = task.margin(logits, target)
    some = torch.tensor([3, 0])
    assert torch.equal(task.margin(logits[some], target[some]), whole[some])


def test_regions_and_ignored_voxels() -> None:
    """Two regions and a mask of ignored voxels in the last channel."""
    target = torch.zeros(1, 3, 2, 2)
    target[0, 0] = torch.tensor([[1, 1], [0, 0]])
    target[0, 1, 0, 0] = 1
    target[0, 2, 0, 1] = 1  # ignored: the second voxel of the first region
    logits = torch.full((1, 2, 2, 2), 5.0)
    margin = SlicesTask(target, channels=2, regions=True, ignore_label=9, expected_dice=0.1).margin(logits, target)
    assert float(margin) == pytest.approx(((2 - 0.3) / 1 + (2 - 0.3) / 1) / 2)


def test_without_any_foreground_every_false_positive_counts() -> None:
    logits, target = volume(3)
    target.zero_()
    margin = SlicesTask(target, channels=3).margin(logits, target)
    found = (logits.argmax(1) > 0).flatten(1).sum(1)
    torch.testing.assert_close(margin.double(), -0.1 * found / 2, atol=1e-6, rtol=0, check_dtype=False)


def test_slices_are_never_wrong_nor_finished() -> None:
    logits, target = volume(4)
    task = SlicesTask(target, channels=3)
    assert task.correct(-logits, target).all()
    assert task.lowest_margin == -torch.inf


def test_expected_dice_is_a_share() -> None:
    with pytest.raises(InputError, match=r"^expected_dice: received 1\.5"):
        SlicesTask(torch.zeros(1, 1, 2, 2), channels=2, expected_dice=1.5)
