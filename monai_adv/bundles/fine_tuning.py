"""Start a training from given weights, and train only the end of a network."""

from __future__ import annotations

import logging
from pathlib import Path
from types import MethodType
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_adv.errors import InputError
from monai_adv.pretraining.simclr import load_pretrained, read

Network = TypeVar("Network", bound=nn.Module)
Trainable = Literal["all", "last"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the three colours, in [0, 1]: with which ImageNet networks normalise their images."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
logger = logging.getLogger(__name__)


def prepared(network: Network, pretrained: str | Path | None = None, trainable: Trainable = "all") -> Network:
    """Make a network ready for a training.

    Args:
        network: changed in place.
        pretrained: weights to start from, as for :func:`~monai_adv.pretraining.load_pretrained`. Those of a network for
            colours go into one for grey images in [0, 1]: see :func:`load_colour`.
        trainable: ``all``, or ``last``: the last convolution and everything behind it. The rest is frozen; its
            BatchNorms keep their running statistics and use them.

    Returns:
        the network.

    Raises:
        InputError: a file that cannot be read, weights of another network, or no convolution.
    """
    if trainable not in ("all", "last"):
        raise InputError.of("trainable", trainable, "all or last")
    if pretrained is not None:
        load(network, Path(pretrained))
    if trainable == "last":
        if pretrained is None:
            logger.warning("trainable is last and pretrained is not given: the frozen layers keep random weights")
        freeze_all_but_last(network)
    return network


def load(network: nn.Module, file: Path) -> None:
    """Load weights; those for colours are converted if the network takes grey images."""
    name, first = _convolutions(network)[0]
    saved = read(file)
    stored = saved.get("encoder", saved.get("state_dict", saved)).get(f"{name}.weight")
    colours = getattr(stored, "ndim", 0) == 4 and stored.shape[1] == 3
    if colours and first.in_channels == 1:
        load_colour(network, file)
    else:
        load_pretrained(network, file)


def load_colour(network: nn.Module, file: Path) -> None:
    """Load ImageNet weights into a two-dimensional network with one input channel.

    The first convolution becomes the one that the ImageNet network applies to a grey image repeated three times and
    normalised with ``MEAN`` and ``STD``: weights summed over the colours, the normalisation in weights and bias. Only
    at the image's border, where the padding is 0 before the normalisation instead of after it, the values differ.

    Raises:
        InputError: weights of another network, or a first convolution without a bias.
    """
    name, grey = _convolutions(network)[0]
    if not isinstance(grey, nn.Conv2d) or grey.bias is None:
        raise InputError.of("pretrained", str(file), "weights for grey images, or a first convolution with a bias")
    size, stride, padding, dilation = grey.kernel_size, grey.stride, grey.padding, grey.dilation
    colour = nn.Conv2d(3, grey.out_channels, size, stride, padding, dilation, device=grey.weight.device)  # type: ignore[arg-type]
    network.set_submodule(name, colour)
    try:
        load_pretrained(network, file)
    finally:
        network.set_submodule(name, grey)
    assert colour.bias is not None
    with torch.no_grad():
        mean, std = (colour.weight.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        grey.weight.copy_((colour.weight / std).sum(1, keepdim=True))
        grey.bias.copy_(colour.bias - (colour.weight * mean / std).sum((1, 2, 3)))


def freeze_all_but_last(network: nn.Module) -> None:
    """Freeze everything before the last convolution, in the order in which layers were registered.

    Raises:
        InputError: no convolution.
    """
    last = _convolutions(network)[-1][1]
    frozen = True
    for layer in network.modules():
        frozen = frozen and layer is not last
        for weight in layer.parameters(recurse=False):
            weight.requires_grad_(not frozen)
        if frozen and isinstance(layer, _BatchNorm):
            layer.eval()
            layer.train = MethodType(_stays, layer)  # type: ignore[method-assign] # trainers call it every iteration


def _stays(layer: nn.Module, mode: bool = True) -> nn.Module:
    return layer


def _convolutions(network: nn.Module) -> list[tuple[str, nn.Conv1d | nn.Conv2d | nn.Conv3d]]:
    found = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, _CONVOLUTIONS)]
    if not found:
        raise InputError.of("network", type(network).__name__, "a network with a convolution")
    return found
