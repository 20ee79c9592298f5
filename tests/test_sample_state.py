"""Per-sample state: stable ids, repeated draws, checkpoint."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_adv import InputError
from monai_adv.sample_state import SampleIds, SampleState


def make(values: list[float] | None = None, groups: dict[str, int] | None = None) -> SampleState:
    state = SampleState(0.5, "margins")
    state.bind(SampleIds(groups or {"a": 3, "b": 2}))
    if values is not None:
        state.values = torch.tensor(values)
    return state


def test_ids_do_not_depend_on_the_order_of_the_groups() -> None:
    one, two = SampleIds({"b": 2, "a": 3}), SampleIds({"a": 3, "b": 2})
    for group, member, expected in (("a", 0, 0), ("a", 2, 2), ("b", 0, 3), ("b", 1, 4)):
        assert one.index([group], [member]).item() == two.index([group], [member]).item() == expected


@pytest.mark.parametrize(("group", "member"), [("c", 0), ("a", 3), ("a", -1)])
def test_unannounced_samples_are_refused(group: str, member: int) -> None:
    with pytest.raises(InputError, match=f"sample '{group}' \\[{member}\\] is not among the 5 samples in 2 groups"):
        SampleIds({"a": 3, "b": 2}).index([group], [member])


def test_no_samples_are_refused() -> None:
    for groups in ({}, {"a": 0}):
        with pytest.raises(InputError, match="groups: received"):
            SampleIds(groups)


def test_only_drawn_samples_change() -> None:
    state = make([1, 2, 3, 4, 5])
    state.update(torch.tensor([4, 1]), torch.tensor([50.0, 20.0]))
    assert state.values.tolist() == [1, 20, 3, 4, 50]
    state.update(torch.empty(0, dtype=torch.long), torch.empty(0))
    assert state.values.tolist() == [1, 20, 3, 4, 50]


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 10, width=32)), min_size=1, max_size=12), st.randoms())
def test_repeated_draws_are_averaged_in_any_order(draws: list[tuple[int, float]], random: object) -> None:
    shuffled = list(draws)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    results = []
    for sequence in (draws, shuffled):
        state = make()
        state.update(torch.tensor([i for i, _ in sequence]), torch.tensor([v for _, v in sequence]))
        results.append(state.values)
    torch.testing.assert_close(results[0], results[1])
    for i in range(5):
        mine = [v for j, v in draws if i == j]
        assert float(results[0][i]) == pytest.approx(sum(mine) / len(mine) if mine else 0.5, rel=1e-6, abs=1e-12)


def test_a_single_draw_is_kept_bit_for_bit() -> None:
    state = make()
    value = torch.tensor([0.1234567]).sqrt()
    state.update(torch.tensor([2]), value)
    assert state.values[2] == value[0]


def test_checkpoint_is_plain_and_exact() -> None:
    state = make([0.1, 0.2, 0.3, 0.4, 0.7])
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    other = make(groups={"b": 2, "a": 3})
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.values, state.values)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"a": 3}, "also with 1 (b)"),
        ({"a": 3, "b": 2, "c": 1, "d": 1, "e": 1, "f": 1}, "without 4 (c, d, e, ...)"),
        ({"a": 4, "b": 2}, "with another number of samples in 1 (a)"),
    ],
)
def test_state_of_other_samples_is_refused_and_nothing_changes(groups: dict[str, int], says: str) -> None:
    saved = make([1, 2, 3, 4, 5]).state_dict()
    state = make(groups=groups)
    before = state.values.clone()
    with pytest.raises(InputError) as error:
        state.load_state_dict(saved)
    assert says in str(error.value)
    assert torch.equal(state.values, before)
