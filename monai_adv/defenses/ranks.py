"""What the ranks of a distributed training have to agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` holds on some rank: ranks must agree on the passes that synchronise gradients."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    total = torch.tensor(float(flag), device=device)
    dist.all_reduce(total)
    return bool(total > 0)
