"""Tiny bundles: eight images of known distance to the boundary, real MONAI loaders, engines, handlers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.losses import DiceCELoss
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_adv.defenses.ranks import largest_of_ranks
from monai_adv.engines import IMATrainer, RobustMetric
from monai_adv.errors import InputError

COUNT = 8
SIZE = 4
MARGINS = {"eps": 1.0, "delta": 0.125, "unit": "norm", "steps": 4, "searches": 2}
"""Exact in binary: a sample far from the boundary grows by 0.125 at every visit."""
OFF = {"eps": 0, "delta": 0}


def images(seed: int = 0) -> Tensor:
    """``(8, 1, 4, 4)``: samples 0 to 3 are class 0, samples 4 to 7 class 1."""
    return torch.randn(COUNT, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def class_list(strength: float = 1.0, index: bool = True, labels: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """A data list for classification: noise plus ``strength`` times the class's sign in every voxel."""
    classes = labels or [int(i >= COUNT // 2) for i in range(COUNT)]
    items = [{"image": x + strength * (2 * c - 1), "label": c} for x, c in zip(images(), classes, strict=True)]
    return [{**item, "index": i} for i, item in enumerate(items)] if index else items


def segment_list(index: bool = True) -> list[dict[str, Any]]:
    """A data list for segmentation: foreground where the image is above 0."""
    items: list[dict[str, Any]] = [{"image": x, "label": (x > 0).float()} for x in images()]
    return [{**item, "index": i} for i, item in enumerate(items)] if index else items


def file_list(folder: Path, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same with image files."""
    listed = []
    for i, item in enumerate(items):
        file = folder / f"image_{i}.npy"
        np.save(file, item["image"].numpy())
        listed.append({**item, "image": str(file)})
    return listed


def load_files() -> Compose:
    return Compose([LoadImaged("image", image_only=True), EnsureChannelFirstd("image", channel_dim=0)])


def keep_meta() -> Compose:
    return Compose([EnsureTyped("image", track_meta=True)])


class Classifier(nn.Module):
    """Class 1 when the mean of the image is above 0: far from the boundary when the classes are far apart."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.head = nn.Linear(SIZE * SIZE, heads)
        with torch.no_grad():
            signs = torch.tensor([[-1.0], [1.0]]) if heads == 2 else torch.ones(heads, 1)
            self.head.weight.copy_(signs.expand(heads, SIZE * SIZE) / SIZE**2)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def noisy_classifier() -> nn.Module:
    """With everything that could make two runs differ: batch statistics and dropout."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * SIZE * SIZE, 2),
    )  # fmt: skip


def segmenter(heads: int = 2) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, heads, 1)
    )


def dice_loss() -> nn.Module:
    return DiceCELoss(to_onehot_y=True, softmax=True)


def loader(data: Any, batch_size: int = 4, *, shuffle: bool = False, transform: Any = None, **given: Any) -> DataLoader:
    """Shuffled the same way each time, an epoch's order by its number."""
    dataset = Dataset(data, transform) if isinstance(data, list) else data
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=shuffle)
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=0, **given)


def trainer(
    cls: type[SupervisedTrainer],
    data: Any,
    network: nn.Module | None = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    epochs: int = 1,
    lr: float = 0.1,
    optimizer: torch.optim.Optimizer | None = None,
    **given: Any,
) -> Any:
    network = Classifier() if network is None else network
    if given.get("accumulation_steps") == 1:  # the default, which MONAI before 1.6 does not know
        del given["accumulation_steps"]
    return cls(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=data if isinstance(data, DataLoader) else loader(data),
        network=network,
        optimizer=optimizer or torch.optim.SGD(network.parameters(), lr, momentum=0.9),
        loss_function=loss or nn.CrossEntropyLoss(),
        **given,
    )


def evaluator(network: nn.Module, data: Any, metric: RobustMetric, **given: Any) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data if isinstance(data, DataLoader) else loader(data),
        network=network,
        key_val_metric={"robust": metric},
        **given,
    )


def weights(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)


DDP_SETTINGS = {"eps": 1.0, "delta": 0.25, "unit": "norm", "steps": 5}


def ddp_worker(rank: int, port: int, folder: str) -> None:
    """Two ranks, two samples each per step: the same as one process with batches of four."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = class_list(0.3)
    dataset = Dataset(data)
    batches = DataLoader(dataset, batch_size=2, sampler=DistributedSampler(dataset, shuffle=False), num_workers=0)
    network = DistributedDataParallel(Classifier())
    metric = RobustMetric(eps=1.0, unit="norm")
    engine = trainer(IMATrainer, batches, network, epochs=2, settings=DDP_SETTINGS, state=f"{folder}/state.pt")
    engine.run()
    validation = evaluator(network, batches, metric)
    validation.run()

    # Data partitioned over the ranks: ids are still positions in the full list, or file names.
    part = data[rank::2]
    positions = trainer(IMATrainer, part)
    names = trainer(IMATrainer, [{"image": f"{item['index']}.npy", "label": item["label"]} for item in part])
    # A checkpoint that rank 1 did not load.
    apart = DistributedDataParallel(Classifier())
    with torch.no_grad():
        next(apart.parameters()).add_(0.5 * rank)
    try:
        trainer(IMATrainer, batches, apart).run()
        refusal = "none"
    except InputError as error:
        refusal = str(error)
    torch.save(
        {
            "refusal": refusal,
            "network": network.module.state_dict(),
            "margins": engine.defense.margins.values,
            "metrics": engine.state.metrics,
            "robust": validation.state.metrics["robust"],
            "largest": largest_of_ranks(rank / 3, torch.device("cpu")),
            "announced": [len(e.defense.margins.ids) for e in (positions, names)],
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()
