"""Whether a network computes the same in both modes: a table of layers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from monai_adv.network_state import Mode, computes_as_in


class DropPath(nn.Module):
    """A layer of a user's own that asks for its mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1) if self.training else x


class Plain(nn.Module):
    """One that does not."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("layer", "depends"),
    [
        (nn.BatchNorm2d(2), True),
        (nn.SyncBatchNorm(2), True),
        (nn.BatchNorm2d(2, track_running_stats=False), False),
        (nn.InstanceNorm3d(2), False),
        (nn.InstanceNorm3d(2, track_running_stats=True), True),
        (nn.GroupNorm(1, 2), False),
        (nn.Dropout3d(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.AlphaDropout(0.1), True),
        (nn.RReLU(), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.TransformerEncoderLayer(4, 2, dropout=0.1), True),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), True),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.LeakyReLU(), nn.MaxPool2d(2)), False),
        (DropPath(), True),
        (Plain(), False),
    ],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_layers_that_depend_on_their_mode(layer: nn.Module, depends: bool, mode: Mode) -> None:
    network = nn.Sequential(Plain(), nn.Sequential(layer))
    assert computes_as_in(network.train(mode == "train"), mode)
    assert computes_as_in(network.train(mode != "train"), mode) == (not depends)
    compiled = torch.compile(network, backend="eager")
    assert computes_as_in(compiled, mode) == (not depends)


def test_batch_norm_that_somebody_froze_agrees_with_eval_mode() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    network[1].eval()
    assert computes_as_in(network, "eval")
    assert not computes_as_in(network, "train")  # an attack in train mode thaws it


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults of the C library of Linux")
def test_freed_memory_is_kept() -> None:
    """12 layers' outputs of 1 MiB, freed together: 3072 pages that would fault in again in each of 20 rounds."""
    code = """
import resource, torch
from torch import nn
from monai_adv.network_state import frozen

with frozen(nn.Linear(1, 1)):
    pass
for round in range(25):
    if round == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    outputs = [torch.ones(2**18) for _ in range(12)]
    del outputs
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(found.stdout) < 1000
