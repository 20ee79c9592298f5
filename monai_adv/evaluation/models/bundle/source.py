"""What :mod:`monai_adv.evaluation.models.bundle.arguments` opens: a bundle's folder, through its configs."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle.config_parser import ConfigParser
from monai.bundle.utils import merge_kv
from monai.inferers.inferer import SimpleInferer
from torch import nn
from torch.utils.data import DataLoader

from monai_adv.engines.bundle_rule import Rule, check_rule, leaves_background_out, rule_of
from monai_adv.engines.robust_state import threat_in
from monai_adv.errors import InputError, did_you_mean, first_cause
from monai_adv.evaluation.models.bundle.arguments import WEIGHTS
from monai_adv.evaluation.models.bundle.models import BundleClassifier, BundleSegmenter, as_model
from monai_adv.evaluation.models.bundle.opened import OpenBundle, channel_names
from monai_adv.evaluation.models.bundle.varied import input_names
from monai_adv.evaluation.models.fingerprint import fingerprint
from monai_adv.evaluation.models.plain import check_box, usable_device
from monai_adv.evaluation.records import level_of
from monai_adv.given import Box
from monai_adv.weights import load_weights, names_in

NETWORK = ("network_def", "network")
LOSSES = ("loss", "loss_function", "lossfn", "train#loss", "criterion")
POSTPROCESSING = (
    "validate#postprocessing",
    "val_postprocessing",
    "postprocessing",
    "post_transform",
    "train#postprocessing",
)
DATA = ("validate#dataset", "val_dataset", "validation_dataset", "test_dataset", "dataset")
LOADERS = ("validate#dataloader", "val_dataloader", "val_loader", "test_dataloader", "dataloader")
INFERERS = ("validate#inferer", "val_inferer", "inferer")
PARTS = {
    "network": NETWORK, "data": DATA, "inferer": INFERERS, "loss": LOSSES, "postprocessing": POSTPROCESSING,
}  # fmt: skip
"""Where a config may have them, by the names that ``--bundle-key`` takes."""
ENDINGS = (".json", ".yaml", ".yml")


@dataclass(frozen=True)
class BundleSource:
    """What has to be known to measure a MONAI bundle; another process opens the same.

    Args:
        folder: of the bundle.
        configs: files in it, of which later ones override earlier ones; None: configs/train and configs/evaluate,
            those that exist.
        overrides: ``KEY=VALUE``, set in the configs; the value is JSON, or text. ``+KEY=VALUE`` adds to a list or a
            dictionary, or makes a new key.
        keys: ``PART=KEY``: where the configs have a part that is not under one of its usual keys.
        weights: file in it with a state dict.
        device: "cpu", "cuda", ...
        name: how tables call the model; default: the folder's name.
        box: lowest and highest intensity that an attacked image may have, in network units.
        activation: how a segmentation's logits become a decision; default: as the bundle's post-processing does it,
            otherwise as its loss does.
        channels: input channels that may be attacked; default: all.
    """

    folder: str
    configs: tuple[str, ...] | None = None
    overrides: tuple[str, ...] = ()
    weights: str = WEIGHTS
    device: str = "cpu"
    name: str | None = None
    box: Box | None = None
    keys: tuple[str, ...] = ()
    activation: Rule | None = None
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_box(self.box)
        check_rule(self.activation)
        for word in self.keys:
            part, _, key = word.partition("=")
            if part not in PARTS or not key:
                raise InputError.of("bundle-key", word, f"PART=KEY with PART one of {', '.join(PARTS)}")
        for word in self.overrides:
            if not word.partition("=")[0] or "=" not in word:
                raise InputError.of("bundle-override", word, "KEY=VALUE, such as dataset_dir=/data/spleen")

    def open(self) -> BundleClassifier | BundleSegmenter:
        """Run the config, and load weights and data.

        Raises:
            InputError: why it does not load, with the key of the config.
        """
        try:
            return as_model(_Bundle(self))
        except InputError as error:
            raise error.about(self.name or Path(self.folder).resolve().name) from error


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
            places = _places(parser, source.keys)
            network = _part(parser, places["network"], self.folder)
            inferer = _part(parser, places["inferer"], self.folder, SimpleInferer())
            if any(key in parser for key in places["data"]):
                _cache_nothing(parser, places["data"])
                dataset = _part(parser, places["data"], self.folder, todo=absent)
            else:
                dataset = getattr(_part(parser, LOADERS, self.folder, alternatives=DATA, todo=absent), "dataset", None)
            loss = _part_or_none(parser, places["loss"])
            postprocessing = None if source.activation else _part_or_none(parser, places["postprocessing"])
        if isinstance(network, nn.Module):
            network = load_weights(network, self.weights).to(device)
        name = source.name or self.folder.resolve().name
        dataset = dataset.dataset if isinstance(dataset, DataLoader) else dataset
        super().__init__(
            name, network, inferer, dataset,
            source.box, channel_names(metadata), absent, rule_of(source.activation, postprocessing, loss),
            not leaves_background_out(loss), source.channels, input_names(metadata),
        )  # fmt: skip
        self.trained = level_of(threat_in(self.weights))

    @property
    def files(self) -> list[Path]:
        """Weights, configs, all Python files of the bundle, and the data."""
        code = [file.relative_to(self.folder) for file in sorted(self.folder.rglob("*.py"))]
        own = [self.folder / file for file in code if not any(part.startswith(".") for part in file.parts)]
        return [self.weights, *self.configs, *own, *super().files]

    @property
    def in_files(self) -> bool:
        """Whether all data come from files; the weights do."""
        return all(map(self._files.get, self.names))

    @property
    def fingerprint(self) -> str:
        """Of overrides, and what else is in no file."""
        return fingerprint(super().fingerprint, self.source.overrides)


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


def _override(parser: ConfigParser, word: str) -> None:
    """Set ``KEY=VALUE`` as `monai.bundle run` does, but ask about a new key that looks like a slip of the pen."""
    key, _, text = word.partition("=")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    place = key.lstrip("+").replace("::", "#")
    above, _, last = place.rpartition("#")
    siblings = parser.get(above) if above in parser else None
    if place not in parser and not key.startswith("+"):
        known = [k for k in siblings if not k.startswith("_")] if isinstance(siblings, dict) else []
        if above and not isinstance(siblings, dict):
            raise InputError.of("bundle-override", word, "a key of the bundle's config", f"there is no {above!r}")
        # A part may be given any argument that its config leaves to the default, whatever it looks like.
        if not above and (close := get_close_matches(last, known, n=1)):
            todo = f"did you mean {close[0]!r}? A new key: +{word}"
            raise InputError.of("bundle-override", word, "a key of the bundle's config", todo)
    try:
        merge_kv(parser, f"+{place}" if key.startswith("+") and place in parser else place, value)
    except ValueError as error:
        found = type(parser[place]).__name__
        raise InputError.of(
            "bundle-override", word, f"+KEY with a list or a dictionary, as the {found} there"
        ) from error


def _places(parser: ConfigParser, given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Keys of each part, those that are given alone."""
    places = dict(PARTS)
    for word in given:
        part, _, key = word.partition("=")
        key = key.replace("::", "#")
        if key not in parser:
            todo = did_you_mean(key, (k for k in parser.get() if not k.startswith("_")))
            raise InputError.of("bundle-key", word, "a key of the bundle's config", todo)
        places[part] = (key,)
    return places


def _part_or_none(parser: ConfigParser, keys: Sequence[str]) -> Any:
    """As :func:`_part`, for parts that only tell how logits are judged: one that cannot be made tells nothing."""
    for key in keys:
        if key in parser:
            try:
                return parser.get_parsed_content(key)
            except Exception:  # the bundle's own code
                return None
    return None


def _absent(parser: ConfigParser) -> str:
    """What to do about folders that the config names and that are not here: bundles come without their data."""
    paths = [k for k, v in parser.get().items() if isinstance(v, str) and "/" in v and v[0] not in "$@%"]
    absent = [f"{key} is {parser[key]!r}" for key in paths if not Path(parser[key]).exists()]
    if not absent:
        return ""
    word = f"{absent[0].split()[0]}=PATH"
    return (
        f"{' and '.join(absent)}, which is not here: name yours, --bundle-override {word}, "
        f"in Python options={{'overrides': ['{word}']}}"
    )


def _cache_nothing(parser: ConfigParser, keys: Sequence[str]) -> None:
    """One damaged file would keep a cache, and so the bundle, from being made; and most of it is not needed.

    One on disk is neither read nor written: it may be that of an older config, and has lost the spacing.
    """
    key = next(key for key in keys if key in parser)
    part = parser.get(key)
    if not isinstance(part, dict):
        return
    kind = str(part.get("_target_")).rpartition(".")[2]
    if kind == "CacheDataset":
        parser[f"{key}#cache_rate"] = 0.0
    elif kind in ("PersistentDataset", "CacheNTransDataset", "LMDBDataset", "GDSDataset"):
        parser[key] = {"_target_": "Dataset", **{name: part[name] for name in ("data", "transform") if name in part}}


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
