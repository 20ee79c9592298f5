"""What :mod:`monai_adv.evaluation.bundle` opens: a bundle's network, inferer and validation data."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle.config_parser import ConfigParser
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import SimpleInferer, SlidingWindowInferer
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.utils.misc import fall_back_tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_adv.bundles.weights import load_weights, names_in
from monai_adv.errors import InputError, did_you_mean, first_cause
from monai_adv.evaluation.bundle import WEIGHTS
from monai_adv.evaluation.classification import ClassificationCase, ClassificationSubject
from monai_adv.evaluation.fingerprint import fingerprint, names_and_sizes
from monai_adv.evaluation.plain import Box, check_box, usable_device
from monai_adv.evaluation.plain import fingerprint as fingerprint_of
from monai_adv.evaluation.plain_segmentation import SegmentationCase, SegmentationSubject
from monai_adv.evaluation.subject import Kind, Level
from monai_adv.network_state import device_of, frozen
from monai_adv.tasks import Output
from monai_adv.threats import Threat

NETWORK = ("network_def", "network")
DATA = ("validate#dataset", "val_dataset", "validation_dataset", "test_dataset", "dataset")
LOADERS = ("validate#dataloader", "val_dataloader", "val_loader", "test_dataloader", "dataloader")
INFERERS = ("validate#inferer", "val_inferer", "inferer")
ENDINGS = (".json", ".yaml", ".yml")
NEUTRAL = tuple(f"monai.transforms.{part}." for part in ("io", "spatial", "croppad", "utility"))
"""Transforms that leave intensities as they are, but for interpolation."""


@dataclass(frozen=True)
class BundleSource:
    """What has to be known to measure a MONAI bundle; another process opens the same.

    Args:
        folder: of the bundle.
        configs: files in it, of which later ones override earlier ones; None: configs/train and configs/evaluate,
            those that exist.
        overrides: ``KEY=VALUE``, set in the configs; the value is JSON, or text.
        weights: file in it with a state dict.
        device: "cpu", "cuda", ...
        name: how tables call the model; default: the folder's name.
        box: lowest and highest intensity that an attacked image may have, in network units.
    """

    folder: str
    configs: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()
    weights: str = WEIGHTS
    device: str = "cpu"
    name: str | None = None
    box: Box | None = None

    def __post_init__(self) -> None:
        check_box(self.box)
        for word in self.overrides:
            if not word.partition("=")[0] or "=" not in word:
                raise InputError.of("bundle-override", word, "KEY=VALUE, such as dataset_dir=/data/spleen")

    def open(self) -> BundleClassification | BundleSegmentation:
        """Run the config, and load weights and data.

        Raises:
            InputError: why it does not load, with the key of the config.
        """
        return as_subject(_Bundle(self))


def as_subject(bundle: OpenBundle) -> BundleClassification | BundleSegmentation:
    """What the evaluation attacks."""
    return BundleSegmentation(bundle) if bundle.kind == "segmentation" else BundleClassification(bundle)


class BundleNetwork(nn.Module):
    """A network behind its inferer, differentiable with respect to the images; only full-resolution logits come out.

    With a sliding window of several windows, their activations are computed again in the backward.

    Example:
        >>> window = BundleNetwork(nn.Conv2d(1, 2, 1), SlidingWindowInferer((4, 4), mode="gaussian"))
        >>> images = torch.rand(1, 1, 9, 7)
        >>> torch.allclose(window(images), window.network(images), atol=1e-6)
        True
    """

    def __init__(self, network: nn.Module, inferer: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.inferer = network, inferer

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to ``(B, K, *spatial)`` or ``(B, K)``.

        Raises:
            InputError: an output that is no tensor.
        """
        recompute = images.requires_grad and torch.is_grad_enabled() and self._several_windows(images)

        def predict(patches: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            output: Output = (
                checkpoint(self.network, patches, *args, use_reentrant=False, **kwargs)
                if recompute
                else self.network(patches, *args, **kwargs)
            )
            first = output[0] if isinstance(output, list | tuple) else output
            if not isinstance(first, Tensor):
                raise InputError.of("network", f"an output of type {type(first).__name__}", "a tensor of logits")
            return first.clone()  # MONAI multiplies it by the window's weights in place

        result: Tensor = self.inferer(images, predict)
        return result

    def _several_windows(self, images: Tensor) -> bool:
        if not isinstance(self.inferer, SlidingWindowInferer):
            return False
        size = tuple(images.shape[2:])
        return any(n > window for n, window in zip(size, fall_back_tuple(self.inferer.roi_size, size), strict=True))


class BundleClassification(ClassificationSubject):
    """A classifying bundle; images that cannot be read are its ``problems``."""

    def __init__(self, bundle: OpenBundle) -> None:
        self.bundle = bundle
        images: list[Tensor] = []
        labels: list[Tensor] = []
        names: list[str] = []
        problems = list(bundle.problems)
        for name in bundle.names:
            try:
                item = bundle.item(name)
            except InputError as error:
                problems.append(str(error))
                continue
            image, label = item.image, item.label
            if images and image.shape != images[0].shape:
                found = f"{tuple(images[0].shape)} and, of {name}, {tuple(image.shape)}"
                raise InputError.of("images", found, "images of one size", "add a Resized to the bundle's config")
            images.append(image)
            labels.append(label.reshape(-1) if label.numel() > 1 else label.reshape(()))
            names.append(name)
        if not images:
            raise InputError.of("bundle", "; ".join(problems[:3]), "at least one image that can be read")
        heads = max(2, bundle.heads)
        classes = bundle.channel_names if len(bundle.channel_names) == heads else [f"class {i}" for i in range(heads)]
        super().__init__(
            bundle.name, bundle.network, torch.stack(images), torch.stack(labels), classes,
            box=bundle.box, unit=bundle.unit, names=names,
        )  # fmt: skip
        self.problems = tuple(problems)
        self.space = "the bundle's preprocessed images; each image has a radius of its own"

    @property
    def fingerprint(self) -> str:
        """Of the bundle's files and its data."""
        return self.bundle.fingerprint

    def load(self, case: str) -> ClassificationCase:
        """A group of images."""
        group = super().load(case)
        group.threat = self.bundle.threat  # type: ignore[method-assign] # it knows raw units
        return group


class BundleSegmentation:
    """A segmenting bundle; see :class:`monai_adv.evaluation.subject.Subject`. Volumes are read when they are needed."""

    kind: Kind = "segmentation"

    def __init__(self, bundle: OpenBundle) -> None:
        self.bundle, self.name, self.unit, self.problems = bundle, bundle.name, bundle.unit, tuple(bundle.problems)
        self.cases, self.fingerprint = tuple(bundle.names), bundle.fingerprint
        label = bundle.first.label
        channels, heads = label.shape[0], bundle.heads
        if channels not in (1, heads):
            allowed = f"1 channel of label values, or one per output channel, here {heads}"
            raise InputError.of("label", f"{channels} channels", allowed)
        self.one_hot = channels == heads > 1 and bool((label.sum(0) == 1).all())
        self.regions = channels == heads and not self.one_hot
        count = heads if self.regions else heads - 1
        names = bundle.channel_names if self.regions else bundle.channel_names[1:]
        what = "region" if self.regions else "class"
        self.classes = tuple(names) if len(names) == count else tuple(f"{what} {i + 1}" for i in range(count))
        inferer = bundle.network.inferer
        window = f", windows {inferer.roi_size}" if isinstance(inferer, SlidingWindowInferer) else ""
        self.space = (
            f"whole preprocessed images through the bundle's {type(inferer).__name__}{window}, Dice and HD95 in the "
            "bundle's preprocessed space; each image has a radius of its own"
        )

    def load(self, case: str) -> SegmentationCase:
        """One image.

        Raises:
            InputError: an unknown name, an unreadable file, or label values that the network does not have.
        """
        item = self.bundle.item(case)
        label = item.label
        if self.one_hot:
            label = label.argmax(0, keepdim=True)
        subject = SegmentationSubject(
            self.name, self.bundle.network, [item.image], [label if self.regions else label[0]], self.classes,
            regions=self.regions, spacing=item.spacing, box=self.bundle.box, unit=self.unit,
            names=[case],
        )  # fmt: skip
        loaded = subject.load(case)
        loaded.threat = self.bundle.threat  # type: ignore[method-assign] # it knows raw units
        return loaded


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
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError.of("network", type(network).__name__, "a torch.nn.Module under network_def or network")
        self.name, self.dataset, self.box = name, dataset, box
        self.channel_names, self.absent = list(channel_names), absent
        self.network = BundleNetwork(network.eval(), inferer).eval()
        self._open_data()

    def _open_data(self) -> None:
        count = len(self.dataset)
        described = getattr(self.dataset, "data", None)
        rows = [described[i] if isinstance(described, Sequence) else {} for i in range(count)]
        self.problems: list[str] = []
        self.files: list[Path] = []
        self._place: dict[str, int] = {}
        for i, name in enumerate(_item_names(rows)):
            files = [file for key in ("image", "label") for file in _files(rows[i], key)]
            missing = [str(file) for file in files if not file.exists()]
            if missing:
                self.problems.append(f"{name}: there is no {', '.join(missing)}")
            else:
                self._place[name] = i
                self.files += [file for file in files if file.is_file()]
        self.names = tuple(self._place)
        name, self.first = self._first()
        again = self.item(name)
        image, label = self.first.image, self.first.label
        if not torch.equal(image, again.image) or not torch.equal(label, again.label):
            raise InputError.of("bundle", "preprocessing that is random", "the same image at every call")
        is_map = label.ndim == image.ndim and label.shape[1:] == image.shape[1:]
        if not is_map and label.ndim > 1:
            found = f"label {tuple(label.shape)} for image {tuple(image.shape)}"
            raise InputError.of("label", found, "a class, or a map of the image's size")
        self.kind: Kind = "segmentation" if is_map else "classification"
        self.heads = self._heads(image)
        self.raw_unit = _raw_unit(getattr(self.dataset, "transform", None))

    @property
    def fingerprint(self) -> str:
        """Of the network, the data files, and what bounds an attack."""
        return fingerprint_of(self.network, names_and_sizes(self.files), self.names, self.box)

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
        if level.unit != "raw":
            return Threat(level.norm, level.eps, self.box, level.unit)
        if self.raw_unit is None:
            allowed = "'norm' or 'rms' unless ScaleIntensityRanged is all that changes the intensities"
            raise InputError.of("unit", "raw", allowed)
        return Threat(level.norm, level.eps / self.raw_unit, self.box)

    def item(self, name: str) -> _Item:
        """An image with its label, preprocessed.

        Raises:
            InputError: an unknown name, or why it cannot be had.
        """
        if name not in self._place:
            raise InputError.of("case", name, f"one of {', '.join(self.names)}")
        try:
            found = self.dataset[self._place[name]]
        except Exception as error:  # MONAI wraps what its readers raise
            raise InputError.of("case", name, "a case that the bundle can read", first_cause(error)) from error
        pair = [found.get("image"), found.get("label")] if isinstance(found, dict) else found
        if not isinstance(pair, list | tuple) or len(pair) != 2 or any(part is None for part in pair):
            keys = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            allowed = "items with the keys image and label, or pairs of them"
            raise InputError.of("dataset", f"items with {keys}", allowed, "an attack needs the truth")
        image, label = (torch.as_tensor(part) for part in pair)
        spacing = tuple(float(s) for s in pair[0].pixdim) if isinstance(pair[0], MetaTensor) else (1.0,) * image.ndim
        image = (image.as_tensor() if isinstance(image, MetaTensor) else image).float()
        label = label.as_tensor() if isinstance(label, MetaTensor) else label
        if not bool(image.isfinite().all()):
            raise InputError.of("case", name, "finite intensities", "there is NaN or infinity in its image")
        if label.ndim == image.ndim - 1 and label.shape == image.shape[1:] and label.ndim > 1:
            label = label[None]
        return _Item(image, label, spacing[: image.ndim - 1])

    def _first(self) -> tuple[str, _Item]:
        """The first item that can be read."""
        reasons = list(self.problems)
        for name in self.names:
            try:
                return name, self.item(name)
            except InputError as error:
                reasons.append(str(error))
        if not reasons:
            raise InputError.of("bundle", "no data", "at least one case that can be read", self.absent)
        todo = f"; {self.absent}" if self.absent else ""
        raise InputError(f"{self.name}: no case can be read. {reasons[0].rstrip('.')}{todo}.")

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


class _Bundle(OpenBundle):
    """A bundle's folder, opened through its configs."""

    def __init__(self, source: BundleSource) -> None:
        self.source, self.folder = source, Path(source.folder)
        self.configs = _config_files(self.folder, source.configs)
        metadata = self.folder / "configs" / "metadata.json"
        self.weights = self.folder / source.weights
        device = usable_device(source.device)
        with _importable(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of MONAI about its transforms: the bundle's author's
            parser = ConfigParser()
            try:
                parser.read_config([str(file) for file in self.configs])
                if metadata.is_file():
                    parser.read_meta(str(metadata))
            except Exception as error:  # json, yaml and MONAI raise kinds of their own
                raise InputError.of("bundle-config", [f.name for f in self.configs], first_cause(error)) from error
            parser["bundle_root"] = str(self.folder)
            parser["device"] = device
            for word in source.overrides:
                _override(parser, word)
            absent = _absent(parser)
            network = _part(parser, NETWORK, self.folder)
            inferer = _part(parser, INFERERS, self.folder, SimpleInferer())
            if any(key in parser for key in DATA):
                _cache_nothing(parser)
                dataset = _part(parser, DATA, self.folder, todo=absent)
            else:
                dataset = _part(parser, LOADERS, self.folder, alternatives=DATA, todo=absent).dataset
        if isinstance(network, nn.Module):
            network = load_weights(network, self.weights).to(device)
        name = source.name or self.folder.resolve().name
        super().__init__(name, network, inferer, dataset, source.box, channel_names(metadata), absent)

    @property
    def fingerprint(self) -> str:
        """Of weights, configs, data files, and what bounds an attack."""
        files = names_and_sizes(self.files)
        return fingerprint([self.weights, *self.configs], self.source.overrides, files, self.names, self.box)


@dataclass(frozen=True)
class _Item:
    """``(C, *spatial)`` image on the CPU, its label, and the spacing in mm."""

    image: Tensor
    label: Tensor
    spacing: tuple[float, ...]


def _config_files(folder: Path, given: Sequence[str] | None) -> list[Path]:
    if not folder.is_dir():
        raise InputError.of("bundle", str(folder), "an existing folder", "check the path")
    if given is None:
        candidates = (folder / f"configs/{name}{ending}" for name in ("train", "evaluate") for ending in ENDINGS)
        files = [file for file in candidates if file.is_file()]
        if not files:
            allowed = "a bundle with configs/train.json or configs/evaluate.json"
            todo = f"or name its config with --bundle-config; in configs there is {names_in(folder / 'configs')}"
            raise InputError.of("bundle", str(folder), allowed, todo)
        return files
    files = [folder / name for name in given]
    for file in files:
        if not file.is_file():
            known = names_in(folder / "configs")
            raise InputError.of("bundle-config", str(file), "an existing file", f"in configs there is {known}")
    return files


def channel_names(metadata: Path) -> list[str]:
    """What metadata.json calls the output channels, if it does."""
    try:
        outputs = json.loads(metadata.read_text(encoding="utf-8"))["network_data_format"]["outputs"]
        defined = next(iter(outputs.values()))["channel_def"]
        return [str(defined[key]) for key in sorted(defined, key=int)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return []


def _override(parser: ConfigParser, word: str) -> None:
    """Set ``KEY=VALUE``; as in MONAI, a part may get an argument that it did not have."""
    key, _, text = word.partition("=")
    place = key.replace("::", "#")
    above, _, last = place.rpartition("#")
    siblings = parser.get(above) if above in parser else None
    if not (isinstance(siblings, dict) and (above or last in siblings)) and place not in parser:
        todo = did_you_mean(last, (k for k in siblings if not k.startswith("_"))) if isinstance(siblings, dict) else ""
        raise InputError.of("bundle-override", word, "a key of the bundle's config", todo)
    try:
        parser[place] = json.loads(text)
    except ValueError:
        parser[place] = text


def _absent(parser: ConfigParser) -> str:
    """What to do about folders that the config names and that are not here: bundles come without their data."""
    paths = [k for k, v in parser.get().items() if isinstance(v, str) and "/" in v and v[0] not in "$@%"]
    absent = [f"{key} is {parser[key]!r}" for key in paths if not Path(parser[key]).exists()]
    return (
        f"{' and '.join(absent)}, which is not here: name yours, --bundle-override {absent[0].split()[0]}=PATH"
        if absent
        else ""
    )


def _cache_nothing(parser: ConfigParser) -> None:
    """One damaged file would keep a cache, and so the bundle, from being made; and most of it is not needed."""
    key = next(key for key in DATA if key in parser)
    part = parser.get(key)
    if isinstance(part, dict) and str(part.get("_target_")).rpartition(".")[2] == "CacheDataset":
        parser[f"{key}#cache_rate"] = 0.0


def _part(
    parser: ConfigParser,
    keys: Sequence[str],
    folder: Path,
    default: Any = None,
    alternatives: Sequence[str] = (),
    todo: str = "",
) -> Any:
    """The first of the keys that the config has, made."""
    for key in keys:
        if key in parser:
            try:
                return parser.get_parsed_content(key)
            except Exception as error:  # it runs the bundle's own code
                reason = "; ".join(filter(None, [first_cause(error), todo]))
                raise InputError.of("bundle", f"{folder}, key {key}", "a part that loads", reason) from error
    if default is not None:
        return default
    known = ", ".join(sorted(k for k in parser.get() if not k.startswith("_")))
    raise InputError.of(
        "bundle", str(folder), f"a config with one of the keys {', '.join([*alternatives, *keys])}", f"it has {known}"
    )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The bundle's own packages, such as ``scripts``; another bundle may have others of the same name."""
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if folder.resolve() in Path(getattr(sys.modules[name], "__file__", None) or "/").resolve().parents:
                del sys.modules[name]


def _files(row: Any, key: str) -> list[Path]:
    """The files that a row of a MONAI data list names."""
    value = row.get(key) if isinstance(row, dict) else None
    values = value if isinstance(value, list | tuple) else [value]
    return [Path(v) for v in values if isinstance(v, str | Path)]


def _item_names(rows: Sequence[Any]) -> list[str]:
    """The names of the image files, or numbers; a name that comes twice gets its number in front."""
    names = [files[0].name if (files := _files(row, "image")) else str(i) for i, row in enumerate(rows)]
    return [name if names.count(name) == 1 else f"{i} {name}" for i, name in enumerate(names)]


def _raw_unit(transform: Any) -> float | None:
    """Raw intensity of one network unit, if one linear scaling is all that changes intensities."""
    flat: Any = transform.flatten() if isinstance(transform, Compose) else None  # type: ignore[no-untyped-call]
    parts = [transform] if flat is None else flat.transforms
    units = []
    for part in parts:
        module, kind = type(part).__module__, type(part).__name__
        scaler = getattr(part, "scaler", part)
        if isinstance(scaler, ScaleIntensityRange):
            ends = (scaler.b_min, scaler.b_max)
            width = 1.0 if None in ends else scaler.b_max - scaler.b_min  # type: ignore[operator]
            units.append((scaler.a_max - scaler.a_min) / width)
        elif not module.startswith(NEUTRAL) or "Lambda" in kind:
            return None
    return float(units[0]) if len(units) == 1 else None
