"""What is evaluated: a model with its data, opened from a description that another process can open as well.

A host (nnU-Net, a MONAI bundle, a Python factory) supplies a :class:`Source`. The rest of the evaluation sees only
these classes, and never learns which host it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.tasks import Target, Task
from monai_adv.threats import Norm, Threat

Kind = Literal["classification", "segmentation"]
LevelUnit = Literal["norm", "rms", "raw"]
"""``norm`` and ``rms`` as in :class:`Threat`; ``raw``: the norm in the units of the image files (HU for CT)."""


@dataclass(frozen=True, order=True)
class Level:
    """One radius of the evaluation, as the user gave it."""

    norm: Norm
    eps: float
    unit: LevelUnit = "norm"

    @property
    def key(self) -> str:
        """A name for files and tables, such as ``l2-5`` or ``linf-0.1-raw``."""
        return f"{self.norm}-{self.eps:g}" + ("" if self.unit == "norm" else f"-{self.unit}")


@dataclass(frozen=True)
class Score:
    """How one patient (segmentation) or one image (classification) scored.

    Attributes:
        case: its name.
        score: in [0, 1], larger is better: mean Dice over the classes that are there or found, or 1 for a right label
            and 0 for a wrong one. NaN where the ground truth has no class. So it is defined or not whatever a model
            finds: means before and after an attack are over the same patients.
        dice, hd95: per class (HD95 in mm); NaN where not defined, see volume_scores.py. Empty for classification.
        label: true class index; None for segmentation.
        probabilities: per class; empty for segmentation.
        absent: classes that the ground truth does not have.
        false_positives: those of them that were found all the same.
    """

    case: str
    score: float
    dice: dict[str, float] = field(default_factory=dict)
    hd95: dict[str, float] = field(default_factory=dict)
    label: int | None = None
    probabilities: tuple[float, ...] = ()
    absent: tuple[str, ...] = ()
    false_positives: tuple[str, ...] = ()

    @property
    def remaining(self) -> float:
        """What attacks push down and whose worst case is kept: the score.

        Without a class in the ground truth it is 1 while nothing is found and 0 then (0 where no voxel counts).
        """
        if math.isnan(self.score):
            return float(bool(self.absent) and not self.false_positives)
        return self.score


def check_distinct(name: str, values: Sequence[str], todo: str = "") -> None:
    """Refuse names that cannot be told apart, such as two classes called "tumour": whatever is shown would be mixed up.

    Raises:
        InputError: says which come twice; spaces at the ends do not tell names apart.

    Example:
        >>> check_distinct("classes", ["kidney", "tumour", "tumour "])
        Traceback (most recent call last):
        monai_adv.errors.InputError: classes: received 'tumour twice', allowed is a name of its own for each.
    """
    counts = Counter(value.strip() for value in values)
    if twice := [value for value, count in counts.items() if count > 1]:
        raise InputError.of(name, f"{', '.join(twice[:3])} twice", "a name of its own for each", todo)


def mean_known(values: Iterable[float]) -> float:
    """Mean of what is not NaN; NaN if there is nothing."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


class Case(Protocol):
    """What is attacked together and stored together: one patient's volume, or a fixed group of images.

    It may have ``notes``, sentences about what is odd in its files and yet used; the report lists them.
    """

    @property
    def name(self) -> str:
        """Unique within the subject; file systems may not like it."""

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
        """The level in the units of ``images``, with the subject's box and attacked channels.

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


class Subject(Protocol):
    """A model with its data."""

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


class Source(Protocol):
    """A picklable description of a subject (a frozen dataclass); another process opens the same."""

    def open(self) -> Subject:
        """Load the model.

        Raises:
            InputError: why it does not load.
        """


@dataclass(frozen=True)
class Record:
    """One attack on one case at one level: what the store keeps and the report reads.

    Attributes:
        model, case: names; a case holds several images for classification.
        level: key of the level; "" for the clean record.
        attack: name of the attack; "clean" for the first record of a case.
        own: scores of the images that this attack returned; samples that earlier attacks had finished were not
            attacked again and carry their worst score.
        worst: worst scores so far: over this and the earlier attacks at this level, and the lower levels before.
        carried: share of the inputs whose worst image came from a lower level of the same norm.
        forward, backward: network passes, in inputs.
        seconds: wall clock.
        attacked: number of inputs that were attacked.
        dead: number of them on which some gradient was zero or not finite.
        broken: number of them on which the model gave NaN or infinity.
        largest: largest perturbation as a share of the radius, measured in double precision; at most 1 + 1e-5.
        settings: of the attack, in words or numbers.
    """

    model: str
    case: str
    level: str
    attack: str
    own: tuple[Score, ...]
    worst: tuple[Score, ...]
    carried: float = 0.0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    attacked: int = 0
    dead: int = 0
    broken: int = 0
    largest: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values; NaN stays NaN."""
        return asdict(self)
