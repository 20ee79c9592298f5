"""A plain PyTorch segmentation network with its images, as the evaluation opens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.plain import (
    PlainCase,
    PlainModel,
    digest_of,
    fingerprint,
    forward,
    images_of,
    slice_2d,
)
from monai_adv.evaluation.models.protocol import Picture, check_distinct
from monai_adv.given import Box
from monai_adv.metrics.score import Kind, Score
from monai_adv.metrics.segmentation import check_spacing, volume_score
from monai_adv.tasks import SegmentationTask, Target
from monai_adv.tasks.base import check_labels

Mask = npt.NDArray[np.bool_]


class Segmenter(PlainModel):
    """See :class:`monai_adv.evaluation.models.protocol.Model`; each image is a case with a radius of its own.

    Args:
        name: how tables call the model.
        network: the deployed function from ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``, or a list of them
            with the full resolution first. It is put into eval mode.
        images: each ``(C, *spatial)``, float, as the network gets them.
        labels: label maps ``(*spatial)``; with ``regions`` 0/1 maps ``(R, *spatial)``.
        classes: names of the foreground classes 1, 2, ..., or of the regions.
        regions: channels are overlapping regions (sigmoid), not exclusive classes with background first.
        spacing: of the voxels in mm, for HD95, of all images or one for each; default, and for None: 1 along each.
        box: lowest and highest intensity that an attacked image may have; ``None``: no such box.
        unit: the unit of the images, in words.
        names: of the images; default: their numbers.

    An image without foreground has no Dice; what is found in it is counted as a false positive.

    Raises:
        InputError: images, labels or classes that do not fit the network or each other.
    """

    kind: Kind = "segmentation"

    def __init__(
        self,
        name: str,
        network: nn.Module,
        images: Sequence[Any],
        labels: Sequence[Any],
        classes: Sequence[str],
        *,
        regions: bool = False,
        spacing: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
        box: Box | None = None,
        unit: str = "network inputs as given",
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, network, box, unit)
        self.classes, self.regions = tuple(classes), regions
        self.cases = tuple(names) if names is not None else tuple(map(str, range(len(images))))
        if not len(images) or not len(images) == len(labels) == len(set(self.cases)):
            found = f"{len(images)} images, {len(labels)} label maps, {len(set(self.cases))} names"
            raise InputError.of("images", found, "the same number of each, at least one")
        check_distinct("classes", classes)
        self.images = [images_of(image, f"images[{i}]") for i, image in enumerate(images)]
        self.labels = [torch.as_tensor(values).detach().cpu() for values in labels]
        axes = self.images[0].ndim - 1
        self.millimetres = [
            None if each is None else check_spacing(each, axes) for each in _for_each(spacing, len(images))
        ]
        self.task = SegmentationTask.for_evaluation(regions=regions)
        self.labels = [self._checked(*each) for each in zip(self.cases, self.images, self.labels, strict=True)]

    @property
    def fingerprint(self) -> str:
        """Of weights, layers, images, labels, and what decides the scores."""
        spacings = [each or (1.0,) * (self.images[0].ndim - 1) for each in self.millimetres]
        spacing = spacings[0] if len(set(spacings)) == 1 else spacings
        decides = self.classes, self.regions, spacing, self.box, self.cases
        return fingerprint(self.network, *self.images, *self.labels, decides)

    @property
    def data_in_memory(self) -> str:
        """Of images and labels alone."""
        return digest_of(*self.images, *self.labels, self.cases)

    def to(self, device: str) -> Segmenter:
        """The network on another device."""
        self.network.to(device)
        return self

    def load(self, case: str) -> SegmentationCase:
        """One image.

        Raises:
            InputError: an unknown name.
        """
        if case not in self.cases:
            raise InputError.of("case", case, f"one of {', '.join(self.cases)}")
        return SegmentationCase(self, case, self.cases.index(case))

    def _checked(self, case: str, image: Tensor, labels: Tensor) -> Tensor:
        shape = ((len(self.classes),) if self.regions else ()) + tuple(image.shape[1:])
        if tuple(labels.shape) != shape:
            maps = labels.ndim == image.ndim and len(labels) > 1
            todo = "a map for each class: take argmax(1), or, of regions that overlap, regions=True" if maps else ""
            raise InputError.of(f"labels of {case}", tuple(labels.shape), f"{shape}, the shape of its image", todo)
        largest = 1 if self.regions else len(self.classes)
        return check_labels(f"labels of {case}", labels, largest, "see the label, and the classes of the network")


class SegmentationCase(PlainCase[SegmentationTask]):
    """See :class:`monai_adv.evaluation.models.protocol.Case`."""

    notes: tuple[str, ...] = ()

    def __init__(self, model: Segmenter, name: str, number: int) -> None:
        super().__init__(name, model, model.task)
        self.images = model.images[number][None]
        self.regions, self.classes, self.millimetres = model.regions, model.classes, model.millimetres[number]
        self.spacing = self.millimetres or (1.0,) * (self.images.ndim - 2)
        labels = model.labels[number]
        self.target: Target = labels[None] if self.regions else labels[None, None]
        self.there = _masks(labels, self.regions, len(self.classes))

    def scores(self, images: Tensor) -> list[Score]:
        """Mean Dice over the classes that are there or found; an output that is not finite is wrong in every voxel."""
        found = self._found(images)
        masks = zip(self.classes, found, self.there, strict=True)
        return [volume_score(self.name, {name: (f, t) for name, f, t in masks}, self.spacing)]

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        """The one with the lower score, or ``images`` if both are equal."""
        first, second = (self.scores(version)[0].remaining for version in (images, others))
        return others if second < first else images

    def picture(self, images: Tensor) -> list[Picture]:
        """The slice with most foreground."""
        maps = [_label_map(m) for m in (self.there, self._found(self.images), self._found(images))]
        views = [self.images[0, 0], images[0, 0], *map(torch.from_numpy, maps)]
        caption = ""
        if self.images.ndim > 4:
            number = int((views[2] > 0).flatten(1).sum(1).argmax())
            caption = f"slice {number + 1} of {len(views[0])}"
            views = [v[number] for v in views]
        clean, attacked, truth, before, after = (slice_2d(v) for v in views)
        return [Picture(self.name, clean, attacked, truth, before, after, caption)]

    def _found(self, images: Tensor) -> list[Mask]:
        logits = forward(self.network, images)[0]
        channels = len(self.classes) + (not self.regions)
        if tuple(logits.shape) != (channels, *images.shape[2:]):
            raise InputError.of("network", f"outputs {tuple(logits.shape)}", f"{(channels, *images.shape[2:])}")
        if not bool(logits.isfinite().all()):
            return [~mask for mask in self.there]
        return _masks((logits > 0).long() if self.regions else logits.argmax(0), self.regions, len(self.classes))


def _for_each(spacing: Any, count: int) -> list[Any]:
    """The spacing of each image, of one for all or of one for each."""
    one = spacing is None or all(size is not None and np.ndim(size) == 0 for size in spacing)
    return [spacing] * count if one else list(spacing)


def _masks(labels: Tensor, regions: bool, count: int) -> list[Mask]:
    """One per foreground class or region."""
    return [(labels[i] > 0 if regions else labels == i + 1).numpy() for i in range(count)]


def _label_map(masks: Sequence[Mask]) -> npt.NDArray[Any]:
    """Later regions are drawn over earlier ones."""
    result = np.zeros(masks[0].shape, np.uint8 if len(masks) < 256 else np.int32)
    for i, mask in enumerate(masks):
        result[mask] = i + 1
    return result
