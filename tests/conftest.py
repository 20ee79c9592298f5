"""Shared toys whose answers are known in closed form."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from monai.utils.misc import set_determinism
from torch import Tensor, nn

from monai_adv.tasks import Points
from tests.processes import use_server

# A shared machine makes single examples slow; how long one takes says nothing about whether it is right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

use_server()


class LinearTask:
    """A task on scalar scores: the network gives ``(B, 1)``; a sample is right while its score is above 0."""

    lowest_margin = -torch.inf

    def check(self, output: Tensor, target: Tensor) -> None:
        """Any number may be a target."""

    def training_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -(output[:, 0] * target).mean()

    def sample_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -output[:, 0] * target

    def margin(self, output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] * target).detach()

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        return self.margin(output, target) > 0

    def points(self, output: Tensor, target: Tensor) -> Points:
        """Class 1 wins while the score has the target's sign."""
        logits = torch.cat([torch.zeros_like(output), output * target[:, None]], 1)[:, :, None]
        labels = torch.ones_like(target, dtype=torch.long)[:, None]
        return Points(logits, labels, torch.ones_like(labels, dtype=torch.bool))

    def scorable(self, target: Tensor) -> Tensor:
        return torch.ones_like(target, dtype=torch.bool)


class LinearNetwork(nn.Module):
    """``f(x) = <w, x> + b`` for inputs of any rank: the distance to its boundary is |f(x)| / ||w||."""

    def __init__(
        self, shape: tuple[int, ...], seed: int = 0, bias: float = 0.0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1, keepdim=True) + self.bias


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own MONAI_ADV_* variables must not change the tests."""
    for name in list(os.environ):
        if name.startswith("MONAI_ADV_") and name != "MONAI_ADV_NO_DISCOVERY":
            monkeypatch.delenv(name)


@pytest.fixture
def forget_seed() -> Iterator[None]:
    """Bundles call set_determinism, which outlives them."""
    yield
    set_determinism(None)
