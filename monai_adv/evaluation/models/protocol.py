"""What is evaluated: a model with its data, opened from a description that another process can open as well.

A host (nnU-Net, a MONAI bundle, a Python factory) supplies a :class:`Source`. The rest of the evaluation sees only
these classes, and never learns which host it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.records import Level
from monai_adv.metrics.score import Kind, Score
from monai_adv.tasks import Target, Task
from monai_adv.threats import Threat
from monai_adv.variations.scan import Change


def check_distinct(name: str, values: Sequence[str], todo: str = "") -> None:
    """Refuse names that cannot be told apart, such as two classes called "tumour": whatever is shown would be mixed up.

    Raises:
        InputError: says which come twice; spaces at the ends do not tell names apart. Or what is no text, and names
            without an order.

    Example:
        >>> check_distinct("classes", ["kidney", "tumour", "tumour "])
        Traceback (most recent call last):
        monai_adv.errors.InputError: classes: received 'tumour twice', allowed is a name of its own for each.
    """
    if isinstance(values, Mapping | Set) or not all(isinstance(value, str) and value.strip() for value in values):
        raise InputError.of(name, values, "texts in their order, none of them empty", todo)
    counts = Counter(value.strip() for value in values)
    if twice := [value for value, count in counts.items() if count > 1]:
        raise InputError.of(name, f"{', '.join(twice[:3])} twice", "a name of its own for each", todo)


class Case(Protocol):
    """What is attacked together and stored together: one patient's volume, or a fixed group of images.

    It may have ``notes``, sentences about what is odd in its files and yet used; the report lists them.
    """

    @property
    def name(self) -> str:
        """Unique within the model; file systems may not like it."""

    @property
    def images(self) -> Tensor:
        """``(B, C, *spatial)`` network inputs on the CPU, each with a budget of its own.

        For a 2D nnU-Net the slices of the volume, for a 3D one the volume (B = 1), for classification the images.
        """

    @property
    def target(self) -> Target:
        """Ground truth in the task's layout, on the CPU."""

    @property
    def network(self) -> nn.Module:
        """The deployed function (preprocessing and sliding window included), on its device, in eval mode."""

    @property
    def task(self) -> Task:
        """How an output is judged."""

    def threat(self, level: Level) -> Threat:
        """The level in the units of ``images``, with the model's box and attacked channels.

        Raises:
            InputError: a unit that this case cannot convert.
        """

    def aim(self, images: Tensor) -> Task:
        """The task for an attack that shall beat these attacked images: ``task``, unless inputs share a score."""

    def scores(self, images: Tensor) -> list[Score]:
        """One score per patient or image, for (attacked) images in the layout of ``images``."""

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        """The worst mixture of two attacked versions, input by input: never better for the model than either one.

        With one input per score this is the lower one of each; the slices of a 2D nnU-Net share a score.
        """

    def picture(self, images: Tensor) -> list[Picture]:
        """What a page can draw of the case: for segmentation one slice, for classification one per image."""


@dataclass(frozen=True)
class Picture:
    """Two-dimensional arrays of one slice or image, nested lists or numpy arrays.

    Attributes:
        case: as in :class:`Score`.
        clean, attacked: ``(H, W)`` first intensity channel, in network units.
        truth, on_clean, on_attacked: ``(H, W)`` label maps, or None for classification.
        caption: for example "slice 17 of 35".
    """

    case: str
    clean: Any
    attacked: Any
    truth: Any = None
    on_clean: Any = None
    on_attacked: Any = None
    caption: str = ""


class Model(Protocol):
    """A model with its data.

    It may have ``trained``, the :class:`Level` that it was trained against, or None; ``data_files``, those of ``files``
    that are images and labels; ``data_in_memory``, a hash of data that are in no file; and ``in_files``, whether
    weights and data all come from ``files``.
    """

    @property
    def name(self) -> str:
        """How tables call the model."""

    @property
    def kind(self) -> Kind:
        """Classification or segmentation."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; for segmentation of the foreground classes or regions."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides the scores and is in no file: weights in memory, settings, names."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that decide the scores: weights, configs, code, images and labels; their contents are compared."""

    @property
    def space(self) -> str:
        """In words, what is attacked: "whole volumes through nnU-Net's sliding window, mirroring off", ..."""

    @property
    def unit(self) -> str:
        """In words, the unit of network inputs: "standard deviations of the z-scored image", ..."""

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases, in a fixed order."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Files that cannot be used, with the reason; they are left out of ``cases``."""

    def load(self, case: str) -> Case:
        """One case.

        Raises:
            InputError: an unreadable file, named.
        """


class Varied(Protocol):
    """A model whose images can be changed as scanners would change them; see :mod:`monai_adv.variations`."""

    @property
    def varied_at(self) -> str:
        """In words, where the change happens: "the image files, before nnU-Net's preprocessing", ..."""

    @property
    def channel_names(self) -> Sequence[str]:
        """What the data set calls the channels of its images; empty if it does not say."""

    def load_varied(self, case: str, change: Change) -> Case:
        """One case whose images were changed; its labels stay.

        Raises:
            InputError: as :meth:`Model.load`, or images that cannot be changed here.
            NotApplicable: a variation that does not exist for these images.
        """


class Source(Protocol):
    """A picklable description of a model (a frozen dataclass); another process opens the same."""

    def open(self) -> Model:
        """Load the model.

        Raises:
            InputError: why it does not load.
        """


@dataclass(frozen=True)
class LiveSource:
    """A :class:`Source` of a model that is open already; for one process."""

    model: Model

    def open(self) -> Model:
        """The model."""
        return self.model
