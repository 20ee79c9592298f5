"""CAT: mixing of the batch, lessons, restored weights, identities, checkpoint, segmentation, passes."""

from __future__ import annotations

import copy
import io
import math
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.cat import CAT, CATSettings
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import toy
from tests.line_classifier import Line, inputs_of, ones, trained_on
from tests.linear_classifier import problem

TASK = ClassificationTask()


def make(lesson: int = 0, task: Any = None, **settings: Any) -> CAT:
    given = {"eps": 1.0, "unit": "norm", "steps": 7, "start": "clean"}
    cat = CAT(task or TASK, CATSettings(**{**given, **settings}))
    cat.lesson = lesson
    return cat


class Scripted(ClassificationTask):
    """Right on the share of samples that a test says."""

    share: ClassVar[list[float]] = [0.0]

    def correct(self, output: Any, target: Any) -> Tensor:
        return torch.arange(len(target)) < round(self.share[0] * len(target))


def epoch(cat: CAT, network: nn.Module, share: float) -> dict[str, float]:
    """An epoch of one batch of 20 whose training accuracy is ``share``; the weight grows by 1 in it."""
    Scripted.share[0] = share
    for part in cat.losses(network, ones(*[2.0] * 20)):
        part.loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    return cat.on_epoch_end()


# ------------------------------------------------------------------ the mixed batch


def test_parts_are_equal_and_part_i_makes_i_steps() -> None:
    """On the line every step of 1/8 moves an image by 1/8: four parts of three samples."""
    cat = make(3, relative_step=0.125)
    moved = [2.0 - x for x in trained_on(cat, ones(*[2.0] * 12))]
    assert Counter(moved) == {0.0: 3, 0.125: 3, 0.25: 3, 0.375: 3}


def test_the_step_of_i_steps_is_2_radii_over_i() -> None:
    """From the centre of a linear network every attacked part ends on the sphere: in one step as in seven."""
    moved = [2.0 - x for x in trained_on(make(7), ones(*[2.0] * 16))]
    assert sorted(moved) == [0.0] * 2 + [1.0] * 14


def test_parts_are_drawn_anew_and_samples_stay_in_their_places() -> None:
    cat = make(1, relative_step=0.125)
    batch = ones(*[float(v) for v in range(2, 10)])
    rounds = [torch.tensor(trained_on(cat, batch)) for _ in range(40)]
    moved = torch.stack([batch.images[:, 0].float() - r.float() for r in rounds])
    assert set(moved.unique().tolist()) == {0.0, 0.125}
    assert bool(((moved > 0).sum(1) == 4).all())
    share = (moved > 0).float().mean(0)  # of the rounds in which each place was attacked
    assert bool(((share > 0.2) & (share < 0.8)).all())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_small_batch_meets_every_part(size: int) -> None:
    cat, batch = make(3, relative_step=0.125), ones(*[2.0] * size)
    moved = Counter(2.0 - x for _ in range(200) for x in trained_on(cat, batch))
    assert set(moved) == {0.0, 0.125, 0.25, 0.375}
    assert all(0.15 < n / (200 * size) < 0.35 for n in moved.values())


def test_passes_are_those_of_the_registry() -> None:
    """A part of i steps makes i forwards and i backwards: K / 2 of each in the mean."""
    cat = make(7)
    trained_on(cat, ones(*[2.0] * 16))
    figures = cat.on_epoch_end()
    assert figures["passes_per_sample"] == 7 + 3
    assert figures["attacked"] == 7 / 8


# ------------------------------------------------------------------ lessons


def test_lesson_0_is_standard_training_bit_for_bit() -> None:
    network, images, labels = problem(3, (4,))
    cat = make()
    (part,) = cat.losses(network, Batch(images, labels))
    assert bool(part.loss == TASK.training_loss(network(images), labels))
    assert part.output is not None
    assert part.noisy_output is None
    assert cat.on_epoch_end()["passes_per_sample"] == 3


def test_radius_zero_is_standard_training_for_ever() -> None:
    cat, network = make(eps=0.0, task=Scripted(), patience=1), Line()
    for _ in range(4):
        figures = epoch(cat, network, 0.5)
        assert figures["lesson"] == 0
    assert cat.lesson == 0
    assert network.weight.item() == 5  # nothing was restored


def test_a_lesson_ends_above_the_threshold_not_at_it() -> None:
    cat, network = make(task=Scripted(), lesson_threshold=0.95), Line()
    assert epoch(cat, network, 0.95)["lesson"] == 0
    assert cat.lesson == 0
    assert epoch(cat, network, 1.0)["lesson"] == 0
    assert cat.lesson == 1
    assert network.weight.item() == 3  # the epoch that passes is the best: nothing to restore


def test_patience_restores_the_best_epoch() -> None:
    """Best at weight 3, then three epochs that are no better: lesson 1 starts from there."""
    cat, network = make(task=Scripted(), patience=3), Line()
    for share in (0.2, 0.8, 0.5, 0.8):
        epoch(cat, network, share)
        assert cat.lesson == 0
    assert network.weight.item() == 5
    epoch(cat, network, 0.75)
    assert cat.lesson == 1
    assert network.weight.item() == 3


def test_each_lesson_has_a_best_of_its_own() -> None:
    """0.9 in lesson 0 must not make every epoch of lesson 1 a worse one."""
    cat, network = make(task=Scripted(), patience=2), Line()
    for share in (0.9, 0.1, 0.1):
        epoch(cat, network, share)
    assert (cat.lesson, network.weight.item()) == (1, 2)
    for share in (0.1, 0.3, 0.2):
        epoch(cat, network, share)
    assert cat.lesson == 1
    epoch(cat, network, 0.2)
    assert (cat.lesson, network.weight.item()) == (2, 4)


def test_the_last_lesson_never_ends() -> None:
    cat, network = make(2, task=Scripted(), steps=2, patience=1), Line()
    for _ in range(5):
        assert epoch(cat, network, 1.0)["lesson"] == 2
    assert network.weight.item() == 6


def test_an_epoch_without_a_step_changes_nothing() -> None:
    cat = make()
    assert cat.on_epoch_end()["lesson"] == 0
    assert cat.lesson == 0


def test_buffers_are_restored_too() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1, dtype=torch.float64), Line())
    cat = make(task=Scripted(), patience=1)
    epoch(cat, network, 0.5)
    best = copy.deepcopy(network.state_dict())
    epoch(cat, network, 0.5)
    assert cat.lesson == 1
    assert all(torch.equal(v, best[k]) for k, v in network.state_dict().items())


def test_the_state_travels_in_the_checkpoint_in_the_middle_of_a_lesson() -> None:
    cat, network = make(task=Scripted(), patience=2), Line()
    for share in (1.0, 0.6, 0.5):
        epoch(cat, network, share)
    file = io.BytesIO()
    torch.save({"defense": cat.state_dict(), "network": network.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed, other = make(task=Scripted(), patience=2), Line()
    resumed.attach(other)
    other.load_state_dict(saved["network"])
    resumed.load_state_dict(saved["defense"])
    assert resumed.lesson == 1
    for c, n in ((cat, network), (resumed, other)):
        epoch(c, n, 0.5)
        assert (c.lesson, n.weight.item()) == (2, 3)


def test_a_checkpoint_of_a_longer_curriculum_stays_in_the_last_lesson() -> None:
    cat = make(5)
    shorter = make(steps=3)
    shorter.load_state_dict(cat.state_dict())
    assert shorter.lesson == 3


# ------------------------------------------------------------------ segmentation, input


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation_parts_of_a_batch(dims: int) -> None:
    problem_ = toy(f"segmentation {dims}D", "cat", torch.float64)
    problem_.network.eval()
    batch = problem_.batch(torch.arange(6))
    cat = problem_.defense("cat", eps=0.3, norm="l2", steps=2, start="clean")
    cat.lesson = 2  # type: ignore[attr-defined]
    (mixed,) = inputs_of(problem_.network, cat, batch)
    clean = (mixed == batch.images).flatten(1).all(1)
    assert int(clean.sum()) == 2
    size = cat.threat.size(mixed - batch.images) / math.sqrt(batch.images[0].numel())
    assert bool((size <= 0.3 + 1e-12).all())
    assert bool((size[~clean] > 0.1).all())


@pytest.mark.parametrize(("name", "value"), [("lesson_threshold", 1.1), ("patience", 0), ("steps", 0)])
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: received"):
        CATSettings(**{name: value})
