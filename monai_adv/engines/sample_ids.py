"""Which training sample is which, in a shuffled, cached, cropped, distributed MONAI batch.

A defence that keeps a number for each sample needs a stable id. In this order:

1. ``batch["index"]``: put there by the data list, ``{"image": ..., "label": ..., "index": 7}``.
2. the position of the item in the data set, which the trainer writes into each item; where the data list names files,
   a sample is called by its file, so that its number survives a longer list or a moved folder.
3. ``batch["image"].meta["filename_or_obj"]``, looked up among the files of the data list, where positions say nothing
   that lasts (:func:`~monai_adv.engines.numbering.numbered`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os.path import abspath, commonpath, expanduser
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from monai.utils.enums import CommonKeys
from torch import Tensor

from monai_adv.engines.numbering import POSITION, Numbered, items_of
from monai_adv.errors import InputError
from monai_adv.sample_state import SampleIds

V = TypeVar("V", int, str)

HOW = "add 'index': i to every item of the training data list (monai_adv.engines.indexed does that, docs/monai.md)"


def indexed(items: Iterable[Mapping[str, Any]], key: str = "index") -> list[dict[str, Any]]:
    """A data list whose items know their position in it.

    Example:
        >>> indexed([{"image": "a.nii.gz"}, {"image": "b.nii.gz"}])
        [{'image': 'a.nii.gz', 'index': 0}, {'image': 'b.nii.gz', 'index': 1}]
    """
    return [{**item, key: i} for i, item in enumerate(items)]


def data_list(loader: Any) -> Sequence[Any] | None:
    """The items behind a loader, before any transform; ``None`` where they cannot be seen."""
    dataset: Any = getattr(loader, "dataset", None)
    while hasattr(dataset, "dataset"):  # torch's Subset
        dataset = dataset.dataset
    items = getattr(dataset, "data", dataset)
    return items if isinstance(items, Sequence) and len(items) > 0 and not isinstance(items, str) else None


class BatchIds:
    """The ids of a batch's samples.

    Args:
        loader: of the training; its data list says how many samples there are. Under ``torch.distributed`` every rank
            makes this object at the same time, because data may be partitioned over the ranks.
        key: where a batch has the positions.
        num_samples: number of samples where no data list says it.
        owner: the method, for messages.

    Attributes:
        announced: the samples.
        source: in words, for the log.

    Raises:
        InputError: the number of samples is not known.
    """

    def __init__(self, loader: Any, key: str, num_samples: int | None, owner: str) -> None:
        self.key, self.owner = key, owner
        self._files: dict[str, str] | None = None
        """File -> name, where a sample is called by its file."""
        self._members: list[tuple[str, int]] | None = None
        """Position -> group and member, where items are numbered."""
        items = data_list(loader)
        first = items[0] if items is not None else None
        if items is not None and isinstance(first, Mapping) and key in first:
            self._announce(num_samples or _largest(int(item[key]) for item in items) + 1)
            return
        dataset = getattr(loader, "dataset", None)
        if num_samples is None and isinstance(dataset, Numbered):
            self._number(items_of(dataset), len(dataset))
        elif num_samples is None and items is not None and isinstance(first, Mapping) and _file(first):
            self._files = _short_names(_gathered({_file(item) for item in items}))
            self.announced = SampleIds(dict.fromkeys(self._files.values(), 1))
            self.source = f"file names, {len(self._files)} files in {len(items)} items of the data list"
        else:
            self._announce(num_samples or _length(loader))

    def _announce(self, count: int) -> None:
        """Samples under ``batch[key]``."""
        if count < 1:
            raise InputError.of(
                "num_samples", None, "the number of training samples, because the data loader does not tell it",
                f"{self.owner} keeps a number for each; give num_samples and {HOW}",
            )  # fmt: skip
        self.announced = SampleIds({"train": count})
        self.source = f"positions under {self.key!r}, {count} samples"

    def _number(self, items: Sequence[Any] | None, count: int) -> None:
        """Samples by their position in the data set, called by their files if they have some."""
        if count < 1:
            raise InputError.of("train_data_loader", "no samples", "at least one")
        files = [_file(item) if isinstance(item, Mapping) else "" for item in items or ()]
        if not files or not all(files):
            self._members = [("train", i) for i in range(count)]
            self.announced = SampleIds({"train": count})
            self.source = f"positions in the data set, {count} samples"
            return
        self._files = _short_names(_gathered(set(files)))
        seen: Counter[str] = Counter()
        self._members = []
        for file in files:
            self._members.append((self._files[file], seen[file]))
            seen[file] += 1
        self.announced = SampleIds({self._files[file]: number for file, number in seen.items()})
        self.source = f"positions in the data list, {len(files)} samples in {len(seen)} files"

    def of(self, batch: Any) -> Tensor:
        """``(B,)`` int64, on the CPU.

        Raises:
            InputError: the batch does not say which samples it has, or has others than the data list.
        """
        if self._members is not None:
            return self._from_positions(batch)
        if self._files is not None:
            return self._from_names(batch)
        values = batch.get(self.key) if isinstance(batch, Mapping) else None
        if values is None:
            raise self._unknown(batch, self.key)
        index = torch.as_tensor(values).cpu()
        if index.is_floating_point() or index.ndim > 2 or index.numel() != len(index):
            raise InputError.of(f"batch[{self.key!r}]", f"{index.dtype} {tuple(index.shape)}", "whole numbers (B,)")
        index = index.reshape(-1).long()
        count = len(self.announced)
        if bool(((index < 0) | (index >= count)).any()):
            raise InputError.of(
                f"batch[{self.key!r}]", index.tolist(), f"positions from 0 to {count - 1}",
                f"{count} samples were announced at the start; give num_samples if there are more",
            )  # fmt: skip
        return index

    def _from_positions(self, batch: Any) -> Tensor:
        """A data set may hand out another item than that of the position it was asked for: then its file counts.

        Raises:
            InputError: a file that the data list does not have.
        """
        assert self._members is not None
        values = batch.get(POSITION) if isinstance(batch, Mapping) else None
        if values is None:
            raise self._unknown(batch, POSITION)
        members = [self._members[int(i)] for i in torch.as_tensor(values).reshape(-1).tolist()]
        files = _file_names(batch)
        if self._files is not None and files is not None and len(files) == len(members):
            for i, name in enumerate(self._names(files)):
                if name != members[i][0]:
                    members[i] = (name, 0)
        return self.announced.index(*zip(*members, strict=True))

    def _from_names(self, batch: Any) -> Tensor:
        assert self._files is not None
        names = _file_names(batch)
        if names is None:
            raise InputError.of(
                "batch", "images without file names", f"file names in their meta data, or {self.key!r}",
                f"{self.owner} keeps a number for each training sample; {HOW}",
            )  # fmt: skip
        return self.announced.index(self._names(names), [0] * len(names))

    def _names(self, files: Sequence[str]) -> list[str]:
        assert self._files is not None
        unknown = [file for file in files if _path(file) not in self._files]
        if unknown:
            raise InputError.of(
                "batch", unknown[0], f"one of the {len(self._files)} files of the data list",
                f"to tell samples apart without their file names, {HOW}",
            )  # fmt: skip
        return [self._files[_path(file)] for file in files]

    def _unknown(self, batch: Any, key: str) -> InputError:
        keys = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        return InputError.of(
            "batch", keys, f"a dictionary with {key!r}",
            f"{self.owner} keeps a number for each training sample; {HOW}",
        )  # fmt: skip


def _file_names(batch: Any) -> Sequence[str] | None:
    """In the meta data of a batch's images."""
    image = batch.get(CommonKeys.IMAGE) if isinstance(batch, Mapping) else None
    names = getattr(image, "meta", {}).get("filename_or_obj")
    known = isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(n, str | Path) for n in names)
    return names if known else None


def _file(item: Mapping[str, Any]) -> str:
    """The item's first image file; empty if it has none."""
    image = item.get(CommonKeys.IMAGE)
    if isinstance(image, list | tuple) and image:
        image = image[0]
    return _path(image) if isinstance(image, str | Path) else ""


def _path(name: str | Path) -> str:
    return abspath(expanduser(name))


def _short_names(files: list[str]) -> dict[str, str]:
    """File -> its name below the folder that all share: a checkpoint must survive a move of the data."""
    root = commonpath({str(Path(file).parent) for file in files})
    return {file: Path(file).relative_to(root).as_posix() for file in sorted(files)}


def _length(loader: Any) -> int:
    try:
        return _largest([len(loader.dataset) - 1]) + 1
    except (AttributeError, TypeError):
        return 0


def _gathered(values: set[V]) -> list[V]:
    """Those of all ranks, sorted."""
    if not (dist.is_available() and dist.is_initialized()):
        return sorted(values)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, values)
    return sorted(set().union(*everywhere))


def _largest(values: Iterable[int]) -> int:
    return _gathered({max(values)})[-1]
