"""Pictures of what a classifier looks at; the maps are MONAI's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from monai.visualize.class_activation_maps import GradCAM
from monai.visualize.gradient_based import SmoothGrad, VanillaGrad
from PIL import Image
from torch import Tensor, nn

from monai_adv.errors import InputError, did_you_mean
from monai_adv.network_state import device_of
from monai_adv.tasks.base import plain

Method = Literal["SmoothGrad", "VanillaGrad", "GradCAM"]
METHODS: tuple[Method, ...] = ("SmoothGrad", "VanillaGrad", "GradCAM")
COLOURS = colormaps["inferno"]
GAP = 4
"""Columns between two pictures."""


def write_saliency(
    networks: Sequence[nn.Module],
    dataset: Sequence[Mapping[str, Any]],
    files: Sequence[str | Path],
    folder: str | Path,
    output: str | Path,
    method: Method = "SmoothGrad",
    target_layer: str | None = None,
    class_index: int = 1,
    seed: int = 0,
) -> list[Path]:
    """Write a PNG for each image: the image, and beside it the map of each network.

    Args:
        networks: classifiers that take the same images, such as one trained with and one without a defence.
        dataset: items with ``image`` ``(1, W, H)`` in [0, 1].
        files: of the images, in the same order.
        folder: that the files are in; the PNGs have the same folders below ``output``.
        output: folder for the PNGs, ``<name>_<method>.png``.
        method: of ``monai.visualize``.
        target_layer: GradCAM: name of the layer; default: the last convolution.
        class_index: whose score the map explains.
        seed: of SmoothGrad's noise, which is the same for all networks.

    Returns:
        the PNGs.

    Raises:
        InputError: a method, layer or class that does not exist.
    """
    if method not in METHODS:
        raise InputError.of("method", method, f"one of {', '.join(METHODS)}", did_you_mean(method, METHODS))
    # Copies, because MONAI leaves its hooks in a network.
    copies = [copy.deepcopy(network).eval() for network in networks]
    written = []
    for item, file in zip(dataset, files, strict=True):
        image = plain(torch.as_tensor(item["image"])).float()[None]
        pictures = [grey(image[0, 0])]
        for network in copies:
            pictures.append(coloured(saliency_map(network, image, method, target_layer, class_index, seed)))
        place = Path(output) / Path(file).relative_to(folder)
        place = place.with_name(f"{place.name}_{method}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(side_by_side(pictures)).save(place)
        written.append(place)
    return written


def saliency_map(
    network: nn.Module, image: Tensor, method: Method, target_layer: str | None = None, class_index: int = 1,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    """``(W, H)`` not negative: MONAI's map of one image ``(1, 1, W, H)``; gradients without their sign.

    Args:
        network: in evaluation mode; hooks stay in it, and activations in place are switched off.
        image: for the network.
        method, target_layer, class_index, seed: as in :func:`write_saliency`.

    Example:
        A linear network looks where its weights are:

        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = network[1].weight.data.copy_(torch.tensor([[0.0, 0, 0, 0], [0, -3, 0, 1]]))
        >>> saliency_map(network, torch.ones(1, 1, 2, 2), "VanillaGrad").tolist()
        [[0.0, 3.0], [0.0, 1.0]]
    """
    image = image.detach().clone().to(device_of(network))
    with torch.no_grad():
        classes = network(image).shape[1]
    if not 0 <= class_index < classes:
        raise InputError.of("class_index", class_index, f"0 to {classes - 1}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if method == "GradCAM":
            layer = _layer(network, target_layer)
            found = GradCAM(network, layer, postprocessing=_unchanged)(image, class_idx=class_index)
        elif method == "VanillaGrad":
            found = VanillaGrad(network)(image, index=class_index, retain_graph=False)
        else:
            found = SmoothGrad(network, verbose=False)(image, index=class_index, retain_graph=False)
    result: Tensor = torch.as_tensor(found)[0, 0].detach().abs().cpu()
    return result


def _unchanged(found: Tensor) -> Tensor:
    """Instead of MONAI's normalisation, which turns the scale upside down."""
    return found


def _layer(network: nn.Module, name: str | None) -> str:
    layers = dict(network.named_modules())
    convolutions = [key for key, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    if name is None and convolutions:
        name = convolutions[-1]
    if name is None or name not in layers:
        raise InputError.of("target_layer", name, "a layer of the network", did_you_mean(name or "", layers))
    for layer in layers.values():
        if getattr(layer, "inplace", False):
            layer.inplace = False  # MONAI's hook allows none behind the layer
    return name


def grey(image: Tensor) -> npt.NDArray[np.uint8]:
    """``(H, W, 3)`` of ``(W, H)`` in [0, 1]."""
    values = (255 * image.cpu().numpy().T).round().astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=2)


def coloured(found: Tensor) -> npt.NDArray[np.uint8]:
    """``(H, W, 3)`` of a map ``(W, H)``: from 0 to its own maximum."""
    values = found.numpy().T / max(float(found.max()), np.finfo(np.float32).tiny)
    colours: npt.NDArray[np.uint8] = (255 * COLOURS(values)[..., :3]).round().astype(np.uint8)
    return colours


def side_by_side(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Pictures of one height with white gaps between them."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)
