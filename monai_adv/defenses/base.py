"""What every defence offers to every host.

A training step of a host reads, whatever the method::

    optimizer.zero_grad()
    for part in defense.losses(network, batch):
        part.loss.backward()          # at once: its graph is freed before the next part is built
        if part.update:
            optimizer.step(); optimizer.zero_grad()
    optimizer.step()

Handing out the loss in parts is what keeps the peak memory of adversarial training at that of a clean step: the clean
graph is gone before the attack starts. See docs/engine.md for how each kind of method fits in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_adv.sample_state import SampleIds
from monai_adv.statistics import Statistics
from monai_adv.tasks.base import Output, Target


@dataclass(frozen=True)
class Batch:
    """A clean batch.

    Attributes:
        images: ``(B, C, *spatial)``.
        target: in the task's layout.
        ids: ``(B,)`` int64 indices of the samples, see :class:`~monai_adv.sample_state.SampleIds`.
    """

    images: Tensor
    target: Target
    ids: Tensor


@dataclass(frozen=True)
class LossPart:
    """A summand of the batch's loss; the host calls ``backward`` on it at once.

    Attributes:
        loss: scalar with a graph; the parts of a batch add up to its training loss.
        output: the network's output on the clean images, detached, where this part made one (hosts use it for metrics).
        update: the host makes a weight update after this part and goes on (methods with several updates per batch).
    """

    loss: Tensor
    output: Output | None = None
    update: bool = False


class Defense(ABC):
    """Base of all defences.

    A defence knows neither its host nor whether it runs in 2D or 3D, on one GPU or many. Under ``torch.distributed`` it
    yields the same number of parts on every rank.
    """

    def __init__(self) -> None:
        self.statistics = Statistics()

    @abstractmethod
    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """Yield the parts of the training loss; the training forwards go through ``network`` as given (DDP wrapper)."""

    def __call__(self, network: nn.Module, images: Tensor, target: Target, ids: Tensor) -> Tensor:
        """The whole loss at once, for a loop of one's own: simple, but it keeps all graphs in memory.

        Example:
            ``defense(network, images, target, ids).backward()``
        """
        return torch.stack([part.loss for part in self.losses(network, Batch(images, target, ids))]).sum()

    def bind(self, ids: SampleIds, device: torch.device | str) -> None:  # noqa: B027  (optional hook)
        """Announce the training samples before the first step."""

    def on_epoch_start(self, epoch: int) -> None:  # noqa: B027  (optional hook)
        """Called before the first step of an epoch (ramps, burn-in)."""

    def on_epoch_end(self) -> dict[str, float]:
        """Called after the last step of an epoch on every rank; returns the epoch's figures for the log."""
        return self.statistics.summary()

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, strings and numbers."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:  # noqa: B027  (optional hook)
        """Restore what :meth:`state_dict` gave, or raise before anything is changed."""


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` holds on some rank: ranks must agree on the passes that synchronise gradients."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    total = torch.tensor(float(flag), device=device)
    dist.all_reduce(total)
    return bool(total > 0)
