"""Attacks of one's own: on PGD's loop with another step, and with a search of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from monai_adv import InputError, Threat
from monai_adv.attacks import PGD, Ensemble, Stage
from monai_adv.attacks.base import AttackResult, BaseAttack, Problem, judged
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask
from tests.conftest import LinearNetwork, LinearTask

NETWORK = LinearNetwork((4,))
WEIGHT = NETWORK.weight.detach()
IMAGES = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = NETWORK(IMAGES)[:, 0].sign().detach()


@dataclass(frozen=True)
class Halving(PGD):
    """Steps of a half, a quarter, an eighth ... of the radius."""

    def _length(self, radius: Tensor, number: int) -> Tensor:
        return radius / 2 ** (number + 1)


@dataclass(frozen=True)
class Darker(BaseAttack[AttackResult]):
    """Every voxel as dark as the threat allows."""

    def run(self, problem: Problem) -> AttackResult:
        dark = self.threat.project(torch.full_like(problem.images, -1e9), problem.images, problem.radius)
        return judged(problem.network, problem.images + dark, problem.target, problem.task)[0]

    def most_passes(self) -> Passes:
        return Passes(forward=1)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_step_of_ones_own_ends_where_its_series_does(steps: int) -> None:
    """On a linear network all steps go the same way, so K of them make 1 - 2^-K of the radius."""
    result = Halving(Threat("l2", 0.5, unit="norm"), steps=steps)(NETWORK, IMAGES, TARGET, LinearTask())
    expected = IMAGES - 0.5 * (1 - 0.5**steps) * TARGET[:, None] * WEIGHT / WEIGHT.norm()
    torch.testing.assert_close(result.images, expected)
    torch.testing.assert_close(result.margin, TARGET * NETWORK(expected)[:, 0].detach())


def test_a_search_of_ones_own_joins_an_ensemble() -> None:
    threat = Threat("linf", 0.25, unit="norm")
    ensemble = Ensemble((Stage("darker", Darker(threat)),))
    result = ensemble(NETWORK, IMAGES, TARGET, LinearTask())
    torch.testing.assert_close(Darker(threat)(NETWORK, IMAGES, TARGET, LinearTask()).images, IMAGES - 0.25)
    margin = TARGET * (NETWORK(IMAGES)[:, 0] - 0.25 * WEIGHT.sum()).detach()
    torch.testing.assert_close(result.margin, torch.minimum(TARGET * NETWORK(IMAGES)[:, 0].detach(), margin))
    assert ensemble.most_passes() == Passes(forward=2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"radius": torch.ones(2)}, "radius: received (2,), allowed is one number for each of the 5 images"),
        ({"start": IMAGES}, "start: received (5, 4), allowed is None for Darker"),
        ({"rivals": torch.ones(5)}, "rivals: received (5,), allowed is None for Darker"),
    ],
)
def test_its_calls_are_checked(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        Darker(Threat("linf", 0.25, unit="norm"))(NETWORK, IMAGES, TARGET, LinearTask(), **given)
    assert says in str(error.value)


def test_labels_that_no_class_has_are_refused_by_every_call() -> None:
    network = torch.nn.Linear(4, 3, dtype=torch.float64)
    for attack in (Halving(Threat("l2", 0.5, unit="norm"), steps=1), Darker(Threat("linf", 0.25, unit="norm"))):
        attack(network, IMAGES, torch.tensor([0, 1, 2, 0, 1]), ClassificationTask())
        with pytest.raises(InputError, match=r"target: received \[3\], allowed is whole numbers from 0 to 2"):
            attack(network, IMAGES, torch.tensor([0, 1, 2, 3, 1]), ClassificationTask())
