"""Segmentation task: Dice by hand, losses against the host's, regions, ignore label, empty targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from monai_adv import InputError
from monai_adv.tasks import SegmentationSettings, SegmentationTask, take


def make(**settings: object) -> SegmentationTask:
    options = {k: settings.pop(k) for k in ("regions", "ignore_label", "deep_supervision_weights") if k in settings}
    return SegmentationTask(lambda o, t: o.mean(), SegmentationSettings(**settings), **options)  # type: ignore[arg-type]


def logits_of(labels: Tensor, classes: int, scale: float = 10.0) -> Tensor:
    """Logits whose argmax is the label map ``(B, 1, *spatial)``."""
    return F.one_hot(labels[:, 0].long(), classes).movedim(-1, 1).double() * scale


TARGET = torch.tensor([[[[0, 1, 1, 2], [0, 1, 1, 2]]]])
PREDICTED = torch.tensor([[[[0, 1, 1, 1], [0, 0, 1, 2]]]])
# class 1: TP 3, predicted 4, true 4 -> 6/8; class 2: TP 1, predicted 1, true 2 -> 2/3


def test_dice_by_hand() -> None:
    task = make()
    torch.testing.assert_close(task.dice(logits_of(PREDICTED, 3), TARGET), torch.tensor([[0.75, 2 / 3]]))
    assert float(task.margin(logits_of(PREDICTED, 3), TARGET)) == pytest.approx((0.75 + 2 / 3) / 2 - 0.6)
    assert float(make(dice="max").margin(logits_of(PREDICTED, 3), TARGET)) == pytest.approx(0.75 - 0.6)


def test_an_absent_class_does_not_count() -> None:
    target = TARGET.where(TARGET != 2, 0)
    dice = make().dice(logits_of(PREDICTED, 3), target)
    assert dice[0].isnan().tolist() == [False, True]
    assert float(make().margin(logits_of(PREDICTED, 3), target)) == pytest.approx(0.75 - 0.6)


@pytest.mark.parametrize(("included", "expected"), [(False, False), (True, True)])
def test_equality_with_the_threshold(included: bool, expected: bool) -> None:
    task = make(threshold=0.75, threshold_included=included, dice="max")
    assert bool(task.correct(logits_of(PREDICTED, 3), TARGET)) is expected


def test_sums_over_the_mean_dice_of_each_sample_alone() -> None:
    """Per sample: neighbours do not change a sample's figures (batch Dice would)."""
    task = make(attack_loss="dice_ce")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (5, 1, 6, 7), generator=generator)
    for i in range(5):
        one = slice(i, i + 1)
        assert torch.equal(task.margin(logits, target)[one], task.margin(logits[one], target[one]))
        torch.testing.assert_close(task.sample_loss(logits, target)[one], task.sample_loss(logits[one], target[one]))


@pytest.mark.parametrize("spatial", [(8, 6), (5, 6, 4)])
def test_dice_ce_equals_nnunets_loss_of_one_sample(spatial: tuple[int, ...]) -> None:
    """With every class present, the per-sample loss is nnU-Net's Dice + CE of that sample alone (batch_dice off)."""
    host = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, *spatial, generator=generator)
    target = torch.randint(0, 3, (4, 1, *spatial), generator=generator)
    ours = make(attack_loss="dice_ce").sample_loss(logits, target)
    theirs = torch.stack([host(logits[i : i + 1], target[i : i + 1].float()) for i in range(4)])
    torch.testing.assert_close(ours, theirs)


def test_absent_classes_can_count_as_in_nnunets_loss() -> None:
    host = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    logits = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(3, 1, 6, 6, dtype=torch.long)
    target[0, :, :3] = 1  # class 2 absent
    target[1, :, :3] = 2  # class 1 absent; the third sample has neither
    ours = make(attack_loss="dice_ce", absent_classes="count").sample_loss(logits, target)
    theirs = torch.stack([host(logits[i : i + 1], target[i : i + 1].float()) for i in range(3)])
    torch.testing.assert_close(ours, theirs)
    left_out = make(attack_loss="dice_ce").sample_loss(logits, target)
    assert (left_out < theirs).all()  # an absent class costs nothing there


def test_deep_supervision_uses_the_training_weights() -> None:
    host = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(1, 2, 16 // 2**i, 8 // 2**i, generator=generator) for i in range(3)]
    target = [torch.randint(0, 2, (1, 1, 16 // 2**i, 8 // 2**i), generator=generator) for i in range(3)]
    weights = (4 / 7, 3 / 7, 0.0)  # as nnU-Net: the lowest resolution is dropped
    wrapped = DeepSupervisionWrapper(host, weights)(logits, [t.float() for t in target])
    task = make(attack_loss="dice_ce", attack_deep_supervision=True, deep_supervision_weights=weights)
    torch.testing.assert_close(task.sample_loss(logits, target)[0], wrapped)
    full = make(attack_loss="dice_ce")
    torch.testing.assert_close(full.sample_loss(logits, target), full.sample_loss(logits[0], target[0]))
    assert torch.equal(full.margin(logits, target), full.margin(logits[0], target[0]))


def test_regions_are_judged_one_by_one() -> None:
    whole, core = TARGET > 0, TARGET == 2
    target = torch.cat([whole, core], 1)
    logits = torch.cat([PREDICTED > 0, PREDICTED == 2], 1).double() * 2 - 1
    task = make(regions=True)
    # whole: TP 5, predicted 5, true 6 -> 10/11; core: TP 1, predicted 1, true 2 -> 2/3
    torch.testing.assert_close(task.dice(logits, target), torch.tensor([[10 / 11, 2 / 3]]))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("loss", ["dice", "ce", "dice_ce"])
def test_ignored_voxels_change_nothing(regions: bool, loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 6, 6, generator=generator, dtype=torch.float64)
    ignored = torch.rand(3, 1, 6, 6, generator=generator) < 0.3
    target = torch.randint(0, 2, (3, 1, 6, 6), generator=generator)
    if regions:
        target = torch.cat([target, 1 - target, ignored.long()], 1)
    else:
        target = target.masked_fill(ignored, 2)
    task = make(regions=regions, ignore_label=2, attack_loss=loss)
    changed = torch.where(ignored, torch.randn(3, 2, 6, 6, generator=generator, dtype=torch.float64) * 9, logits)
    for function in (task.sample_loss, task.margin, task.dice):
        assert torch.equal(function(logits, target), function(changed, target))
    (gradient,) = torch.autograd.grad(task.sample_loss(x := logits.requires_grad_(), target).sum(), x)
    assert (gradient.masked_select(ignored) == 0).all()
    assert (gradient.masked_select(~ignored) != 0).any()


@pytest.mark.parametrize(
    ("policy", "scorable", "right_when_clean", "right_when_found"),
    [("skip", False, True, False), ("empty_prediction", True, True, False), ("wrong", True, False, False)],
)
def test_patch_without_foreground_follows_the_policy(
    policy: str, scorable: bool, right_when_clean: bool, right_when_found: bool
) -> None:
    task = make(empty_target=policy)
    empty = torch.zeros_like(TARGET)
    assert bool(task.scorable(empty)) is scorable
    assert bool(task.scorable(TARGET)) is True
    assert bool(task.correct(logits_of(empty, 3), empty)) is right_when_clean
    assert bool(task.correct(logits_of(PREDICTED, 3), empty)) is right_when_found


@pytest.mark.parametrize("regions", [False, True])
def test_an_attack_on_an_empty_patch_raises_the_foreground(regions: bool) -> None:
    logits = torch.zeros(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(1, 2 if regions else 1, 4, 4, dtype=torch.long)
    task = make(regions=regions, empty_target="empty_prediction")
    (gradient,) = torch.autograd.grad(task.sample_loss(logits, target).sum(), logits)
    assert (gradient[:, 1] > 0).all()


@pytest.mark.parametrize("loss", ["dice", "ce", "dice_ce"])
@pytest.mark.parametrize("regions", [False, True])
def test_gradients(loss: str, regions: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 3, 4), generator=generator)
    if regions:
        target = torch.cat([target > 0, target > 1, target == 1], 1).long()
    task = make(attack_loss=loss, regions=regions)
    assert torch.autograd.gradcheck(lambda x: task.sample_loss(x, target), logits)


def test_half_precision_outputs_are_summed_in_single() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 300, 300, generator=generator)
    target = torch.randint(0, 2, (1, 1, 300, 300), generator=generator)
    for kind in (torch.float16, torch.bfloat16):
        loss = make(attack_loss="dice_ce").sample_loss(logits.to(kind), target)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(
            loss, make(attack_loss="dice_ce").sample_loss(logits.to(kind).float(), target), atol=1e-5, rtol=0
        )


@given(st.integers(0, 2**16), st.integers(2, 4), st.sampled_from([(5, 4), (3, 4, 2)]))
def test_properties(seed: int, classes: int, spatial: tuple[int, ...]) -> None:
    """Dice lies in [0, 1]; the ground truth itself has margin 1 - threshold; order of the batch does not matter."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (4, 1, *spatial), generator=generator)
    logits = torch.randn(4, classes, *spatial, generator=generator, dtype=torch.float64)
    task = make()
    dice = task.dice(logits, target)
    assert ((dice >= 0) & (dice <= 1) | dice.isnan()).all()
    perfect = task.margin(logits_of(target, classes), target)[task.scorable(target)]
    torch.testing.assert_close(perfect, torch.full_like(perfect, 0.4))
    order = torch.randperm(4, generator=generator)
    assert torch.equal(task.margin(logits, target)[order], task.margin(logits[order], target[order]))


def test_bad_targets_and_settings_are_refused() -> None:
    with pytest.raises(InputError, match="target: received"):
        make().margin(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
    for threshold in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="threshold: received .*a number in \\(0, 1\\)"):
            SegmentationSettings(threshold=threshold)


def test_take_keeps_the_layout() -> None:
    index = torch.tensor([2, 0])
    assert torch.equal(take(torch.arange(3), index), index)
    assert [t.tolist() for t in take([torch.arange(3), torch.arange(3) * 10], index)] == [[2, 0], [20, 0]]
