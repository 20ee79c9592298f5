"""RST: a step by hand, identities, passes."""

from __future__ import annotations

import pytest
import torch

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.rst import RSTSettings
from tests.conftest import LinearTask
from tests.loss_parts import KINDS, gradients, line, make, problem, run, seen_images

X = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
BATCH = Batch(X, torch.ones(2, dtype=torch.float64))


def test_a_step_by_hand() -> None:
    """f(x) = x, loss -mean f(x): the attack goes down by its radius, 2 steps of a quarter."""
    settings = {"norm": "linf", "eps": 1.0, "steps": 2, "relative_step": 0.25, "start": "clean"}
    network = line()
    rst = make("rst", LinearTask(), weight_noisy=0.5, **settings)
    assert seen_images(rst, network, BATCH) == [[0.5, 2.0], [0.0, 1.5]]
    network = line()
    assert run(make("rst", LinearTask(), weight_noisy=0.5, **settings), network, BATCH) == [-1.25, -0.5 * 0.75]
    assert float(network.weight.grad) == -1.25 - 0.5 * 0.75  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_radius_zero_is_twice_standard(kind: str) -> None:
    (clean,), clean_gradients = gradients("standard", kind)
    losses, found = gradients("rst", kind, eps=0)
    assert losses == [clean, clean]
    assert all(torch.equal(a, 2 * b) for a, b in zip(found, clean_gradients, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_is_standard_without_an_attack(kind: str) -> None:
    values, clean_gradients = gradients("standard", kind)
    found, rst_gradients = gradients("rst", kind, weight_noisy=0)
    assert found == values
    assert all(torch.equal(a, b) for a, b in zip(rst_gradients, clean_gradients, strict=True))
    one, batch = problem(kind)
    rst = make("rst", one.task, weight_noisy=0)
    run(rst, one.network, batch)
    assert rst.statistics.passes.in_forwards() == 3 * len(batch.images)


@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_2_k_plus_6(kind: str) -> None:
    one, batch = problem(kind)
    rst = make("rst", one.task, steps=4)
    run(rst, one.network, batch)
    assert rst.statistics.passes.in_forwards() == (2 * 4 + 6) * len(batch.images)


def test_both_outputs_are_given_for_metrics() -> None:
    clean, noisy = make("rst", LinearTask(), norm="linf", eps=1.0, steps=1, start="clean").losses(line(), BATCH)
    assert clean.output.tolist() == X.tolist()
    assert clean.noisy_output is None
    assert noisy.noisy_output.tolist() == (X - 1).tolist()
    assert noisy.output is None


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="weight_noisy: received -1.0, allowed is a number >= 0"):
        RSTSettings(weight_noisy=-1.0)
