"""GAIRAT: kappa and weights by hand, what the weights must not do, identities, segmentation, ranks, passes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monai_adv import InputError
from monai_adv.defenses.gairat import GAIRAT, PRESETS, GAIRATSettings, geometry_weights
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.tasks import ClassificationTask, SegmentationSettings
from tests.defense_toys import toy
from tests.line_classifier import Line, RightWhere, inputs_of, ones
from tests.linear_classifier import problem


def make(task: Any = None, **settings: Any) -> GAIRAT:
    given = {"eps": 1.0, "unit": "norm", "steps": 8, "relative_step": 0.25, "start": "clean"}
    return GAIRAT(task or ClassificationTask(), GAIRATSettings(**{**given, "burn_in": 0, **settings}))


def kappa(gairat: GAIRAT, value: float) -> float:
    """Of a single sample, from the log."""
    inputs_of(Line(), gairat, ones(value))
    return gairat.on_epoch_end()["kappa"]


@pytest.mark.parametrize(
    ("value", "steps", "expected"),
    [
        (0.375, 8, 2),  # 0.375 and 0.125 are right
        (0.375, 2, 2),  # x_2 = -0.125 is the image trained on, not counted
        (0.375, 1, 1),
        (2.0, 8, 8),
        (-1.0, 8, 0),  # the clean image, x_0, counts: it is wrong
    ],
)
def test_kappa_by_hand(value: float, steps: int, expected: int) -> None:
    assert kappa(make(steps=steps), value) == expected


def test_an_image_that_recovers_counts_again() -> None:
    """Right, wrong, right, wrong, wrong, ...: 2, not the first wrong step 1."""
    task = RightWhere(lambda x: (x > 0.25) | ((x < 0) & (x > -0.25)))
    assert kappa(make(task), 0.375) == 2


def test_weights_by_hand() -> None:
    values = [0.0, 3.0, 5.0, 10.0]
    raw = [(1 + math.tanh(-1 + 5 * (1 - 2 * k / 10))) / 2 for k in values]
    expected = [w * 4 / sum(raw) for w in raw]
    found = geometry_weights(torch.tensor(values, dtype=torch.float64), 10, -1.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    odd = geometry_weights(torch.tensor([0.0, 3.0], dtype=torch.float64), 3, 0.0)  # K / 2 is not rounded
    assert odd[1].item() / odd[0].item() == pytest.approx((1 + math.tanh(-5)) / (1 + math.tanh(5)))


@given(
    st.lists(st.integers(0, 10), min_size=1, max_size=9),
    st.floats(-30, 30),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_weights_have_mean_1_and_fall_with_kappa(values: list[int], lam: float, dtype: torch.dtype) -> None:
    weights = geometry_weights(torch.tensor(sorted(values), dtype=dtype), 10, lam)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    assert bool((weights[1:] <= weights[:-1]).all())


def test_far_from_the_boundary_nothing_is_amplified() -> None:
    """All weights are 6e-6 there; 1 + tanh in single precision would leave two digits of them."""
    equal = geometry_weights(torch.full((4,), 10.0), 10, -1.0)
    torch.testing.assert_close(equal, torch.ones(4))
    two = geometry_weights(torch.tensor([9.0, 10.0], dtype=torch.float32), 10, -1.0)
    exact = geometry_weights(torch.tensor([9.0, 10.0], dtype=torch.float64), 10, -1.0)
    torch.testing.assert_close(two.double(), exact, rtol=1e-5, atol=0)


def test_the_loss_is_the_weighted_mean_and_weights_carry_no_gradient() -> None:
    batch, network, gairat = ones(0.375, 2.0, -1.0), Line(), make(lam=0.0)
    (part,) = gairat.losses(network, batch)
    part.loss.backward()
    weights = geometry_weights(torch.tensor([2.0, 8.0, 0.0], dtype=torch.float64), 8, 0.0)
    noisy = torch.tensor([-0.625, 1.0, -2.0], dtype=torch.float64)
    losses = F.softplus(-noisy)  # of class 1 with logits [0, x]
    assert part.loss.item() == pytest.approx(float((weights * losses).mean()), rel=1e-12)
    expected = float((weights * -noisy * torch.sigmoid(-noisy)).mean())
    assert network.weight.grad is not None
    assert float(network.weight.grad) == pytest.approx(expected, rel=1e-12)


def test_equal_kappas_weigh_alike() -> None:
    """All far away: the loss is that of standard adversarial training."""
    batch = ones(4.0, 5.0, 6.0)
    (part,) = make().losses(Line(), batch)
    assert part.loss.item() == pytest.approx(float(F.softplus(-(batch.images[:, 0] - 1)).mean()), rel=1e-12)


def test_infinite_lambda_and_burn_in_are_standard_adversarial_training_bit_for_bit() -> None:
    network, images, labels = problem(3, (2, 3), count=7)
    sat = SAT(ClassificationTask(), SATSettings(eps=1.0, unit="norm", steps=8, relative_step=0.25))
    expected = sat(network, images, labels).item()
    infinite = make(lam=None, start="ball")
    assert infinite(network, images, labels).item() == expected
    losses = []
    for epoch in (0, 4, 5):
        gairat = make(burn_in=5, start="ball")
        gairat.on_epoch_start(epoch)
        losses.append(gairat(network, images, labels).item())
    assert losses[:2] == [expected, expected]
    assert losses[2] != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("burn_in", [{}, {"burn_in": PRESETS["gairat_cifar"]["burn_in"]}])
def test_the_weights_begin_where_those_of_the_authors_do(burn_in: dict[str, Any]) -> None:
    """With epoch 60 of 120, counted from 1: two samples of which one is far away no longer weigh alike."""
    weighs = []
    for epoch in (58, 59):
        gairat = GAIRAT(ClassificationTask(), GAIRATSettings(eps=1.0, unit="norm", start="clean", **burn_in))
        gairat.on_epoch_start(epoch, epochs=120)
        inputs_of(Line(), gairat, ones(0.375, 4.0))
        weighs.append("kappa" in gairat.on_epoch_end())
    assert weighs == [False, True]


def test_radius_zero_is_standard_training_bit_for_bit() -> None:
    network, images, labels = problem(3, (4,))
    gairat = GAIRAT(ClassificationTask(), GAIRATSettings(eps=0, burn_in=0))
    assert bool(gairat(network, images, labels) == ClassificationTask().training_loss(network(images), labels))
    assert gairat.on_epoch_end()["passes_per_sample"] == 3


def test_passes_are_those_of_the_registry() -> None:
    gairat = make()
    inputs_of(Line(), gairat, ones(0.375, 2.0, -1.0))
    assert gairat.on_epoch_end()["passes_per_sample"] == 2 * 8 + 3


def test_the_mean_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has two samples with kappa 10; this one's weights are those of the batch of four."""
    whole = geometry_weights(torch.tensor([0.0, 6.0, 10.0, 10.0], dtype=torch.float64), 10, 0.0)
    others = torch.sigmoid(torch.tensor([-10.0, -10.0], dtype=torch.float64))

    def all_reduce(total: Tensor) -> None:
        total += torch.stack([others.sum(), torch.tensor(2.0, dtype=torch.float64)])

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    mine = geometry_weights(torch.tensor([0.0, 6.0], dtype=torch.float64), 10, 0.0)
    torch.testing.assert_close(mine, whole[:2])
    assert len(geometry_weights(torch.zeros(0, dtype=torch.float64), 10, 0.0)) == 0  # nothing attacked here


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation_weighs_samples_and_leaves_alone_those_without_foreground(dims: int) -> None:
    problem_ = toy(f"segmentation {dims}D", "gairat", torch.float64)
    problem_.network.eval()
    for target in problem_.target:
        target[1] = 0  # cannot be attacked
    batch = problem_.batch(torch.arange(4))
    score = problem_.task.dice(problem_.network(batch.images), batch.target).nanmean(1)
    settings = SegmentationSettings(threshold=float(score[[0, 2, 3]].median()) - 1e-6)
    problem_.task = replace(problem_.task, settings=settings)
    gairat = problem_.defense("gairat", burn_in=0, eps=0.3, steps=6, start="clean", lam=0.0)
    kappas = torch.zeros(4, dtype=torch.float64)
    for steps in range(6):  # the iterates, from attacks of fewer steps
        ascent = gairat.settings.ascent(steps=steps, relative_step=4 / 6) if steps else None
        x = batch.images if ascent is None else gairat.attack(problem_.network, batch, ascent)[0]
        kappas += problem_.task.correct(problem_.network(x), batch.target)
    (part,) = gairat.losses(problem_.network, batch)
    weights = torch.ones(4, dtype=torch.float64)
    attacked = torch.tensor([0, 2, 3])
    assert len(kappas[attacked].unique()) > 1
    weights[attacked] = geometry_weights(kappas[attacked], 6, 0.0)
    noisy, _, _ = gairat.attack(problem_.network, batch, gairat.settings.ascent())
    losses = problem_.task.sample_training_loss(problem_.network(noisy), batch.target)
    torch.testing.assert_close(part.loss, (weights * losses).mean())


@pytest.mark.parametrize(("name", "value"), [("lam", 31.0), ("lam", float("inf")), ("burn_in", -1)])
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: received"):
        GAIRATSettings(**{name: value})
