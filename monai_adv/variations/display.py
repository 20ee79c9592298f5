"""Images that are made to be looked at: from black to white, and nothing beyond."""

from __future__ import annotations

from torch import Tensor

from monai_adv.variations.base import NotApplicable
from monai_adv.variations.scan import Scan


def shares(scan: Scan) -> Tensor:
    """The voxels between black, 0, and white, 1.

    Raises:
        NotApplicable: nobody knows what black and white are, or the image leaves them.
    """
    low, high = (float(v) for v in scan.voxels.aminmax())
    if scan.limits is None:
        raise NotApplicable(f"its intensities, {low:g} to {high:g}, do not tell what black and white are")
    black, white = scan.limits
    if low < black or high > white:
        raise NotApplicable(f"its intensities, {low:g} to {high:g}, leave the range from black to white, {scan.limits}")
    return (scan.voxels - black) / (white - black)


def shown(values: Tensor, scan: Scan) -> Tensor:
    """The way back: what is darker than black is black, what is brighter than white is white, as on any display."""
    assert scan.limits is not None
    black, white = scan.limits
    return black + values.clamp(0, 1) * (white - black)
