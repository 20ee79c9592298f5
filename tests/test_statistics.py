"""Means of an epoch: by hand, with missing values, and afresh after each summary."""

from __future__ import annotations

import pytest
import torch

from monai_adv.statistics import Passes, Statistics


def test_an_epoch_by_hand_and_the_next_one_afresh() -> None:
    """Five samples: 2 of 3 right, 3 of 5 crossed; 10 forwards and 5 backwards are 3 for each of them."""
    statistics = Statistics()
    for _ in range(2):
        statistics.add("right", torch.tensor([1.0, 0.0]))
        statistics.add("right", torch.tensor([1.0]))
        statistics.add("crossed", torch.tensor([1.0, 1.0, 1.0]), of=5)
        statistics.passes += Passes(forward=10, backward_input=5)
        statistics.samples += 5
        found = statistics.summary()
        assert found == {"crossed": 0.6, "right": pytest.approx(2 / 3), "passes_per_sample": 3.0}
        assert statistics.counted == {"crossed": 5, "right": 3}


def test_nothing_is_zero_and_not_a_division() -> None:
    statistics = Statistics()
    statistics.add("right", torch.zeros(0))
    assert statistics.summary() == {"right": 0.0, "passes_per_sample": 0.0}
