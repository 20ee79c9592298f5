"""The code of docs/own_loop.md and of docs/methods/README.md runs, and does what the pages say."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from monai_adv import InputError
from monai_adv.defenses import METHODS, Defense
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask
from tests import defense_toys as toys
from tests.places import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "own_loop.md").read_text()
(ONE_LINE,) = re.findall(r"```python\n(.*?)```", (DOCS / "methods" / "README.md").read_text(), re.DOTALL)
LOOP, PRESET, SEGMENTATION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
EPOCHS = 2

every_method = pytest.mark.parametrize("key", METHODS)


def images_and_labels() -> tuple[Tensor, Tensor]:
    """Twelve images in [0, 1]: dark ones, label 0, and bright ones, label 1."""
    labels = torch.arange(toys.SAMPLES) % 2
    noise = 0.02 * torch.rand(toys.SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return 0.1 + 0.7 * labels.view(-1, 1, 1, 1) + noise, labels


def classifier() -> nn.Module:
    torch.manual_seed(0)
    network = toys.Classifier(2)
    network.body[0].register_parameter("bias", None)  # BatchNorm takes it away again
    return network


def values(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Parameters, and what they are now."""
    return [(p, p.detach().clone()) for p in network.parameters()]


def names_of(network: nn.Module, lr: float = 0.05) -> dict[str, Any]:
    """What the page's loops take for granted."""
    images, labels = images_and_labels()
    data = TensorDataset(images, labels, torch.arange(len(images)))
    return {
        "network": network, "optimizer": torch.optim.SGD(network.parameters(), lr), "device": "cpu", "epochs": EPOCHS,
        "data": data, "loader": DataLoader(TensorDataset(images, labels), 5),
    }  # fmt: skip


def defense_of(key: str) -> Defense:
    settings = METHODS[key].settings(norm="linf", eps=8 / 255, box=(0, 1))
    return METHODS[key].defense(ClassificationTask(), settings)


def test_one_line() -> None:
    names = names_of(classifier())
    before = values(names["network"])
    exec(ONE_LINE, names)
    assert names["defense"].on_epoch_end()["passes_per_sample"] == 2 * 10 + 7  # the table's 2K + 7
    assert not any(torch.equal(p, value) for p, value in before)


class Brightness(nn.Module):
    """Class 1 where the mean of the image is above 0.45: farther than 0.3 from every image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.head.weight.data = torch.tensor([[-1.0], [1.0]])
        self.head.bias.data = torch.tensor([0.45, -0.45])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1).mean(1, keepdim=True))  # type: ignore[no-any-return]


def test_the_loop_as_it_stands() -> None:
    """No attack crosses the boundary: a margin is eps / 5, and as much more for every visit."""
    names = names_of(Brightness(), lr=0.0)
    exec(LOOP, names)
    margins = names["defense"].margins.values
    torch.testing.assert_close(margins, torch.full_like(margins, (1 + EPOCHS) * 8 / 255 / 5))


@every_method
def test_the_loop_trains_every_method(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One update per batch (Free-AT: one per replay) of everything that is to be trained."""
    text, found = re.subn(r"^defense = .*\n", "", LOOP, flags=re.MULTILINE)
    assert found == 1
    names = names_of(classifier())
    names["defense"] = defense = defense_of(key)
    names["data"] = TensorDataset(*(t[:10] for t in names["data"].tensors))
    monkeypatch.setattr(DataLoader, "__init__", _small_batches(DataLoader.__init__))
    figures: list[dict[str, float]] = []
    names["print"] = figures.append
    updates: list[int] = []
    names["optimizer"].register_step_post_hook(lambda *_: updates.append(1))
    before = values(names["network"])
    exec(text, names)
    replays = getattr(defense.settings, "replays", 1)
    assert len(updates) == EPOCHS * 2 * replays
    assert len(figures) == EPOCHS
    assert all(f["passes_per_sample"] >= 3 for f in figures)
    held = [p for group in names["optimizer"].param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    for parameter in names["network"].parameters():
        assert any(parameter is p for p in held)
        assert parameter.grad is not None or key == "freeat"
    assert not any(torch.equal(p, value) for p, value in before)
    teacher = getattr(defense, "teacher", None)
    if teacher is not None:
        assert all(any(p is q for q in held) for p in teacher.parameters())


def _small_batches(original: Any) -> Any:
    """Two batches of five from ten samples, whatever the page's batch size."""

    def init(self: Any, data: Any, batch_size: int, **given: Any) -> None:
        original(self, data, batch_size=5, **given)

    return init


@every_method
def test_what_is_missing_is_said(key: str) -> None:
    """The page's table: which methods need bind, attach, on_epoch_start, the loop over parts."""
    rows = dict(
        re.findall(r"^\| (`bind`|`attach`|`on_epoch_start`|the loop over parts).*? \| (.*) \|$", PAGE, re.MULTILINE)
    )
    assert len(rows) == 4
    images, labels = images_and_labels()
    name, ids = METHODS[key].name, torch.arange(len(images))

    def error(left_out: str) -> str:
        defense, network = defense_of(key), classifier()
        if left_out != "`bind`":
            defense.bind(SampleIds({"train": len(images)}), "cpu")
        if left_out != "`attach`":
            defense.attach(network)
        if left_out != "`on_epoch_start`":
            defense.on_epoch_start(0, EPOCHS)
        try:
            defense(network, images, labels, ids)
        except InputError as raised:
            return str(raised)
        return ""

    several_updates = name in re.findall(r"\w+", rows["the loop over parts"])
    assert ("updates the weights several times per batch" in error("")) is several_updates
    if several_updates:
        return
    for call, says in (("`bind`", "bind(SampleIds("), ("`attach`", "attach("), ("`on_epoch_start`", "on_epoch_start(")):
        named = name in re.findall(r"\w+", rows[call])
        assert (says in error(call)) is named, call


def test_a_preset() -> None:
    names: dict[str, Any] = {"ClassificationTask": ClassificationTask}
    exec(PRESET, names)
    settings = names["defense"].settings
    assert (settings.eps, settings.beta, settings.steps) == (0.031, 6.0, 7)


def test_segmentation_with_a_loss_of_ones_own() -> None:
    """TRADES adds a divergence, which is never negative, to that loss."""
    names: dict[str, Any] = {}
    exec(PRESET, {"ClassificationTask": ClassificationTask}, names)
    names["ClassificationTask"] = ClassificationTask
    exec(SEGMENTATION, names)
    torch.manual_seed(0)
    network, images = nn.Conv2d(1, 2, 3, padding=1), torch.randn(4, 1, 8, 8)
    maps = (images > 0).float()
    own = names["DiceCELoss"](to_onehot_y=True, softmax=True)(network(images), maps)
    assert 0 < own.item() < names["defense"](network, images, maps).item()
