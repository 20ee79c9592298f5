"""Means of an epoch: by hand, with missing values, and afresh after each summary."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

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


def worker(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    statistics = Statistics(Passes(forward=6), samples=2)
    statistics.add("right", torch.tensor([[1.0, 0.0], [1.0, 1.0]][rank]))
    if rank == 0:  # as many names on both ranks, and in another order
        statistics.add("crossed", torch.ones(3), of=4)
    else:
        statistics.add("steps", torch.tensor([2.0, 4.0]))
    found = [(statistics.summary(), statistics.counted)]
    if rank == 0:
        statistics.add("right", torch.ones(1))
    found.append((statistics.summary(), statistics.counted))  # the other rank had no batch
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_add_up_by_name(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2, join=True)
    for rank in (0, 1):
        (first, counted), second = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert first == {"crossed": 0.75, "right": 0.75, "steps": 3.0, "passes_per_sample": 3.0}
        assert counted == {"crossed": 4, "right": 4, "steps": 2}
        assert second == ({"right": 1.0, "passes_per_sample": 0.0}, {"right": 1})
