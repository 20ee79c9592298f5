"""CosPGD: the weight by hand, its limits, closed form on a voxel-wise linear model."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv import Threat
from monai_adv.attacks.cospgd import CosPGD, cospgd_loss
from monai_adv.tasks import ClassificationTask, Points
from tests.voxel_networks import Voxelwise, judge


def points_of(logits: Tensor, labels: Tensor) -> Points:
    return Points(logits, labels, torch.ones_like(labels, dtype=torch.bool))


def test_cosine_times_cross_entropy_by_hand() -> None:
    """Probabilities (3/4, 1/4): cosine 3 / sqrt(10) with the first class and 1 / sqrt(10) with the second."""
    logits = torch.tensor([[[math.log(3.0), math.log(3.0)], [0.0, 0.0]]], dtype=torch.float64)
    loss = cospgd_loss(points_of(logits, torch.tensor([[0, 1]])), 0.0)
    expected = (3 / 10**0.5 * math.log(4 / 3) + 1 / 10**0.5 * math.log(4)) / 2
    assert float(loss) == pytest.approx(expected)


def test_sigmoid_by_hand() -> None:
    """sigmoid(log 3) = 3/4 and sigmoid(0) = 1/2: cosine 3 / sqrt(13) with the first class."""
    logits = torch.tensor([[[math.log(3.0)], [0.0]]], dtype=torch.float64)
    loss = cospgd_loss(points_of(logits, torch.tensor([[0]])), 0.0, activation="sigmoid")
    assert float(loss) == pytest.approx(3 / 13**0.5 * math.log(4 / 3))


def test_the_weight_carries_no_gradient() -> None:
    logits = torch.tensor([[[math.log(3.0)], [0.0]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cospgd_loss(points_of(logits, torch.tensor([[0]])), 0.0).sum(), logits)
    expected = 3 / 10**0.5 * torch.tensor([[[-0.25], [0.25]]], dtype=torch.float64)  # cosine * (p - one-hot)
    torch.testing.assert_close(gradient, expected)


def test_equals_the_cross_entropy_where_the_prediction_is_sure_and_right() -> None:
    logits = torch.tensor([[[30.0, -30.0], [0.0, 0.0]]], dtype=torch.float64)
    labels = torch.tensor([[0, 1]])
    torch.testing.assert_close(
        cospgd_loss(points_of(logits, labels), 0.0), F.cross_entropy(logits, labels)[None], rtol=1e-9, atol=0
    )


def test_ignores_points_that_are_sure_and_wrong() -> None:
    """Cross-entropy grows with the logits, the cosine vanishes exponentially."""
    logits = torch.tensor([[[0.0], [30.0]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cospgd_loss(points_of(logits, torch.tensor([[0]])), 0.0).sum(), logits)
    assert gradient.abs().max() < 1e-12


def test_ignored_voxels_and_regions() -> None:
    logits = torch.tensor([[[math.log(3.0), 7.0], [-math.log(3.0), 7.0]]], dtype=torch.float64)
    target = torch.tensor([[[1, 0], [1, 0], [0, 1]]])  # two regions; the second voxel is ignored
    loss = cospgd_loss(judge(regions=True, ignore_label=9).points(logits, target), 0.0)
    expected = (3 / 10**0.5 * math.log(4 / 3) + 1 / 10**0.5 * math.log(4)) / 2
    assert float(loss) == pytest.approx(expected)


def test_classification_is_the_case_of_one_point() -> None:
    logits, target = torch.tensor([[math.log(3.0), 0.0]] * 2), torch.tensor([0, 1])
    losses = cospgd_loss(ClassificationTask().points(logits, target), 0.0)
    expected = torch.tensor([3 / 10**0.5 * math.log(4 / 3), 1 / 10**0.5 * math.log(4)])
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(6, 5), (4, 3, 5)])
def test_linf_reaches_the_optimum_of_a_voxelwise_model(
    spatial: tuple[int, ...], regions: bool, activation: str
) -> None:
    """Every voxel within the radius of its boundary is lost, whatever its weight."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, *spatial, generator=generator, dtype=torch.float64)
    target = (images > 0).long()
    eps = 0.5
    loss = functools.partial(cospgd_loss, activation=activation)
    result = CosPGD(Threat("linf", eps), steps=8, loss=loss)(Voxelwise(regions), images, target, judge(regions))
    lost = torch.where(images > 0, images <= eps, images > -eps)
    torch.testing.assert_close((result.images > 0), torch.where(lost, images <= 0, images > 0))


def test_l2_step_follows_the_weighted_gradient() -> None:
    """Logits (0, x): the gradient of voxel x is -cosine * (1 - p), p the probability of its label."""
    images = torch.tensor([[[[1.0, 2.0, -0.5]]]], dtype=torch.float64)
    target = torch.ones(1, 1, 1, 3, dtype=torch.long)
    p = images.sigmoid()
    gradient = -p / (p.square() + (1 - p).square()).sqrt() * (1 - p)
    attack = CosPGD(Threat("l2", 0.3, unit="norm"), steps=1, relative_step=1.0)
    moved = attack(Voxelwise(), images, target, judge()).images - images
    torch.testing.assert_close(moved, 0.3 * gradient / gradient.norm())
