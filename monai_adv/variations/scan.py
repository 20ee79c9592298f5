"""One image as its file holds it, laid out alike for all that change it: ``(C, slices, rows, columns)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from monai_adv.errors import InputError

FULL_SCALES = (255, 4095, 65535)
"""White of files of 8, 12 and 16 bits."""


@dataclass(frozen=True)
class Scan:
    """An image before any preprocessing.

    Attributes:
        voxels: ``(C, S, H, W)`` float, in units of the file (HU for CT); rows run down. Of a 2D image S is 1.
        spacing: mm between slices, rows and columns; None where the file does not tell.
        limits: what black and white are; None where nobody knows.
    """

    voxels: Tensor
    spacing: tuple[float, float, float] | None = None
    limits: tuple[float, float] | None = None


Change = Callable[[Scan, int], Tensor]
"""From a scan and its number within its case to other voxels of the same layout."""


def changed(
    image: Tensor,
    change: Change,
    number: int = 0,
    *,
    spacing: Sequence[float] | None = None,
    limits: tuple[float, float] | None = None,
    x_first: bool = False,
) -> Tensor:
    """An image with any order of its axes, changed.

    Args:
        image: ``(C, *spatial)`` float, two or three spatial axes.
        change: what happens to it.
        number: of the image within its case.
        spacing: mm along the spatial axes, in their order.
        limits: black and white; None: looked up, see :func:`full_scale`.
        x_first: the spatial axes are (x, y, z), as MONAI reads files, and not (z, y, x).

    Returns:
        the same layout and type; where ``change`` changes nothing, the same bits.

    Raises:
        InputError: an image without two or three spatial axes.

    Example:
        >>> rows_down = Tensor([[[0.0, 1.0], [2.0, 3.0]]])  # (1, x, y): x = 0 has 0 above 1
        >>> changed(rows_down, lambda scan, number: scan.voxels[0, 0, :1].expand_as(scan.voxels), x_first=True)
        tensor([[[0., 0.],
                 [2., 2.]]])
    """
    axes = image.ndim - 1
    if axes not in (2, 3) or not image.is_floating_point():
        found = f"{image.dtype} {tuple(image.shape)}"
        raise InputError.of("variations", f"an image {found}", "a float image (C, *spatial), 2D or 3D")
    order = list(range(axes))[::-1] if x_first else list(range(axes))  # to (z, y, x)
    known = None if spacing is None else [float(spacing[a]) for a in order]
    if axes == 3:  # slices to the front
        front = _slice_axis(known)
        order.insert(0, order.pop(front))
        if known is not None:
            known.insert(0, known.pop(front))
    laid = image.permute(0, *(a + 1 for a in order))
    laid = laid if axes == 3 else laid[:, None]
    mm = None if known is None else ((1.0, *known) if axes == 2 else tuple(known))
    scan = Scan(laid.contiguous(), mm, full_scale(image) if limits is None else limits)  # type: ignore[arg-type]
    varied = change(scan, number)
    varied = varied if axes == 3 else varied[:, 0]
    back = [order.index(a) + 1 for a in range(axes)]
    return varied.permute(0, *back).to(image.dtype).contiguous()


def _slice_axis(spacing: Sequence[float] | None) -> int:
    """Of three axes (z, y, x) the one along which voxels are longest; of equal ones z."""
    if spacing is None:
        return 0
    longest = max(spacing)
    longer = [axis for axis, mm in enumerate(spacing) if mm > 0.99 * longest]
    return longer[0] if len(longer) == 1 else 0


def full_scale(image: Tensor) -> tuple[float, float] | None:
    """Black and white of a file by its values: whole numbers of 8, 12 or 16 bits, or numbers from 0 to 1.

    Returns:
        None if it is neither.

    Example:
        >>> full_scale(Tensor([0.0, 3.0, 254.0])), full_scale(Tensor([0.0, 0.25])), full_scale(Tensor([-1.0]))
        ((0.0, 255.0), (0.0, 1.0), None)
    """
    low, high = (float(v) for v in image.aminmax())
    if low < 0:
        return None
    if bool((image == image.round()).all()):
        return next(((0.0, float(white)) for white in FULL_SCALES if high <= white), None)
    return (0.0, 1.0) if high <= 1 else None
