"""Attacks of other libraries through one adapter: optima of toys, the mapping to [0, 1], passes, what is refused."""

from __future__ import annotations

import math
import random
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv.attacks.foreign import Foreign
from monai_adv.errors import AttackError, InputError
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask, SegmentationTask
from monai_adv.threats import Threat
from tests.linear_classifier import problem

MOST = Passes(1, 1)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sign_step(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
    """As libraries do it: one step along the sign, and a clamp to [0, 1]."""
    x = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    return (inputs + eps * gradient.sign()).clamp(0, 1).detach()


@pytest.mark.parametrize("box", [None, (-5.0, 5.0)])
def test_z_scored_images_lose_the_linear_distance_and_no_more(box: tuple[float, float] | None) -> None:
    """Two linear logits: the margin falls by eps times the L1 norm of the weights' difference, in closed form."""
    network, images, labels = problem(2, (1, 3, 4), count=8)
    task = ClassificationTask()
    threat = Threat("linf", 0.2, box, unit="norm")
    result = Foreign(threat, sign_step, most=MOST)(network, images, labels, task, generator=seeded())
    reach = 0.2 * (network.weight[0] - network.weight[1]).detach().abs().sum()
    assert torch.allclose(result.margin, task.margin(network(images), labels) - reach, rtol=1e-4)
    assert torch.equal(result.wrong, network.distances(images, labels, "linf").amin(1) < 0.2)
    assert threat.size(result.images - images).max() <= 0.2
    assert result.passes == Passes(forward=24, backward_input=8)  # clean, one step, what it found


def test_the_attack_sees_the_box_as_zero_to_one_and_the_radius_in_that_unit() -> None:
    network, images, labels = problem(2, (1, 2, 2), count=3)
    seen: dict[str, Any] = {}

    def look(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
        seen.update(inputs=inputs, eps=eps, output=model(inputs))
        return inputs

    threat = Threat("linf", 0.4, (-4.0, 4.0), unit="norm")
    result = Foreign(threat, look, most=MOST)(network, images, labels, ClassificationTask(), generator=seeded())
    assert torch.allclose(seen["inputs"], (images + 4) / 8)
    assert seen["eps"] == pytest.approx(0.05, rel=1e-6)
    assert torch.allclose(seen["output"], network(images))
    assert torch.equal(result.images, images)
    assert result.dead.all()  # it stood still


def test_a_segmentation_gives_label_maps_and_keeps_the_lowest_dice() -> None:
    """A voxel is foreground where it is above 0: lowering all by 2 erases the organ, as whoever attacks it knows."""

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([-x, x], 1)

    images = torch.full((2, 1, 4, 4), -5.0)
    images[0, :, :2], images[1, :, :2] = 1.0, 3.0
    target = (images > 0).long()
    target[:, :, 3] = 9  # ignored
    seen = []

    def darker(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
        seen.append(labels)
        return inputs - eps

    task = SegmentationTask.for_evaluation(ignore_label=9)
    threat = Threat("linf", 2.0, unit="norm")
    result = Foreign(threat, darker, most=MOST)(Threshold(), images, target, task, generator=seeded())
    assert task.dice(Threshold()(result.images), target)[:, 0].tolist() == [0.0, 1.0]
    assert torch.equal(seen[0], (images[:, 0] > 0).long())


def test_what_finds_nothing_worse_leaves_the_clean_image() -> None:
    network, images, labels = problem(2, (1, 3, 4), count=4)
    back = lambda model, inputs, labels, eps: 2 * inputs - sign_step(model, inputs, labels, eps)  # noqa: E731
    attack = Foreign(Threat("linf", 0.1, unit="norm"), back, most=MOST)
    assert torch.equal(attack(network, images, labels, ClassificationTask(), generator=seeded()).images, images)


def test_an_overstep_is_refused_with_its_size_or_projected_where_that_was_asked_for() -> None:
    network, images, labels = problem(2, (1, 3, 4), count=4)
    far = lambda model, inputs, labels, eps: sign_step(model, inputs, labels, 3 * eps)  # noqa: E731
    threat, task = Threat("linf", 0.05, unit="norm"), ClassificationTask()
    with pytest.raises(AttackError, match=r"attack <lambda>: the perturbation has the size 0\.1.* the radius is 0\.05"):
        Foreign(threat, far, most=MOST)(network, images, labels, task, generator=seeded())
    found = Foreign(threat, far, most=MOST, oversteps="project")(network, images, labels, task, generator=seeded())
    exact = Foreign(threat, sign_step, most=MOST)(network, images, labels, task, generator=seeded())
    assert torch.allclose(found.images, exact.images, atol=1e-5)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (lambda m, x, y, e: x[:, :, 1:], "it returned float64 (4, 1, 2, 4), allowed is what it got, float64 (4, 1, 3,"),
        (lambda m, x, y, e: x.float(), "it returned float32 (4, 1, 3, 4), allowed is what it got, float64"),
        (lambda m, x, y, e: x * math.nan, "it returned NaN or infinity, allowed is finite images"),
        (lambda m, x, y, e: None, "it returned NoneType, allowed is a tensor of images"),
        ("torchattacks:NoSuchAttack", "run `pip install torchattacks`"),
    ],
)
def test_what_breaks_the_contract_is_refused(attack: Any, said: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)  # as if it were not installed
    network, images, labels = problem(2, (1, 3, 4), count=4)
    with pytest.raises(AttackError) as caught:
        Foreign(Threat("linf", 0.1, unit="norm"), attack, most=MOST)(
            network, images, labels, ClassificationTask(), generator=seeded()
        )
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attack": "PGD"}, "attack: received 'PGD', allowed is a function, or LIBRARY:ATTACK with torchattacks, fool"),
        ({"attack": "cleverhans:PGD"}, "attack: received 'cleverhans:PGD'"),
        ({"attack": 3}, "attack: received 3"),
        ({"options": {"steps": 3}}, "options: received {'steps': 3}, allowed is given for an attack that is named"),
        ({"oversteps": "clamp"}, "oversteps: received 'clamp', allowed is one of refuse, project"),
        ({"attack": "torchattacks:PGD", "lengths": ("alpha",)}, "lengths: received ['alpha']"),
        ({"most": 100}, "most: received 100"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Foreign(**{"threat": Threat("linf", 0.1), "attack": sign_step, "most": MOST, **settings})
    assert str(caught.value).startswith(said)


def test_classes_that_overlap_and_foolbox_on_segmentations_are_refused(monkeypatch: Any) -> None:
    images, target = torch.zeros(1, 1, 4, 4), torch.ones(1, 2, 4, 4).long()
    task, network = SegmentationTask.for_evaluation(regions=True), nn.Conv2d(1, 2, 1)
    with pytest.raises(AttackError, match="classes that exclude each other"):
        Foreign(Threat("linf", 0.1), sign_step, most=MOST)(network, images, target, task, generator=seeded())
    monkeypatch.setitem(sys.modules, "foolbox", ModuleType("foolbox"))
    task, attack = SegmentationTask.for_evaluation(), Foreign(Threat("linf", 0.1), "foolbox:LinfPGD", most=MOST)
    with pytest.raises(AttackError, match="foolbox has attacks on classifiers"):
        attack(network, images, target[:, :1], task, generator=seeded())


def test_global_random_streams_follow_the_generator_and_are_left_as_found() -> None:
    network, images, labels = problem(2, (1, 3, 4), count=4)

    def draws(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
        drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))  # noqa: NPY002
        return inputs

    drawn: list[tuple[float, ...]] = []
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for _ in range(2):
        attack = Foreign(Threat("linf", 0.1, unit="norm"), draws, most=MOST)
        attack(network, images, labels, ClassificationTask(), generator=seeded())
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # noqa: NPY002


@pytest.mark.parametrize(
    ("attack", "options", "norm"),
    [
        ("torchattacks:PGD", {"steps": 20, "alpha": 0.05, "random_start": False}, "linf"),
        ("foolbox:LinfPGD", {"steps": 20, "rel_stepsize": 0.25, "random_start": False}, "linf"),
        ("adv_lib:pgd_linf", {"steps": 20, "random_init": False}, "linf"),
        ("foolbox:L2PGD", {"steps": 20, "rel_stepsize": 0.25, "random_start": False}, "l2"),
    ],
)
def test_the_libraries_reach_the_linear_optimum(attack: str, options: dict[str, Any], norm: Any) -> None:
    """Where they are installed: images whose linear distance is below the radius are lost, and no others."""
    pytest.importorskip(attack.partition(":")[0])
    network, images, labels = problem(2, (1, 3, 4), count=6, dtype=torch.float32)
    lengths = ("alpha",) if "alpha" in options else ()
    foreign = Foreign(Threat(norm, 0.2, unit="norm"), attack, options, most=Passes(21, 20), lengths=lengths)
    result = foreign(network, images, labels, ClassificationTask(), generator=seeded())
    expected = network.distances(images, labels, norm).amin(1) < 0.2
    assert 0 < expected.sum() < 6
    assert torch.equal(result.wrong, expected)
    assert result.passes.backward_input == 20 * 6
