"""What a bundle checks before it trains: called by ``initialize`` of its configs."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from monai.bundle.config_parser import ConfigParser
from monai.bundle.workflows import ConfigWorkflow

from monai_adv.errors import InputError, did_you_mean

OWN_KEYS = {"imports", "bundle_root", "initialize", "run", "finalize", "_meta_", "_requirements_"}


def device(name: str = "auto") -> torch.device:
    """The device a config asks for; ``auto``: a GPU if there is one.

    Raises:
        InputError: a device that this machine does not have.

    Example:
        >>> device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from monai_adv.evaluation.models.plain import usable_device

    return usable_device(name)


def check_keys() -> None:
    """Refuse keys of the running config that nothing uses: what MONAI accepts without a word.

    Known are the keys of the files in the bundle's ``configs``, and keys that some other value refers to. To be called
    by a config: it looks for the workflow that runs it, and does nothing where there is none. It looks among its
    callers, because MONAI gives an expression the items that it refers to, and never the config that they stand in.

    Raises:
        InputError: a key that is neither, with the nearest known one.
    """
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigWorkflow):
        frame = frame.f_back
    if frame is None:
        return
    workflow: ConfigWorkflow = frame.f_locals["self"]
    config = cast(Mapping[str, Any], workflow.parser.config)
    known = OWN_KEYS | keys_of_files(Path(workflow.config_root_path))
    text = json.dumps({**config, "_meta_": None}, default=str)
    for key in config:
        if key not in known and not re.search(rf"@{re.escape(key)}(?!\w)", text):
            raise InputError.of("config", key, "a key that the bundle has", did_you_mean(key, known - OWN_KEYS))


def keys_of_files(folder: Path) -> set[str]:
    """Top-level keys of all configs of a bundle."""
    keys: set[str] = set()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.y*ml")]):
        if file.stem != "metadata":
            # "train#trainer" and "+train#handlers" change something below the key train.
            loaded: Iterable[str] = ConfigParser.load_config_file(str(file))
            keys |= {key.lstrip("+").split("#")[0].split("::")[0] for key in loaded}
    return keys
