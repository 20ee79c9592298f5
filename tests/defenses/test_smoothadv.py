"""SmoothAdv: a step by hand, its limits, the attack on the mean probability, passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_adv.certificates import SmoothedModel
from monai_adv.defenses import Batch
from monai_adv.tasks import ClassificationTask
from tests.linear_classifier import LinearClassifier
from tests.loss_parts import KINDS, gradients, make, problem, run


def _linear() -> tuple[LinearClassifier, Batch]:
    network = LinearClassifier(2, (1, 3))
    return network, Batch(torch.randn(6, 1, 3, dtype=torch.float64), torch.arange(6) % 2)


def _seen(settings: dict[str, object]) -> tuple[LinearClassifier, Batch, list[torch.Tensor]]:
    network, batch = _linear()
    seen: list[torch.Tensor] = []
    handle = network.register_forward_pre_hook(
        lambda _, given: None if given[0].requires_grad or len(given[0]) != 6 else seen.append(given[0])
    )
    run(make("smoothadv", ClassificationTask(), unit="norm", norm="l2", **settings), network, batch)
    handle.remove()
    return network, batch, seen


def test_a_linear_classifier_is_attacked_across_its_boundary_whatever_the_noise() -> None:
    """The gradient of every draw points along w_l - w_y: x' is eps in that direction, the parts are x' plus draws."""
    settings = {"eps": 0.5, "steps": 4, "start": "clean", "sigma": 0.3, "draws": 3}
    network, batch, seen = _seen(settings)
    difference = (network.weight[1] - network.weight[0]).detach()
    sign = torch.where(batch.target == 0, 1.0, -1.0).double()
    expected = batch.images + 0.5 * sign[:, None, None] * difference / difference.norm()
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(3, 6, 1, 3, generator=generator, dtype=torch.float64)
    assert len(seen) == 3
    for image, one in zip(seen, noise, strict=True):
        assert torch.allclose(image, expected + one)


def test_the_radius_grows_over_the_warm_up() -> None:
    network, batch = _linear()
    defense = make("smoothadv", ClassificationTask(), unit="norm", eps=1.0, sigma=1e-9, draws=1, warmup_epochs=4.0)
    sizes = []
    network.register_forward_pre_hook(lambda _, given: sizes.append((given[0] - batch.images).flatten(1).norm(dim=1)))
    for epoch in (0, 1, 5):
        defense.on_epoch_start(epoch, 8)
        run(defense, network, batch)
        assert torch.allclose(sizes[-1], torch.full((6,), {0: 0.25, 1: 0.5, 5: 1.0}[epoch], dtype=torch.float64))


def test_the_attack_follows_the_smoothed_model() -> None:
    """One step from the clean image is along the gradient of the mean probability of :class:`SmoothedModel`."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    image, target = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True), torch.tensor([2])
    model = SmoothedModel(network, 0.7, draws=5, seed=0, soft=True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(image), target), image)
    defense = make(
        "smoothadv", ClassificationTask(), unit="norm", eps=0.1, steps=1, start="clean", sigma=0.7, draws=5, seed=0
    )
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    run(defense, network, Batch(image.detach(), target))
    noise = 0.7 * torch.randn(5, 1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = seen[-1] - image.detach() - noise[-1]
    assert torch.allclose(moved, 0.1 * gradient / gradient.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_radius_zero_is_gaussian(kind: str) -> None:
    """One draw: the same noise, the same loss."""
    values, expected = gradients("gaussian", kind, sigma=0.4)
    found, gradient = gradients("smoothadv", kind, sigma=0.4, draws=1, eps=0)
    assert found == values
    assert all(torch.equal(a, b) for a, b in zip(gradient, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_cost(kind: str) -> None:
    """m (2K + 3)."""
    one, batch = problem(kind)
    defense = make("smoothadv", one.task, steps=4, draws=3, sigma=0.1)
    run(defense, one.network, batch)
    assert defense.statistics.passes.in_forwards() == 3 * (2 * 4 + 3) * len(batch.images)
