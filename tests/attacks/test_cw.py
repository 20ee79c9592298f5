"""Carlini & Wagner: the confident margin, its identity with PGD, and the nearest wrong image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks.cw import CW, CWL2, confident_margin
from monai_adv.attacks.losses import margin
from monai_adv.attacks.pgd import PGD
from monai_adv.tasks import ClassificationTask, Points, SegmentationTask
from tests.conftest import LinearNetwork, LinearTask

SHAPES = [(1, 8), (2, 4, 6), (1, 3, 4, 5)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setup(shape: tuple[int, ...], count: int = 5) -> tuple[LinearNetwork, Tensor, Tensor, Tensor]:
    """A linear network and samples on its right side at known distances."""
    network = LinearNetwork(shape)
    images = torch.randn(count, *shape, generator=seeded(1), dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    return network, images, target, (network(images)[:, 0].abs() / network.weight.norm()).detach()


def nonlinear(classes: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, classes)).double()


def test_points_that_are_wrong_by_kappa_are_done() -> None:
    """Leads -3, 1 and 5; the last point does not count."""
    logits = torch.tensor([[[3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 5.0, 9.0]]], requires_grad=True)
    points = Points(logits, torch.zeros(1, 4, dtype=torch.long), torch.tensor([[True, True, True, False]]))
    for kappa, expected in ((0.0, -3 / 3), (2.0, (-3 + 1 + 2) / 3), (50.0, (-3 + 1 + 5) / 3)):
        torch.testing.assert_close(confident_margin(points, 0.0, kappa=kappa), torch.tensor([expected]))
    torch.testing.assert_close(confident_margin(points, 0.0, kappa=50.0), margin(points, 0.0))
    (gradient,) = torch.autograd.grad(confident_margin(points, 0.0, kappa=2.0).sum(), logits)
    torch.testing.assert_close(gradient[0, 1], torch.tensor([1 / 3, 1 / 3, 0.0, 0.0]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("start", ["clean", "ball"])
def test_with_two_classes_its_iterates_are_those_of_pgd(norm: str, start: str) -> None:
    """The gradient of the cross-entropy is a positive multiple of the margin's (kappa out of reach)."""
    network = nonlinear(2)
    images = torch.randn(8, 1, 5, 6, generator=seeded(3), dtype=torch.float64)
    target, task = network(images).argmax(1), ClassificationTask()
    threat = Threat(norm, 0.3 if norm == "l2" else 0.05, unit="norm")
    for steps in (1, 2, 7):
        cw = CW(threat, steps=steps, kappa=1e6, start=start, until="lowest")
        pgd = PGD(threat, steps=steps, start=start)
        one = cw(network, images, target, task, generator=seeded())
        two = pgd(network, images, target, task, generator=seeded())
        torch.testing.assert_close(one.images, two.images, rtol=0, atol=1e-12)


def test_with_three_classes_they_differ() -> None:
    network = nonlinear(3)
    images = torch.randn(8, 1, 5, 6, generator=seeded(3), dtype=torch.float64)
    target, task = network(images).argmax(1), ClassificationTask()
    one = CW(Threat("l2", 0.3, unit="norm"), steps=3, until="lowest")(network, images, target, task)
    two = PGD(Threat("l2", 0.3, unit="norm"), steps=3)(network, images, target, task)
    assert (one.images - two.images).abs().max() > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_sample_is_lost_exactly_when_its_distance_is_within_the_radius(shape: tuple[int, ...], norm: str) -> None:
    network, images, target, distance = setup(shape, 9)
    if norm == "linf":
        distance = distance * network.weight.detach().norm() / network.weight.detach().abs().sum()
    eps = float(distance.median()) * 1.001
    result = CW(Threat(norm, eps, unit="norm"), steps=20)(network, images, target, LinearTask())
    assert torch.equal(result.wrong, distance < eps)
    assert not result.dead.any()  # standing still behind the boundary is no masking


def test_half_the_reach_finds_only_half_as_far() -> None:
    """10 steps of 0.001 in a ball of 0.0196, as MIRST-DM states it: samples beyond 0.010 cannot be lost."""
    network, images, target, distance = setup((1, 8))
    distance = distance * network.weight.detach().norm() / network.weight.detach().abs().sum()
    images = (
        images
        + (
            (0.01 * torch.tensor([0.5, 0.99, 1.01, 1.5, 1.9]) - distance)
            * target
            * network.weight.detach().abs().sum()
            / network.weight.detach().square().sum()
        ).view(-1, 1, 1)
        * network.weight.detach()
    )
    stated = CW(Threat("linf", 0.0196), steps=10, relative_step=0.001 / 0.0196)
    full = CW(Threat("linf", 0.0196), steps=10)
    assert stated(network, images, target, LinearTask()).wrong.tolist() == [True, True, False, False, False]
    assert full(network, images, target, LinearTask()).wrong.all()


class Voxelwise(nn.Module):
    """Two classes; the second wins where the image is above 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x], 1)


def test_kappa_zero_spends_nothing_on_voxels_that_are_wrong() -> None:
    """Voxels at distances 0.2 and 1 and an L2 radius of 1.6, which is 0.8 for each of four voxels: not enough for 1.

    Once the near ones are wrong, sqrt((1.6^2 - 2 * 0.2^2) / 2) = 1.11 is left for each of the far ones.
    """
    images, target = torch.tensor([[[[-0.2, -1.0, 0.2, 1.0]]]]).double(), torch.tensor([[[[0, 0, 1, 1]]]])
    task = SegmentationTask(lambda output, target: output.mean())
    focused, spread = (
        CW(Threat("l2", 1.6, unit="norm"), steps=60, kappa=kappa, until="lowest")(
            Voxelwise(), images, target, task
        ).images
        > 0
        for kappa in (0.0, 50.0)
    )
    assert focused.flatten().tolist() == [True, True, False, False]
    assert spread.flatten().tolist() == [True, False, False, True]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [None, (-4.0, 4.0)])
def test_the_nearest_wrong_image_of_a_linear_network_is_at_its_distance(shape: tuple[int, ...], box: tuple) -> None:
    network, images, target, distance = setup(shape)
    rate = 0.02 if box is None else 0.005  # of tanh, whose unit is here 4
    attack = CWL2(
        Threat("l2", 1e3, box, unit="norm"),
        steps=100,
        search_steps=6,
        learning_rate=rate,
        initial_c=1.0,
        until="nearest",
    )
    result = attack(network, images, target, LinearTask())
    assert (result.distance >= distance * (1 - 1e-9)).all()
    assert (result.distance <= distance * 1.02).all()
    torch.testing.assert_close((result.nearest - images).flatten(1).norm(dim=1), result.distance)
    assert result.wrong.all()
    assert torch.equal(result.images, result.nearest)
    assert (LinearTask().margin(network(result.nearest), target) <= 0).all()


def test_what_lies_beyond_the_radius_comes_back_to_it() -> None:
    network, images, target, distance = setup((2, 4, 6))
    radius = distance * torch.tensor([0.5, 1.5, 0.9, 1.2, 0.0]).double()
    attack = CWL2(Threat("l2", 1.0, unit="norm"), steps=150, search_steps=7, learning_rate=0.02)
    result = attack(network, images, target, LinearTask(), radius=radius)
    assert result.wrong.tolist() == [False, True, False, True, False]
    size = (result.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(size[[0, 2, 4]], radius[[0, 2, 4]])
    assert (size[[1, 3]] <= radius[[1, 3]]).all()
    assert (result.distance > radius)[[0, 2, 4]].all()
    torch.testing.assert_close(result.margin, LinearTask().margin(network(result.images), target))
    # Found samples left: not all 7 * 150 steps for everybody.
    assert 3 * 7 * 150 + 5 < result.passes.forward < 5 * 7 * 150


def test_the_first_step_of_adam_is_known() -> None:
    """Adam's first step is the learning rate along the sign of the gradient, here -target * weight (delta is 0)."""
    network, images, target, _ = setup((1, 8), 3)
    attack = CWL2(Threat("l2", 9.0, unit="norm"), steps=2, search_steps=1, learning_rate=50.0)
    result = attack(network, images, target, LinearTask())
    step = -50 * target.view(-1, 1, 1) * network.weight.detach().sign()
    torch.testing.assert_close(result.nearest - images, step, rtol=1e-4, atol=0)


def test_a_wrong_image_is_nearest_to_itself() -> None:
    network, images, target, _ = setup((1, 8), 3)
    result = CWL2(Threat("l2", 1.0, unit="norm"), steps=3, search_steps=2)(network, images, -target, LinearTask())
    assert torch.equal(result.images, images)
    assert result.distance.eq(0).all()
    assert result.passes.forward == 3 + 3  # one look, one last check


def test_the_constant_is_found_for_each_sample_alone() -> None:
    network, images, target, _ = setup((1, 8), 4)
    attack = CWL2(Threat("l2", 1e3, unit="norm"), steps=40, search_steps=4, learning_rate=0.05, until="nearest")
    together = attack(network, images, target, LinearTask())
    alone = torch.cat([attack(network, images[i : i + 1], target[i : i + 1], LinearTask()).nearest for i in range(4)])
    torch.testing.assert_close(together.nearest, alone)


def test_an_unbeatable_network_gives_back_the_clean_image_and_its_dead_gradient() -> None:
    network, images, _, _ = setup((1, 8), 3)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.fill_(1.0)
    result = CWL2(Threat("l2", 1.0, unit="norm"), steps=3, search_steps=2)(
        network, images, torch.ones(3).double(), LinearTask()
    )
    assert torch.equal(result.nearest, images)
    assert result.distance.isinf().all()
    assert result.dead.all()
    assert not result.wrong.any()


@pytest.mark.parametrize(
    "settings",
    [{"kappa": -1.0}, {"until": "nearest"}, {"start": "surface"}, {"steps": 0}, {"relative_step": 0.0}, {"mode": "x"}],
)
def test_bad_settings_of_cw_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: received"):
        CW(Threat("l2", 1.0, unit="norm"), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"threat": Threat("linf", 1.0)},
        {"until": "lowest"},
        {"steps": 0},
        {"search_steps": 0},
        {"learning_rate": 0.0},
        {"initial_c": -1.0},
        {"mode": "x"},
    ],
)
def test_bad_settings_of_cw_l2_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: received"):
        CWL2(**{"threat": Threat("l2", 1.0, unit="norm"), **settings})
