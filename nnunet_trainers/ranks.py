"""Training on several GPUs: a rank that stands still is not waited for for ever, and the others say what happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

from monai_adv.errors import InputError


def wait_at_most(minutes: float) -> None:
    """How long the ranks of the running process group wait for each other. nnU-Net makes it and gives no time."""
    distributed_c10d._set_pg_timeout(timedelta(minutes=minutes), dist.group.WORLD)


@contextmanager
def frozen_ranks_named(minutes: float) -> Iterator[None]:
    """Turn PyTorch's error after a wait in vain into one sentence.

    Raises:
        InputError: says on which rank, and what to do.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not (dist.is_initialized() and ("imed out" in text or "imeout" in text or "onnection closed" in text)):
            raise
        raise InputError(
            f"rank {dist.get_rank()} of {dist.get_world_size()} waited in vain for another one, which stands still or "
            f"has ended (at most {minutes:g} minutes, `rank_timeout`); look at what the other GPUs' processes do and "
            "say, end them, and continue with --c."
        ) from error
