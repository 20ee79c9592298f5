"""SegPGD: the weights by hand, the schedule of lambda, closed form on a voxel-wise linear model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from monai_adv import Threat
from monai_adv.attacks.segpgd import SegPGD, segpgd_loss
from monai_adv.tasks import ClassificationTask, Points
from tests.voxel_networks import Voxelwise, judge

LOGITS = torch.tensor([[[2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
LABELS = torch.tensor([[0, 1, 0]])  # right, wrong, wrong
RIGHT, WRONG, HALF_WRONG = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), math.log(1 + math.e)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_right_voxels_weigh_1_minus_lambda_and_wrong_ones_lambda(progress: float) -> None:
    points = Points(LOGITS, LABELS, torch.ones_like(LABELS, dtype=torch.bool))
    share = progress / 2
    expected = ((1 - share) * RIGHT + share * (WRONG + HALF_WRONG)) / 3
    assert float(segpgd_loss(points, progress)) == pytest.approx(expected)


def test_wrong_voxels_have_no_gradient_at_the_first_step() -> None:
    logits = LOGITS.clone().requires_grad_()
    points = Points(logits, LABELS, torch.ones_like(LABELS, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(segpgd_loss(points, 0.0).sum(), logits)
    q = 1 / (1 + math.exp(2))  # probability of the wrong class on the first voxel
    expected = torch.tensor([[[-q, 0.0, 0.0], [q, 0.0, 0.0]]], dtype=torch.float64) / 3
    torch.testing.assert_close(gradient, expected)


def test_all_steps_made_it_is_half_the_cross_entropy() -> None:
    points = Points(LOGITS, LABELS, torch.ones_like(LABELS, dtype=torch.bool))
    torch.testing.assert_close(segpgd_loss(points, 1.0), F.cross_entropy(LOGITS, LABELS)[None] / 2)


def test_ignored_voxels_and_regions() -> None:
    """Each voxel of each region is a problem between the logits 0 and z; the last target channel is ignored."""
    logits = torch.tensor([[[2.0, -1.0, 5.0]], [[-3.0, 1.0, 5.0]]], dtype=torch.float64).view(1, 2, 3)
    target = torch.tensor([[[1, 1, 0], [0, 0, 0], [0, 0, 1]]])  # regions A and B, and the ignored voxel
    points = judge(regions=True, ignore_label=9).points(logits, target)
    softplus = [math.log1p(math.exp(v)) for v in (-2.0, 1.0, -3.0, 1.0)]  # A right, A wrong, B right, B wrong
    expected = (0.8 * (softplus[0] + softplus[2]) + 0.2 * (softplus[1] + softplus[3])) / 4
    assert float(segpgd_loss(points, 0.4)) == pytest.approx(expected)


def test_classification_is_the_case_of_one_point() -> None:
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    losses = segpgd_loss(ClassificationTask().points(logits, target), 0.5)
    torch.testing.assert_close(losses, torch.tensor([0.75 * RIGHT, 0.25 * WRONG]))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(6, 5), (4, 3, 5)])
def test_linf_reaches_the_optimum_of_a_voxelwise_model(spatial: tuple[int, ...], regions: bool) -> None:
    """Every voxel within the radius of its boundary is lost: Dice is known for every radius."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, *spatial, generator=generator, dtype=torch.float64)
    target = (images > 0).long()  # all right on the clean image
    eps = 0.5
    result = SegPGD(Threat("linf", eps), steps=8)(Voxelwise(regions), images, target, judge(regions))
    lost = torch.where(images > 0, images <= eps, images > -eps)
    torch.testing.assert_close((result.images > 0), torch.where(lost, images <= 0, images > 0))
    assert (Threat("linf", eps).size(result.images - images) <= eps * (1 + 1e-6)).all()


def test_l2_spends_its_budget_on_right_voxels_first() -> None:
    """One step: the direction is the gradient of the right voxels only, of length radius * 4 / steps."""
    images = torch.tensor([[[[2.0, -1.0, 1.0, -2.0]]]], dtype=torch.float64)
    target = torch.tensor([[[[1, 1, 0, 0]]]])  # the two in the middle are wrong already
    attack = SegPGD(Threat("l2", 0.5, unit="norm"), steps=1, relative_step=1.0)
    moved = attack(Voxelwise(), images, target, judge()).images - images
    torch.testing.assert_close(moved, torch.tensor([[[[-1.0, 0.0, 0.0, 1.0]]]], dtype=torch.float64) * 0.5 / 2**0.5)


def test_a_sample_without_dice_left_leaves_the_batch() -> None:
    images = torch.tensor([[[[0.1, 0.1, -3.0]]], [[[9.0, 0.1, -3.0]]]], dtype=torch.float64)
    target = (images > 0).long()
    result = SegPGD(Threat("linf", 0.4), steps=10, relative_step=1.0)(Voxelwise(), images, target, judge())
    assert result.margin.tolist() == pytest.approx([-0.6, 2 / 3 - 0.6])
    assert result.passes.forward == 2 + 2 + 9  # the first sample is finished after one step
