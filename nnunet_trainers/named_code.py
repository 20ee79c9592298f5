"""What plans.json and dataset.json may name, so that reading a model folder from somebody else runs no foreign code.

nnU-Net imports what these files name and calls it with arguments from the same file: ``"torch.hub.load"`` as the class
of the network downloads code and runs it. Here every such name is looked up before the host does, and has to be what
its place asks for (a network, a layer, a normalisation, ...), defined in nnU-Net's own packages or PyTorch's layers.
"""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nnunetv2
from dynamic_network_architectures import architectures
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from monai_adv.errors import InputError

HOST = ("dynamic_network_architectures", "nnunetv2")
"""Packages from which networks may come."""
LAYERS = (*HOST, "torch.nn")
"""Packages from which their layers may come."""
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\\:\0]+")
_ENDING = re.compile(r"(\.\w+)+")


def check_named_code(
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    configuration: ConfigurationManager,
    trusted: Sequence[str] = (),
) -> None:
    """Make sure that the host may look up all that a model folder names.

    Args:
        plans: content of plans.json.
        dataset_json: content of dataset.json.
        configuration: of the plans, the one that will be used.
        trusted: further packages or modules that networks and layers may come from; they are not looked into.

    Raises:
        InputError: a name that is none of nnU-Net's own, with its place.
        LookupError, TypeError: an entry is missing or of another kind.

    Example:
        >>> architecture = {"network_class_name": "torch.hub.load", "arch_kwargs": {}, "_kw_requires_import": []}
        >>> check_named_code({}, {}, ConfigurationManager({"architecture": architecture}))
        Traceback (most recent call last):
            ...
        monai_adv.errors.InputError: network_class_name in plans.json: received 'torch.hub.load', allowed is \
a network of dynamic_network_architectures or nnunetv2; it would be imported and called: if you trust its package, \
name it with --trust or trusted.
    """
    _check_imported("network_class_name", configuration.network_arch_class_name, "a network", HOST, trusted)
    arguments = configuration.network_arch_init_kwargs
    for key in configuration.network_arch_init_kwargs_req_import:
        if arguments[key] is not None:
            _check_imported(key, arguments[key], "a layer", LAYERS, trusted)
    for place, name, folder, kind in _looked_up(plans, dataset_json, configuration):
        _check_looked_up(place, name, folder, kind)
    for key in ("dataset_name", "plans_name"):  # they become parts of paths
        if not (isinstance(name := plans.get(key, key), str) and _FILE_NAME.fullmatch(name)):
            raise InputError.of(f"{key} in plans.json", name, "a name that a folder can have")
    ending = dataset_json.get("file_ending", ".nii.gz")
    if not (isinstance(ending, str) and _ENDING.fullmatch(ending)):
        raise InputError.of("file_ending in dataset.json", ending, "the ending of a file name, such as .nii.gz")


def _check_imported(place: str, name: object, what: str, packages: tuple[str, ...], trusted: Sequence[str]) -> None:
    """A dotted name, which the host imports from anywhere."""
    if isinstance(name, str) and _DOTTED.fullmatch(name):
        if _is_below(name, trusted):
            return
        # Nothing is imported but from these packages; the class itself has to be theirs too, not found by way of
        # what a module of theirs imports ("dynamic_network_architectures.architectures.unet.torch.hub.load").
        found = _locate(name) if _is_below(name, packages) else None
        if inspect.isclass(found) and issubclass(found, nn.Module) and _is_below(found.__module__, packages):
            return
    todo = "there is no such class"
    if not (isinstance(name, str) and _is_below(name, HOST)):
        todo = "it would be imported and called: if you trust its package, name it with --trust or trusted"
    raise InputError.of(f"{place} in plans.json", name, f"{what} of {', '.join(packages[:-1])} or {packages[-1]}", todo)


def _locate(name: str) -> object:
    """As ``get_network_from_plans`` does, which also finds networks that have moved."""
    try:
        found: object = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return None
    if found is None:
        folder = next(iter(architectures.__path__))
        found = recursive_find_python_class(folder, name.split(".")[-1], architectures.__name__)
    return found


def _looked_up(
    plans: dict[str, Any], dataset_json: dict[str, Any], configuration: ConfigurationManager
) -> Iterator[tuple[str, Any, str, type | None]]:
    """(place, name, the host's folder that is searched, base class; None: a function) of all names without a dot."""
    of = configuration.configuration
    yield "preprocessor_name in plans.json", of["preprocessor_name"], "preprocessing", DefaultPreprocessor
    for scheme in of["normalization_schemes"]:
        yield "normalization_schemes in plans.json", scheme, "preprocessing.normalization", ImageNormalization
    for key in ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"):
        yield f"{key} in plans.json", of[key], "preprocessing.resampling", None
    yield "image_reader_writer in plans.json", plans["image_reader_writer"], "imageio", BaseReaderWriter
    if "label_manager" in plans:
        yield "label_manager in plans.json", plans["label_manager"], "utilities.label_handling", LabelManager
    reader = dataset_json.get("overwrite_image_reader_writer", "None")
    if reader != "None":
        yield "overwrite_image_reader_writer in dataset.json", reader, "imageio", BaseReaderWriter


def _check_looked_up(place: str, name: object, folder: str, kind: type | None) -> None:
    """A plain name, which the host takes from its own modules, be it theirs or imported there."""
    found: Any = None
    if isinstance(name, str) and name.isidentifier():
        parts = (nnunetv2.__path__[0], *folder.split("."))
        found = recursive_find_python_class(str(Path(*parts)), name, f"nnunetv2.{folder}")
    right: Callable[[Any], bool] = inspect.isfunction if kind is None else lambda f: _is_subclass(f, kind)
    if not (right(found) and _is_below(found.__module__, [f"nnunetv2.{folder}"])):
        allowed = f"a {'function' if kind is None else kind.__name__} of nnunetv2.{folder}"
        raise InputError.of(place, name, allowed, "the host would call it: put yours there, if you trust it")


def _is_subclass(found: object, kind: type) -> bool:
    return inspect.isclass(found) and issubclass(found, kind)


def _is_below(name: str, packages: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)
