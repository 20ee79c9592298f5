"""MART: the boosted cross-entropy and the weighted divergence by hand, its attack, identities, segmentation, passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.mart import MART, MARTSettings, boosted_loss, weighted_divergence
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import toy
from tests.line_classifier import inputs_of
from tests.linear_classifier import problem

TASK = ClassificationTask()
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, -1.0]], dtype=torch.float64)
NOISY = torch.tensor([[0.5, 1.0, -1.0], [2.0, 0.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])  # the first is right, the second wrong


def probabilities(logits: Tensor) -> list[list[float]]:
    return [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits.tolist()]


def test_boosted_cross_entropy_by_hand() -> None:
    """-log p_y - log(1.0001 - max_{k != y} p_k): the runner-up is never the label, also where that is the largest."""
    expected = []
    for row, y in zip(probabilities(LOGITS), LABELS.tolist(), strict=True):
        rival = max(p for k, p in enumerate(row) if k != y)
        expected.append(-math.log(row[y]) - math.log(1.0001 - rival))
    assert float(boosted_loss(TASK, LOGITS, LABELS)) == pytest.approx(sum(expected) / 2, rel=1e-12)
    with_the_label = [
        -math.log(r[y]) - math.log(1.0001 - max(r)) for r, y in zip(probabilities(LOGITS), [0, 2], strict=True)
    ]
    assert sum(with_the_label) != pytest.approx(sum(expected), rel=0.01)


def test_weighted_divergence_by_hand() -> None:
    expected = []
    for p, q, y in zip(probabilities(LOGITS), probabilities(NOISY), LABELS.tolist(), strict=True):
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))  # sum over classes, clean || attacked
        expected.append((1 - p[y]) * kl)
    assert weighted_divergence(TASK, LOGITS, NOISY, LABELS).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_weight_carries_a_gradient_unless_switched_off() -> None:
    def gradient(weight_gradient: bool) -> Tensor:
        clean = LOGITS.clone().requires_grad_()
        weighted_divergence(TASK, clean, NOISY, LABELS, weight_gradient).sum().backward()
        assert clean.grad is not None
        return clean.grad

    clean = LOGITS.clone().requires_grad_()
    p = clean.softmax(1)
    kl = (p * (clean.log_softmax(1) - NOISY.log_softmax(1))).sum(1)
    weight = 1 - p[torch.arange(2), LABELS]
    (both,) = torch.autograd.grad((weight * kl).sum(), clean, retain_graph=True)
    (without,) = torch.autograd.grad((weight.detach() * kl).sum(), clean)
    torch.testing.assert_close(gradient(True), both)
    torch.testing.assert_close(gradient(False), without)
    assert not torch.allclose(both, without)
    assert MARTSettings().weight_gradient


def test_gradients_agree_with_finite_differences() -> None:
    logits = [LOGITS.clone().requires_grad_(), NOISY.clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: weighted_divergence(TASK, a, b, LABELS), logits)
    assert torch.autograd.gradcheck(lambda b: boosted_loss(TASK, b, LABELS), logits[1:])


def test_no_weight_where_the_clean_image_is_certain() -> None:
    certain = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    assert float(weighted_divergence(TASK, certain, NOISY[:1], LABELS[:1])) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_mistakes_have_a_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 200.0], [200.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = boosted_loss(TASK, logits, torch.tensor([0, 0]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx((200 - math.log(1e-4) - math.log(1.0001)) / 2, rel=1e-2)
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def step(network: nn.Module, batch: Batch, **settings: Any) -> tuple[MART, list[Tensor], Tensor]:
    mart = MART(TASK, MARTSettings(unit="norm", steps=3, **settings))
    seen = inputs_of(network, mart, batch)
    return mart, seen, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_the_loss_of_a_batch_by_hand() -> None:
    network, images, labels = problem(3, (4,))
    _, (clean, noisy), gradient = step(network, Batch(images, labels), eps=0.5, lam=4.0)
    assert torch.equal(clean, images)
    assert float((noisy - images).norm(dim=1).max()) <= 0.5 + 1e-12

    network.zero_grad()
    p, log_q = network(images).softmax(1), network(noisy).log_softmax(1)
    rows = torch.arange(len(images))
    rival = log_q.exp().masked_fill(F.one_hot(labels, 3).bool(), -1).amax(1)
    kl = (p * (p.log() - log_q)).sum(1)
    loss = (-log_q[rows, labels] - (1.0001 - rival).log() + 4 * (1 - p[rows, labels]) * kl).mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, expected)


def test_the_attack_raises_the_cross_entropy() -> None:
    """The same images as SAT's: neither the boosted loss nor the divergence is attacked."""
    network, images, labels = problem(4, (5,))
    batch = Batch(images, labels)
    _, (_, noisy), _ = step(network, batch, eps=0.5)
    sat = SAT(TASK, SATSettings(eps=0.5, unit="norm", steps=3, start="gaussian"))
    assert torch.equal(noisy, inputs_of(network, sat, batch)[0])


def test_radius_zero_is_the_boosted_loss_bit_for_bit() -> None:
    network, images, labels = problem(3, (4,))
    mart = MART(TASK, MARTSettings(eps=0))
    assert bool(mart(network, images, labels) == boosted_loss(TASK, network(images), labels))
    assert mart.on_epoch_end()["passes_per_sample"] == 3


def test_without_the_divergence_clean_images_are_not_run() -> None:
    network, images, labels = problem(3, (4,))
    mart, (noisy,), _ = step(network, Batch(images, labels), eps=0.5, lam=0.0)
    assert bool((noisy != images).any(1).all())
    assert mart.on_epoch_end()["passes_per_sample"] == 2 * 3 + 3


def test_passes_are_those_of_the_registry() -> None:
    network, images, labels = problem(3, (4,))
    mart, _, _ = step(network, Batch(images, labels), eps=0.5)
    assert mart.on_epoch_end()["passes_per_sample"] == 2 * 3 + 6


def test_a_single_logit_counts_as_two_classes() -> None:
    z, target = torch.tensor([[1.5], [-0.5]], dtype=torch.float64), torch.tensor([1.0, 1.0])
    two = torch.cat([torch.zeros_like(z), z], 1)
    assert torch.equal(boosted_loss(TASK, z, target), boosted_loss(TASK, two, target))


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation_is_the_mean_over_voxels_and_resolutions(dims: int) -> None:
    problem_ = toy(f"segmentation {dims}D", "mart", torch.float64)
    batch = problem_.batch(torch.arange(3))
    clean, noisy = problem_.network(batch.images), problem_.network(batch.images + 0.3)
    expected = torch.zeros(3, dtype=torch.float64)
    boost = torch.zeros(3, dtype=torch.float64)
    for weight, a, b, y in zip((2 / 3, 1 / 3), clean, noisy, batch.target, strict=True):
        p, q = a.softmax(1).movedim(1, -1).reshape(-1, 3), b.softmax(1).movedim(1, -1).reshape(-1, 3)
        labels = y.flatten()
        rows = torch.arange(len(labels))
        value = (1 - p[rows, labels]) * (p * (p / q).log()).sum(1)
        expected += weight * value.reshape(3, -1).mean(1)
        rival = q.masked_fill(F.one_hot(labels, 3).bool(), -1).amax(1)
        boost += weight * -(1.0001 - rival).log().reshape(3, -1).mean(1)
    torch.testing.assert_close(weighted_divergence(problem_.task, clean, noisy, batch.target), expected)
    host = problem_.task.training_loss(noisy, batch.target)
    torch.testing.assert_close(boosted_loss(problem_.task, noisy, batch.target), host + boost.mean())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("lam", [0.0, 5.0])
def test_every_resolution_is_trained(dims: int, lam: float) -> None:
    problem_ = toy(f"segmentation {dims}D", "mart")
    mart = problem_.defense("mart", lam=lam)
    (part,) = mart.losses(problem_.network, problem_.batch(torch.arange(4)))
    part.loss.backward()
    kernels = [p.grad for p in problem_.network.parameters() if p.ndim > 1]  # a bias before BatchNorm has none
    assert len(kernels) == 3
    assert all(g is not None and bool((g != 0).any()) for g in kernels)


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"lam: received -1.0, allowed is a number >= 0"):
        MARTSettings(lam=-1.0)
