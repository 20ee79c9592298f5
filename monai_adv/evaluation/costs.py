"""What an evaluation costs, predicted and measured: the content of ``cost.json``, typed.

Passes are counted in inputs. Seconds are those of all workers together, probes included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from monai_adv.evaluation.codec import optional
from monai_adv.evaluation.models.protocol import Case


class Size(NamedTuple):
    """How much a case asks for: network inputs, and their voxels in all channels together."""

    inputs: int
    voxels: int

    @classmethod
    def of(cls, case: Case) -> Size:
        """Of a case that is open."""
        return cls(len(case.images), case.images.numel())


@dataclass(frozen=True)
class Cost:
    """Passes in inputs, and seconds of one process."""

    forward: int
    backward: int
    seconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward, self.seconds + other.seconds)

    def times(self, factor: float) -> Cost:
        """Of more or fewer cases like these."""
        return Cost(round(self.forward * factor), round(self.backward * factor), self.seconds * factor)


@dataclass(frozen=True)
class Predicted:
    """Seconds of the whole, by the cases that had run; of a classifier its images are counted."""

    seconds: float
    cases: int


@dataclass(frozen=True)
class Measured(Cost):
    """Passes of the attacks, seconds of the whole, and how many workers there were."""

    workers: int


@dataclass(frozen=True)
class Costs:
    """Of one evaluation; None where nothing is known yet.

    Attributes:
        bound: before the start, if no input is ever finished.
        predicted: after the pilot.
        measured: at the end.
        sizes: model -> case -> its size.
        varied: the same of what natural variations can make of it at most; None where there are none.
    """

    bound: Cost | None = optional()
    predicted: Predicted | None = optional()
    measured: Measured | None = optional()
    sizes: dict[str, dict[str, Size]] | None = optional()
    varied: dict[str, dict[str, Size]] | None = optional()
