"""An epoch without an attack is said once, with the reason that holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from monai_adv.defenses import METHODS, Batch
from monai_adv.defenses.gr import GR
from monai_adv.defenses.iaat import IAAT, IAATSettings
from monai_adv.defenses.ima import IMA, IMASettings
from monai_adv.defenses.mma import MMA
from monai_adv.defenses.nothing_attacked import NothingAttacked, least_dice
from monai_adv.defenses.rst import RST
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.defenses.standard import Standard
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask, SegmentationSettings, SegmentationTask
from tests.defense_toys import BATCH, optimizer_of, step, toy

ATTACKING = [key for key, m in METHODS.items() if m.defense.attacks and "segmentation" not in m.not_for]


def task(**settings: Any) -> SegmentationTask:
    loss = lambda output, target: nn.functional.cross_entropy(output, target[:, 0])  # noqa: E731
    return SegmentationTask(loss, SegmentationSettings(**settings))


def epoch(defense: Any, foreground: bool, logit: float = 1.0) -> dict[str, float]:
    """One batch of a network that sees class 1 (``logit`` > 0) or background everywhere."""
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[1] = 0.01
        network.bias.copy_(torch.tensor([0.0, logit]))
    target = torch.full((2, 1, 4, 4), int(foreground))
    if defense.needs_ids:
        defense.bind(SampleIds({"train": 2}), "cpu")
    defense.on_epoch_start(0, 10)
    for part in defense.losses(network, Batch(torch.rand(2, 1, 4, 4), target, torch.arange(2))):
        part.loss.backward()
    return defense.on_epoch_end()


@pytest.mark.parametrize("key", ATTACKING)
def test_who_attacks_right_samples_only(key: str) -> None:
    """A network that is wrong on every sample: what the class says is what it does."""
    problem = toy("segmentation 2D", key)
    problem.task = replace(problem.task, settings=SegmentationSettings(threshold=0.99))
    defense, network = problem.defense(key), problem.network
    defense.attach(network, optimizer_of(network))
    defense.on_epoch_start(3, 4)
    step(defense, network, optimizer_of(network), problem.batch(torch.arange(BATCH)))
    right_only = defense.attacks_right_only(defense.settings)
    assert right_only == (key in ("ima", "mma", "iaat"))
    assert (defense.on_epoch_end().get("attacked", 1.0) == 0) == right_only


@pytest.mark.parametrize(
    ("method", "settings", "least"),
    [
        (IMA, IMASettings(), 0.6),
        (IMA, IMASettings(clean_gate=False), 0.1),
        (IMA, IMASettings(eps=0, delta=0), None),
        (SAT, SATSettings(), 0.1),
        (Standard, Standard.settings_class(), None),
    ],
)
def test_the_dice_that_a_start_must_have(method: Any, settings: Any, least: float | None) -> None:
    assert least_dice(method, settings, 0.6) == least
    if least is not None:
        assert least_dice(method, settings, 1e-6) == 1e-6  # who calls that right is taken at his word


@pytest.mark.parametrize("method", [IMA, MMA, IAAT])
def test_no_dice_above_the_threshold(method: Any) -> None:
    defense = method(task(threshold=0.7))
    said = NothingAttacked()(defense, epoch(defense, foreground=True, logit=-1))
    assert said is not None
    assert said.startswith("no sample was attacked in this epoch")
    assert "the Dice of none was above `threshold` (0.7)" in said
    assert "lower `threshold`" in said


@pytest.mark.parametrize("method", [SAT, RST])
def test_no_foreground(method: Any) -> None:
    defense = method(task())
    said = NothingAttacked()(defense, epoch(defense, foreground=False))
    assert said is not None
    assert "no sample had any foreground" in said
    assert "`empty_target`" in said


@pytest.mark.parametrize("method", [IMA, MMA, IAAT, SAT, RST])
def test_nothing_to_say_where_something_is_attacked(method: Any) -> None:
    defense = method(task())
    figures = epoch(defense, foreground=True)
    assert figures["attacked"] > 0
    assert NothingAttacked()(defense, figures) is None


@pytest.mark.parametrize(
    "defense",
    [Standard(task()), GR(task()), SAT(task(), SATSettings(eps=0)), IMA(task(), IMASettings(eps=0, delta=0)),
     IAAT(task(), IAATSettings(eps=0))],
)  # fmt: skip
def test_methods_that_are_off_or_attack_nothing_are_silent(defense: Any) -> None:
    assert NothingAttacked()(defense, epoch(defense, foreground=False)) is None


def test_radii_that_fell_to_zero_are_another_reason() -> None:
    defense = IMA(ClassificationTask())
    said = NothingAttacked()(defense, {"attacked": 0.0, "clean_right": 1.0, "margin_mean": 0.0})
    assert said is not None
    assert "the radius of every sample has fallen to 0" in said


def test_once() -> None:
    warning, defense = NothingAttacked(), IMA(ClassificationTask())
    assert "IMA attacks samples that are right, and none was" in str(warning(defense, {"attacked": 0.0}))
    assert warning(defense, {"attacked": 0.0}) is None
