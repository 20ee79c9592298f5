"""docs/lightning.md: its module trains as a plain loop does, and goes on from Lightning's checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from monai_adv.defenses import METHODS, Batch, Defense
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask
from tests.places import ROOT

lightning = pytest.importorskip("lightning", reason="lightning is not installed")

PAGE = ROOT / "docs" / "lightning.md"
SAMPLES = 12
KINDS = ("SAT", "IMA", "FreeAT", "LBGAT", "CAT")
"""Nothing remembered; a margin per sample; several updates per batch; a second network; feedback at an epoch's end."""
pytestmark = pytest.mark.filterwarnings("ignore:.*dataloader.*does not have many workers", "ignore:.*logging interval")


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def module(network: nn.Module, defense: Defense) -> Any:
    """The page's module."""
    names: dict[str, Any] = {}
    exec(blocks()[0], names)
    return names["RobustModule"](network, defense, SAMPLES)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % 2
    images = 0.7 * torch.rand(SAMPLES, 1, 4, 4, generator=generator) + 0.3 * labels[:, None, None, None]
    return TensorDataset(images, labels, torch.arange(SAMPLES))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def defense(name: str) -> Defense:
    cls = METHODS[name.lower()].defense
    return cls(ClassificationTask(), cls.settings_class(norm="linf", eps=0.05))


def trainer(folder: Path, epochs: int, **given: Any) -> Any:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, num_sanity_val_steps=0, **given,
    )  # fmt: skip


def plain_loop(trained: nn.Module, method: Defense, epochs: int, shuffle: bool = False) -> nn.Module:
    """The loop of docs/own_loop.md; a batch of all samples if they are shuffled."""
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    method.bind(SampleIds({"train": SAMPLES}), "cpu")
    method.attach(trained, optimizer)
    for epoch in range(epochs):
        trained.train()
        method.on_epoch_start(epoch, epochs)
        for images, targets, ids in DataLoader(data(), batch_size=SAMPLES if shuffle else 4, shuffle=shuffle):
            optimizer.zero_grad()
            for part in method.losses(trained, Batch(images, targets, ids)):
                part.loss.backward()
                if part.update:
                    optimizer.step()
                    optimizer.zero_grad()
            optimizer.step()
        method.on_epoch_end()
    return trained


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_those_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    expected = plain_loop(network(), defense(name), epochs=2)
    trained = network()
    trainer(tmp_path, 2, enable_checkpointing=False).fit(
        module(trained, defense(name)), DataLoader(data(), batch_size=4)
    )
    assert same(trained, expected)
    assert not same(trained, network())


def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """IMA's margins and the stream of random numbers are in Lightning's checkpoint."""
    expected = plain_loop(network(), defense("IMA"), epochs=3)
    first = trainer(tmp_path, 1)
    first.fit(module(network(), defense("IMA")), DataLoader(data(), batch_size=4))
    file = tmp_path / "stopped.ckpt"
    first.save_checkpoint(file)
    trained = network()
    trainer(tmp_path, 3).fit(module(trained, defense("IMA")), DataLoader(data(), batch_size=4), ckpt_path=file)
    assert same(trained, expected)


def test_the_example_of_the_page_is_that_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its settings, and the order of the samples drawn from the same seed."""
    monkeypatch.chdir(tmp_path)
    trained = network()
    names: dict[str, Any] = {"network": trained, "data": data()}
    exec(blocks()[0], names)
    torch.manual_seed(1)
    exec(blocks()[1].replace("max_epochs=10", "max_epochs=1, accelerator='cpu', logger=False"), names)
    settings = SATSettings(norm="linf", eps=8 / 255, box=(0, 1))
    start = network()
    torch.manual_seed(1)
    expected = plain_loop(start, SAT(ClassificationTask(), settings), epochs=1, shuffle=True)
    assert same(trained, expected)
