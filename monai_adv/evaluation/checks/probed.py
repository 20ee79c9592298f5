"""What the probes of :mod:`monai_adv.evaluation.checks.probes` find, as the store keeps it and the checks judge it."""

from __future__ import annotations

from dataclasses import dataclass

from monai_adv.evaluation.codec import optional
from monai_adv.given import Box
from monai_adv.threats import Norm


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Whether a network answers the same question in the same way.

    Attributes:
        repeat: largest change of an output from call to call, in standard deviations of the outputs.
        batch: and from a batch to the image alone.
        training: number of submodules in training mode.
        probabilities: whether the outputs are probabilities rather than logits.
    """

    repeat: float
    batch: float
    training: int
    probabilities: bool


@dataclass(frozen=True, kw_only=True)
class TrainedAgainst:
    """The radius that a model was trained with.

    Attributes:
        norm: of it.
        words: in all its units.
        per_voxel: change per voxel.
    """

    norm: Norm
    words: str
    per_voxel: float


@dataclass(frozen=True, kw_only=True)
class _Probed(Consistency):
    """What is known of a case, and of all of them.

    Attributes:
        images: how many were tried.
        threats: key of a level -> in words, all units.
        per_voxel: key of a level -> change per voxel.
        trained: what the model was trained against; None where its checkpoint says nothing.
        box: of the attacked images, one for all voxels; None without.
        low, high, sd: of the images.
        outside: share of the images outside the box.
        relative: key of a level -> radius per voxel (RMS for L2) as a share of the intensity range, or of the box.
        zero_samples, zero_voxels: share of gradients that are zero, vanishing or not finite; None where images lie
            outside the box, with which nothing more is tried.
        seconds: wall clock.
    """

    images: int
    threats: dict[str, str]
    per_voxel: dict[str, float]
    trained: TrainedAgainst | None
    box: Box | None
    low: float
    high: float
    sd: float
    outside: float
    relative: dict[str, float]
    zero_samples: float | None = optional()
    zero_voxels: float | None = optional()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CaseProbe(_Probed):
    """Of one case.

    Attributes:
        unbounded: norm -> scores that are left at the most harmful of several radii as large as the images; None as
            ``zero_samples``.
        longer: key of a level -> patient or image -> score under the long attacks; None as well.
    """

    unbounded: dict[Norm, list[float]] | None = optional()
    longer: dict[str, dict[str, float]] | None = optional()


@dataclass(frozen=True, kw_only=True)
class ModelProbe(_Probed):
    """Of a model, over all probed cases; ``threats``, ``per_voxel`` and ``trained`` of the first.

    Attributes:
        cases: their names.
        steps: of the long attacks.
        unit: of network inputs, in words.
        unbounded: norm -> mean score; None where images of some case lie outside the box.
        longer: key of a level -> case -> patient or image -> score; None as well.
    """

    cases: tuple[str, ...]
    steps: int
    unit: str
    unbounded: dict[Norm, float] | None = optional()
    longer: dict[str, dict[str, dict[str, float]]] | None = optional()
