"""Domain-specific batch normalisation: one set of normalisation layers for clean images, one for attacked images.

Sources: Chang et al., Domain-specific batch normalization for unsupervised domain adaptation (CVPR 2019); Han et al.,
Advancing diagnostic performance and clinical usability of neural networks via adversarial training and dual batch
normalization (Nature Communications 2021), with https://github.com/peterhan91/Medical-Robust-Training consulted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from monai_adv.errors import InputError
from monai_adv.network_state import bare

Branch = Literal["clean", "noisy"]
Network = TypeVar("Network", bound=nn.Module)


class DualNorm(nn.Module):
    """Two normalisation layers, of which one is used at a time.

    Args:
        clean: the layer for clean images, kept as it is; the layer for attacked images starts as its copy.
    """

    def __init__(self, clean: nn.Module) -> None:
        super().__init__()
        self.clean = clean
        self.noisy = copy.deepcopy(clean)
        self.active: Branch = "clean"
        self.train(clean.training)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.noisy(features) if self.active == "noisy" else self.clean(features)
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A checkpoint of the network before its conversion: both branches get its values.
        own = {key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
        for name in {name for name in own if "." not in name}:
            value = state_dict.pop(prefix + name)
            for branch_name in get_args(Branch):
                state_dict[f"{prefix}{branch_name}.{name}"] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"active={self.active!r}"


def dual_batch_norm(network: Network) -> Network:
    """Give every normalisation layer of a network a second branch for attacked images, in place.

    Converted are BatchNorm, SyncBatchNorm and InstanceNorm layers that have weights or running statistics. The clean
    branch keeps its layer, so an optimiser that holds its parameters still does; the new ones are
    :func:`noisy_parameters`. ``nn.SyncBatchNorm.convert_sync_batchnorm`` may come before or after. A converted network
    is left as it is. Activation checkpointing does not go with it: it repeats forwards when the branch is another.

    Returns:
        the network; it computes what it did, until the branches are trained.

    Raises:
        InputError: no such layer; the network is wrapped in DDP (which would not synchronise the new parameters), is
            itself a normalisation layer, or has lazy layers that were never run.

    Example:
        >>> import torch
        >>> network = dual_batch_norm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
        >>> sorted(network.state_dict())[2:4]
        ['1.clean.bias', '1.clean.num_batches_tracked']
        >>> with branch(network, "noisy"):
        ...     _ = network(torch.ones(1, 1, 5, 5))
        >>> network[1].clean.num_batches_tracked.item(), network[1].noisy.num_batches_tracked.item()
        (0, 1)
    """
    if isinstance(network, DistributedDataParallel):
        raise InputError.of("network", "DistributedDataParallel", "a network before DDP wraps it", "convert it first")
    if converted(network):
        return network
    found = {name: layer for name, layer in network.named_modules(remove_duplicate=False) if convertible(layer)}
    if not found:
        allowed = "a network with BatchNorm, SyncBatchNorm or affine InstanceNorm layers"
        todo = "train this one by another method, or take its variant with BatchNorm, such as vgg16_bn"
        raise InputError.of("network", type(network).__name__, allowed, todo)
    if "" in found:
        raise InputError.of("network", type(network).__name__, "a network that contains such layers", "wrap it")
    new: dict[nn.Module, DualNorm] = {}  # a layer that is used twice is converted once
    for name, layer in found.items():
        if any(is_lazy(parameter) for parameter in layer.parameters()):
            raise InputError.of("network", f"lazy layer {name}", "layers with weights", "run the network once first")
        parent, _, own_name = name.rpartition(".")
        if layer not in new:
            new[layer] = DualNorm(layer)
        setattr(network.get_submodule(parent), own_name, new[layer])
    return network


def convertible(layer: nn.Module) -> bool:
    """Whether a layer has anything that could differ between branches."""
    return isinstance(layer, _BatchNorm | _InstanceNorm) and bool(layer.state_dict())


def converted(network: nn.Module) -> list[DualNorm]:
    """The layers with two branches."""
    return [layer for layer in network.modules() if isinstance(layer, DualNorm)]


def checked(network: nn.Module, name: str) -> list[DualNorm]:
    """The same, for a branch that exists."""
    if name not in get_args(Branch):
        raise InputError.of("branch", name, " or ".join(map(repr, get_args(Branch))))
    layers = converted(network)
    if not layers:
        raise InputError.of("network", type(network).__name__, "a converted network", "call dual_batch_norm(network)")
    return layers


@contextmanager
def branch(network: nn.Module, name: Branch) -> Iterator[None]:
    """Every forward inside goes through this branch; afterwards the branch is as before.

    Args:
        network: converted, possibly wrapped in DDP or compiled.
        name: ``"clean"`` or ``"noisy"``.
    """
    layers = checked(network, name)
    before = [layer.active for layer in layers]
    try:
        for layer in layers:
            layer.active = name
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


def deploy_branch(network: nn.Module, name: Branch) -> None:
    """Every forward from now on goes through this branch. A new network uses ``"clean"``; a checkpoint does not say.

    At deployment nobody knows which images are attacked, so one branch has to serve for all.
    """
    for layer in checked(network, name):
        layer.active = name


def noisy_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that the conversion added, for an optimiser made before it."""
    return [parameter for layer in checked(network, "noisy") for parameter in layer.noisy.parameters()]


def branch_state_dict(network: nn.Module, name: Branch) -> dict[str, Tensor]:
    """The state dict of a plain network that computes what this branch does; it loads into the network unconverted."""
    checked(network, name)
    network = bare(network)
    layers = {path for path, layer in network.named_modules(remove_duplicate=False) if isinstance(layer, DualNorm)}
    plain: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        path, _, leaf = key.rpartition(".")
        parent, _, side = path.rpartition(".")
        if parent not in layers:
            plain[key] = value
        elif side == name:
            plain[f"{parent}.{leaf}"] = value
    return plain
