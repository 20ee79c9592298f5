"""Items that say their position in the training list, whatever transforms, caches, workers and shuffling do to them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from monai.data.dataset import SmartCacheDataset
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset

POSITION = "monai_adv_position"
"""Key of an item's position in the data set; crops of an item share it."""


class Numbered(Dataset[Any]):
    """A data set whose items know their position in it.

    Example:
        >>> Numbered([{"image": 0.5}, {"image": 0.25}])[1]
        {'image': 0.25, 'monai_adv_position': 1}
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return _marked(self.dataset[position], position)

    def __getattr__(self, name: str) -> Any:
        # Not those with underscores: torch fetches whole batches past us where a data set has __getitems__.
        if name.startswith("_") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)


def numbered(loader: Any) -> Any:
    """The same loader with numbered items; ``None`` where positions say nothing that lasts.

    So it is for iterable data sets, for a SmartCacheDataset, whose positions change their meaning, and for ranks that
    each have a data set of their own.
    """
    if not isinstance(loader, DataLoader) or loader.dataset is None:
        return None
    dataset = loader.dataset
    if isinstance(dataset, Numbered):
        return loader
    if isinstance(_innermost(dataset), IterableDataset | SmartCacheDataset) or not hasattr(dataset, "__len__"):
        return None
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks > 1 and not (isinstance(loader.sampler, DistributedSampler) and loader.sampler.num_replicas == ranks):
        return None
    result = copy.copy(loader)
    vars(result)["dataset"] = Numbered(dataset)  # torch refuses to change it, because a sampler may be made for another
    if getattr(result, "_iterator", None) is not None:
        vars(result)["_iterator"] = None  # workers that live on have the old one
    return result


def items_of(dataset: Any) -> Sequence[Any] | None:
    """The items behind the positions of a data set, before any transform; ``None`` where they cannot be seen."""
    if isinstance(dataset, Numbered):
        return items_of(dataset.dataset)
    if isinstance(dataset, Subset):
        items = items_of(dataset.dataset)
        return None if items is None else [items[i] for i in dataset.indices]
    items = dataset if isinstance(dataset, list) else getattr(dataset, "data", None)
    if not isinstance(items, Sequence) or isinstance(items, str) or not hasattr(dataset, "__len__"):
        return None
    return items if len(items) == len(dataset) > 0 else None


def _innermost(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _marked(item: Any, position: int) -> Any:
    """With its position; the crops of an item are a list."""
    if isinstance(item, Mapping):
        return {**item, POSITION: position}
    if isinstance(item, list):
        return [_marked(part, position) for part in item]
    return item
