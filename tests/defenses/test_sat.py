"""SAT and standard training: closed forms on a linear classifier, identities, passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from monai_adv.defenses import METHODS, Batch
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.defenses.standard import Standard
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import toy
from tests.linear_classifier import problem

TASK = ClassificationTask()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_loss_of_two_classes_is_that_of_the_farthest_point(norm: Any) -> None:
    """z_y - z_o falls by eps times the dual norm of the difference of the weights, for every sample alike."""
    network, images, labels = problem(2, (3, 4))
    settings = SATSettings(norm=norm, eps=0.1, unit="norm", start="clean", steps=4)
    found = SAT(TASK, settings)(network, images, labels)
    difference = (network.weight[0] - network.weight[1]).flatten()
    reach = 0.1 * difference.norm(p=2 if norm == "l2" else 1)
    logits = network(images)
    margin = logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])
    torch.testing.assert_close(found, F.softplus(-(margin - reach)).mean())


@pytest.mark.parametrize("start", ["ball", "surface", "gaussian"])
def test_random_starts_end_at_the_same_corner_of_a_linear_network(start: Any) -> None:
    network, images, labels = problem(2, (3, 4))
    settings = {"norm": "linf", "eps": 0.1, "steps": 8, "relative_step": 0.5}
    one = SAT(TASK, SATSettings(start=start, **settings))(network, images, labels)
    two = SAT(TASK, SATSettings(start="clean", **settings))(network, images, labels)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ["9 classes", "segmentation 2D"])
def test_radius_zero_is_standard_training_bit_for_bit(kind: str) -> None:
    problem_ = toy(kind, "sat")
    batch = problem_.batch(torch.arange(6))
    losses = [SAT(problem_.task, SATSettings(eps=0)), Standard(problem_.task)]
    one, two = (d(problem_.network, batch.images, batch.target) for d in losses)
    assert torch.equal(one, two)


def test_a_share_of_clean_loss() -> None:
    """``c L(x) + (1 - c) L(x')``: with a radius of 0 that is L(x), and otherwise it lies between."""
    network, images, labels = problem(2, (3, 4))
    common: dict[str, Any] = {"unit": "norm", "start": "clean", "steps": 4}
    clean = SAT(TASK, SATSettings(eps=0, **common))(network, images, labels)
    noisy = SAT(TASK, SATSettings(eps=0.1, **common))(network, images, labels)
    mixed = SAT(TASK, SATSettings(eps=0.1, clean_weight=0.25, **common))
    torch.testing.assert_close(mixed(network, images, labels), 0.25 * clean + 0.75 * noisy)
    assert mixed.on_epoch_end()["passes_per_sample"] == 2 * 4 + 3 + 3


def test_the_box_holds() -> None:
    network, images, labels = problem(2, (3, 4))
    images = images.sigmoid()
    sat = SAT(TASK, SATSettings(norm="linf", eps=0.5, box=(0.0, 1.0)))
    noisy, _, _ = sat.attack(network, Batch(images, labels), sat.settings.ascent())
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert (noisy - images).abs().max() <= 0.5 + 1e-12


@pytest.mark.parametrize(("key", "passes"), [("standard", 3), ("sat", 2 * 5 + 3), ("trades", 2 * 5 + 7)])
def test_passes_are_those_of_the_registry(key: str, passes: int) -> None:
    problem_ = toy("2 classes", key)
    defense = problem_.defense(key, steps=5)
    batch = problem_.batch(torch.arange(6))
    defense(problem_.network, batch.images, batch.target)
    assert METHODS[key].cost == {"standard": "3", "sat": "2K + 3 (6 with a clean share)", "trades": "2K + 7"}[key]
    assert defense.on_epoch_end()["passes_per_sample"] == passes
