"""Transfer: made on one network, judged on another."""

from __future__ import annotations

import torch
from torch import nn

from monai_adv import Threat
from monai_adv.attacks.fgsm import FGSM
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.transfer import Transfer
from monai_adv.tasks import ClassificationTask
from tests.conftest import LinearNetwork, LinearTask


def setup() -> tuple[LinearNetwork, LinearNetwork, torch.Tensor, torch.Tensor]:
    network, surrogate = LinearNetwork((1, 4, 5), seed=0), LinearNetwork((1, 4, 5), seed=9)
    images = torch.randn(6, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return network, surrogate, images, network(images)[:, 0].sign().detach()


def test_a_linear_network_loses_the_share_of_the_weights_that_are_alike() -> None:
    """A step of eps along the surrogate's unit weights costs eps <w, v> / ||v||."""
    network, surrogate, images, target = setup()
    attack = Transfer(surrogate, FGSM(Threat("l2", 0.7, unit="norm")))
    result = attack(network, images, target, LinearTask())
    w, v = network.weight.detach(), surrogate.weight.detach()
    expected = LinearTask().margin(network(images), target) - 0.7 * (w * v).sum() / v.norm()
    torch.testing.assert_close(result.margin, expected)
    assert torch.equal(result.wrong, expected <= 0)
    assert attack.threat == Threat("l2", 0.7, unit="norm")


def test_the_gradient_of_the_network_is_never_asked_for() -> None:
    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            return x.flatten(1).sum(1, keepdim=True)

    _, surrogate, images, target = setup()
    result = Transfer(surrogate, PGD(Threat("l2", 0.5, unit="norm"), steps=5))(Blind(), images, target, LinearTask())
    assert not result.dead.any()
    assert (result.passes.forward, result.passes.backward_input) == (6 * 7, 6 * 5)


def test_a_dead_surrogate_says_nothing_about_the_network() -> None:
    network, surrogate, images, target = setup()
    with torch.no_grad():
        surrogate.weight.zero_()
    result = Transfer(surrogate, PGD(Threat("l2", 0.5, unit="norm"), steps=2))(network, images, target, LinearTask())
    assert not result.dead.any()
    assert torch.equal(result.images, images)


def test_the_surrogate_may_have_outputs_of_its_own() -> None:
    """A surrogate with two logits for a network with a scalar score."""
    network, _, images, target = setup()

    class TwoLogits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = network(x)
            return torch.cat([-score, score], 1)

    class Signs(ClassificationTask):
        @staticmethod
        def labels(target: torch.Tensor, classes: int) -> torch.Tensor:
            return (target > 0).long()

        def check(self, output: torch.Tensor, target: torch.Tensor) -> None:
            """-1 and 1 are what the labels are."""

    result = Transfer(TwoLogits(), FGSM(Threat("l2", 0.7, unit="norm")), Signs())(network, images, target, LinearTask())
    expected = FGSM(Threat("l2", 0.7, unit="norm"))(network, images, target, LinearTask())
    torch.testing.assert_close(result.images, expected.images)
    torch.testing.assert_close(result.margin, expected.margin)


def test_both_networks_are_left_as_found() -> None:
    network, surrogate, images, target = setup()
    network.train()
    surrogate.train()
    Transfer(surrogate, PGD(Threat("l2", 0.5, unit="norm"), steps=2))(network, images, target, LinearTask())
    for module in (network, surrogate):
        assert module.training
        assert all(p.requires_grad and p.grad is None for p in module.parameters())
