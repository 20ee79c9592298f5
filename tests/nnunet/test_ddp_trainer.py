"""The real trainer on two gloo processes: batch Dice across ranks, one set of margins, files from rank 0 only."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests import nnunet_toy as toy


def worker(rank: int, port: int, folder: str) -> None:
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    from nnunet_trainers import IMATrainer

    trainer = toy.trainer(IMATrainer)  # before the process group: nnU-Net takes DDP to mean CUDA
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    trainer.is_ddp, trainer.local_rank = True, rank
    trainer.initialize()
    task = trainer.defense.task
    trainer.defense.task = replace(task, settings=type(task.settings)(threshold=1e-6))  # attacks from the first step
    trainer.robustness.last_is_best = lambda: len(trainer.robustness.rows) == 1  # the first epoch of two
    trainer.run_training()
    result: dict[str, Any] = {
        "margins": trainer.defense.margins.values,
        "weights": trainer.network.module.state_dict(),
        "rows": trainer.robustness.rows,
        "batch": trainer.batch_size,
    }
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_train_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(toy.make(tmp_path)))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for name, value in toy.SHORT.items():
        monkeypatch.setenv(f"MONAI_ADV_{name.upper()}", json.dumps(value))
    monkeypatch.setenv("MONAI_ADV_FINAL_WEIGHTS", "best_robust")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2, join=True)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert one["batch"] + two["batch"] == 4  # the plan's batch, shared
    assert torch.equal(one["margins"], two["margins"])
    assert one["margins"].unique().numel() > 1
    file = next((tmp_path / "results").rglob("checkpoint_best_robust.pth"))
    for name, best in torch.load(file, weights_only=True)["network_weights"].items():
        assert torch.equal(best, one["weights"][name])
        assert torch.equal(best, two["weights"][name])
    for mine, theirs in zip(one["rows"], two["rows"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("attacked", "crossed", "robust_dice", "margin_mean", "passes_per_sample"):
            assert mine[name] == pytest.approx(theirs[name])
    file = next((tmp_path / "results").rglob("checkpoint_final.pth"))
    saved = torch.load(file, weights_only=True)
    assert torch.equal(saved["monai_adv"]["defense"]["margins"]["values"], one["margins"])
