"""The curve of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_adv.evaluation.records import Record, levels
from monai_adv.evaluation.report.curves import chains, worst_case_curve
from nnunet_trainers.demo.summary import NOISE


def curve(records: Sequence[Record], path: Path) -> None:
    """Dice against the radius, as the report of ``monai-adv evaluate`` draws it."""
    (chain,) = chains(levels(records))
    axis = "noise: RMS per voxel, in standard deviations of the image"
    path.write_bytes(worst_case_curve(records, chain, "segmentation", axis, NOISE).png)
