"""A network and images that lie in memory, in whatever a notebook holds them, as a model to measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.geometry import told_spacing
from monai_adv.evaluation.models.plain import forward
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.given import Box
from monai_adv.network_state import frozen
from monai_adv.tasks import ClassificationTask

PAIRS = "pairs (image, label), or dictionaries with 'image' and 'label'"


@dataclass(frozen=True)
class Data:
    """Images ``(C, *spatial)`` and their labels, one by one, and the spacing in mm that MONAI's tensors know."""

    images: Sequence[Tensor]
    labels: Sequence[Tensor]
    spacings: Sequence[tuple[float, ...] | None]


def collect(images: Any, labels: Any) -> Data:
    """Take tensors, arrays, a DataLoader or a data set apart.

    Args:
        images: ``(N, C, *spatial)``, a list of ``(C, *spatial)``, or what gives images with their labels: a DataLoader
            or a data set of pairs, or of dictionaries with ``image`` and ``label``.
        labels: one per image; None where ``images`` has them.

    Raises:
        InputError: nothing there, labels of another number, or an order that changes from call to call.
    """
    if images is None:
        raise InputError.of("images", None, "tensors, arrays, a DataLoader or a data set, for a network in memory")
    if labels is None:
        pairs = list(_pairs(images))
    else:
        if isinstance(images, DataLoader):
            todo = f"its batches bring them: {PAIRS}"
            raise InputError.of("labels", type(labels).__name__, "None beside a DataLoader", todo)
        pairs = list(_together(images, labels))
    if not pairs:
        raise InputError.of("images", "no image", "at least one")
    return Data(
        [_plain("images", image) for image, _ in pairs],
        [_plain("labels", label) for _, label in pairs],
        [told_spacing(label, image) for image, label in pairs],
    )


def model_of(
    network: nn.Module,
    data: Data,
    name: str,
    classes: Sequence[str] | None,
    box: Box | None,
    regions: bool | None,
    spacing: Sequence[float] | None,
) -> Classifier | Segmenter:
    """A classifier if the network gives one vector per image, a segmentation model if it gives a map.

    Args:
        network: see :func:`monai_adv.evaluate`. It stays as it is, but for its mode.
        data: see :func:`collect`; floating images are given the type of the network's weights.
        name: how tables call the model.
        classes: names; default: "class 0", ..., of a segmentation from 1 on, or "region 1", ...
        box: see :class:`Segmenter`.
        spacing: of all images; None: as the data know it.
        regions: output channels are overlapping regions; None: only where there is one channel.

    Raises:
        InputError: a network that does not take these images, or data that do not fit.
    """
    images = [_as_weights(image, network) for image in data.images]
    try:
        with frozen(network.eval()):
            output = forward(network, images[0][None])
    except InputError:
        raise
    except Exception as error:  # of the user's own network
        found = f"images such as {tuple(images[0].shape)}"
        raise InputError.of("images", found, f"what {name} takes", in_a_sentence(error).rstrip(".")) from error
    if _classifies(output, images[0], name):
        if spacing is not None or regions is not None:
            raise InputError.of("regions and spacing", "given", "arguments for a segmentation", f"{name} classifies")
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise InputError.of("images", sorted(shapes)[:3], "images of one size for a classifier")
        if len({tuple(label.shape) for label in data.labels}) > 1:
            raise InputError.of("labels", "labels of several shapes", "one class index per image")
        heads = ClassificationTask().logits(output).shape[1]
        names = classes or [f"class {i}" for i in range(heads)]
        return Classifier(name, network, torch.stack(images), torch.stack(list(data.labels)), names, box=box)
    heads, by_region = output.shape[1], output.shape[1] == 1 if regions is None else regions
    if heads == 1 and not by_region:
        raise InputError.of("regions", False, "True, or nothing, for one output channel", "a single logit is a sigmoid")
    names = classes or (
        [f"region {i + 1}" for i in range(heads)] if by_region else [f"class {i}" for i in range(1, heads)]
    )
    if len(names) != heads - (not by_region):
        allowed = f"a name for each of {heads - (not by_region)} " + ("regions" if by_region else "foreground classes")
        raise InputError.of("classes", f"{len(names)} names", allowed)
    labels = [_map(label, image, by_region) for image, label in zip(images, data.labels, strict=True)]
    axes = images[0].ndim - 1
    millimetres = [told and told[:axes] for told in data.spacings] if spacing is None else spacing
    return Segmenter(name, network, images, labels, names, regions=by_region, spacing=millimetres, box=box)


def _classifies(output: Tensor, image: Tensor, name: str) -> bool:
    """Whether the output for one image is a vector; fully convolutional classifiers keep spatial axes of size 1.

    Raises:
        InputError: neither a vector nor a map of the image.
    """
    found = f"images such as {tuple(image.shape)}, to which {name} gives {tuple(output.shape)} as a batch of one"
    if output.ndim == 0 or len(output) != 1:
        todo = "an axis of the images may be missing, for the channel, or the network may squeeze that of the batch"
        raise InputError.of("images", found, "images (C, *spatial), and outputs with an axis for the batch", todo)
    if output.ndim <= 2 or (output[0, 0].numel() == 1 < image[0].numel()):
        return True
    if output.shape[2:] != image.shape[1:]:
        todo = "an axis for the channel may be missing; of several resolutions the full one comes first"
        raise InputError.of("images", found, "(C, *spatial), and a map of each image of its own size", todo)
    return False


def _pairs(items: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(items, Tensor) or (not hasattr(items, "__iter__") and not hasattr(items, "__getitem__")):
        raise InputError.of("labels", None, f"one per image, or images that bring them: {PAIRS}")
    if not isinstance(items, DataLoader):
        sized = hasattr(items, "__len__") and hasattr(items, "__getitem__")
        for item in (items[i] for i in range(len(items))) if sized else items:
            yield _pair(item)
        return
    batches: Any = items.batch_sampler  # the user's own, or that of the loader; None: what comes is no batch
    order = getattr(batches, "sampler", items.sampler)
    if isinstance(order, DistributedSampler):
        todo = "measure on one rank, without this sampler"
        raise InputError.of("images", "a DataLoader with the share of one rank", "all images", todo)
    if isinstance(order, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        raise InputError.of("images", "a DataLoader that shuffles", "a fixed order", "give it shuffle=False")
    if getattr(batches, "drop_last", False) and (
        isinstance(items.dataset, IterableDataset) or len(batches.sampler) % batches.batch_size
    ):
        raise InputError.of("images", "a DataLoader that drops its last images", "all images", "give drop_last=False")
    for batch in items:
        images, labels = _pair(batch)
        yield from [(images, labels)] if batches is None else _together(images, labels)


def _together(images: Any, labels: Any) -> Iterator[tuple[Any, Any]]:
    """Each image with its label; a table of labels gives its rows."""
    labels = labels.to_numpy(copy=True) if hasattr(labels, "to_numpy") else labels
    if len(images) != len(labels):
        raise InputError.of("labels", f"{len(labels)} labels", f"one per image, here {len(images)}")
    return zip(images, labels, strict=True)


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and {"image", "label"} <= item.keys():
        return item["image"], item["label"]
    if isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
        return item[0], item[1]
    found = f"dictionaries with {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
    raise InputError.of("images", found, PAIRS)


def _plain(name: str, values: Any) -> Tensor:
    """Without what MONAI's tensors carry along."""
    try:
        return torch.as_tensor(values).detach().cpu().as_subclass(Tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        found = values if isinstance(values, str) else type(values).__name__
        raise InputError.of(name, found, "numbers: tensors, arrays or nested lists", str(error)) from error


def _as_weights(image: Tensor, network: nn.Module) -> Tensor:
    kind = next((p.dtype for p in network.parameters() if p.dtype in (torch.float32, torch.float64)), image.dtype)
    return image.to(kind) if image.is_floating_point() else image


def _map(label: Tensor, image: Tensor, regions: bool) -> Tensor:
    """Label maps with or without an axis for one channel."""
    axes = image.ndim - 1
    if not regions and label.ndim == axes + 1 and label.shape[0] == 1:
        return label[0]
    return label[None] if regions and label.ndim == axes else label
