"""ATES: the difficulty by hand, its stop traced by hand, schedule, identities, segmentation, passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from monai_adv import InputError
from monai_adv.defenses.ates import ATES, ATESSettings, difficulty
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.tasks import ClassificationTask, SegmentationTask
from tests.defense_toys import toy
from tests.line_classifier import inputs_of, ones, trained_on
from tests.linear_classifier import problem, seeded

TASK = ClassificationTask()


def make(**settings: Any) -> ATES:
    given = {"eps": 1.0, "unit": "norm", "steps": 8, "relative_step": 0.25, "start": "clean"}
    return ATES(TASK, ATESSettings(**{**given, "ramp_epochs": 50, **settings}))


def test_difficulty_by_hand() -> None:
    """The likeliest *wrong* class: the label is left out also where it is the likeliest of all."""
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], dtype=torch.float64).log()
    assert difficulty(TASK, logits, torch.tensor([0, 2])).tolist() == pytest.approx([0.3 - 0.5, 0.5 - 0.2])


@given(st.integers(0, 2**31), st.integers(2, 9), st.floats(0.1, 300))
def test_difficulty_is_between_minus_1_and_1_and_positive_where_wrong(seed: int, classes: int, scale: float) -> None:
    logits = scale * torch.randn(20, classes, generator=seeded(seed))
    labels = torch.randint(classes, (20,), generator=seeded(seed + 1))
    psi = difficulty(TASK, logits, labels)
    assert bool(((psi >= -1) & (psi <= 1)).all())
    assert torch.equal(psi[psi != 0] < 0, TASK.correct(logits, labels)[psi != 0])
    if classes == 2:
        own = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(psi, 1 - 2 * own)


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (-1.0, [0.375, 2.0, -1.0]),  # everything is hard enough as it is
        (-0.1, [0.125, 1.0, -1.0]),  # psi = -tanh(x / 2) exceeds -0.1 below 0.2007
        (0.0, [-0.125, 1.0, -1.0]),
        (0.3, [-0.625, 1.0, -1.0]),  # below -0.619
        (0.5, [-0.625, 1.0, -1.25]),  # below -1.0986
        (1.0, [-0.625, 1.0, -2.0]),  # never
    ],
)
def test_the_stop_by_hand(lam: float, expected: list[float]) -> None:
    assert trained_on(make(lam_first=lam), ones(0.375, 2.0, -1.0)) == expected


def test_difficulty_rises_linearly_to_1() -> None:
    ates = make(lam_first=-0.5, ramp_epochs=30)
    found = []
    for epoch in (0, 10, 20, 30, 100):
        ates.on_epoch_start(epoch)
        found.append(ates.lam)
    assert found == pytest.approx([-0.5, 0.0, 0.5, 1.0, 1.0])
    assert make(ramp_epochs=0).lam == 1


@pytest.mark.parametrize(("settings", "epoch"), [({"lam_first": 1.0}, 0), ({"ramp_epochs": 0}, 0), ({}, 50)])
def test_lambda_1_is_standard_adversarial_training_bit_for_bit(settings: dict[str, Any], epoch: int) -> None:
    network, images, labels = problem(3, (2, 3), count=7)
    ates = make(start="ball", **settings)
    ates.on_epoch_start(epoch)
    sat = SAT(TASK, SATSettings(eps=1.0, unit="norm", steps=8, relative_step=0.25))
    assert bool(ates(network, images, labels) == sat(network, images, labels))
    assert ates.on_epoch_end()["passes_per_sample"] == 2 * 8 + 3


def test_radius_zero_is_standard_training_bit_for_bit() -> None:
    network, images, labels = problem(3, (4,))
    ates = ATES(TASK, ATESSettings(eps=0, ramp_epochs=50))
    assert bool(ates(network, images, labels) == TASK.training_loss(network(images), labels))
    assert ates.on_epoch_end()["passes_per_sample"] == 3


def test_leavers_save_passes() -> None:
    """Steps 2, 8 and 0; a sample that leaves is looked at once more than it steps."""
    ates = make()
    trained_on(ates, ones(0.375, 2.0, -1.0))
    figures = ates.on_epoch_end()
    assert figures["attack_steps"] == pytest.approx(10 / 3)
    assert figures["passes_per_sample"] == pytest.approx(2 * (3 + 8 + 1) / 3 + 3)


@pytest.mark.parametrize("dims", [2, 3])
def test_difficulty_of_a_segmentation_is_1_minus_twice_the_soft_dice(dims: int) -> None:
    """A small lesion that is missed is as hard as can be, though nearly all voxels are right."""
    target = torch.zeros(2, 1, *[8] * dims, dtype=torch.long)
    target[(slice(None), slice(None), *[slice(3, 5)] * dims)] = 1
    task = SegmentationTask(lambda output, target: output.mean())
    perfect = 100.0 * F.one_hot(target[:, 0], 2).movedim(-1, 1)
    missed = 100.0 * F.one_hot(torch.zeros_like(target[:, 0]), 2).movedim(-1, 1)
    assert difficulty(task, perfect, target).tolist() == pytest.approx([-1, -1], abs=1e-5)
    assert difficulty(task, missed, target).tolist() == pytest.approx([1, 1], abs=1e-5)
    half = torch.zeros(2, 2, *[8] * dims)
    voxels, lesion = 8**dims, 2**dims
    dice = 2 * 0.5 * lesion / (0.5 * voxels + lesion)
    assert difficulty(task, half, target).tolist() == pytest.approx([1 - 2 * dice] * 2, abs=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation_stops_when_hard_enough(dims: int) -> None:
    problem_ = toy(f"segmentation {dims}D", "ates", torch.float64)
    problem_.network.eval()
    batch = problem_.batch(torch.arange(6))
    easy = difficulty(problem_.task, problem_.network(batch.images), batch.target)
    ates = problem_.defense("ates", eps=0.3, steps=10, start="clean", lam_first=float(easy.max()) + 0.02)
    (noisy,) = inputs_of(problem_.network, ates, batch)
    left = difficulty(problem_.task, problem_.network(noisy), batch.target) > ates.lam
    assert bool(left.any())
    assert 0 < ates.statistics.summary()["attack_steps"] < 10


@pytest.mark.parametrize(("name", "value"), [("lam_first", 1.1), ("lam_first", -1.1), ("ramp_epochs", -1)])
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: received"):
        ATESSettings(**{name: value})
