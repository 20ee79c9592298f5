"""Weights of a bundle's network, read safely and refused clearly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from monai_adv.errors import InputError, first_cause

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, file: str | Path, name: str = "bundle-weights") -> Network:
    """Load a state dict, such as ``models/model.pt``; nothing in the file can run.

    Args:
        network: what the weights are for.
        file: as :func:`read_weights` takes it.
        name: what an error calls the argument.

    Returns:
        the network.

    Raises:
        InputError: no such file, a file that is no state dict, or weights of another network.
    """
    content = _content(Path(file), name)
    try:
        network.load_state_dict(_bare_names(content))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError.of(name, str(file), "weights that fit the network", first_cause(error)) from error
    return network


def read_weights(file: str | Path, name: str = "weights") -> dict[str, Tensor]:
    """Read a state dict onto the CPU; nothing in the file can run.

    Args:
        file: a state dict, or a dictionary with one under ``state_dict``, ``model``, ``network`` or ``net``. The prefix
            ``module.`` of DistributedDataParallel is taken off.
        name: what an error calls the argument.

    Raises:
        InputError: no such file, or a file that is no state dict of tensors alone.
    """
    content = _content(Path(file), name)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError.of(name, str(file), "a state dict, whose values are tensors")
    return _bare_names(content)


def _content(file: Path, name: str) -> Any:
    """What should be a state dict."""
    if not file.is_file():
        todo = (
            f"in {file.parent} there is {names_in(file.parent)}; train the bundle, download its weights, or name them"
        )
        raise InputError.of(name, str(file), "an existing file", todo)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise a dozen kinds
        text = str(error).splitlines()[0][:200] if str(error) else "the file is empty"
        raise InputError.of(
            name, str(file), "a state dict of tensors, text and numbers", f"{type(error).__name__}: {text}"
        ) from error
    for key in ("state_dict", "model", "network", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return content


def _bare_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Without DistributedDataParallel's prefix."""
    return {key.removeprefix("module."): value for key, value in content.items()}


def names_in(folder: Path) -> str:
    """What is in a folder, for a message."""
    return ", ".join(sorted(p.name for p in folder.glob("*"))) or "nothing"
