"""Attacks in train mode with BatchNorm, where every loss depends on every image: the direction is that of their sum."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv.attacks import APGD, CW, CWL2, FGSM, PGD, Ascent
from monai_adv.attacks.cw import confident_margin
from monai_adv.defenses import Batch
from monai_adv.defenses.fgsm_sdi import FGSMSDI, FGSMSDISettings
from monai_adv.tasks import ClassificationTask
from monai_adv.threats import Threat

TASK = ClassificationTask()


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Eight samples, all right with confidence but one, whose loss is orders of magnitude larger."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double().train()
    with torch.no_grad():
        network[3].weight.mul_(20)
    images = torch.randn(8, 12, dtype=torch.float64)
    labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    return network, images, labels


def summed(network: nn.Module, images: Tensor, losses: Any) -> Tensor:
    """Gradient of the summed losses, by plain autograd on a copy in train mode."""
    x = images.clone().requires_grad_()
    return torch.autograd.grad(losses(copy.deepcopy(network).train()(x)).sum(), x)[0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "attack",
    [
        lambda t: Ascent(t, steps=1, relative_step=1.0, mode="train"),
        lambda t: PGD(t, steps=1, relative_step=1.0, mode="train"),
        lambda t: FGSM(t, mode="train"),
    ],
)
def test_a_step_is_that_of_the_summed_loss(attack: Any, norm: Any) -> None:
    network, images, labels = problem()
    threat = Threat(norm, 0.25, unit="norm")
    gradient = summed(network, images, lambda o: TASK.sample_loss(o, labels))
    expected = images + 0.25 * (gradient.sign() if norm == "linf" else gradient / gradient.norm(dim=1, keepdim=True))
    found = attack(threat)(network, images, labels, TASK).images
    moved = (found - images).abs().amax(1) > 0  # the strongest image may be the clean one
    assert moved.any()
    torch.testing.assert_close(found[moved], expected[moved])


def test_scales_of_their_own_would_turn_the_direction() -> None:
    """The toy can tell: in train mode a sixth of the signs would be others (why one scale is used)."""
    network, images, labels = problem()
    right = summed(network, images, lambda o: TASK.sample_loss(o, labels)).sign()

    def scaled(output: Tensor) -> Tensor:
        losses = TASK.sample_loss(output, labels)
        (logits,) = torch.autograd.grad(losses.sum(), output, retain_graph=True)
        return losses / logits.abs().amax(1)

    assert (summed(network, images, scaled).sign() != right).double().mean() > 0.1


def test_cw_weighs_samples_inside_the_network() -> None:
    """The constant of each sample multiplies its own objective, not the gradient that all objectives share."""
    network, images, labels = problem()
    c = torch.logspace(-3, 4, 8, dtype=torch.float64)
    attack = CWL2(Threat("l2", 1.0, unit="norm"), mode="train")
    _, found = attack._look(network, images, labels, TASK, c, check=False)
    expected = summed(network, images, lambda o: -c * confident_margin(TASK.points(o, labels), 0.0, kappa=0.0))
    torch.testing.assert_close(found, expected)


def test_the_direction_of_fgsm_sdi() -> None:
    network, images, labels = problem()
    sdi = FGSMSDI(TASK, FGSMSDISettings(norm="linf", eps=0.25, attack_mode="train"))
    found = sdi._direction(network, Batch(images, labels), images)
    assert torch.equal(found, summed(network, images, lambda o: TASK.sample_loss(o, labels)).sign())


@pytest.mark.parametrize("attack", [APGD(Threat("linf", 0.25), 1, mode="train", start="clean")])
def test_the_first_step_of_apgd(attack: APGD) -> None:
    """Twice the radius along the sign, projected: the corner."""
    network, images, labels = problem()
    gradient = summed(network, images, lambda o: TASK.sample_loss(o, labels))
    found = attack(network, images, labels, TASK).images
    moved = (found - images).abs().amax(1) > 0
    assert moved.any()
    torch.testing.assert_close(found[moved], (images + 0.25 * gradient.sign())[moved])


def test_cw_within_a_radius() -> None:
    network, images, labels = problem()
    gradient = summed(network, images, lambda o: confident_margin(TASK.points(o, labels), 0.0, kappa=0.0))
    attack = CW(Threat("linf", 0.25), steps=1, relative_step=1.0, mode="train", until="lowest")
    found = attack(network, images, labels, TASK).images
    moved = (found - images).abs().amax(1) > 0
    assert moved.any()
    torch.testing.assert_close(found[moved], (images + 0.25 * gradient.sign())[moved])
