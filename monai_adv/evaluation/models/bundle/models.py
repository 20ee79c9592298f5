"""What the evaluation attacks of a bundle: its cases, and how its network decides."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor

from monai_adv.engines.bundle_task import layout_of
from monai_adv.errors import InputError
from monai_adv.evaluation.models.bundle.item import Item
from monai_adv.evaluation.models.bundle.opened import OpenBundle
from monai_adv.evaluation.models.classifier import ClassificationCase, Classifier
from monai_adv.evaluation.models.plain import digest_of
from monai_adv.evaluation.models.segmenter import SegmentationCase, Segmenter
from monai_adv.metrics.score import Kind
from monai_adv.networks.inferer import ForegroundLogits
from monai_adv.tasks.base import check_labels, is_one_hot
from monai_adv.variations.scan import Change


def as_model(bundle: OpenBundle) -> BundleClassifier | BundleSegmenter:
    """What the evaluation attacks."""
    return BundleSegmenter(bundle) if bundle.kind == "segmentation" else BundleClassifier(bundle)


class BundleClassifier(Classifier):
    """A classifying bundle; images that cannot be read are its ``problems``."""

    def __init__(self, bundle: OpenBundle) -> None:
        self.bundle = bundle
        images: list[Tensor] = []
        labels: list[Tensor] = []
        names: list[str] = []
        self.parts: dict[str, tuple[str, int]] = {}
        problems = list(bundle.problems)
        for name in bundle.names:
            try:
                items = bundle.items(name)
            except InputError as error:
                problems.append(str(error))
                continue
            for i, (image, label) in enumerate((item.image, item.label) for item in items):
                own = name if len(items) == 1 else f"{name} part {i + 1}"
                if label.shape != bundle.first.label.shape:
                    allowed = f"{tuple(bundle.first.label.shape)}, as of the first"
                    problems.append(str(InputError.of(f"label of {own}", tuple(label.shape), allowed)))
                    continue
                if images and image.shape != images[0].shape:
                    found = f"{tuple(images[0].shape)} and, of {own}, {tuple(image.shape)}"
                    raise InputError.of("images", found, "images of one size", "add a Resized to the bundle's config")
                images.append(image)
                labels.append(label.reshape(-1) if label.numel() > 1 else label.reshape(()))
                names.append(own)
                self.parts[own] = name, i
        if not images:
            raise InputError.of("bundle", "; ".join(problems[:3]), "at least one image that can be read")
        heads = max(2, bundle.heads)
        classes = bundle.channel_names if len(bundle.channel_names) == heads else [f"class {i}" for i in range(heads)]
        super().__init__(
            bundle.name, bundle.network, torch.stack(images), torch.stack(labels), classes,
            box=bundle.box, unit=bundle.unit, names=names,
        )  # fmt: skip
        self.files, self.trained, self.data_files = bundle.files, bundle.trained, bundle.data_files
        self.in_files = bundle.in_files
        self.problems, self.varied_at, self.channel_names = tuple(problems), bundle.varied_at, bundle.input_names
        self.space = f"the bundle's preprocessed images{bundle.attacked}; each image has a radius of its own"

    @property
    def fingerprint(self) -> str:
        """Of what is in no file of the bundle."""
        return digest_of(self.bundle.fingerprint, self.images, self.labels)

    @property
    def data_in_memory(self) -> str:
        """Of data that are in no file; preprocessed images are the bundle's work."""
        return self.bundle.data_in_memory

    def load(self, case: str) -> ClassificationCase:
        """A group of images."""
        group = super().load(case)
        group.threat = self.bundle.threat  # type: ignore[method-assign] # it knows raw units
        return group

    def load_varied(self, case: str, change: Change) -> ClassificationCase:
        """A group of images, changed as their files hold them."""
        if not self.bundle.varies_files:
            as_inputs: ClassificationCase = super().load_varied(case, change)
            return as_inputs
        group = self.load(case)
        varied = [self.bundle.varied(*self.parts[name], change, i).image for i, name in enumerate(group.names)]
        group.images = torch.stack(varied)
        return group


class BundleSegmenter:
    """A segmenting bundle, see :class:`~monai_adv.evaluation.models.protocol.Model`; volumes are read when needed."""

    kind: Kind = "segmentation"

    def __init__(self, bundle: OpenBundle) -> None:
        self.bundle, self.name, self.unit, self.problems = bundle, bundle.name, bundle.unit, tuple(bundle.problems)
        self.cases, self.files, self.trained = tuple(bundle.names), bundle.files, bundle.trained
        self.data_files, self.in_files = bundle.data_files, bundle.in_files
        self.varied_at, self.channel_names = bundle.varied_at, bundle.input_names
        image, heads = bundle.first.image, bundle.heads
        logits = torch.empty(1, heads, *image.shape[1:], device="meta")
        self.layout = layout_of(logits, bundle.first.label[None], None, None, bundle.rule, bundle.background)
        self.regions = self.layout.regions or self.layout.sigmoid
        self.network = ForegroundLogits(bundle.network) if self.layout.sigmoid else bundle.network
        count = heads if self.layout.regions else heads - 1
        names = bundle.channel_names if self.layout.regions else bundle.channel_names[1:]
        what = "region" if self.layout.regions else "class"
        self.classes = tuple(names) if len(names) == count else tuple(f"{what} {i + 1}" for i in range(count))
        inferer = bundle.network.inferer
        window = f", windows {inferer.roi_size}" if isinstance(inferer, SlidingWindowInferer) else ""
        silent = "" if bundle.rule else ", because the bundle does not say how"
        voxels = "" if bundle.first.spacing else ", HD95 in voxels because their size is not known there"
        self.space = (
            f"whole preprocessed images{bundle.attacked} through the bundle's {type(inferer).__name__}{window}; "
            f"decided is {self.layout.decision}{silent}; Dice and HD95 in the bundle's preprocessed space{voxels}; "
            "each image has a radius of its own"
        )

    @property
    def data_in_memory(self) -> str:
        """Of the cases that come from no file."""
        return self.bundle.data_in_memory

    @property
    def fingerprint(self) -> str:
        """Of what is in no file of the bundle."""
        return self.bundle.fingerprint

    def load(self, case: str) -> SegmentationCase:
        """One image.

        Raises:
            InputError: an unknown name, an unreadable file, or a label that the network does not have, or of another
                layout than that of the first case.
        """
        item = self.bundle.item(case)
        return self._told(self._segmenter(case, item).load(case), item)

    def load_varied(self, case: str, change: Change) -> SegmentationCase:
        """One image, changed as its file holds it, or as a network's input where it comes from no file."""
        if self.bundle.varies_files:
            item = self.bundle.varied(case, 0, change, 0)
            return self._told(self._segmenter(case, item).load(case), item)
        item = self.bundle.item(case)
        return self._told(self._segmenter(case, item).load_varied(case, change), item)

    def _segmenter(self, case: str, item: Item) -> Segmenter:
        """Of one image alone."""
        self._check_layout(case, item)
        label = self.layout.to_task(item.label[None])[0]
        if self.layout.sigmoid:
            check_labels(f"labels of {case}", label, len(self.classes), "see the label, and the classes of the network")
            label = torch.cat([label == k + 1 for k in range(len(self.classes))])
        return Segmenter(
            self.name, self.network, [item.image], [label if self.regions else label[0]], self.classes,
            regions=self.regions, spacing=item.spacing, box=self.bundle.box, unit=self.unit,
            names=[case],
        )  # fmt: skip

    def _told(self, loaded: Any, item: Item) -> SegmentationCase:
        """The case with what only the bundle knows."""
        loaded.notes = item.notes
        loaded.threat = self.bundle.threat  # it knows raw units
        case: SegmentationCase = loaded
        return case

    def _check_layout(self, case: str, item: Item) -> None:
        """Refuse a label that is not laid out as the first one: what a channel means is not judged anew."""
        label, todo = item.label, "give all labels of the data set one layout"
        expected = (self.bundle.first.label.shape[0], *item.image.shape[1:])
        if tuple(label.shape) != expected:
            raise InputError.of(f"label of {case}", tuple(label.shape), f"{expected}, as of the first case", todo)
        known = bool(self.layout.classes) or (self.layout.regions and self.bundle.rule != "sigmoid")
        if len(label) > 1 and known and bool(is_one_hot(label[None]).all()) != bool(self.layout.classes):
            layouts = "regions, which overlap or leave voxels out", "one class in every voxel"
            found, first = layouts[not self.layout.classes], layouts[bool(self.layout.classes)]
            raise InputError.of(f"label of {case}", found, f"{first}, as in the first case", todo)
