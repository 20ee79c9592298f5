"""What plain PyTorch models share: arrays of any make, fingerprints of what lies in memory, slices to draw."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.fingerprint import code_files
from monai_adv.evaluation.records import Level
from monai_adv.given import Box
from monai_adv.network_state import device_of, frozen
from monai_adv.tasks import Task
from monai_adv.tasks.base import full_resolution
from monai_adv.threats import Threat, in_network_units
from monai_adv.variations.scan import Change, changed

T = TypeVar("T", bound=Task)
C = TypeVar("C", bound="PlainCase[Any]")


class PlainModel:
    """What plain networks with their images are, whatever their task."""

    space = "images as the network gets them; each image has a radius of its own"
    problems: tuple[str, ...] = ()
    varied_at = "the network's inputs, black and white being the ends of the box"
    channel_names: tuple[str, ...] = ()

    def __init__(self, name: str, network: nn.Module, box: Box | None, unit: str) -> None:
        check_box(box)
        self.files: Sequence[Path] = code_of(network)
        self.name, self.network, self.box, self.unit = name, network.eval(), box, unit

    def load(self, case: str) -> Any:
        """One case, see :class:`~monai_adv.evaluation.models.protocol.Model`."""
        raise NotImplementedError

    def load_varied(self, case: str, change: Change) -> Any:
        """See :class:`~monai_adv.evaluation.models.protocol.Varied`.

        Raises:
            InputError: no box: nothing else tells what a network's inputs are.
        """
        if self.box is None:
            todo = "give the box that they lie in"
            raise InputError.of("variations", "network inputs without a box", "inputs from black to white", todo)
        loaded = self.load(case)
        loaded.images = torch.stack(
            [
                changed(image, change, i, spacing=loaded.millimetres, limits=self.box)
                for i, image in enumerate(loaded.images)
            ]
        )
        return loaded


class PlainCase(Generic[T]):
    """What their cases are."""

    millimetres: tuple[float, ...] | None = None
    """Spacing of the voxels, where it is known."""

    def __init__(self, name: str, model: PlainModel, task: T) -> None:
        self.name, self.network, self.box, self.task = name, model.network, model.box, task

    def with_network(self: C, network: nn.Module) -> C:
        """The same case for another network with the same inputs and outputs."""
        other = copy(self)
        other.network = network
        return other

    def threat(self, level: Level) -> Threat:
        """The level with the model's box.

        Raises:
            InputError: ``raw`` radii: these images have no other unit.
        """
        return plain_threat(level, self.box)

    def aim(self, images: Tensor) -> T:
        """The same task: no input shares its score with another."""
        return self.task


def images_of(values: Any, name: str) -> Tensor:
    """A finite float tensor on the CPU.

    Raises:
        InputError: another kind of array, or NaN or infinity in it.
    """
    images = torch.as_tensor(values).detach().cpu()
    if images.dtype not in (torch.float32, torch.float64):
        raise InputError.of(name, str(images.dtype), "float32 or float64", "give images as the network gets them")
    if not bool(images.isfinite().all()):
        raise InputError.of(name, "NaN or infinity", "finite numbers")
    return images


def usable_device(name: str | torch.device) -> torch.device:
    """The device, if PyTorch can use it here.

    Raises:
        InputError: it cannot, and why.
    """
    try:
        found = torch.empty(0, device=name).device
        if found.type == "meta":
            raise InputError.of("device", str(name), "a device that computes", "a meta device has no numbers")
        return found
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        todo = f"PyTorch says: {reason}; --device cpu always works"
        raise InputError.of("device", str(name), "a device that PyTorch can use here", todo) from error


def check_box(box: Box | None) -> None:
    """Refuse an empty box."""
    if box is not None and not box[0] < box[1]:
        raise InputError.of("box", box, "(lowest, highest) with lowest < highest, or None")


def plain_threat(level: Level, box: Box | None) -> Threat:
    """The level in network units.

    Raises:
        InputError: ``raw`` radii.
    """
    if level.unit == "raw":
        raise InputError.of("unit", "raw", "'norm' or 'rms': network inputs from memory have no other unit")
    eps, unit = in_network_units(level.norm, level.eps, level.unit, None)
    return Threat(level.norm, eps, box, unit)


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """The network's full-resolution output, on the CPU and without gradient.

    Raises:
        InputError: no logits.
    """
    with frozen(network) as model, torch.no_grad():
        output = model(images.to(device_of(network)))
    return full_resolution(output).cpu()


def fingerprint(network: nn.Module, *values: object) -> str:
    """SHA-256 of the weights, the layers and their source where Python knows it, and of tensors and plain values."""
    digest = hashlib.sha256(repr(network).encode())
    for kind in sorted({type(m) for m in network.modules()}, key=lambda k: (k.__module__, k.__qualname__)):
        if not kind.__module__.startswith("torch."):
            try:
                digest.update(inspect.getsource(kind).encode())
            except (OSError, TypeError):
                digest.update(kind.__qualname__.encode())
    for name, tensor in network.state_dict().items():
        _update(digest, name)
        _update(digest, tensor)
    for value in values:
        _update(digest, value)
    return digest.hexdigest()


def code_of(network: nn.Module) -> list[Path]:
    """The user's own Python files that a network's modules come from."""
    return code_files({type(module).__module__ for module in network.modules()})


def digest_of(*values: object) -> str:
    """SHA-256 of tensors and plain values."""
    digest = hashlib.sha256()
    for value in values:
        _update(digest, value)
    return digest.hexdigest()


def slice_2d(array: Tensor) -> np.ndarray[Any, Any]:
    """``(H, W)`` of ``(*spatial)``: the middle of all axes before the last two; a line becomes an image of one row."""
    while array.ndim > 2:
        array = array[array.shape[0] // 2]
    return np.asarray(array[None] if array.ndim == 1 else array)


def _update(digest: Any, value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr(value).encode())
