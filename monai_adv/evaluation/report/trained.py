"""The radius that a model was trained with, beside those that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monai_adv.evaluation.checks.probed import ModelProbe
from monai_adv.evaluation.records import Level, level_name

FAR_BELOW = 0.5
"""Share of the trained radius below which the largest measured one says little about what was trained for."""


@dataclass(frozen=True)
class Trained:
    """What is known of a model's training.

    Attributes:
        text: the radius, in all its units.
        warning: what is missing in the measurement; "" if nothing is.
    """

    text: str
    warning: str


def trained(probes: ModelProbe | None, levels: Sequence[Level]) -> Trained | None:
    """By the probes of a model; None if its checkpoint says nothing.

    Example: "the largest radius measured, L2, 0.02 RMS, is 20 % of the one it was trained with (L2, 0.1 RMS per voxel):
    measure that one as well".
    """
    known = probes.trained if probes else None
    if probes is None or known is None:
        return None
    sizes = {v: probes.per_voxel[v.key] for v in levels if v.norm == known.norm and v.key in probes.per_voxel}
    warning = ""
    if sizes and sizes[largest := max(sizes, key=sizes.__getitem__)] < FAR_BELOW * known.per_voxel:
        share = f"{100 * sizes[largest] / known.per_voxel:.2g} %"
        warning = (
            f"the largest radius measured, {level_name(largest)}, is {share} of the one it was trained with "
            f"({known.words}): measure that one as well"
        )
    return Trained(known.words, warning)
