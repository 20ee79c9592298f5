"""Drop-max pooling: the second largest element of every window.

The largest activation is where adversarial noise shows most; leaving it out removes part of the noise. Trained and
deployed in place of the first max-pooling of a network.

Source: Sun et al., MIRST-DM: Multi-Instance RST with Drop-Max Layer for Robust Classification of Breast Cancer (MICCAI
2022), section 2.3. The paper leaves ties, padding, windows with one element, NaN and the choice of the gradient open.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.networks.polyphase import Axis, border, flat_indices, second_largest

Network = TypeVar("Network", bound=nn.Module)


class DropMax(torch.autograd.Function):
    """``(N, C, *size) -> (N, C, *out)`` in two or three dimensions; differentiable as often as wanted."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, axes: tuple[Axis, ...], ceil_mode: bool) -> Tensor:
        layout = memory_format(images)
        values, taps = second_largest(to_planes(images, layout), axes, with_taps=True)
        ctx.save_for_backward(taps)
        ctx.axes, ctx.ceil_mode, ctx.layout, ctx.shape = axes, ceil_mode, layout, images.shape
        return from_planes(values, images, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (taps,) = ctx.saved_tensors
        # Only its shape and layout are read.
        images = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
        indices = from_planes(flat_indices(taps, ctx.axes), images, ctx.layout)
        windows = [[getattr(axis, name) for axis in ctx.axes] for name in ("kernel", "stride", "padding", "dilation")]
        # Max-pooling's own backward adds each gradient where the indices say.
        scatter = torch.ops.aten.max_pool2d_with_indices_backward
        if len(ctx.axes) == 3:
            scatter = torch.ops.aten.max_pool3d_with_indices_backward
        return scatter(grad, images, *windows, ctx.ceil_mode, indices), None, None


def memory_format(images: Tensor) -> torch.memory_format:
    """Channels last where the images are."""
    last = torch.channels_last if images.dim() == 4 else torch.channels_last_3d
    if not images.is_contiguous() and images.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def to_planes(images: Tensor, layout: torch.memory_format) -> Tensor:
    """``(N, C, *size)`` as ``(outer, *size, inner)`` without a copy."""
    return images.flatten(0, 1)[..., None] if layout == torch.contiguous_format else images.movedim(1, -1)


def from_planes(planes: Tensor, images: Tensor, layout: torch.memory_format) -> Tensor:
    """The way back: ``(N, C, *out)``."""
    if layout == torch.contiguous_format:
        return planes.view(*images.shape[:2], *planes.shape[1:-1])
    return planes.movedim(-1, 1)


def window_taps(
    padded: Tensor,
    sizes: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> list[Tensor]:
    """Every tap of all windows, in raster order; the spatial axes are the last ones."""
    taps = [padded]
    for axis in range(len(kernel)):
        span = sizes[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1
        out = span // stride[axis] + 1
        if ceil_mode:
            out = min(
                (span + stride[axis] - 1) // stride[axis] + 1, (sizes[axis] + padding[axis] - 1) // stride[axis] + 1
            )
        finer: list[Tensor] = []
        for tap in taps:
            for k in range(kernel[axis]):
                start = k * dilation[axis]
                stop = start + (out - 1) * stride[axis] + 1
                finer.append(torch.ops.aten.slice(tap, axis - len(kernel), start, stop, stride[axis]))
        taps = finer
    return taps


def plain_drop_max(
    images: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    """Drop-max in few plain operations, for TorchScript, ONNX and ``torch.compile``, which fuse them."""
    pads: list[int] = []
    sizes: list[int] = []
    for i in range(len(kernel)):
        axis = len(kernel) - 1 - i
        pads += [padding[axis], padding[axis] + (stride[axis] - 1 if ceil_mode else 0)]
        sizes.append(images.size(i - len(kernel)))
    padded = torch.nn.functional.pad(images, pads, value=-math.inf)
    taps = window_taps(padded, sizes, kernel, stride, padding, dilation, ceil_mode)
    values = [tap.detach() for tap in taps]
    largest, second = torch.maximum(values[0], values[1]), torch.minimum(values[0], values[1])
    for value in values[2:]:
        second = torch.maximum(second, torch.minimum(largest, value))
        largest = torch.maximum(largest, value)
    inside = torch.nn.functional.pad(torch.ones(sizes, dtype=images.dtype, device=images.device), pads)
    real = window_taps(inside, sizes, kernel, stride, padding, dilation, ceil_mode)
    if ceil_mode or max(padding) > 0:
        second = torch.where(torch.stack(real).sum(0) < 2, largest, second)
    if not images.requires_grad:
        return second
    # The gradient goes to the first tap that has this value.
    result = second
    for i in range(len(taps)):
        j = len(taps) - 1 - i
        result = torch.where((values[j] == second) & (real[j] > 0), taps[j], result)
    return result


class _DropMaxPool(nn.Module):
    """What the three classes share; see :class:`DropMaxPool2d`."""

    spatial_dims = 0  # without annotations: TorchScript cannot read them here

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        if return_indices:
            raise InputError.of("return_indices", return_indices, "False", "drop-max has no indices to unpool with")
        self.kernel_size = self.per_axis("kernel_size", kernel_size, 1)
        self.stride = self.per_axis("stride", kernel_size if stride is None else stride, 1)
        self.padding = self.per_axis("padding", padding, 0)
        self.dilation = self.per_axis("dilation", dilation, 1)
        self.ceil_mode = bool(ceil_mode)
        if math.prod(self.kernel_size) < 2:
            allowed = "a window of at least two elements"
            raise InputError.of("kernel_size", kernel_size, allowed, "a single element has no second largest")
        for k, p in zip(self.kernel_size, self.padding, strict=True):
            if 2 * p > k:
                allowed = "at most half of the kernel size on every axis"
                raise InputError.of("padding", padding, allowed, "use less padding, as for max-pooling")

    def per_axis(self, name: str, value: int | tuple[int, ...], least: int) -> list[int]:
        """One whole number per spatial axis."""
        values = list(value) if isinstance(value, tuple | list) else [value] * self.spatial_dims
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values)
        if len(values) != self.spatial_dims or not whole:
            allowed = f"a whole number >= {least}, or {self.spatial_dims} of them"
            raise InputError.of(name, value, allowed, "give it as for max-pooling")
        return values

    def forward(self, images: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return plain_drop_max(images, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        else:
            return self.pool(images)

    @torch.jit.unused
    def pool(self, images: Tensor) -> Tensor:
        """The form that suits who runs it."""
        settings = (self.kernel_size, self.stride, self.padding, self.dilation)
        dims = self.spatial_dims
        if images.dim() not in (dims + 1, dims + 2) or not images.is_floating_point():
            allowed = f"floating-point (batch, channels, {dims} spatial axes), or the same without the batch"
            raise InputError.of("images", f"{images.dtype} {tuple(images.shape)}", allowed)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore
            return plain_drop_max(images, *settings, self.ceil_mode)
        axes = tuple(Axis.of(*axis, self.ceil_mode) for axis in zip(images.shape[-dims:], *settings, strict=True))
        border(axes)
        batch = images.as_subclass(Tensor)
        if images.dim() == dims + 1:
            batch = batch[None]
        if dims == 1:
            batch = batch.unsqueeze(-2)
            axes = (Axis.of(1, 1, 1, 0, 1, False), *axes)
        if batch.requires_grad and torch.is_grad_enabled():
            values = DropMax.apply(batch, axes, self.ceil_mode)
        else:
            layout = memory_format(batch)
            planes, _ = second_largest(to_planes(batch, layout), axes, with_taps=False)
            values = from_planes(planes, batch, layout)
        if dims == 1:
            values = values.squeeze(-2)
        if images.dim() == dims + 1:
            values = values[0]
        return MetaTensor(values, meta=images.meta) if isinstance(images, MetaTensor) else values

    def extra_repr(self) -> str:
        return (
            f"kernel_size={tuple(self.kernel_size)}, stride={tuple(self.stride)}, padding={tuple(self.padding)}, "
            f"dilation={tuple(self.dilation)}, ceil_mode={self.ceil_mode}"
        )


class DropMaxPool1d(_DropMaxPool):
    """Drop-max pooling of ``(N, C, L)``; see :class:`DropMaxPool2d`."""

    spatial_dims = 1


class DropMaxPool2d(_DropMaxPool):
    """The second largest element of every window, in place of ``nn.MaxPool2d`` with the same arguments.

    - Equal elements count one by one: the second largest of 5, 5, 1, 0 is 5.
    - Padding is -inf, as in max-pooling. A window with one element gives that element.
    - The gradient goes to one element: the first, in raster order, that has the value.
    - A window that holds NaN gives NaN.
    - Second derivatives work. Compiled, scripted and exported networks use a plain form with the same result.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for ``nn.MaxPool2d``.
        return_indices: only False.

    Shape:
        ``(N, C, H, W)`` or ``(C, H, W)`` to the shape that max-pooling gives; channels_last is kept.

    Raises:
        InputError: a window of one element, ``return_indices``, an argument that max-pooling would refuse.

    Example:
        >>> import torch
        >>> DropMaxPool2d(2)(torch.tensor([[[9.0, 3.0], [1.0, 2.0]]]))
        tensor([[[3.]]])
    """

    spatial_dims = 2


class DropMaxPool3d(_DropMaxPool):
    """Drop-max pooling of ``(N, C, D, H, W)``; see :class:`DropMaxPool2d`."""

    spatial_dims = 3


COUNTERPART: dict[type[nn.Module], type[_DropMaxPool]] = {
    nn.MaxPool1d: DropMaxPool1d,
    nn.MaxPool2d: DropMaxPool2d,
    nn.MaxPool3d: DropMaxPool3d,
}


def replace_first_max_pool(network: Network) -> Network:
    """Put drop-max pooling in place of the first max-pooling of a network, with its settings; the rest stays.

    First means first in the order in which the layers were registered; in MONAI's networks and in an ``nn.Sequential``
    that is the order of the forward pass. The network is changed in place. No weight is added or renamed, so a
    checkpoint of the network with max-pooling loads; train it further, because activations become smaller. A network
    whose first pooling is drop-max already is left as it is.

    Returns:
        the network.

    Raises:
        InputError: there is no max-pooling, or the first one returns indices.

    Example:
        >>> replace_first_max_pool(nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)))[1]
        DropMaxPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), ceil_mode=False)
    """
    for name, layer in network.named_modules(remove_duplicate=False):
        if isinstance(layer, _DropMaxPool):
            return network
        counterpart = COUNTERPART.get(type(layer))
        parent, _, own_name = name.rpartition(".")
        # MONAI's ResNet registers its pooling even where it is told not to use it.
        if counterpart is None or getattr(network.get_submodule(parent), "no_max_pool", False):
            continue
        if layer.return_indices:
            todo = "the network unpools with these indices; drop-max has none"
            raise InputError.of(f"return_indices of {name or 'the network'}", True, "False", todo)
        pooling = counterpart(
            layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode
        ).train(layer.training)
        if not own_name:
            return pooling  # type: ignore[return-value]
        setattr(network.get_submodule(parent), own_name, pooling)
        return network
    allowed = "a network with an nn.MaxPool1d, nn.MaxPool2d or nn.MaxPool3d layer"
    todo = "put a DropMaxPool2d where the network shrinks its features first, or train it without drop-max"
    raise InputError.of("network", type(network).__name__, allowed, todo)
