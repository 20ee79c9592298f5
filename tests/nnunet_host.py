"""Fixtures: nnU-Net trainers on a tiny data set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunet_trainers import IMATrainer
from nnunet_trainers.robustness_log import RobustnessLog
from tests import nnunet_toy as toy


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: toy.make(tmp_path_factory.mktemp(kind), kind) for kind in ("labels", "ignore", "regions")}


@pytest.fixture
def host(datasets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets nnU-Net's variables; returns a function that makes a trainer and its loaders."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    # The figures take a second and half a second per epoch; test_end_to_end.py draws both.
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
    monkeypatch.setattr(RobustnessLog, "_draw", lambda self, path: None)

    def make(
        cls: Any = IMATrainer,
        configuration: str = "2d",
        kind: str = "labels",
        fold: Any = 0,
        short: bool = True,
        goes_on: bool = False,
        **settings: Any,
    ) -> Any:
        monkeypatch.setenv("nnUNet_preprocessed", str(datasets[kind]))
        for name in [n for n in os.environ if n.startswith("MONAI_ADV_")]:
            monkeypatch.delenv(name)
        known = {n for s in cls._sections().values() for n in s.names()} if hasattr(cls, "_sections") else toy.SHORT
        given = {name: value for name, value in toy.SHORT.items() if short and name in known}
        for name, value in {**given, **settings}.items():
            monkeypatch.setenv(f"MONAI_ADV_{name.upper()}", json.dumps(value))
        trainer = toy.trainer(cls, configuration, kind, fold, goes_on)
        if short and not hasattr(trainer, "run"):
            trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 2, 2
        return trainer

    return make


def started(trainer: Any) -> Any:
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.network.state_dict().values()]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
