"""LLR: the gap of a parabola, a linear loss has none, what is held fixed, identities, cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_adv.defenses import Batch
from monai_adv.defenses.llr import PRESETS
from tests.conftest import LinearNetwork, LinearTask
from tests.loss_parts import KINDS, gradients, make, only_the_regulariser, problem, run


class PlainTask(LinearTask):
    """The sample loss is the output itself; the host's loss is 0, so that the regulariser is all there is."""

    def training_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return output.sum() * 0

    def sample_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return output[:, 0]

    def sample_training_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return output[:, 0]


class Parabola(nn.Module):
    """``l(x) = a |x|^2 + b sum x``: the gap at d is ``|a| |d|^2`` for every x, the slope ``<d, 2 a x + b>``."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x.square().sum(1, keepdim=True) + self.b * x.sum(1, keepdim=True)


X = torch.tensor([[0.3, -0.7], [1.0, 0.5], [-0.2, 0.1]], dtype=torch.float64)
BATCH = Batch(X, torch.ones(3))
# Every start is on a sphere of 0.5 and ascends along d: the L2 search ends on the sphere at the point it began from.
SPHERE = {"norm": "l2", "eps": 0.5, "unit": "norm", "start": "surface"}


@pytest.mark.parametrize("a", [2.0, -2.0])
def test_the_gap_of_a_parabola(a: float) -> None:
    """lam |a| eps^2 whatever x, b and the direction are, and its derivative for a: the gradient at x is not frozen.

    The gap is a(|x + d|^2 - |x|^2 - 2 <x, d>). Holding the gradient fixed in the outer loss would give
    |x + d|^2 - |x|^2 as its derivative for a, and b's would not vanish.
    """
    network = Parabola(a, 0.7)
    (loss,) = run(make("llr", PlainTask(), lam=3.0, mu=0, **SPHERE), network, BATCH)
    assert loss == pytest.approx(3 * 2 * 0.25)
    assert float(network.a.grad) == pytest.approx(3 * 0.25 * (1 if a > 0 else -1))  # type: ignore[arg-type]
    assert float(network.b.grad) == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]


def test_the_slope_of_a_parabola() -> None:
    """mu mean |<d, 2 a x + b>|, the absolute value per sample, with its derivative for a and b."""
    network = Parabola(2.0, 0.7)
    llr = make("llr", PlainTask(), lam=0, mu=3.0, **SPHERE)
    delta = make("llr", PlainTask(), lam=0, mu=3.0, **SPHERE)._largest_gap(network, BATCH) - X
    assert torch.allclose(delta.norm(dim=1), torch.full((3,), 0.5, dtype=torch.float64))
    (loss,) = run(llr, network, BATCH)
    slope = (delta * (4 * X + 0.7)).sum(1)
    assert slope.min() < 0 < slope.max()  # the mean of the slopes is not that of their sizes
    assert loss == pytest.approx(3 * slope.abs().mean().item())
    assert float(network.a.grad) == pytest.approx(3 * (slope.sign() * (delta * 2 * X).sum(1)).mean().item())  # type: ignore[arg-type]
    assert float(network.b.grad) == pytest.approx(3 * (slope.sign() * delta.sum(1)).mean().item())  # type: ignore[arg-type]


def test_the_search_finds_the_direction_of_the_largest_curvature() -> None:
    """l = x_1^2 + 8 x_2^2 - 0.5 x_3^2: from anywhere in the ball to the ends of the second axis."""

    class Curved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.curvature = nn.Parameter(torch.tensor([1.0, 8.0, -0.5], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.curvature * x.square()).sum(1, keepdim=True)

    images = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ball = {"norm": "l2", "eps": 0.5, "unit": "norm", "start": "ball", "steps": 10, "relative_step": 0.5}
    delta = make("llr", PlainTask(), **ball)._largest_gap(Curved(), Batch(images, torch.ones(20))) - images
    torch.testing.assert_close(delta[:, 1].abs(), torch.full((20,), 0.5, dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_loss_has_no_gap(norm: str) -> None:
    network = LinearNetwork((2,), bias=0.3)
    attack = {"norm": norm, "eps": 0.5, "unit": "norm"}
    (loss,) = run(make("llr", PlainTask(), lam=4.0, mu=0, **attack), network, BATCH)
    assert loss == pytest.approx(0, abs=1e-14)
    assert network.weight.grad.abs().max() < 1e-14  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("off", [{"lam": 0, "mu": 0}, {"eps": 0}])
def test_off_is_standard_bit_for_bit(kind: str, off: dict[str, float]) -> None:
    values, expected = gradients("standard", kind)
    found_values, found = gradients("llr", kind, **off)
    assert found_values == values
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_2_k_plus_11(kind: str) -> None:
    one, batch = problem(kind)
    llr = make("llr", one.task, eps=0.2, steps=3)
    run(llr, one.network, batch)
    assert llr.statistics.passes.in_forwards() == (2 * 3 + 11) * len(batch.images)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_can_be_minimised(kind: str) -> None:
    one, batch = only_the_regulariser(kind)
    one.network.eval()
    llr = make("llr", one.task, lam=1.0, mu=0, eps=0.5)
    optimizer = torch.optim.Adam(one.network.parameters(), 0.01)
    gaps = []
    for _ in range(15):
        optimizer.zero_grad()
        gaps += run(llr, one.network, batch)
        optimizer.step()
    assert gaps[-1] < 0.5 * gaps[0]


def test_the_search_stays_in_the_ball_and_the_box() -> None:
    one, batch = problem("2 classes")
    images = batch.images.sigmoid()
    box = {"norm": "linf", "eps": 0.1, "box": (0.0, 1.0)}
    found = make("llr", one.task, **box)._largest_gap(one.network, Batch(images, batch.target))
    assert (found - images).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad


def test_samples_that_cannot_be_attacked_have_no_gap() -> None:
    one, batch = problem("segmentation 2D")
    target = [torch.zeros_like(t) for t in batch.target]
    assert torch.equal(make("llr", one.task)._largest_gap(one.network, Batch(batch.images, target)), batch.images)
    llr = make("llr", one.task)
    (loss,) = run(llr, one.network.eval(), Batch(batch.images, target))
    figures = llr.on_epoch_end()
    assert figures["linearity_gap"] == figures["slope"] == 0
    assert loss == one.task.training_loss(one.network(batch.images), target).item()


def test_single_precision_under_autocast() -> None:
    found = []
    for half in (False, True):
        one, batch = problem("2 classes")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            (part,) = make("llr", one.task, eps=0.2).losses(one.network, batch)
        part.loss.backward()
        found.append([part.loss.detach(), *(p.grad for p in one.network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_mirst_paper_swaps_the_usual_weights() -> None:
    llr = make("llr", PlainTask())
    assert (llr.settings.lam, llr.settings.mu) == (4, 3)
    assert (PRESETS["mirst_busi"]["lam"], PRESETS["mirst_busi"]["mu"]) == (3, 4)
