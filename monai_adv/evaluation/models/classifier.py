"""A plain PyTorch classifier with its images, as the evaluation opens it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.base import Strongest
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
from monai_adv.tasks import ClassificationTask


class Classifier(PlainModel):
    """See :class:`monai_adv.evaluation.models.protocol.Model`; a case is a group of images in their order.

    Args:
        name: how tables call the model.
        network: gives logits ``(B, K)``, or ``(B, 1)`` for two classes. It is put into eval mode.
        images: ``(N, C, *spatial)`` float tensor or array as the network gets them, or a data set of (image, label).
        labels: ``(N,)`` class indices; ``None`` if ``images`` is a data set.
        classes: names, one per class.
        box: lowest and highest intensity that an attacked image may have; ``None``: no such box.
        unit: the unit of the images, in words.
        group: images per case: they are attacked and kept together.
        names: of the images; default: their numbers.

    Raises:
        InputError: images, labels or classes that do not fit the network or each other.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> model = Classifier("mine", network, torch.rand(100, 1, 4, 4), torch.arange(100) % 3, "abc")
        >>> model.cases
        ('images 0 to 63', 'images 64 to 99')
    """

    kind: Kind = "classification"

    def __init__(
        self,
        name: str,
        network: nn.Module,
        images: Any,
        labels: Any = None,
        classes: Sequence[str] = (),
        *,
        box: Box | None = None,
        unit: str = "network inputs as given",
        group: int = 64,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, network, box, unit)
        if group < 1:
            raise InputError.of("group", group, "a whole number >= 1")
        if labels is None:
            images, labels = _from_data_set(images)
        self.group = group
        self.images, self.labels = images_of(images, "images"), torch.as_tensor(labels).detach().cpu()
        check_distinct("classes", classes)
        self.classes = tuple(classes)
        self.names = tuple(names) if names is not None else tuple(map(str, range(len(self.images))))
        self.task = ClassificationTask()
        self._check()
        self._group()

    @property
    def fingerprint(self) -> str:
        """Of weights, layers, images, labels, and what decides how they are grouped and bounded."""
        return fingerprint(self.network, self.images, self.labels, self.classes, self.box, self.group, self.names)

    @property
    def data_in_memory(self) -> str:
        """Of images and labels alone."""
        return digest_of(self.images, self.labels, self.names)

    def to(self, device: str) -> Classifier:
        """The network on another device."""
        self.network.to(device)
        return self

    def first(self, count: int) -> Classifier:
        """The same model with the first images alone; groups begin where they did."""
        part = copy(self)
        part.images, part.labels, part.names = self.images[:count], self.labels[:count], self.names[:count]
        part._group()
        return part

    def _group(self) -> None:
        last = len(self.images) - 1
        starts = range(0, last + 1, self.group)
        self._starts = {f"images {start} to {min(start + self.group - 1, last)}": start for start in starts}
        self.cases = tuple(self._starts)

    def load(self, case: str) -> ClassificationCase:
        """A group of images.

        Raises:
            InputError: an unknown name.
        """
        if case not in self._starts:
            raise InputError.of("case", case, f"one of {', '.join(self.cases)}")
        return ClassificationCase(self, case, slice(self._starts[case], self._starts[case] + self.group))

    def _check(self) -> None:
        if self.images.ndim < 2 or not len(self.images):
            raise InputError.of("images", tuple(self.images.shape), "(N, C, *spatial) with N >= 1")
        for name, values in (("labels", self.labels), ("names", self.names)):
            if len(values) != len(self.images):
                raise InputError.of(name, f"{len(values)} {name}", f"one per image, here {len(self.images)}")
        check_distinct("names", self.names)
        output = forward(self.network, self.images[:1])
        heads = self.task.logits(output).shape[1]
        if len(self.classes) != heads:
            raise InputError.of("classes", f"{len(self.classes)} names", f"one per class of the network, here {heads}")
        self.task.check(output, self.labels)
        self.labels = self.task.labels(self.labels, heads)


class ClassificationCase(PlainCase[ClassificationTask]):
    """See :class:`monai_adv.evaluation.models.protocol.Case`."""

    def __init__(self, model: Classifier, name: str, part: slice) -> None:
        super().__init__(name, model, model.task)
        self.images, self.target = model.images[part], model.labels[part]
        self.names, self.classes = model.names[part], model.classes

    def scores(self, images: Tensor) -> list[Score]:
        """1 for a right label and 0 for a wrong one, with probabilities."""
        output = self._output(images)
        right = self.task.correct(output, self.target)
        probabilities = self.task.logits(output).double().softmax(1)
        return [
            Score(name, float(good), label=label, probabilities=tuple(row))
            for name, good, label, row in zip(
                self.names, right.tolist(), self.target.tolist(), probabilities.tolist(), strict=True
            )
        ]

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        """Image by image the one with the smaller margin, or ``images`` if both are equal."""
        best = Strongest(images, self.task, "wrong")
        for version in (images, others):
            best.update(torch.arange(len(images)), version, self._output(version), self.target)
        return best.images

    def picture(self, images: Tensor) -> list[Picture]:
        """One per image."""
        found = self.task.logits(self._output(images)).argmax(1).tolist()
        return [
            Picture(
                name, slice_2d(clean[0]), slice_2d(attacked[0]),
                caption=f"{self.classes[label]}, called {self.classes[guess]}"
                + (f", middle slice of {clean.shape[1]}" if clean.ndim > 3 else ""),
            )
            for name, clean, attacked, label, guess in zip(
                self.names, self.images, images, self.target.tolist(), found, strict=True
            )
        ]  # fmt: skip

    def _output(self, images: Tensor) -> Tensor:
        return forward(self.network, images)


def first_of(model: Any, cases: object) -> Any:
    """The model with its first so many images if it is a classifier, whose cases are groups of them; else itself."""
    return model.first(cases) if isinstance(cases, int) and isinstance(model, Classifier) else model


def _from_data_set(items: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a map-style data set."""
    if isinstance(items, Tensor) or not hasattr(items, "__getitem__") or not hasattr(items, "__len__"):
        raise InputError.of("labels", None, "class indices, or a data set of (image, label) as images")
    pairs = [items[i] for i in range(len(items))]
    if not pairs or any(not isinstance(p, Sequence) or len(p) != 2 for p in pairs):
        raise InputError.of("images", type(items).__name__, "a data set of (image, label), not empty")
    labels = torch.stack([torch.as_tensor(label) for _, label in pairs])
    return torch.stack([torch.as_tensor(image) for image, _ in pairs]), labels
