"""A rank that stands still ends the wait of the others after the time that was given, with a sentence."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from monai_adv import InputError
from nnunet_trainers.ranks import frozen_ranks_named, wait_at_most


def worker(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    wait_at_most(1 / 60)
    dist.all_reduce(torch.ones(1))
    if rank == 1:  # stands still, until the other one has given up
        while not (Path(folder) / "said").exists():
            time.sleep(0.05)
        return
    try:
        with frozen_ranks_named(1 / 60):
            dist.all_reduce(torch.ones(1))
    except InputError as error:
        said = str(error)
    else:
        said = "nothing"
    (Path(folder) / "said.tmp").write_text(said)
    (Path(folder) / "said.tmp").rename(Path(folder) / "said")
    os._exit(0)  # gloo may abort when a group is torn down after a timeout


def test_a_frozen_rank(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2, join=True)
    said = (tmp_path / "said").read_text()
    assert said.startswith("rank 0 of 2 waited in vain for another one")
    assert "`rank_timeout`" in said
    assert "continue with --c" in said


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="^out of memory$"), frozen_ranks_named(1):
        raise RuntimeError("out of memory")
