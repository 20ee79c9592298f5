"""The fast gradient method: one hand-computed step."""

from __future__ import annotations

import pytest
import torch

from monai_adv import InputError, Threat
from monai_adv.attacks.ascent import Ascent
from monai_adv.attacks.fgsm import FGSM
from monai_adv.attacks.losses import margin
from monai_adv.tasks import ClassificationTask
from tests.conftest import LinearNetwork, LinearTask


def setup(count: int = 4) -> tuple[LinearNetwork, torch.Tensor, torch.Tensor]:
    network = LinearNetwork((2, 3, 5))
    images = torch.randn(count, 2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return network, images, network(images)[:, 0].sign().detach()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_step_has_the_closed_form(norm: str) -> None:
    network, images, target = setup()
    weight = network.weight.detach()
    unit = weight.sign() if norm == "linf" else weight / weight.norm()
    result = FGSM(Threat(norm, 0.3, unit="norm"), relative_step=0.5)(network, images, target, LinearTask())
    torch.testing.assert_close(result.images, images - 0.15 * target.view(-1, 1, 1, 1) * unit)
    lost = 0.3 * 0.5 * (weight.norm() if norm == "l2" else weight.abs().sum())
    torch.testing.assert_close(result.margin, LinearTask().margin(network(images), target) - lost)
    assert (result.passes.forward, result.passes.backward_input) == (8, 4)


def test_it_is_the_first_step_of_pgd() -> None:
    network, images, target = setup()
    threat = Threat("linf", 0.2, box=(-2.0, 2.5))
    images = images.clamp(-2, 2)
    one = Ascent(threat, steps=1, relative_step=1.0)(network, images, target, LinearTask())
    assert torch.equal(FGSM(threat)(network, images, target, LinearTask()).images, one.images)


def test_a_random_start_is_stepped_from_and_projected() -> None:
    """1.25 eps from any start in the ball: every voxel ends between a quarter of eps and eps."""
    network, images, target = setup()
    attack = FGSM(Threat("linf", 0.4), relative_step=1.25, start="ball")
    result = attack(network, images, target, LinearTask(), generator=torch.Generator().manual_seed(0))
    towards = -(result.images - images) * target.view(-1, 1, 1, 1) * network.weight.detach().sign()
    assert towards.min() >= 0.1 - 1e-12
    assert towards.max() == pytest.approx(0.4)
    start = attack.threat.random(images, torch.full((4,), 0.4).double(), torch.Generator().manual_seed(0))
    step = 0.5 * -target.view(-1, 1, 1, 1) * network.weight.detach().sign()
    torch.testing.assert_close(result.images, images + (start + step).clamp(-0.4, 0.4))


def test_an_image_that_was_wrong_already_is_stepped_as_well() -> None:
    network, images, target = setup()
    result = FGSM(Threat("l2", 0.3, unit="norm"))(network, images, -target, LinearTask())
    assert result.wrong.all()
    torch.testing.assert_close((result.images - images).flatten(1).norm(dim=1), torch.full((4,), 0.3).double())


def test_a_zero_gradient_is_told() -> None:
    network, images, target = setup()
    with torch.no_grad():
        network.weight.zero_()
    result = FGSM(Threat("l2", 0.3, unit="norm"))(network, images, target, LinearTask())
    assert result.dead.all()
    assert torch.equal(result.images, images)


def test_any_loss_of_points_can_be_raised() -> None:
    """With three classes the margin ignores a logit that the cross-entropy sees."""
    network = torch.nn.Linear(2, 3, bias=False).double()
    network.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    images, target = torch.tensor([[0.5, -0.5]]).double(), torch.tensor([0])
    by_margin = FGSM(Threat("l2", 1.0, unit="norm"), loss=margin)(network, images, target, ClassificationTask())
    torch.testing.assert_close(by_margin.images, images + torch.tensor([[1.0, 0.0]]).double())
    by_entropy = FGSM(Threat("l2", 1.0, unit="norm"))(network, images, target, ClassificationTask())
    moved = (by_entropy.images - images)[0]
    assert float(moved[1] / moved[0]) == pytest.approx(float(torch.tensor(-1.0).exp()))  # the ratio of probabilities


@pytest.mark.parametrize(
    "settings", [{"relative_step": 0.0}, {"relative_step": float("inf")}, {"start": "surface"}, {"mode": "x"}]
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: received"):
        FGSM(Threat("l2", 1.0, unit="norm"), **settings)


def test_a_random_start_needs_a_generator() -> None:
    network, images, target = setup()
    with pytest.raises(InputError, match="^generator: received None"):
        FGSM(Threat("l2", 1.0, unit="norm"), start="ball")(network, images, target, LinearTask())
