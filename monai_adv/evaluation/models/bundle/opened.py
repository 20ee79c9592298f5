"""The parts of a bundle that the evaluation needs, however they were made."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data.dataset import Dataset, PersistentDataset
from monai.transforms.transform import RandomizableTransform
from torch import Tensor, nn
from torch.utils.data import Subset

from monai_adv.engines.bundle_rule import Rule
from monai_adv.engines.bundle_task import OTHER_KINDS
from monai_adv.engines.numbering import items_of
from monai_adv.engines.raw_unit import WHY_NOT, dataset_raw_unit, flat
from monai_adv.engines.supported import mask_channels
from monai_adv.errors import InputError, first_cause
from monai_adv.evaluation.models.bundle.item import Item, item_of
from monai_adv.evaluation.models.bundle.varied import AT_FILES, not_applicable, unchanged, varied_dataset
from monai_adv.evaluation.models.plain import PlainModel, code_of, digest_of
from monai_adv.evaluation.models.plain import fingerprint as fingerprint_of
from monai_adv.evaluation.records import Level
from monai_adv.given import Box
from monai_adv.metrics.score import Kind
from monai_adv.network_state import device_of, frozen
from monai_adv.networks.inferer import BundleNetwork
from monai_adv.threats import Threat, in_network_units
from monai_adv.variations.scan import Change, Scan


class OpenBundle:
    """The parts of a bundle that are needed, however they were made.

    Args:
        name: how tables call the model.
        network: with its weights, on its device.
        inferer: of the validation.
        dataset: of validation items with ``image`` and ``label``; its transforms may not be random.
        box: lowest and highest intensity that an attacked image may have.
        channel_names: of the network's output channels; empty: not known.
        absent: what to do about data that are not here, in words.
        rule: how a segmentation's logits become a decision; ``None``: nobody says it, so labels decide.
        background: whether the loss looks at channel 0 as at the others.
        channels: input channels that may be attacked; ``None``: all.
        input_names: what the input channels are, such as "CT", one for each or one for all; empty: not known.

    Raises:
        InputError: parts that are missing or do not fit each other.
    """

    def __init__(
        self,
        name: str,
        network: Any,
        inferer: Callable[..., Any],
        dataset: Any,
        box: Box | None = None,
        channel_names: Sequence[str] = (),
        absent: str = "",
        rule: Rule | None = None,
        background: bool = True,
        channels: tuple[int, ...] | None = None,
        input_names: Sequence[str] = (),
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError.of("network", type(network).__name__, "a torch.nn.Module under network_def or network")
        if not callable(inferer):
            raise InputError.of("inferer", inferer, "a MONAI inferer, or no such key", "it runs the network")
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            allowed = "a data set of items with the keys image and label, with a length and an index"
            raise InputError.of("dataset", dataset, allowed, "an attack needs the truth")
        self.name, self.dataset, self.box = name, _uncached(dataset), box
        self.rule, self.background, self.channels = rule, background, channels
        self.channel_names, self.absent, self.input_names = list(channel_names), absent, tuple(input_names)
        self.network = BundleNetwork(network.eval(), inferer).eval()
        self.trained: Level | None = None
        self._open_data()

    def _open_data(self) -> None:
        count = len(self.dataset)
        rows = items_of(self.dataset) or [{}] * count
        self.problems: list[str] = []
        self._files: dict[str, list[Path]] = {}
        self._place: dict[str, int] = {}
        self._seen: dict[str, list[str]] = {}
        _refuse_random(self.dataset)
        for i, name in enumerate(_item_names(rows)):
            files = [file for key in ("image", "label") for file in _files(rows[i], key)]
            missing = [str(file) for file in files if not file.exists()]
            more = [key for key in rows[i] if key not in ("image", "label")] if isinstance(rows[i], dict) else []
            files += [file for key in more for file in _files(rows[i], key)]  # such as one for each phase
            if missing:
                self.problems.append(f"{name}: there is no {', '.join(missing)}")
            else:
                self._place[name] = i
                self._files[name] = files
        self.names = tuple(self._place)
        self.first = self._first()
        image, label = self.first.image, self.first.label
        is_map = label.ndim == image.ndim and label.shape[1:] == image.shape[1:]
        if not is_map and label.shape[1:].numel() > 1:
            found = f"label {tuple(label.shape)} for image {tuple(image.shape)}"
            raise InputError.of("label", found, "a class, or a map of the image's size", OTHER_KINDS)
        self.kind: Kind = "segmentation" if is_map else "classification"
        self.heads = self._heads(image)
        self._check_channels(image)
        self.raw_unit = dataset_raw_unit(self.dataset)
        self.varies_files = varied_dataset(self.dataset, unchanged) is not None
        self.varied_at = AT_FILES if self.varies_files else PlainModel.varied_at

    @property
    def in_files(self) -> bool:
        """Its weights are in memory."""
        return False

    @property
    def files(self) -> list[Path]:
        """Of the data, and of the network's code."""
        return [*code_of(self.network), *self.data_files]

    @property
    def data_files(self) -> list[Path]:
        """Images, labels and whatever else a case names."""
        return [file for files in self._files.values() for file in files if file.exists()]

    @property
    def data_in_memory(self) -> str:
        """Of the cases that come from no file; "" without any."""
        digests = [[item.digest() for item in self.items(name)] for name in self.names if not self._files[name]]
        return digest_of(digests) if digests else ""

    @property
    def fingerprint(self) -> str:
        """Of the network, its inferer, what bounds an attack and judges it, and of data that come from no file."""
        in_memory = [[item.digest() for item in self.items(name)] for name in self.names if not self._files[name]]
        settings = _settings(self.network.inferer)
        return fingerprint_of(self.network, settings, self.names, in_memory, self.box, self.decides)

    @property
    def decides(self) -> tuple[object, ...]:
        """What else the figures depend on."""
        return self.rule, self.background, self.channels

    @property
    def attacked(self) -> str:
        """Which input channels, in words."""
        count = self.first.image.shape[0]
        if self.channels is None:
            return "" if count == 1 else f" (all {count} channels)"
        return f" (channels {', '.join(map(str, self.channels))} of {count})"

    @property
    def unit(self) -> str:
        """Of network inputs, in words."""
        raw = "" if self.raw_unit is None else f", 1 = {self.raw_unit:.6g} in the files"
        return f"units of the bundle's preprocessed image{raw}"

    def threat(self, level: Level) -> Threat:
        """The level in network units.

        Raises:
            InputError: a ``raw`` radius for a preprocessing that does not scale all images alike.
        """
        if level.unit == "raw" and self.raw_unit is None:
            raise InputError.of("unit", "raw", "'norm' or 'rms' here", WHY_NOT)
        eps, unit = in_network_units(level.norm, level.eps, level.unit, self.raw_unit)
        return Threat(level.norm, eps, self.box, unit, self.channels)

    def item(self, name: str) -> Item:
        """An image with its label, preprocessed.

        Raises:
            InputError: as :meth:`items`, or several images of one item.
        """
        items = self.items(name)
        if len(items) > 1:
            allowed = "one image of each item: whole images are attacked"
            raise InputError.of(
                "dataset", f"{len(items)} patches of {name}", allowed, "leave the splitting to the inferer"
            )
        return items[0]

    def items(self, name: str) -> list[Item]:
        """The images of an item, of which a transform that splits makes several: the same at every call.

        Raises:
            InputError: an unknown name, why it cannot be had, or that it is another one the next time.
        """
        items = self._read(name)
        if name not in self._seen:  # only once: it takes as long as the preprocessing
            self._seen[name] = [item.digest() for item in self._read(name)]
        if [item.digest() for item in items] != self._seen[name]:
            raise InputError.of("bundle", "preprocessing that is random", "the same image at every call", f"see {name}")
        return items

    def varied(self, name: str, part: int, change: Change, number: int) -> Item:
        """One image of an item with its label, changed as its file holds it, before all preprocessing.

        Args:
            name: of the item.
            part: of the images that a transform splits it into.
            change: what happens to it.
            number: of the image within its case.
        """

        def numbered(scan: Scan, _: int) -> Tensor:
            return change(scan, number)

        return self._read(name, varied_dataset(self.dataset, numbered))[part]

    def _read(self, name: str, dataset: Any = None) -> list[Item]:
        if name not in self._place:
            raise InputError.of("case", name, f"one of {', '.join(self.names)}")
        try:
            found = (self.dataset if dataset is None else dataset)[self._place[name]]
        except Exception as error:  # MONAI wraps what its readers raise
            if reason := not_applicable(error):
                raise reason from error
            raise InputError.of("case", name, "a case that the bundle can read", first_cause(error)) from error
        several = isinstance(found, list) and len(found) > 0 and all(isinstance(part, dict) for part in found)
        return [item_of(part, name) for part in (found if several else [found])]

    def _first(self) -> Item:
        """The first item that can be read."""
        reasons = list(self.problems)
        for name in self.names:
            try:
                return self.items(name)[0]
            except InputError as error:
                reasons.append(str(error))
        if not reasons:
            raise InputError.of("bundle", "no data", "at least one case that can be read", self.absent)
        todo = f"; {self.absent}" if self.absent else ""
        raise InputError(f"{self.name}: no case can be read. {reasons[0].rstrip('.')}{todo}.")

    def _check_channels(self, image: Tensor) -> None:
        if self.channels is not None and not all(0 <= c < len(image) for c in self.channels):
            raise InputError.of("channels", list(self.channels), f"numbers from 0 to {len(image) - 1}")
        if masks := mask_channels(image[None], self.channels):
            warnings.warn(
                f"{self.name}: channels {masks} of the images hold only 0 and 1 and are attacked as intensities; if "
                "they are masks or clicks, leave them out (--bundle-channels).", stacklevel=2,
            )  # fmt: skip

    def _heads(self, image: Tensor) -> int:
        """Output channels."""
        try:
            with frozen(self.network) as network, torch.no_grad():
                output = network(image[None].to(device_of(self.network)))
        except InputError:
            raise
        except Exception as error:  # whatever a network raises for an image that it does not fit
            found = f"an image {tuple(image.shape)}"
            raise InputError.of("network", found, "preprocessed images that fit it", first_cause(error)) from error
        return int(output.shape[1]) if output.ndim > 1 else 1


def _uncached(dataset: Any) -> Any:
    """Without MONAI's cache on disk: it may be that of an older config, and its items have lost their spacing."""
    if isinstance(dataset, Subset):
        return Subset(_uncached(dataset.dataset), dataset.indices)
    return Dataset(dataset.data, dataset.transform) if isinstance(dataset, PersistentDataset) else dataset


def channel_names(metadata: Path) -> list[str]:
    """What metadata.json calls the output channels, if it does."""
    try:
        outputs = json.loads(metadata.read_text(encoding="utf-8"))["network_data_format"]["outputs"]
        defined = next(iter(outputs.values()))["channel_def"]
        return [str(defined[key]) for key in sorted(defined, key=int)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return []


def _files(row: Any, key: str) -> list[Path]:
    """The files that a row of a MONAI data list names."""
    value = row.get(key) if isinstance(row, dict) else None
    values = value if isinstance(value, list | tuple) else [value]
    return [Path(v) for v in values if isinstance(v, str | Path)]


def _item_names(rows: Sequence[Any]) -> list[str]:
    """The names of the image files, or numbers; if a name comes twice, each with its number in front."""
    names = [files[0].name if (files := _files(row, "image")) else str(i) for i, row in enumerate(rows)]
    if len({name.strip() for name in names}) == len(names):
        return names
    return [f"{i} {name}" for i, name in enumerate(names)]


def _settings(inferer: Any) -> list[tuple[str, Any]]:
    """What an inferer was made with, such as the overlap of its windows."""
    plain = (bool, int, float, str, list, tuple, type(None))
    return sorted((k, v) for k, v in getattr(inferer, "__dict__", {}).items() if isinstance(v, plain))


def _refuse_random(dataset: Any) -> None:
    """Two calls may be alike by chance: what is meant to be random is refused by its kind."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    parts = flat(getattr(dataset, "transform", None))
    found = [type(p).__name__ for p in parts if isinstance(p, RandomizableTransform) and p.prob > 0]
    if found:
        raise InputError.of(
            "bundle", f"preprocessing that is random ({', '.join(found)})", "the same image at every call",
            "name the data of its validation",
        )  # fmt: skip
