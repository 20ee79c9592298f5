"""Sharp Dice: its schedule, its loss, steps by hand, and a planted network on which the soft Dice cannot win."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks.apgd import APGD
from monai_adv.attacks.base import continued
from monai_adv.attacks.ensemble import Ensemble, Stage
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask, SegmentationTask
from tests.conftest import LinearNetwork, LinearTask
from tests.voxel_networks import SmallNet, Voxelwise, problem, seed

TASK = SegmentationTask.for_evaluation()


THREAT = Threat("l2", 2.1, unit="norm")


def crowd() -> tuple[Tensor, Tensor]:
    """Ten voxels of an organ at distances 1.0, 1.1, ... 1.9 from being lost; three of them cost 1.91, four 2.31."""
    images = (1 + 0.1 * torch.arange(10)).double().view(1, 1, 1, 10)
    return images, torch.ones(1, 1, 1, 10).long()


def test_the_sharpness_grows_by_the_same_factor_in_every_step() -> None:
    attack = SharpDice(Threat("l2", 1.0, unit="norm"), sharpness=(3.0, 48.0))
    assert [attack.sharpness_at(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([3, 6, 12, 48])


def test_the_soft_dice_of_sharp_logits_tends_to_the_hard_one() -> None:
    logits = torch.randn(3, 3, 5, 6, generator=seed(), dtype=torch.float64)
    target = torch.randint(0, 3, (3, 1, 5, 6), generator=seed())
    soft = -TASK.sample_loss(500 * logits, target)
    torch.testing.assert_close(soft, TASK.dice(logits, target).mean(1).double(), atol=0.01, rtol=0)


def test_where_the_radius_is_for_three_voxels_it_takes_three_and_the_soft_dice_none() -> None:
    """Spread over ten voxels the radius moves none of them by 1."""
    images, target = crowd()
    sharp = SharpDice(THREAT, 100, sharpness=(3.0, 8.0))(Voxelwise(), images, target, TASK)
    assert float(TASK.dice(Voxelwise()(sharp.images), target)) == pytest.approx(14 / 17)
    assert float(sharp.margin) == pytest.approx(14 / 17 - 0.6)
    soft = APGD(THREAT, 100, until="lowest", start="clean")(Voxelwise(), images, target, TASK)
    assert float(soft.margin) == pytest.approx(0.4)


def test_two_steps_with_momentum_and_decay_by_hand() -> None:
    """On a linear network with l2: unit steps 0.5 and 0.5 * (1 + cos(pi / 2)) / 2 along the weights."""
    network = LinearNetwork((1, 2, 3))
    images = torch.randn(2, 1, 2, 3, generator=seed(), dtype=torch.float64)
    target = torch.ones(2, dtype=torch.float64)
    attack = PGD(Threat("l2", 9.0, unit="norm"), 2, 0.5 / 9, momentum=0.9, decay=True)
    result = attack(network, images, target, LinearTask())
    weight = network.weight.detach().view(1, 1, 2, 3)
    torch.testing.assert_close(result.images, images - 0.75 * weight / weight.norm())


def test_momentum_keeps_nine_tenths_of_the_unit_gradients() -> None:
    """The gradient turns by a right angle after the first step: the second goes along (0.9, 1)."""

    class Turning(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x[:, 0], x[:, 1]
            z = torch.where(a > -0.5, 7 * a, 3 * b)
            return torch.stack([torch.zeros_like(z), z], 1)

    attack = PGD(Threat("l2", 100.0, unit="norm"), 2, 0.01, momentum=0.9)
    images = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    images = images.view(1, 2)
    result = attack(Turning(), images, torch.tensor([1]), ClassificationTask())
    length = math.hypot(0.9, 1)
    expected = torch.tensor([[-1 - 0.9 / length, -1 / length]], dtype=torch.float64)
    torch.testing.assert_close(result.images, expected)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("threat", [Threat("l2", 1.0, unit="norm"), Threat("linf", 0.1, box=(-9, 9))], ids=str)
def test_a_polish_is_never_weaker_than_where_it_starts(dims: int, threat: Threat) -> None:
    network, images, target = problem(dims)
    first = APGD(threat, 10, until="lowest")(network, images, target, TASK, generator=seed())
    polish = SharpDice(threat, 10, 0.08, sharpness=(3.0, 8.0), from_worst=True)
    found = continued(polish, network, images, target, TASK, worst=first.images)
    assert bool((found.margin <= first.margin).all())
    assert bool((threat.size(found.images - images) <= float(threat.eps) * (1 + 1e-9)).all())  # type: ignore[arg-type]
    anew = continued(replace(polish, from_worst=False), network, images, target, TASK, worst=first.images)
    assert torch.equal(anew.images, replace(polish, from_worst=False)(network, images, target, TASK).images)


class Spy:
    """A polish that remembers where it was told to start."""

    def __init__(self, attack: SharpDice) -> None:
        self.attack, self.threat, self.from_worst = attack, attack.threat, True
        self.starts: list[Tensor] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.starts.append(named["start"])
        return self.attack(*arguments, **named)

    def most_passes(self) -> Passes:
        return self.attack.most_passes()


def test_an_ensemble_lets_it_start_from_the_worst_image() -> None:
    """With steps too short to leave the clean image's score alone, it only adds to what the first stage found."""
    images, target = crowd()
    sharp, tiny = SharpDice(THREAT, 100, sharpness=(3.0, 8.0)), SharpDice(THREAT, 2, 1e-6, from_worst=True)
    assert float(tiny(Voxelwise(), images, target, TASK).margin) == pytest.approx(0.4)
    found = sharp(Voxelwise(), images, target, TASK).images
    assert float(tiny(Voxelwise(), images, target, TASK, start=found - images).margin) == pytest.approx(14 / 17 - 0.6)
    spy = Spy(tiny)
    both = Ensemble((Stage("sharp", sharp), Stage("polish", spy)), until="lowest")
    result = both(Voxelwise(), images, target, TASK)
    assert torch.equal(spy.starts[0], found - images)
    assert float(result.margin) == pytest.approx(14 / 17 - 0.6)
    assert result.summary[2].attacked == 1


def test_lists_of_resolutions_are_sharpened_as_well() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = SmallNet(2)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.network(x), self.network(x)[..., ::2, ::2]]

    _, images, target = problem(2)
    deep = Deep()
    attack = SharpDice(Threat("l2", 1.0, unit="norm"), 5)
    found = attack(deep, images, target, TASK)
    torch.testing.assert_close(found.images, attack(deep.network, images, target, TASK).images)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"sharpness": (0.0, 2.0)}, "sharpness"), ({"sharpness": (1.0, math.inf)}, "sharpness"),
     ({"missing": 1.5}, "missing"), ({"momentum": 1.0}, "momentum"), ({"until": "never"}, "until")],
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        SharpDice(Threat("l2", 1.0, unit="norm"), **settings)  # type: ignore[arg-type]
