"""IAAT: the choice of a radius by hand and against brute force, warm-up, cap, wrong samples, passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.attacks import Ascent
from monai_adv.defenses import Batch
from monai_adv.defenses.iaat import IAAT, IAATSettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import toy
from tests.line_classifier import Line, ones, trained_on
from tests.linear_classifier import problem

TASK = ClassificationTask()
BATCH = ones(0.375, 0.375, 0.375, -1.0)
RADII = torch.tensor([0.0625, 0.25, 0.5, 0.5])


def make(radii: Tensor = RADII, task: Any = TASK, epoch: int = 10, **settings: Any) -> IAAT:
    values = {"eps": 1.0, "norm": "linf", "gamma": 0.25, "beta": 0.5, "start": "clean", "warmup_epochs": 10, **settings}
    iaat = IAAT(task, IAATSettings(**values))
    iaat.bind(SampleIds({"train": len(radii)}), "cpu")
    iaat.radii.update(torch.arange(len(radii)), radii)
    iaat.on_epoch_start(epoch)
    return iaat


def run(iaat: IAAT, network: nn.Module, batch: Batch) -> float:
    (part,) = iaat.losses(network, batch)
    part.loss.backward()
    return part.loss.item()


def test_radii_by_hand() -> None:
    """Withstands the larger attack: grows; only the present one: stays; neither: shrinks; wrong: towards 0.

    Each goes half the way (beta), and is trained on at its new radius.
    """
    iaat = make()
    new = [0.0625 + 0.125, 0.25, 0.5 - 0.125, 0.25]
    assert trained_on(iaat, BATCH) == [0.375 - new[0], 0.375 - new[1], 0.375 - new[2], -1.0 - new[3]]
    assert iaat.radii.values.tolist() == new


def test_wrong_samples_may_be_trained_on_as_they_are() -> None:
    iaat = make(clean_wrong="clean")
    assert trained_on(iaat, BATCH)[3] == -1.0
    assert float(iaat.radii.values[3]) == 0.25  # the moving average shrinks all the same


def test_attacks_without_a_use_are_not_made() -> None:
    """Larger attack: the three right ones; smaller one: the two that failed; each with its last check."""
    iaat, network = make(steps=10), Line()
    forwards: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
    run(iaat, network, BATCH)
    assert sum(forwards) == iaat.statistics.passes.forward == 4 + (3 + 2) * 11 + 4 * 10 + 4
    assert iaat.statistics.passes.backward_input == (3 + 2) * 10 + 4 * 10


def test_at_the_cap_both_attacks_are_one() -> None:
    iaat, network = make(torch.tensor([1.0])), Line()
    run(iaat, network, ones(0.375))
    assert iaat.radii.values.tolist() == [0.875]
    assert iaat.statistics.passes.forward == 1 + 11 + 10 + 1


@pytest.mark.parametrize(("capped", "radius"), [(True, 1.0), (False, 1.0625)])
def test_the_cap(capped: bool, radius: float) -> None:
    iaat = make(torch.tensor([0.9375]), capped=capped)
    for _ in range(1 if not capped else 20):
        run(iaat, Line(), ones(9.0))
    assert float(iaat.radii.values) == pytest.approx(radius, abs=1e-6)


def test_no_radius_falls_below_0() -> None:
    """At radius 0 there is no smaller attack, and nothing to shrink."""
    iaat = make(torch.tensor([0.0, 0.125]))
    run(iaat, Line(), ones(0.0625, 0.0625))
    assert iaat.radii.values.tolist() == [0.0, 0.0625]


def test_warm_up() -> None:
    """Radius eps for samples that are right, none for the others, in the memory too: nothing is averaged yet."""
    iaat = make(epoch=9)
    assert trained_on(iaat, BATCH) == [0.375 - 1, 0.375 - 1, 0.375 - 1, -1.0]
    assert iaat.radii.values.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert iaat.on_epoch_end()["passes_per_sample"] == pytest.approx(1 + 3 / 4 * 20 + 3)


def test_the_moving_average_begins_after_the_warm_up() -> None:
    """The numbers of epsilon_select in the authors' code, for a sample that withstands everything."""
    settings = IAATSettings(norm="linf", eps=0.1, warmup_epochs=5, capped=False, start="clean")
    iaat = IAAT(TASK, settings)
    iaat.bind(SampleIds({"train": 1}), "cpu")
    found = []
    for epoch in range(7):
        iaat.on_epoch_start(epoch)
        run(iaat, Line(), ones(9.0))
        found.append(float(iaat.radii.values))
    assert found == pytest.approx([0.1] * 5 + [0.102375, 0.10475])


@pytest.mark.parametrize(("epoch", "warm"), [(9, True), (10, False)])
def test_the_warm_up_is_ten_of_110_epochs(epoch: int, warm: bool) -> None:
    iaat = IAAT(TASK, IAATSettings(norm="linf", eps=0.1, start="clean"))
    iaat.bind(SampleIds({"train": 1}), "cpu")
    iaat.on_epoch_start(epoch, epochs=110)
    run(iaat, Line(), ones(9.0))
    assert float(iaat.radii.values) == pytest.approx(0.1 if warm else 0.1 * 0.02375)


def test_without_the_gate_wrong_samples_vote_as_the_others_do() -> None:
    """As IAAT_loss of the IMA authors: a wrong sample loses gamma, not its radius, and is trained on as it is."""
    iaat = make(clean_gate=False, clean_wrong="clean", warmup_epochs=0, epoch=0)
    assert trained_on(iaat, BATCH)[3] == -1.0
    assert iaat.radii.values.tolist() == [0.0625 + 0.125, 0.25, 0.5 - 0.125, 0.5 - 0.125]


@pytest.mark.parametrize("seed", range(5))
def test_the_shortcut_chooses_as_brute_force(seed: int) -> None:
    network, images, labels = problem(3, (2, 4), seed=seed)
    labels[0] = (labels[0] + 1) % 3
    old = torch.rand(6, generator=torch.Generator().manual_seed(seed))
    iaat = make(old, norm="l2", unit="norm", beta=1.0)

    def right(radius: Tensor) -> Tensor:
        ascent = Ascent(iaat.threat, steps=10, relative_step=0.2)
        return ~ascent(network, images, labels, TASK, radius=radius).wrong

    larger = (old + 0.25).clamp(max=1)
    expected = torch.where(right(larger), larger, torch.where(right(old), old, (old - 0.25).clamp(min=0)))
    expected[~TASK.correct(network(images), labels)] = 0
    run(iaat, network, Batch(images, labels, torch.arange(6)))
    torch.testing.assert_close(iaat.radii.values, expected)


def test_most_passes() -> None:
    """6K + 6 where the larger attack wins and the present radius is withstood or not."""
    iaat = make(torch.tensor([0.5]), steps=7)
    run(iaat, Line(), ones(0.375))
    assert iaat.on_epoch_end()["passes_per_sample"] == 6 * 7 + 6


@pytest.mark.parametrize("kind", ["segmentation 2D", "segmentation 3D"])
def test_a_sample_without_foreground_is_neither_attacked_nor_judged(kind: str) -> None:
    one = toy(kind, "iaat")
    batch = one.batch(torch.arange(6))
    for labels in batch.target:
        labels[0] = 0
    iaat = make(torch.full((6,), 0.5), one.task, norm="l2")
    seen: list[Tensor] = []
    one.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    run(iaat, one.network, batch)
    assert bool((seen[-1][0] == batch.images[0]).all())
    assert bool((seen[-1][1:] != batch.images[1:]).flatten(1).any(1).all())
    assert float(iaat.radii.values[0]) == 0.5


def test_radius_0_costs_what_a_clean_step_costs() -> None:
    iaat = make(eps=0.0, gamma=None)
    assert trained_on(iaat, BATCH) == BATCH.images[:, 0].tolist()
    assert iaat.on_epoch_end()["passes_per_sample"] == 3


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="gamma: received 0.2, allowed is at most eps"):
        IAATSettings(eps=0.1, gamma=0.2)
    assert IAATSettings(eps=0.1, gamma=0.2, capped=False).growth == 0.2
    with pytest.raises(InputError, match="beta"):
        IAATSettings(beta=0.0)


def test_a_smaller_eps_cuts_loaded_radii() -> None:
    smaller = make(eps=0.25, gamma=None)
    smaller.load_state_dict(make().state_dict())
    assert smaller.radii.values.tolist() == [0.0625, 0.25, 0.25, 0.25]
