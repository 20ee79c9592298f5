"""SEA: losses and gradients by hand, the schedule seen by a spy, closed forms, budget, exact worst case."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks.apgd import APGD
from monai_adv.attacks.losses import cross_entropy
from monai_adv.attacks.relay import Phase, Relay
from monai_adv.attacks.sea import (
    SEA,
    balanced_masked_cross_entropy,
    jensen_shannon,
    masked_cross_entropy,
    radius_reduction,
)
from monai_adv.tasks import ClassificationTask, Points
from tests.conftest import LinearNetwork, LinearTask
from tests.voxel_networks import Voxelwise, judge, problem, seed


def points_of(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Points:
    return Points(logits, labels, torch.ones_like(labels, dtype=torch.bool) if valid is None else valid)


def gradient_of(loss: Any, points: Points, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss(points, 0.0).sum(), logits)[0]


# ---------------------------------------------------------------- losses

LOGITS = torch.tensor([[[2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
LABELS = torch.tensor([[0, 1, 0]])  # right, wrong, wrong


def test_masked_cross_entropy_moves_right_points_only_and_has_the_value_of_all() -> None:
    logits = LOGITS.clone().requires_grad_()
    points = points_of(logits, LABELS)
    torch.testing.assert_close(masked_cross_entropy(points, 0.0), cross_entropy(points, 0.0))
    q = 1 / (1 + math.exp(2))
    expected = torch.tensor([[[-q, 0.0, 0.0], [q, 0.0, 0.0]]], dtype=torch.float64) / 3
    torch.testing.assert_close(gradient_of(masked_cross_entropy, points, logits), expected)


def test_balanced_classes_weigh_the_same() -> None:
    """Of four voxels three are background: they weigh 1/6 each, the only one of class 1 weighs 1/2."""
    logits = torch.zeros(1, 3, 4, dtype=torch.float64)
    logits[0, :, :] = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    logits.requires_grad_()
    points = points_of(logits, torch.tensor([[0, 0, 0, 1]]))  # class 2 is absent and takes no weight
    each = F.cross_entropy(logits, points.labels, reduction="none")[0]
    expected = each[:3].mean() / 2 + each[3] / 2
    torch.testing.assert_close(balanced_masked_cross_entropy(points, 0.0)[0], expected)
    (plain,) = torch.autograd.grad(each.sum(), logits)
    weight = torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2], dtype=torch.float64)
    torch.testing.assert_close(gradient_of(balanced_masked_cross_entropy, points, logits), plain * weight)


def test_balance_ignores_points_that_do_not_count() -> None:
    logits = torch.randn(2, 3, 6, generator=seed(), dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]).bool()
    for loss in (masked_cross_entropy, balanced_masked_cross_entropy, jensen_shannon):
        whole = loss(points_of(logits, labels, valid), 0.0)
        for i in range(2):
            alone = points_of(logits[i : i + 1, :, valid[i]], labels[i : i + 1, valid[i]])
            torch.testing.assert_close(whole[i : i + 1], loss(alone, 0.0))


def test_one_class_alone_balances_to_the_plain_loss() -> None:
    points = points_of(LOGITS, torch.zeros_like(LABELS))
    torch.testing.assert_close(balanced_masked_cross_entropy(points, 0.0), masked_cross_entropy(points, 0.0))


@given(st.lists(st.floats(-60, 60), min_size=3, max_size=3), st.integers(0, 2))
def test_jensen_shannon_is_the_divergence_and_bounded(values: list[float], label: int) -> None:
    logits = torch.tensor(values, dtype=torch.float64).view(1, 3, 1)
    p, onehot = logits.softmax(1)[0, :, 0], F.one_hot(torch.tensor(label), 3).double()
    middle = (p + onehot) / 2
    expected = (torch.special.xlogy(p, p / middle).sum() + torch.special.xlogy(onehot, onehot / middle).sum()) / 2
    found = jensen_shannon(points_of(logits, torch.tensor([[label]])), 0.0)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert -1e-12 <= float(found) <= math.log(2) + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jensen_shannon_leaves_points_that_are_wrong_and_sure(dtype: torch.dtype) -> None:
    """Against the cross-entropy, whose gradient there is largest; also where the probability underflows."""
    logits = torch.tensor([[[0.0, 0.0, 0.0], [20.0, 200.0, 0.0]]], dtype=dtype, requires_grad=True)
    points = points_of(logits, torch.tensor([[0, 0, 0]]))
    gradient = gradient_of(jensen_shannon, points, logits)
    assert gradient.isfinite().all()
    assert gradient[..., :2].abs().max() < 1e-6 < gradient[..., 2].abs().max()
    assert gradient_of(cross_entropy, points, logits)[..., :2].abs().min() > 0.3


def test_gradient_of_jensen_shannon_by_hand() -> None:
    """d JS / d z_y = log(q / (1 + q)) / 2 * q (1 - q)."""
    logits = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64, requires_grad=True)
    q = 1 / (1 + math.exp(-1))
    gradient = gradient_of(jensen_shannon, points_of(logits, torch.tensor([[0]])), logits)
    assert float(gradient[0, 0, 0]) == pytest.approx(math.log(q / (1 + q)) / 2 * q * (1 - q))


def test_losses_of_regions_and_of_classification() -> None:
    """A region's logit z is the problem between 0 and z; a classification is one point."""
    z = torch.tensor([[[1.5, -0.5]], [[0.5, 2.0]]], dtype=torch.float64)
    target = torch.tensor([[[1, 0]], [[0, 1]]])
    pairs = torch.stack([torch.zeros_like(z[:, 0]), z[:, 0]], 1)
    for loss in (masked_cross_entropy, balanced_masked_cross_entropy, jensen_shannon):
        found = loss(judge(regions=True).points(z, target), 0.0)
        torch.testing.assert_close(found, loss(points_of(pairs, target[:, 0]), 0.0))
        one = loss(ClassificationTask().points(pairs[..., 0], target[:, 0, 0]), 0.0)
        torch.testing.assert_close(one, loss(points_of(pairs[..., :1], target[:, 0, :1]), 0.0))


# ---------------------------------------------------------------- the schedule

SHAPES = [(6, 5), (4, 3, 5)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of APGD, with what it found."""
    seen: list[dict[str, Any]] = []
    real = APGD.__call__

    def spy(self: APGD, network: nn.Module, images: Tensor, target: Any, task: Any, **options: Any) -> Any:
        result = real(self, network, images, target, task, **options)
        seen.append({"steps": self.steps, "images": images, "found": result.images, **options})
        return result

    monkeypatch.setattr(APGD, "__call__", spy)
    return seen


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dims", [2, 3])
def test_radii_steps_and_starts_of_the_phases(dims: int, norm: Any, calls: list[dict[str, Any]]) -> None:
    network, images, target = problem(dims)
    eps = 0.02
    radius = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64) * eps
    attack = Relay(Threat(norm, eps, unit="norm"), radius_reduction(jensen_shannon, 10))
    attack(network, images, target, judge(), radius=radius, generator=seed())
    assert [call["steps"] for call in calls] == [3, 3, 4]
    for call, multiple in zip(calls, (2.0, 1.5, 1.0), strict=True):
        torch.testing.assert_close(call["radius"], multiple * radius)
        assert (Threat(norm, eps, unit="norm").size(call["found"] - images) <= multiple * radius * (1 + 1e-9)).all()
    assert calls[0]["start"] is None
    for before, after in pairwise(calls):
        torch.testing.assert_close(after["start"], before["found"] - images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (-5.0, 5.0)])
def test_nothing_leaves_the_radius_or_the_box(norm: Any, box: Any, calls: list[dict[str, Any]]) -> None:
    network, images, target = problem(2)
    images = images.clamp(-5.0, 5.0)
    eps = 3.0 if norm == "l2" else 0.4
    threat = Threat(norm, eps, box=box, unit="norm")
    result = Relay(threat, radius_reduction(cross_entropy, 20))(network, images, target, judge(), generator=seed())
    assert (threat.size(result.images - images) <= eps * (1 + 1e-9)).all()
    assert (result.margin < judge().margin(network(images), target)).all()
    if box is not None:
        for found in [result.images, *(call["found"] for call in calls)]:
            assert float(found.abs().max()) <= 5.0


def test_what_is_said_of_an_image_is_true_of_it() -> None:
    """Margin and wrong belong to the images returned, not to those beyond the radius."""
    network, images, target = problem(2)
    result = Relay(Threat("l2", 1.0, unit="norm"), radius_reduction(jensen_shannon, 10))(
        network, images, target, judge(), generator=seed()
    )
    torch.testing.assert_close(result.margin.double(), judge().margin(network(result.images), target).double())
    assert torch.equal(result.wrong, ~judge().correct(network(result.images), target))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_network_has_the_closed_form(shape: tuple[int, ...], norm: Any) -> None:
    network = LinearNetwork((1, *shape))
    images = torch.randn(5, 1, *shape, generator=seed(), dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    attack = Relay(Threat(norm, 0.3, unit="norm"), radius_reduction(None, 30))
    result = attack(network, images, target, LinearTask(), generator=seed())
    w = network.weight.detach()
    unit = w / w.norm() if norm == "l2" else w.sign()
    expected = images - 0.3 * target.view(-1, 1, *[1] * len(shape)) * unit
    torch.testing.assert_close(result.images, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [masked_cross_entropy, balanced_masked_cross_entropy, jensen_shannon, None])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", SHAPES)
def test_linf_loses_every_voxel_within_the_radius(spatial: tuple[int, ...], regions: bool, loss: Any) -> None:
    images = torch.randn(3, 1, *spatial, generator=seed(), dtype=torch.float64)
    target = (images > 0).long()
    eps = 0.5
    attack = Relay(Threat("linf", eps), radius_reduction(loss, 30))
    result = attack(Voxelwise(regions), images, target, judge(regions), generator=seed())
    lost = torch.where(images > 0, images <= eps, images > -eps)
    there = images > 0
    found = torch.where(lost, ~there, there)
    overlap = (found & there).flatten(1).sum(1)
    dice = 2 * overlap / (found.flatten(1).sum(1) + there.flatten(1).sum(1))
    torch.testing.assert_close(result.margin.double(), dice.double() - 0.6, atol=1e-6, rtol=0)


def test_a_sample_whose_projection_is_finished_runs_no_further_phase(calls: list[dict[str, Any]]) -> None:
    """Both voxels of the first sample are lost at once; the second sample cannot be finished."""
    images = torch.tensor([[[[0.1, -3.0]]], [[[9.0, -3.0]]]], dtype=torch.float64)
    target = (images > 0).long()
    attack = Relay(Threat("linf", 0.4), radius_reduction(None, 10), start="clean")
    result = attack(Voxelwise(), images, target, judge())
    assert [len(call["images"]) for call in calls] == [2, 1, 1]
    assert result.margin.tolist() == pytest.approx([-0.6, 0.4])
    assert result.passes.forward == (1 + 1) + 1 + (3 + 1) + 1 + (3 + 1) + 1 + (4 + 1)


def test_most_passes_are_those_of_a_sample_that_never_finishes() -> None:
    network, images, target = problem(2, count=1)
    attack = Relay(Threat("l2", 1e-6, unit="norm"), radius_reduction(jensen_shannon, 20))
    assert attack(network, images, target, judge(), generator=seed()).passes == attack.most_passes()
    assert attack.most_passes().forward == 20 + 3 + 2


def test_phases_may_have_different_losses_and_one_radius(calls: list[dict[str, Any]]) -> None:
    """Every phase at the radius itself is a result of its own: the worst one is returned."""
    network, images, target = problem(2)
    radius = torch.full((4,), 0.5, dtype=torch.float64)
    relay = Relay(Threat("l2", 0.5, unit="norm"), (Phase(6, jensen_shannon, 1.5), Phase(6, cross_entropy), Phase(6)))
    result = relay(network, images, target, judge(), generator=seed())
    assert [float(call["radius"][0]) for call in calls] == [0.75, 0.5, 0.5]
    margins = [judge().margin(network(call["found"]), target) for call in calls[1:]]
    assert (result.margin <= torch.minimum(*margins).to(result.margin) + 1e-6).all()
    assert (Threat("l2", 0.5, unit="norm").size(result.images - images) <= radius * (1 + 1e-9)).all()


def test_bad_settings_say_what_is_allowed() -> None:
    threat = Threat("l2", 1.0, unit="norm")
    for multiples in ((), (2.0,), (1.5, 2.0, 1.0)):
        with pytest.raises(InputError, match="phases"):
            Relay(threat, tuple(Phase(5, None, m) for m in multiples))
    for steps, multiple in ((0, 1.0), (5, 0.5), (5, math.inf)):
        with pytest.raises(InputError, match="steps" if steps == 0 else "multiple"):
            Phase(steps, None, multiple)
    network, images, target = problem(2)
    with pytest.raises(InputError, match="generator"):
        Relay(threat, radius_reduction(None, 10))(network, images, target, judge())


# ---------------------------------------------------------------- SEA


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dims", [2, 3])
def test_worst_of_each_sample_over_the_losses(dims: int, norm: Any) -> None:
    network, images, target = problem(dims)
    threat = Threat(norm, 0.8 if norm == "l2" else 0.1, unit="norm")
    sea = SEA(threat, steps=10)
    result = sea(network, images, target, judge(), generator=seed())
    generator = seed()  # the losses draw their starts one after the other
    alone = [s.attack(network, images, target, judge(), generator=generator) for s in sea.stages()]
    assert bool((result.margin > judge().lowest_margin).all())  # so every loss saw every sample
    margins = torch.stack([r.margin for r in alone])
    torch.testing.assert_close(result.margin, margins.amin(0))
    best = margins.argmin(0)
    for i in range(len(images)):
        assert torch.equal(result.images[i], alone[int(best[i])].images[i])
    assert sea.most_passes().forward == 1 + 3 * sea.stages()[0].attack.most_passes().forward


def test_network_is_left_as_found() -> None:
    network, images, target = problem(2)
    network.train()
    SEA(Threat("l2", 1.0, unit="norm"), steps=10)(network, images, target, judge(), generator=seed())
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
