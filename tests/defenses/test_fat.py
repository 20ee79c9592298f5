"""FAT: its stop traced by hand, slips, noise, tau by epoch, identities, segmentation, passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.fat import FAT, FATSettings
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.tasks import ClassificationTask, SegmentationSettings
from tests.defense_toys import toy
from tests.line_classifier import Line, RightWhere, ones, trained_on
from tests.linear_classifier import problem

# Radius 1 and steps of 1/4, exact in binary: 0.375, 0.125, -0.125, -0.375, -0.625 and no further.
BATCH = ones(0.375, 2.0, -1.0)


def make(task: Any = None, **settings: Any) -> FAT:
    given = {"eps": 1.0, "unit": "norm", "steps": 8, "relative_step": 0.25, "start": "clean", "omega": 0.0}
    return FAT(task or ClassificationTask(), FATSettings(**{**given, **settings}))


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0, [-0.125, 1.0, -1.0]),  # the first wrong image; never wrong: all steps; wrong at once: not moved
        (1, [-0.375, 1.0, -1.25]),
        (2, [-0.625, 1.0, -1.5]),
        (8, [-0.625, 1.0, -2.0]),
    ],
)
def test_the_stop_by_hand(tau: int, expected: list[float]) -> None:
    assert trained_on(make(tau=tau), BATCH) == expected


def test_the_last_image_is_not_looked_at() -> None:
    """After two steps -0.125 is wrong, after three -0.375: with K = 2 or 3 a slip changes nothing for the former."""
    assert trained_on(make(steps=2), BATCH) == [-0.125, 1.5, -1.0]
    assert trained_on(make(steps=2, tau=1), BATCH) == [-0.125, 1.5, -1.25]
    assert trained_on(make(steps=3), BATCH)[0] == -0.125
    assert trained_on(make(steps=3, tau=1), BATCH)[0] == -0.375


def test_slips_are_used_up_by_wrong_images_only() -> None:
    """Right, wrong, right, wrong: with one slip the second wrong image stays, two steps after the first."""
    task = RightWhere(lambda x: (x > 0.25) | ((x < 0) & (x > -0.25)))
    assert trained_on(make(task, tau=0), ones(0.375)) == [0.125]
    assert trained_on(make(task, tau=1), ones(0.375)) == [-0.375]
    assert trained_on(make(task, tau=2), ones(0.375)) == [-0.625]


def test_the_order_of_the_batch_is_kept() -> None:
    network, images, labels = problem(3, (4,), count=8)
    fat = make(eps=1.5)
    whole, _, _ = fat.friendly(network, Batch(images, labels))
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    moved, _, _ = fat.friendly(network, Batch(images[order], labels[order]))
    assert torch.equal(moved, whole[order])
    wrong = network(whole).argmax(1) != labels
    assert bool(wrong.any())
    # Friendly: wrong, but only just. Each wrong image was right one step earlier.
    _, result, _ = fat.friendly(network, Batch(images, labels))
    assert bool((network(result.previous).argmax(1) == labels)[wrong].all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_many_slips_without_noise_are_standard_adversarial_training_bit_for_bit(norm: str) -> None:
    network, images, labels = problem(3, (2, 3), count=7)
    fat = make(norm=norm, start="ball", tau=8, eps=0.5)
    sat = SAT(
        ClassificationTask(),
        SATSettings(norm=norm, eps=0.5, unit="norm", steps=8, relative_step=0.25),  # type: ignore[arg-type]
    )
    assert bool(fat(network, images, labels) == sat(network, images, labels))
    assert fat.on_epoch_end()["passes_per_sample"] == sat.on_epoch_end()["passes_per_sample"] == 2 * 8 + 3


def test_radius_zero_is_standard_training_bit_for_bit() -> None:
    network, images, labels = problem(3, (4,))
    fat = FAT(ClassificationTask(), FATSettings(eps=0))
    assert bool(fat(network, images, labels) == ClassificationTask().training_loss(network(images), labels))
    assert fat.on_epoch_end()["passes_per_sample"] == 3


def test_omega_is_the_deviation_of_a_noise_inside_the_ball() -> None:
    """Without a gradient the noise is all that moves an image: one step, then many against the ball."""
    network = Line()
    network.weight.data.zero_()
    zeros = Batch(torch.zeros(2000, 1, dtype=torch.float64), torch.zeros(2000, dtype=torch.long))
    once, _, _ = make(steps=1, omega=0.125).friendly(network, zeros)
    assert float(once.std()) == pytest.approx(0.125, rel=0.05)
    assert float(once.mean()) == pytest.approx(0, abs=0.01)
    often, _, _ = make(steps=20, omega=0.5).friendly(network, zeros)
    assert float(often.abs().max()) == 1.0


def test_tau_by_epoch() -> None:
    fat = make(tau_epochs="50,90", tau=0)
    taus = []
    for epoch in (0, 49, 50, 89, 90, 119):
        fat.on_epoch_start(epoch)
        taus.append(fat.tau)
    assert taus == [0, 0, 1, 1, 2, 2]
    fat.on_epoch_start(50)
    assert trained_on(fat, BATCH)[0] == -0.375
    assert make(tau=1, tau_epochs=3).settings.epochs == (3,)


def test_leavers_save_passes() -> None:
    """0.375 leaves at its third image, 2.0 makes all 8 steps, -1.0 leaves at once; then one training pass each."""
    fat = make()
    trained_on(fat, BATCH)
    assert fat.on_epoch_end() == pytest.approx(
        {"attacked": 1, "attack_steps": (2 + 8 + 0) / 3, "dead_gradient": 0, "noisy_right": 1 / 3,
         "passes_per_sample": 2 * (3 + 8 + 1) / 3 + 3}
    )  # fmt: skip


def test_the_gradient_is_computed_only_where_somebody_goes_on() -> None:
    """0.375 is looked at three times and makes two steps; -1.0 leaves at the first look, which 0.375 shares. The third
    look needs no gradient. The images are those of a batch in which another sample makes every gradient be computed.
    """
    fat = make()
    images, found, _ = fat.friendly(Line(), ones(0.375, -1.0))
    assert (found.passes.forward, found.passes.backward_input) == (2 + 1 + 1, 2 + 1)
    longer, _, _ = fat.friendly(Line(), ones(0.375, -1.0, 5.0))
    assert torch.equal(images, longer[:2])


@pytest.mark.parametrize("clean", [0.25, 0.5])
def test_a_share_of_clean_loss_by_hand(clean: float) -> None:
    """``c L(x) + (1 - c) L(x')`` with x' as traced above; L(x) = log(1 + exp(-x)). It costs one clean step more."""
    fat = make(clean_weight=clean)
    batch, losses = ones(0.375, 2.0, -1.0), []
    for images in (batch.images, torch.tensor([-0.125, 1.0, -1.0])):
        losses.append(torch.nn.functional.softplus(-images.flatten()).mean())
    loss = fat(Line(), batch.images, batch.target)
    assert loss.item() == pytest.approx((clean * losses[0] + (1 - clean) * losses[1]).item())
    assert fat.on_epoch_end()["passes_per_sample"] == 2 * (3 + 8 + 1) / 3 + 3 + 3


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation_stops_when_the_dice_falls_to_the_threshold(dims: int) -> None:
    problem_ = toy(f"segmentation {dims}D", "fat", torch.float64)
    problem_.network.eval()
    batch = problem_.batch(torch.arange(6))
    output = problem_.network(batch.images)
    threshold = float(problem_.task.dice(output, batch.target).nanmean()) - 0.02
    problem_.task = replace(problem_.task, settings=SegmentationSettings(threshold=threshold))
    fat = problem_.defense("fat", eps=0.5, steps=10, start="clean", omega=0.0)
    noisy, result, _ = fat.friendly(problem_.network, batch)
    left = result.steps < 10
    moved = left & (result.steps > 0)
    assert bool(moved.any())
    assert not bool(problem_.task.correct(problem_.network(noisy), batch.target)[left].any())
    assert bool(problem_.task.correct(problem_.network(result.previous), batch.target)[moved].all())


@pytest.mark.parametrize("text", ["90,50", "50,", "a", "-1", "5,5"])
def test_epochs_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"tau_epochs: received .*{text}.*, allowed is .*numbers"):
        FATSettings(tau_epochs=text)


@pytest.mark.parametrize(("name", "value"), [("tau", -1), ("tau", 1.5), ("omega", -0.1)])
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: received"):
        FATSettings(**{name: value})
