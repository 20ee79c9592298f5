"""The few functions through which attacks and defences see a task."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

Output = Tensor | list[Tensor] | tuple[Tensor, ...]
"""What a network returns: a tensor, or one tensor per resolution under deep supervision (full resolution first)."""

Target = Tensor | list[Tensor] | tuple[Tensor, ...]
"""The ground truth in the same layout as the output."""

T = TypeVar("T", Tensor, Output)


class Task(Protocol):
    """What *right* means: classification, segmentation, ... Every method is per sample except ``training_loss``."""

    def training_loss(self, output: Output, target: Target) -> Tensor:
        """Scalar: the loss that the host trains with, unchanged (it may couple the samples of a batch)."""

    def sample_loss(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` differentiable loss that an attack raises; sample *i* depends on sample *i* only."""

    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` signed distance of the score from its threshold, without gradient; larger is better."""

    def correct(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` bool: is the output right?"""

    def scorable(self, target: Target) -> Tensor:
        """``(B,)`` bool: can right and wrong be told for this target at all?"""


def take(values: T, index: Tensor) -> T:
    """The samples ``index`` of a tensor or of every tensor in a list."""
    if isinstance(values, Tensor):
        return values[index]
    return [v[index] for v in values]
