"""What the ranks of a distributed training have to agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist

from monai_adv.statistics import wide_dtype


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` holds on some rank: ranks must agree on the passes that synchronise gradients."""
    return largest_of_ranks(float(flag), device) > 0


def largest_of_ranks(value: float, device: torch.device) -> float:
    """The largest of all ranks' values, such as the seconds of the slowest."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    largest = torch.tensor(value, dtype=wide_dtype(device), device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()
