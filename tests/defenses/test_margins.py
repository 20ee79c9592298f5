"""Margins that are measured or shared: closed forms on linear models, by hand, and identities."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from monai_adv import InputError
from monai_adv.defenses import METHODS, Batch, Defense
from monai_adv.sample_state import SampleIds, SampleState
from monai_adv.tasks import ClassificationTask
from tests.conftest import LinearNetwork, LinearTask
from tests.linear_classifier import problem
from tests.loss_parts import line, run

GROUPS = {"a": 3, "b": 1}


def make(key: str, groups: dict[str, int], task: Any = None, **settings: Any) -> Any:
    method = METHODS[key]
    defense = method.defense(task or LinearTask(), method.settings(**{"unit": "norm", **settings}))
    defense.bind(SampleIds(groups), "cpu")
    return defense


def ones(*values: float, ids: list[int] | None = None) -> Batch:
    """Numbers that f(x) = x gets right where they are above 0: their distance is their value."""
    images = torch.tensor(values, dtype=torch.float64)[:, None]
    return Batch(images, torch.ones(len(values), dtype=torch.float64), torch.tensor(ids or range(len(values))))


def margins(defense: Defense) -> Tensor:
    return next(iter(defense.states.values())).values


IMA = {"eps": 2.0, "delta": 0.5, "steps": 8, "searches": 12}
BY_HAND = {"eps": 2.0, "delta": 0.5, "steps": 8, "searches": 3, "algorithm": 2}
"""test_ima.py traces it: from a margin of 0.5, the image 0.375 goes to 0.015625, which is right and stays 0.5."""


def test_the_first_margin_is_the_distance_within_eps() -> None:
    """5 is out of reach: eps. -1 is wrong without an attack: not searched, and measured once it is right."""
    ima = make("ima", {"train": 4}, first_margin="measured", **IMA)
    run(ima, line(), ones(0.375, 1.25, 5.0, -1.0))
    assert margins(ima).tolist() == pytest.approx([0.375, 1.25, 2.0, 0.5], abs=0.001)
    run(ima, line(), ones(1.0, ids=[3]))
    assert float(margins(ima)[3]) == pytest.approx(1.0, abs=0.001)
    run(ima, line(), ones(5.0, ids=[3]))  # from now on the paper's rule: it grows by delta
    assert float(margins(ima)[3]) == pytest.approx(1.5, abs=0.001)


def test_it_costs_what_any_visit_costs() -> None:
    """Clean and noisy training, K = 8 steps of algorithm 3 and a check; N = 12 for the one of two that crosses."""
    ima = make("ima", {"train": 2}, first_margin="measured", **IMA)
    run(ima, line(), ones(0.375, 5.0))
    each = 3 + 3 + 8 + 8 + 1
    assert ima.on_epoch_end()["passes_per_sample"] == each + 12 / 2


@pytest.mark.parametrize("key", ["ima", "mma"])
def test_it_is_the_distance_from_the_line_between_two_classes(key: str) -> None:
    network, images, labels = problem(2, (3, 4))
    distance = network.distances(images, labels, "l2").amin(1)
    settings = {"eps": float(distance.max()) * 1.01, "steps": 4, "searches": 16, "first_margin": "measured"}
    settings |= {"delta": 1e-3} if key == "ima" else {"start": "clean"}
    defense = make(key, {"train": len(images)}, ClassificationTask(), **settings)
    run(defense, network, Batch(images, labels, torch.arange(len(images))))
    torch.testing.assert_close(margins(defense).double(), distance, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("first", "radii"), [("given", [0.5, 0.5]), ("measured", [3.0, 0.5])])
def test_mma_looks_as_far_as_eps_once(first: str, radii: list[float]) -> None:
    """An image 0.25 from the boundary, and a radius of at least eps / 6 = 0.5 after the first visit."""
    mma = make("mma", {"train": 1}, ClassificationTask(), eps=3.0, start="clean", searches=12, first_margin=first)
    asked: list[float] = []
    attack = mma.attack

    def listen(*args: Any, radius: Tensor, **kwargs: Any) -> Any:
        asked.append(float(radius))
        return attack(*args, radius=radius, **kwargs)

    mma.attack = listen
    network = torch.nn.Linear(1, 2, bias=False, dtype=torch.float64)
    network.weight.data = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    batch = Batch(torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([1]), torch.tensor([0]))
    for _ in radii:
        run(mma, network, batch)
    assert asked == radii


def test_growth_in_proportion_by_hand() -> None:
    ima = make("ima", {"train": 1}, growth_rate=0.25, **BY_HAND)
    for margin in (0.625, 0.78125):
        run(ima, line(), ones(5.0))
        assert margins(ima).tolist() == [margin]


def test_slices_of_a_case_share_the_mean_of_what_they_say() -> None:
    """In case a one slice keeps 0.5 and one grows to 1; b grows. The third slice of a was not drawn."""
    ima = make("ima", GROUPS, margin_of="case", **BY_HAND)
    run(ima, line(), ones(0.375, 5.0, 5.0, ids=[0, 1, 3]))
    assert margins(ima).tolist() == [0.75, 1.0]
    assert ima.margins[torch.tensor([0, 1, 2, 3])].tolist() == [0.75, 0.75, 0.75, 1.0]


@pytest.mark.parametrize("key", ["ima", "mma", "iaat", "customizedat"])
def test_the_order_of_the_slices_does_not_matter(key: str) -> None:
    task = LinearTask() if key == "ima" else ClassificationTask()
    network = line()
    if key != "ima":
        network = torch.nn.Linear(1, 2, bias=False, dtype=torch.float64)  # type: ignore[assignment]
        network.weight.data = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)  # type: ignore[assignment]
    batch = ones(0.375, 5.0, 1.25, 0.5)
    target = batch.target if key == "ima" else torch.ones(4, dtype=torch.long)
    found = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        defense = make(
            key, GROUPS, task, eps=2.0, steps=8, margin_of="case", **({"delta": 0.5} if key == "ima" else {})
        )
        defense.on_epoch_start(0, 4)
        assert batch.ids is not None
        run(defense, network, Batch(batch.images[order], target[order], batch.ids[order]))
        assert len(margins(defense)) == 2
        found.append(margins(defense))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("first", ["given", "measured"])
def test_cases_of_one_slice_share_nothing_bit_for_bit(first: str) -> None:
    found = []
    for whose in ("sample", "case"):
        ima = make("ima", {"a": 1, "b": 1, "c": 1}, margin_of=whose, first_margin=first, **IMA)
        losses = [run(ima, line(), ones(0.375, 5.0, 1.25)) for _ in range(3)]
        found.append((losses, margins(ima).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("before", "after", "expected"), [
    (False, True, [2.0, 7.0]), (True, False, [2.0, 2.0, 2.0, 7.0]), (True, True, [2.0, 7.0]),
])  # fmt: skip
def test_a_checkpoint_of_the_other_kind_is_translated(before: bool, after: bool, expected: list[float]) -> None:
    """Samples 1, 2, 3 of case a become their mean; a case's value goes to each of its samples."""
    one, two = (SampleState(0.0, shared=shared) for shared in (before, after))
    for state in (one, two):
        state.bind(SampleIds(GROUPS))
    one.values = torch.tensor([2.0, 7.0] if before else [1.0, 2.0, 3.0, 7.0])
    two.load_state_dict(one.state_dict())
    assert two.values.tolist() == expected


def test_what_has_been_measured_is_not_measured_again_after_a_resume() -> None:
    batch = ones(0.375, 5.0)
    one, two = (make("ima", {"train": 2}, first_margin="measured", **IMA) for _ in range(2))
    run(one, line(), batch)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert run(one, line(), batch) == run(two, line(), batch)
    assert torch.equal(margins(one), margins(two))


def test_a_blind_attack_measures_nothing() -> None:
    ima = make("ima", {"train": 1}, first_margin="measured", **IMA)
    network = LinearNetwork((1,), bias=1.0)
    network.weight.data.zero_()
    run(ima, network, ones(0.375))
    assert ima.on_epoch_end()["dead_gradient"] == 1
    assert margins(ima).tolist() == [0.5]


def test_measured_margins_are_not_collected_over_an_epoch() -> None:
    with pytest.raises(InputError, match="margin_update: received 'epoch', allowed is 'step' where first_margin"):
        make("ima", {"train": 1}, first_margin="measured", margin_update="epoch", **IMA)
