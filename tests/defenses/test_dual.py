"""Dual adversarial training: its two ends are standard and SAT, its middle is half of RST; both readings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.dual import DualSettings
from monai_adv.tasks import ClassificationTask
from tests.conftest import LinearTask
from tests.loss_parts import KINDS, gradients, line, make, problem, run, seen_images

ATTACK = {"eps": 0.2, "steps": 2}
FGSM = {"norm": "linf", "eps": 1.0, "steps": 1, "relative_step": 1.0, "start": "clean"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", ["loss", "batch"])
@pytest.mark.parametrize(("r", "parent"), [(1.0, "standard"), (0.0, "sat")])
def test_the_ends_are_standard_and_sat_bit_for_bit(kind: str, mix: str, r: float, parent: str) -> None:
    values, expected = gradients(parent, kind, **(ATTACK if parent == "sat" else {}))
    found_values, found = gradients("dual", kind, r=r, mix=mix, **ATTACK)
    assert found_values == values
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rst_is_twice_dual_of_one_half_bit_for_bit(kind: str) -> None:
    rst_values, rst = gradients("rst", kind, **ATTACK)
    dual_values, dual = gradients("dual", kind, r=0.5, **ATTACK)
    assert rst_values == [2 * v for v in dual_values]
    assert all(torch.equal(a, 2 * b) for a, b in zip(rst, dual, strict=True))


def test_a_step_by_hand() -> None:
    x = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    network = line()
    dual = make("dual", LinearTask(), r=0.75, **FGSM)
    assert run(dual, network, Batch(x, torch.ones(2))) == [-0.75 * 1.25, -0.25 * 0.25]
    assert float(network.weight.grad) == -0.75 * 1.25 - 0.25 * 0.25  # type: ignore[arg-type]


@pytest.mark.parametrize("mix", ["loss", "batch"])
def test_standard_makes_no_attack(mix: str) -> None:
    one, batch = problem("segmentation 3D")
    dual = make("dual", one.task, r=1.0, mix=mix, **ATTACK)
    run(dual, one.network, batch)
    assert dual.statistics.passes.in_forwards() == 3 * len(batch.images)


def test_cost_of_both_readings() -> None:
    one, batch = problem("9 classes")
    both, shared = (make("dual", one.task, eps=0.2, steps=4, mix=mix) for mix in ("loss", "batch"))
    run(both, one.network, batch)
    assert both.statistics.passes.in_forwards() == (2 * 4 + 6) * 6
    run(shared, one.network, batch)
    assert shared.statistics.passes.in_forwards() == 2 * 4 * 3 + 3 * 6  # half of the six samples are attacked


@pytest.mark.parametrize(("size", "r", "counts"), [(8, 0.25, {2}), (8, 0.5, {4}), (3, 0.5, {1, 2}), (1, 0.25, {0, 1})])
def test_the_share_of_clean_samples(size: int, r: float, counts: set[int]) -> None:
    """r B of them, a fraction rounded either way at random so that the mean is right; and not always the same ones."""
    x = torch.arange(1.0, size + 1, dtype=torch.float64)[:, None]
    dual, network = make("dual", LinearTask(), r=r, mix="batch", **FGSM), line()
    stayed = torch.zeros(400, size)
    for i in range(400):
        (images,) = seen_images(dual, network, Batch(x, torch.ones(size)))
        assert set((x[:, 0] - torch.tensor(images)).tolist()) <= {0.0, 1.0}
        stayed[i] = torch.tensor([float(a == b) for a, b in zip(images, x[:, 0].tolist(), strict=True)])
    assert set(stayed.sum(1).int().tolist()) == counts
    # Four standard deviations of the mean of 400 draws.
    assert stayed.mean(0).sub(r).abs().max() < 4 * 0.5 / 400**0.5
    figures = dual.on_epoch_end()
    assert figures["attacked"] == pytest.approx(1 - float(stayed.mean()))


def test_the_mixed_loss_is_the_mean_over_clean_and_attacked_samples() -> None:
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0]], dtype=torch.float64)
    (loss,) = run(make("dual", LinearTask(), r=0.5, mix="batch", **FGSM), line(), Batch(x, torch.ones(4)))
    assert loss == -(15 - 2) / 4  # two of the four went down by 1


def test_right_answers_are_booked_apart() -> None:
    """At radius 3 every attacked sample of x = 2 is wrong and every clean one right."""
    x = torch.full((8, 1), 2.0, dtype=torch.float64)
    dual = make("dual", LinearTask(), r=0.25, mix="batch", **{**FGSM, "eps": 3.0})
    run(dual, line(), Batch(x, torch.ones(8)))
    figures = dual.on_epoch_end()
    assert (figures["clean_right"], figures["noisy_right"], figures["attacked"]) == (1.0, 0.0, 0.75)


def test_the_share_must_lie_between_0_and_1() -> None:
    with pytest.raises(InputError, match=r"r: received 1.5, allowed is a number in \[0, 1\]"):
        DualSettings(r=1.5)


def test_a_single_logit_and_a_column_of_labels() -> None:
    torch.manual_seed(0)
    network, images = nn.Linear(3, 1), torch.randn(4, 3)
    dual = make("dual", ClassificationTask(), **FGSM)
    column = run(dual, network, Batch(images, torch.tensor([[0.0], [1.0], [1.0], [0.0]])))
    assert column == run(dual, network, Batch(images, torch.tensor([0, 1, 1, 0])))
