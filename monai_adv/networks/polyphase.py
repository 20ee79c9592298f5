"""The second largest element of every window, fast without a kernel of one's own.

Each axis is split into its *phases* (every ``stride``-th element, padded with -inf). A tap of all windows is then one
contiguous run of a phase, so that every step below is a plain vectorised operation on flat buffers:

1. The two largest of a window are those of its rows' two largest: axis by axis, a window costs the sum of its kernel
   sizes and not their product.
2. Where the second largest lies is the number of taps, in raster order, before the first one that equals it.

Planes are worked on in chunks that stay in the processor's cache. Nothing here waits for a device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from monai_adv.errors import InputError

# Elements of a buffer, of which a dozen share the processor's cache. PyTorch splits nothing below 32768 over threads:
# two threads gain less than they lose by waiting for each other fifty times per chunk.
CPU_CHUNK = {1: 65536, 2: 32767}
CPU_CHUNK_PER_THREAD = 65536
DEVICE_CHUNK = 2**24

Operation = tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]
Level = dict[tuple[int, ...], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Axis:
    """The windows along one axis: tap ``t`` of window ``j`` is the element ``j * stride - padding + t * dilation``."""

    size: int
    out: int  # how many windows there are
    kernel: int
    stride: int
    padding: int
    dilation: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> Axis:
        """Count the windows by torch's rule: with ``ceil_mode`` the last may be cut off, but starts on an element."""
        span = size + 2 * padding - dilation * (kernel - 1) - 1
        out = span // stride + 1
        if ceil_mode:
            out = min(-(-span // stride) + 1, (size + padding - 1) // stride + 1)
        return cls(size, out, kernel, stride, padding, dilation)

    def part(self, windows: range) -> tuple[Axis, slice]:
        """Some of the windows, and the elements that they reach."""
        start = windows.start * self.stride - self.padding
        stop = (windows.stop - 1) * self.stride - self.padding + (self.kernel - 1) * self.dilation + 1
        elements = slice(max(0, start), min(self.size, stop))
        size = elements.stop - elements.start
        padding = elements.start - start
        return Axis(size, len(windows), self.kernel, self.stride, padding, self.dilation), elements

    @property
    def length(self) -> int:
        """How many elements of a phase the windows reach."""
        return self.out + (self.kernel - 1) * self.dilation // self.stride

    def place(self, tap: int) -> tuple[int, int]:
        """The phase of a tap, and where in it the tap of window 0 is."""
        shift, phase = divmod(tap * self.dilation, self.stride)
        return phase, shift

    def phases(self) -> list[int]:
        """The phases that the taps use."""
        return sorted({self.place(tap)[0] for tap in range(self.kernel)})

    def elements(self, phase: int) -> tuple[slice, slice]:
        """Which places of a phase are not padding, and the elements that belong there."""
        first = max(0, -((phase - self.padding) // self.stride))
        start = first * self.stride + phase - self.padding
        count = max(0, min(len(range(start, self.size, self.stride)), self.length - first))
        return slice(first, first + count), slice(start, start + count * self.stride, self.stride)

    def inside(self, tap: int) -> range:
        """The windows at which a tap is not padding."""
        offset = tap * self.dilation - self.padding
        first, last = -(offset // self.stride), (self.size - 1 - offset) // self.stride
        return range(min(self.out, max(0, first)), max(0, min(self.out, last + 1)))

    def real(self) -> list[list[int]]:
        """The taps of every window that are not padding."""
        inside = [self.inside(tap) for tap in range(self.kernel)]
        return [[tap for tap, windows in enumerate(inside) if j in windows] for j in range(self.out)]


@dataclass(frozen=True)
class Border:
    """What must be done for the windows that reach into the padding."""

    short: bool  # some have a single element
    cut: bool  # the last tap of some is padding


@lru_cache(maxsize=256)
def border(axes: tuple[Axis, ...]) -> Border:
    """Look at the windows of an input size, once.

    Raises:
        InputError: no window fits, or one has no element at all.
    """
    sizes = tuple(axis.size for axis in axes)
    for axis in axes:
        if axis.size < 1 or axis.out < 1:
            allowed = f"a spatial size that holds a window of kernel {axis.kernel}, dilation {axis.dilation}"
            raise InputError.of("images", sizes, allowed, "use larger images or a smaller kernel")
    real = [axis.real() for axis in axes]
    if not all(taps for windows in real for taps in windows):
        allowed = "a spatial size at which every window has an element that is not padding"
        raise InputError.of("images", sizes, allowed, "use larger images or a smaller dilation")
    return Border(
        short=math.prod(min(map(len, windows)) for windows in real) < 2,
        cut=any(taps[-1] < axis.kernel - 1 for windows, axis in zip(real, axes, strict=True) for taps in windows),
    )


def per_window(axes: tuple[Axis, ...], value: Callable[[Axis, list[int]], int], device: torch.device) -> list[Tensor]:
    """A number for the windows of each axis, made from their real taps, shaped to broadcast over ``(*out, inner)``."""
    vectors = [torch.tensor([value(axis, taps) for taps in axis.real()], device=device) for axis in axes]
    return [vector.view(-1, *[1] * (len(axes) - i)) for i, vector in enumerate(vectors)]


def tap_dtype(axes: tuple[Axis, ...]) -> torch.dtype:
    """The smallest integers that count the taps of a window."""
    return torch.uint8 if math.prod(axis.kernel for axis in axes) <= 256 else torch.int32


class Workspace:
    """Buffers for a chunk of planes, and the operations on them, written down once and run for every chunk.

    Args:
        axes: the windows.
        outer: planes in the chunk.
        inner: channels behind the spatial axes (channels_last), otherwise 1.
        like: gives dtype and device.
        with_taps: whether :meth:`taps` will be called.
    """

    def __init__(self, axes: tuple[Axis, ...], outer: int, inner: int, like: Tensor, with_taps: bool) -> None:
        self.axes = axes
        self.like = like
        self.shape = (outer, *(axis.length for axis in axes), inner)
        self.windows = tuple(slice(axis.out) for axis in axes)
        self.strides = [math.prod(self.shape[i:]) for i in range(2, len(axes) + 2)]
        # Flat runs of this length, started at the shift of a tap, hold that tap of every window.
        self.reach = math.prod(self.shape) - sum(
            (axis.length - axis.out) * stride for axis, stride in zip(axes, self.strides, strict=True)
        )
        self.phases = {
            phase: self.buffer().fill_(-math.inf) for phase in itertools.product(*(axis.phases() for axis in axes))
        }
        self.spare = self.buffer()
        self.short: Tensor | None = None  # the windows with a single element
        if border(axes).short:
            elements = torch.ones((), dtype=torch.long, device=like.device)
            for count in per_window(axes, lambda _, taps: len(taps), like.device):
                elements = elements * count
            self.short = elements < 2
        self.operations: list[Operation] = []
        self.largest, self.second = self.reduce()
        if with_taps:
            self.differs, self.before, self.count = self.buffer(), self.buffer(), self.buffer()
            # A window that none of these taps equals has it at its last one.
            taps = list(itertools.product(*(range(axis.kernel) for axis in axes)))[:-1]
            self.steps = [(self.run(tap), self.padded(tap)) for tap in taps]

    def buffer(self) -> Tensor:
        return self.like.new_empty(math.prod(self.shape))

    def planes(self, flat: Tensor) -> Tensor:
        """The places of the windows in a buffer, shape ``(outer, *out, inner)``."""
        return flat.view(self.shape)[(slice(None), *self.windows)]

    def reduce(self) -> tuple[Tensor, Tensor]:
        """Write down how the two largest come about; returns where they will be."""
        level: Level = {phase: (values, None) for phase, values in self.phases.items()}
        length = math.prod(self.shape)
        for i, (axis, stride) in enumerate(zip(self.axes, self.strides, strict=True)):
            if axis.kernel == 1:
                level = {phase[1:]: pair for phase, pair in level.items()}
                continue
            length -= (axis.length - axis.out) * stride
            last = all(later.kernel == 1 for later in self.axes[i + 1 :])
            merged: Level = {}
            for rest in sorted({phase[1:] for phase in level}):
                taps = []
                for phase, shift in map(axis.place, range(axis.kernel)):
                    run = slice(shift * stride, shift * stride + length)
                    largest, second = level[(phase, *rest)]
                    taps.append((largest[run], None if second is None else second[run]))
                merged[rest] = self.merge(taps, want_largest=not last or self.short is not None)
            level = merged
        largest, second = level[()]
        assert second is not None  # a window has more than one tap
        return largest, second

    def merge(self, taps: list[tuple[Tensor, Tensor | None]], want_largest: bool) -> tuple[Tensor, Tensor]:
        """The two largest of several elements, or of several pairs of the two largest."""
        (largest, second), *others = taps
        into_largest, into_second = self.buffer(), self.buffer()
        top, below, spare = (buffer[: len(largest)] for buffer in (into_largest, into_second, self.spare))
        for i, (next_largest, next_second) in enumerate(others, start=2):
            if second is None:
                self.operations.append((torch.minimum, largest, next_largest, below))
            else:
                self.operations.append((torch.minimum, largest, next_largest, spare))
                self.operations.append((torch.maximum, second, spare, below))
            if next_second is not None:
                self.operations.append((torch.maximum, below, next_second, below))
            if want_largest or i < len(taps):
                self.operations.append((torch.maximum, largest, next_largest, top))
            largest, second = top, below
        return into_largest, into_second

    def run(self, tap: tuple[int, ...]) -> Tensor:
        """A tap of all windows."""
        places = [axis.place(t) for axis, t in zip(self.axes, tap, strict=True)]
        start = sum(shift * stride for (_, shift), stride in zip(places, self.strides, strict=True))
        return self.phases[tuple(phase for phase, _ in places)][start : start + self.reach]

    def padded(self, tap: tuple[int, ...]) -> list[Tensor]:
        """The windows at which a tap is padding, as places in ``differs``."""
        parts = []
        for i, (axis, t) in enumerate(zip(self.axes, tap, strict=True), start=1):
            inside = axis.inside(t)
            for part in (range(inside.start), range(max(inside.start, inside.stop), axis.out)):
                if part:
                    parts.append(self.planes(self.differs).narrow(i, part.start, len(part)))
        return parts

    def load(self, planes: Tensor) -> None:
        """Split ``(outer, *size, inner)`` into phases."""
        for phase, values in self.phases.items():
            pairs = [axis.elements(p) for axis, p in zip(self.axes, phase, strict=True)]
            places, elements = zip(*pairs, strict=True)
            values.view(self.shape)[(slice(None), *places)].copy_(planes[(slice(None), *elements)])

    def values(self) -> Tensor:
        """The second largest of every window, or its only element."""
        for operation, a, b, out in self.operations:
            operation(a, b, out=out)
        second = self.planes(self.second)
        if self.short is not None:
            second.copy_(torch.where(self.short, self.planes(self.largest), second))
        return second

    def taps(self) -> Tensor:
        """The first tap of every window that equals :meth:`values`; the last one where it is NaN."""
        second, differs, before, count = (b[: self.reach] for b in (self.second, self.differs, self.before, self.count))
        for i, (elements, padded) in enumerate(self.steps):
            torch.ne(elements, second, out=differs)
            for part in padded:
                part.fill_(1)
            if i == 0:
                before.copy_(differs)
                count.copy_(differs)
            else:
                before.mul_(differs)
                count.add_(before)
        return self.planes(self.count)


def second_largest(planes: Tensor, axes: tuple[Axis, ...], with_taps: bool) -> tuple[Tensor, Tensor | None]:
    """The second largest element of every window, and which tap of it that is.

    Args:
        planes: ``(outer, *size, inner)``, floating point; every ``outer`` and ``inner`` is pooled for itself.
        axes: the windows, one per spatial axis.
        with_taps: whether to look for the taps too.

    Returns:
        values ``(outer, *out, inner)``, and the taps in raster order as small integers of the same shape, or None.
    """
    outer, inner = planes.shape[0], planes.shape[-1]
    shape = (outer, *(axis.out for axis in axes), inner)
    values = planes.new_empty(shape)
    taps = planes.new_empty(shape, dtype=tap_dtype(axes)) if with_taps else None
    cut = border(axes).cut
    # Half precision is exact in single, where the processor is fast.
    like = planes.new_empty(0, dtype=torch.promote_types(planes.dtype, torch.float32))
    workspaces: dict[tuple[Axis, int], Workspace] = {}
    for some, windows in chunks(outer, axes, inner, planes.device):
        slab, elements = axes[0].part(windows)
        source = planes[some, elements]
        key = (slab, len(source))
        if key not in workspaces:
            workspaces[key] = Workspace((slab, *axes[1:]), len(source), inner, like, with_taps)
        work = workspaces[key]
        work.load(source)
        part = (some, slice(windows.start, windows.stop))
        values[part].copy_(work.values())
        if taps is not None:
            taps[part].copy_(work.taps())
    if taps is not None and cut:
        torch.minimum(taps, raster(axes, lambda _, real: real[-1], taps), out=taps)
    return values, taps


def chunks(outer: int, axes: tuple[Axis, ...], inner: int, device: torch.device) -> Iterator[tuple[slice, range]]:
    """Which planes, and which windows of the first axis, are worked on together."""
    threads = torch.get_num_threads()
    room = CPU_CHUNK.get(threads, CPU_CHUNK_PER_THREAD * threads) if device.type == "cpu" else DEVICE_CHUNK
    row = math.prod(axis.length for axis in axes[1:]) * inner
    planes = max(1, room // (row * axes[0].length))
    rows = axes[0].out
    if planes == 1:
        rows = min(rows, max(1, room // row - (axes[0].length - rows)))
    for i, j in itertools.product(range(0, outer, planes), range(0, axes[0].out, rows)):
        yield slice(i, i + planes), range(j, min(j + rows, axes[0].out))


def raster(axes: tuple[Axis, ...], tap: Callable[[Axis, list[int]], int], like: Tensor) -> Tensor:
    """The number in raster order of a tap that is given along every axis."""
    result = torch.zeros((), dtype=like.dtype, device=like.device)
    for axis, taps in zip(axes, per_window(axes, tap, like.device), strict=True):
        result = result * axis.kernel + taps.to(like.dtype)
    return result


def flat_indices(taps: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Where in its plane the tap of every window lies, as in the indices of torch's max-pooling.

    Args:
        taps: ``(outer, *out, inner)``, as :func:`second_largest` gives them.

    Returns:
        int64, same shape.
    """
    offsets = starts = torch.zeros((), dtype=torch.long, device=taps.device)
    for axis in axes:
        offsets = offsets[..., None] * axis.size + torch.arange(axis.kernel, device=taps.device) * axis.dilation
        starts = starts[..., None] * axis.size + torch.arange(axis.out, device=taps.device) * axis.stride - axis.padding
    # On the CPU ten times as fast as offsets[taps].
    picked = offsets.flatten().index_select(0, taps.flatten().long())
    return picked.view(taps.shape).add_(starts[..., None])
