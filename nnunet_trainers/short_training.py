"""Train any nnU-Net trainer with a short schedule and a small plan, without nnU-Net's final validation.

Plain ``nnUNetTrainer`` takes its schedule from nowhere but its attributes; comparing it with another trainer at the
same cost needs this Python way in. Trainers with settings of their own (IMATrainer) give the same attributes the
values of their settings; what is passed here wins.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_trainers.checkpoint import read_any

ENDED = "checkpoint_final.pth"


def short_training(
    dataset: str,
    configuration: str,
    fold: int,
    trainer: str = "nnUNetTrainer",
    plans: str = "nnUNetPlans",
    *,
    epochs: int | None = None,
    iterations: int | None = None,
    validation_iterations: int | None = None,
    initial_lr: float | None = None,
    weights: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    before: Callable[[Any], None] | None = None,
    after_epoch: Callable[[Any], None] | None = None,
    go_on: bool = False,
) -> Any:
    """Train and write ``checkpoint_final.pth`` where ``nnUNetv2_train`` would.

    Args:
        dataset: its name or number.
        configuration, fold, trainer, plans: as in ``nnUNetv2_train``.
        epochs, iterations, validation_iterations, initial_lr: the schedule; None leaves the trainer's own value.
        weights: checkpoint of the same architecture to start from, output layers included.
        seed: seeds Python, numpy and torch. The data are in the same order again only with ``nnUNet_n_proc_DA=0``.
        device: "cpu" or "cuda".
        before: called with the trainer when its weights are loaded, before the first step.
        after_epoch: called with the trainer after each epoch; ``trainer.current_epoch`` counts finished epochs.
        go_on: continue from the ``checkpoint_latest.pth`` of a training that was interrupted, if there is one; one
            that has ended is only loaded.

    Returns:
        The trainer, trained.
    """
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (the stream that nnU-Net's loaders draw from)
        torch.manual_seed(seed)
    run = get_trainer_from_args(dataset, configuration, fold, trainer, plans, device=torch.device(device))
    schedule = {
        "num_epochs": epochs,
        "num_iterations_per_epoch": iterations,
        "num_val_iterations_per_epoch": validation_iterations,
        "initial_lr": initial_lr,
    }
    for name, value in schedule.items():
        if value is not None:
            setattr(run, name, value)
    left = _left(Path(run.output_folder)) if go_on else None
    if left is not None:
        run.load_checkpoint(str(left))
        if left.name == ENDED:
            return run
    elif weights is not None:
        run.initialize()
        run.network.load_state_dict(read_any(weights)["network_weights"])
    if before is not None:
        if not run.was_initialized:
            run.initialize()
        before(run)
    if after_epoch is not None:
        _call_after_each_epoch(run, after_epoch)
    run.run_training()
    return run


def smaller_plans(
    plans: dict[str, Any], name: str, batch_sizes: dict[str, int], features: tuple[int, ...]
) -> dict[str, Any]:
    """nnU-Net's plans with smaller batches and a smaller U-Net; spacing, normalisation and data stay what they are.

    Args:
        plans: nnU-Net's.
        name: of the new plans, the ``-p`` of nnU-Net's commands.
        batch_sizes: configuration -> samples; other configurations are left out.
        features: per stage of the network, instead of nnU-Net's 32 to 512.
    """
    configurations = {}
    for configuration, batch_size in batch_sizes.items():
        old = plans["configurations"][configuration]
        network = dict(old["architecture"]["arch_kwargs"])
        stages = len(features)
        for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
            network[key] = network[key][:stages]
        network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
        network.update(n_stages=stages, features_per_stage=list(features))
        architecture = {**old["architecture"], "arch_kwargs": network}
        configurations[configuration] = {**old, "batch_size": batch_size, "architecture": architecture}
    return {**plans, "plans_name": name, "configurations": configurations}


def _left(folder: Path) -> Path | None:
    """The checkpoint that an earlier call left, of its end or on the way."""
    return next((folder / name for name in (ENDED, "checkpoint_latest.pth") if (folder / name).exists()), None)


def _call_after_each_epoch(run: Any, call: Callable[[Any], None]) -> None:
    """On the instance: a subclass would have another name, and nnU-Net names the output folder after the class."""
    own = run.on_epoch_end

    def on_epoch_end() -> None:
        own()
        call(run)

    run.on_epoch_end = on_epoch_end
