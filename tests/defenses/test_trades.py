"""TRADES: the loss by hand, its traps (zero start, direction and mean of the divergence), segmentation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.defenses.standard import Standard
from monai_adv.defenses.trades import TRADES, TRADESSettings, kl_attack
from monai_adv.tasks import ClassificationTask, SegmentationTask
from monai_adv.tasks.divergence import kl_divergence
from tests.defense_toys import toy
from tests.line_classifier import Line
from tests.linear_classifier import problem

TASK = ClassificationTask()
LINF = {"norm": "linf", "eps": 0.1, "steps": 8, "relative_step": 0.5}


def two_logits(score: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(score), score], 1)


def bernoulli_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_the_loss_by_hand() -> None:
    """KL(p(x) || p(x')) is larger towards 0 than away from it, wherever the label lies."""
    images, labels = torch.tensor([[2.0], [-1.0]], dtype=torch.float64), torch.tensor([1, 1])
    trades = TRADES(TASK, TRADESSettings(norm="linf", eps=0.5, steps=20, beta=6.0))
    noisy = kl_attack(trades, Line(), Batch(images, labels))
    torch.testing.assert_close((noisy - images).abs(), torch.full_like(images, 0.5))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    divergence = [bernoulli_kl(sigmoid(x), sigmoid(n)) for x, n in zip([2.0, -1.0], noisy[:, 0].tolist(), strict=True)]
    clean = [-math.log(sigmoid(2.0)), -math.log(sigmoid(-1.0))]
    expected = sum(clean) / 2 + 6 * sum(divergence) / 2  # batchmean: mean over samples, sum over classes
    found = TRADES(TASK, trades.settings)(Line(), images, labels)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_flows_through_both_outputs() -> None:
    images, labels = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([1])
    trades = TRADES(TASK, TRADESSettings(norm="linf", eps=0.5, steps=20))
    noisy = kl_attack(trades, Line(), Batch(images, labels))

    def loss(weight: Tensor) -> Tensor:
        clean, moved = (two_logits(weight * x[:, 0]) for x in (images, noisy))
        divergence = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return F.cross_entropy(clean, labels) + 6 * divergence

    network = Line()
    TRADES(TASK, trades.settings)(network, images, labels).backward()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(weight), weight)
    torch.testing.assert_close(network.weight.grad, expected)


def test_a_fixed_target_is_not_drawn_towards_the_attacked_output() -> None:
    """The same loss; its gradient is that of beta KL(s || p(w x')) with a constant s, and of the clean loss."""
    images, labels = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([1])
    settings: dict[str, Any] = {"norm": "linf", "eps": 0.5, "steps": 20}
    both, one = (TRADES(TASK, TRADESSettings(fixed_target=fixed, **settings)) for fixed in (False, True))
    noisy = kl_attack(TRADES(TASK, one.settings), Line(), Batch(images, labels)).item()
    network = Line()
    loss = one(network, images, labels)
    assert loss.item() == both(Line(), images, labels).item()
    loss.backward()
    clean, moved = torch.sigmoid(torch.tensor([2.0, noisy], dtype=torch.float64)).tolist()
    # d/dw of -log sigmoid(2 w), and of KL(s || sigmoid(w x')), which is (sigmoid(w x') - s) x'
    assert network.weight.grad.item() == pytest.approx(-2 * (1 - clean) + 6 * (moved - clean) * noisy, rel=1e-9)


def test_labels_play_no_part_in_the_attack() -> None:
    network, images, labels = problem(3, (2, 4))
    one, two = (kl_attack(TRADES(TASK, TRADESSettings(**LINF)), network, Batch(images, y))
                for y in (labels, (labels + 1) % 3))  # fmt: skip
    assert torch.equal(one, two)
    assert not torch.equal(one, images)


def test_a_start_at_the_clean_image_would_never_move_and_is_refused() -> None:
    with pytest.raises(InputError, match="start: received 'clean'"):
        TRADESSettings(start="clean")
    network, images, _ = problem(3, (2, 4))
    clean = network(images).detach()
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_divergence(TASK, clean, network(x), torch.zeros(6)).sum(), x)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"eps": 0.0}])
@pytest.mark.parametrize("kind", ["2 classes", "segmentation 3D"])
def test_off_is_standard_training_bit_for_bit(kind: str, settings: dict[str, Any]) -> None:
    problem_ = toy(kind, "trades")
    batch = problem_.batch(torch.arange(6))
    trades = TRADES(problem_.task, TRADESSettings(**settings))
    one, two = (d(problem_.network, batch.images, batch.target) for d in (trades, Standard(problem_.task)))
    assert torch.equal(one, two)
    assert trades.statistics.passes.in_forwards() == 3 * 6


def test_segmentation_averages_over_voxels_and_resolutions() -> None:
    torch.manual_seed(0)
    clean = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
    noisy = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
    target = [torch.zeros(2, 1, 4, 4, dtype=torch.long), torch.zeros(2, 1, 2, 2, dtype=torch.long)]
    task = SegmentationTask(lambda output, target: output[0].sum(), deep_supervision_weights=[2 / 3, 1 / 3])
    found = kl_divergence(task, clean, noisy, target)
    by_hand = [F.kl_div(n.log_softmax(1), c.softmax(1), reduction="none").sum(1).mean((1, 2))
               for c, n in zip(clean, noisy, strict=True)]  # fmt: skip
    torch.testing.assert_close(found, 2 / 3 * by_hand[0] + 1 / 3 * by_hand[1])


def test_ignored_voxels_and_regions() -> None:
    clean, noisy = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2)
    target = torch.tensor([[[[0, 1], [9, 9]]]])
    task = SegmentationTask(lambda output, target: output.sum(), ignore_label=9)
    pixels = F.kl_div(noisy.log_softmax(1), clean.softmax(1), reduction="none").sum(1)[0, 0]
    torch.testing.assert_close(kl_divergence(task, clean, noisy, target)[0], pixels.mean())

    regions = SegmentationTask(lambda output, target: output.sum(), regions=True)
    p, q = clean.sigmoid(), noisy.sigmoid()
    by_hand = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    found = kl_divergence(regions, clean, noisy, torch.zeros(1, 2, 2, 2))[0]
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


def test_the_attack_is_not_that_of_sat() -> None:
    """Where the network is wrong, SAT moves further from the label, TRADES towards the boundary."""
    images, labels = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([1])
    batch = Batch(images, labels)
    sat = SAT(TASK, SATSettings(start="clean", **LINF))
    assert sat.attack(Line(), batch, sat.settings.ascent())[0] < images
    assert kl_attack(TRADES(TASK, TRADESSettings(**{**LINF, "steps": 20})), Line(), batch) > images
