"""Two gloo processes train as one: same margins, same weights, no rank left waiting."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_adv.defenses import Batch
from monai_adv.defenses.ima import IMA, IMASettings
from monai_adv.defenses.mma import MMA, MMASettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask
from tests.conftest import LinearTask
from tests.line_classifier import Line, ones

STEPS = 4


class Twice(nn.Module):
    """A small non-linear network with one score."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = Twice()
    images = torch.randn(8, 6, dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    # Rank 1 sees samples 4 to 7. They start out wrong, so that at first only rank 0 has something to attack.
    target[4:] *= -1
    return network, images, target


def defense(**settings: object) -> IMA:
    ima = IMA(LinearTask(), IMASettings(**{"eps": 0.5, "delta": 0.1, "unit": "norm", "steps": 5, **settings}))  # type: ignore[arg-type]
    ima.bind(SampleIds({"train": 8}), "cpu")
    return ima


def steps(network: nn.Module, ima: IMA, images: Tensor, target: Tensor, ids: Tensor) -> dict[str, float]:
    optimiser = torch.optim.SGD(network.parameters(), 0.3)
    for _ in range(STEPS):
        optimiser.zero_grad()
        for part in ima.losses(network, Batch(images, target, ids)):
            part.loss.backward()
        optimiser.step()
    return ima.on_epoch_end()


def worker(rank: int, port: int, folder: str, repeated: bool, settings: dict[str, object]) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    network, images, target = problem()
    ids = torch.arange(8)[rank * 4 : rank * 4 + 4]
    if repeated:  # both ranks draw sample 0
        ids = ids.clone()
        ids[0] = 0
    ima = defense(**settings)
    figures = steps(DistributedDataParallel(network), ima, images[ids], target[ids], ids)
    torch.save((ima.margins.values, list(network.parameters()), figures), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder: Path, work: Any, *arguments: Any) -> list[Any]:
    """What each rank has saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, str(folder), *arguments), nprocs=2, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("repeated", "settings"),
    [(False, {}), (True, {}), (False, {"algorithm": 2, "margin_update": "epoch", "margin_rule": "always_shrink"})],
)
def test_two_ranks_equal_one_process(tmp_path: Path, repeated: bool, settings: dict[str, object]) -> None:
    (margins, weights, figures), (other_margins, other_weights, other_figures) = on_two_ranks(
        tmp_path, worker, repeated, settings
    )
    assert torch.equal(margins, other_margins)
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert figures == other_figures

    network, images, target = problem()
    ids = torch.tensor([0, 1, 2, 3, 0, 5, 6, 7]) if repeated else torch.arange(8)
    ima = defense(**settings)
    alone = steps(network, ima, images[ids], target[ids], ids)
    torch.testing.assert_close(margins, ima.margins.values)
    for mine, theirs in zip(network.parameters(), weights, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert figures["attacked"] == pytest.approx(alone["attacked"])
    assert figures["margin_mean"] == pytest.approx(alone["margin_mean"])
    assert 0 < figures["attacked"] < 1
    assert (margins[4 + repeated :] >= 0.1).all()


def boundary(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mma = MMA(ClassificationTask(), MMASettings(eps=1.0, unit="norm", mineps=0.25, start="clean", searches=40))
    mma.bind(SampleIds({"train": 4}), "cpu")
    batch = (ones(0.375, 3.0), ones(-1.0, -2.0))[rank]
    network = DistributedDataParallel(Line())
    for part in mma.losses(network, Batch(batch.images, batch.target, torch.arange(2) + 2 * rank)):
        part.loss.backward()
    torch.save((mma.margins.values, mma.on_epoch_end()), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_rank_that_attacks_nothing_counts_its_samples(tmp_path: Path) -> None:
    """Of 0.375, 3, -1 and -2 with eps 1 two are right and attacked, and one of the four reaches the boundary."""
    for margins, figures in on_two_ranks(tmp_path, boundary):
        torch.testing.assert_close(margins, torch.tensor([0.375, 1.05, 0.0, 0.0]))
        assert {name: figures[name] for name in ("attacked", "crossed", "clean_right")} == {
            "attacked": 0.5, "crossed": 0.25, "clean_right": 0.5,
        }  # fmt: skip
