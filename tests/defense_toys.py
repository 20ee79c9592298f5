"""Small networks and batches on which every defence of the registry is put to the test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv.defenses import METHODS, Batch, Defense
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask, SegmentationSettings, SegmentationTask

SAMPLES = 12
BATCH = 6
KINDS = ("2 classes", "9 classes", "segmentation 2D", "segmentation 3D")

SHORT: dict[str, Any] = {"eps": 0.2, "steps": 2, "searches": 2}
"""Settings of every method that has them."""

OWN: dict[str, dict[str, Any]] = {
    "cat": {"lesson_threshold": 0.0},
    "dat": {"c_epochs": 3},
    "ates": {"ramp_epochs": 3},
    "fat": {"tau_epochs": "1"},
    "freeat": {"replays": 2},
    "fgsmrs": {"watch_every": 2},
    "fgsmsdi": {"generator_every": 2},
    "gairat": {"burn_in": 1},
    "iaat": {"warmup_epochs": 1},
    "te": {"ramp_start": 0, "ramp_end": 2},
}
"""Settings of single methods, so that what makes them special happens within a few steps of the toys."""


def task_name(kind: str) -> Any:
    """The registry's name of a kind's task."""
    return "classification" if "classes" in kind else "segmentation"


def cases() -> list[tuple[str, str]]:
    """Every method with every kind of problem that it has a meaning for."""
    return [(key, kind) for key, method in METHODS.items() for kind in KINDS if task_name(kind) not in method.not_for]


class Classifier(nn.Module):
    """Convolution, BatchNorm, pooling, linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3))
        self.head = nn.Linear(6 * 3 * 3, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(x).relu(), 3).flatten(1))


class Segmenter(nn.Module):
    """Full and half resolution outputs, as under deep supervision."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.body = nn.Sequential(conv(1, 6, 3, padding=1), norm(6), nn.LeakyReLU())
        self.fine, self.coarse = conv(6, 3, 1), conv(6, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.body(x)
        return [self.fine(features), self.coarse(features)]


@dataclass
class Toy:
    """A problem: network, task, and all its samples."""

    network: nn.Module
    task: Any
    images: Tensor
    target: Any

    def batch(self, ids: Tensor) -> Batch:
        """The samples with these ids."""
        target = [t[ids] for t in self.target] if isinstance(self.target, list) else self.target[ids]
        return Batch(self.images[ids], target, ids)

    def defense(self, key: str, **settings: Any) -> Defense:
        """The method, bound and attached as a host does it."""
        method = METHODS[key]
        names = {f.name for f in dataclasses.fields(method.settings)}
        given = {k: v for k, v in {**SHORT, **OWN.get(key, {}), **settings}.items() if k in names}
        defense = method.defense(self.task, method.settings(**given))
        defense.bind(SampleIds({"train": SAMPLES}), "cpu")
        return defense


def toy(kind: str, key: str, dtype: torch.dtype = torch.float32) -> Toy:
    """The problem of a kind, the same every time; the network as the method wants it."""
    torch.manual_seed(0)
    if task_name(kind) == "classification":
        classes = int(kind.split()[0])
        network: nn.Module = Classifier(classes)
        task: Any = ClassificationTask()
        target: Any = torch.arange(SAMPLES) % classes
        images = torch.randn(SAMPLES, 1, 8, 8) + target.view(-1, 1, 1, 1) / classes
    else:
        dims = int(kind[-2])
        network = Segmenter(dims)
        labels = torch.zeros(SAMPLES, 1, *[8] * dims, dtype=torch.long)
        labels[:, :, 2:6, 2:6] = 1
        labels[:, :, 4:7, 4:7] = 2
        images = labels + 0.3 * torch.randn(labels.shape)
        target = [labels, labels[(..., *[slice(None, None, 2)] * dims)]]
        task = SegmentationTask(deep_supervision_loss, SegmentationSettings(threshold=0.05))
    network = METHODS[key].defense.prepare(network.to(dtype))
    return Toy(network, task, images.to(dtype), target)


def deep_supervision_loss(output: Any, target: Any) -> Tensor:
    """Mean cross-entropy, the half resolution at half weight."""
    losses = [F.cross_entropy(o, t[:, 0]) for o, t in zip(output, target, strict=True)]
    return (2 * losses[0] + losses[1]) / 3


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, so that a resume has something to lose."""
    return torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)


def step(defense: Defense, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> list[float]:
    """One step as a host makes it; the losses of its parts."""
    losses, updated = [], False
    optimizer.zero_grad()
    for part in defense.losses(network, batch):
        part.loss.backward()
        losses.append(part.loss.item())
        updated = part.update
        if updated:
            optimizer.step()
            optimizer.zero_grad()
    if not updated:
        optimizer.step()
    return losses


def batches(epochs: int, seed: int = 1) -> Iterator[tuple[int, list[Tensor]]]:
    """Epochs of shuffled ids."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(SAMPLES, generator=generator)
        yield epoch, [order[:BATCH], order[BATCH:]]
