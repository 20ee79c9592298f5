"""nnU-Net's pseudo Dice under attack, of the same validation batches after every epoch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn

from monai_adv.attacks import PGD
from monai_adv.random_streams import seed_of
from monai_adv.tasks import Task
from monai_adv.threats import Threat
from nnunet_trainers.batch_samples import unwrapped


def fixed_batches(loader: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """Batches to compare epochs by: which cases and patches they hold moves the Dice more than an epoch does.

    Args:
        loader: nnU-Net's of the validation, which draws cases and patches anew for each batch.
        count: of batches.
        seed: the same one gives the same batches, also after a break; the host's random numbers stay as they are.
    """
    source, before = unwrapped(loader), np.random.get_state()  # noqa: NPY002  (the one that the host draws from)
    np.random.seed(seed_of(seed, "robust validation") % 2**32)  # noqa: NPY002
    try:
        return [next(source) for _ in range(count)]
    finally:
        np.random.set_state(before)  # noqa: NPY002


def attacked(batch: dict[str, Any], threat: Threat, steps: int, network: nn.Module, task: Task) -> dict[str, Any]:
    """nnU-Net's batch with its images attacked by PGD.

    Args:
        batch: "data" ``(B, C, *spatial)`` and "target", a tensor or one for each resolution.
        threat: of the attack.
        steps: of its gradients.
        network, task: what it is made on.
    """
    images, target = batch["data"], batch["target"]
    worst = PGD(threat, steps=steps)(network, images, target, task).images
    # The host writes into the target it is given (ignore label), so it gets one of its own.
    own = [t.clone() for t in target] if isinstance(target, list) else target.clone()
    return {**batch, "data": worst, "target": own}


def pseudo_dice(outputs: list[dict[str, Any]]) -> float:
    """Pooled over the batches and over all ranks, mean over the foreground classes.

    Args:
        outputs: of nnU-Net's validation step.

    Returns:
        NaN without any output.

    Example:
        >>> step = {"tp_hard": [3.0], "fp_hard": [1.0], "fn_hard": [1.0]}
        >>> pseudo_dice([step, {"tp_hard": [0.0], "fp_hard": [0.0], "fn_hard": [4.0]}])
        0.5
    """
    if not outputs:
        return math.nan
    pooled = np.stack([np.sum([o[k] for o in outputs], axis=0) for k in ("tp_hard", "fp_hard", "fn_hard")])
    if dist.is_available() and dist.is_initialized():
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, pooled)
        pooled = np.sum(gathered, axis=0)
    true_positive, false_positive, false_negative = pooled
    total = 2 * true_positive + false_positive + false_negative
    return float(np.nanmean(np.where(total > 0, 2 * true_positive / np.maximum(total, 1), np.nan)))
