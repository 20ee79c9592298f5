"""Use a network for an attack and leave it exactly as it was found (design rule 2)."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from monai_adv.errors import InputError

Mode = Literal["eval", "train"]


def unwrap_ddp(network: nn.Module) -> nn.Module:
    """The network inside a DDP wrapper: an attack must not trigger gradient synchronisation."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def bare(network: nn.Module) -> nn.Module:
    """The network inside DDP and ``torch.compile``, whose wrappers put a prefix before every name of a state dict."""
    inner = unwrap_ddp(network)
    return cast(nn.Module, inner._orig_mod) if is_compiled(inner) else inner


def device_of(network: nn.Module) -> torch.device:
    """Where the network computes."""
    for values in (network.parameters(), network.buffers()):
        for value in values:
            return value.device
    return torch.device("cpu")


def is_compiled(network: nn.Module) -> bool:
    """Whether ``torch.compile`` wrapped this network."""
    # Only what compiled it has imported torch._dynamo; doing so here would cost seconds.
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(unwrap_ddp(network), dynamo.OptimizedModule)


def computes_as_in(network: nn.Module, mode: Mode) -> bool:
    """Whether the network, as it stands, computes what it does in ``mode``: then one pass serves for both.

    A layer that cannot be looked into counts as one that depends on its mode.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Dropout(0.0)).train()
        >>> computes_as_in(network, "eval")
        True
        >>> network.append(nn.BatchNorm2d(4).train())[-1].training, computes_as_in(network, "eval")
        (True, False)
    """
    train = mode == "train"
    return all(layer.training == train for layer in bare(network).modules() if _depends_on_mode(layer))


def _depends_on_mode(layer: nn.Module) -> bool:
    if isinstance(layer, _NormBase):
        return layer.running_mean is not None  # otherwise batch or instance statistics in both modes
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.dropout > 0
    kind: Any = type(layer)
    return isinstance(layer, nn.RReLU | torch.jit.ScriptModule) or _reads_its_mode(kind)


@cache
def _reads_its_mode(kind: Any) -> bool:
    """Whether the forward of a layer that is not PyTorch's own asks for ``self.training`` (stochastic depth)."""
    if kind.__module__.startswith("torch.nn."):
        return False
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is None or "training" in code.co_names


@contextmanager
def frozen(network: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """Freeze the weights and fix the mode for an attack; yields the network without a DDP wrapper.

    A compiled network computes weight gradients even for ``autograd.grad(loss, images)`` unless the weights did not
    require gradients when it was traced, so freezing saves a third of every attack step there. In eager mode it costs
    nothing. On exit ``requires_grad`` of every parameter, ``training`` of every submodule, every buffer (BatchNorm
    statistics) and the default random streams (dropout) are as before. Images are left alone too: see
    :func:`inputs_untouched`.

    Args:
        network: the model, possibly compiled, possibly wrapped in DDP.
        mode: ``"eval"`` (BatchNorm uses its running statistics, dropout is off) or ``"train"``.

    Raises:
        InputError: ``"train"`` with SyncBatchNorm on several ranks, which attack different numbers of samples and would
            wait for each other for ever.
    """
    network = unwrap_ddp(network)
    if device_of(network).type == "cpu":
        keep_freed_memory()
    several = dist.is_available() and dist.is_initialized()
    if mode == "train" and several and any(isinstance(m, nn.SyncBatchNorm) for m in network.modules()):
        raise InputError.of("mode", "train", "'eval' for a network with SyncBatchNorm on several ranks")
    flags = [(p, p.requires_grad) for p in network.parameters()]
    modes = [(m, m.training) for m in network.modules()]
    # In eval mode no layer writes a buffer or draws a random number, so nothing has to be copied.
    buffers = [(b, b.clone()) for b in network.buffers()] if mode == "train" else []
    devices = {p.device for p, _ in flags if p.device.type == "cuda"}
    streams = torch.random.fork_rng(devices=list(devices)) if mode == "train" else nullcontext()
    try:
        with streams, inputs_untouched(network):
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            network.train(mode == "train")
            yield network
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory of its tensors instead of giving it back after every layer.

    The C library of Linux returns blocks above a threshold to the system, which clears them anew for the next layer:
    up to half of the CPU time of a forward whose activations have a few MB. The threshold becomes that of the largest
    block that was freed, up to 32 MiB, so one block that nobody writes to is freed here. Elsewhere nothing happens.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


@contextmanager
def inputs_untouched(network: nn.Module) -> Iterator[None]:
    """Give the network copies of its images: one that works in place would change ours, or fail on a leaf of autograd.

    A compiled network gets the images themselves: the copy would lose what :func:`any_batch_size` marks.

    Raises:
        InputError: a TorchScript module, which takes no hook.
    """

    def copied(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)

    if is_compiled(network):
        yield
        return
    try:
        handle = network.register_forward_pre_hook(copied)
    except RuntimeError:
        todo = "give it inside of another module: torch.nn.Sequential(network)"
        raise InputError.of("network", "a TorchScript module", "a torch.nn.Module that takes hooks", todo) from None
    try:
        yield
    finally:
        handle.remove()


def detached(outputs: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Outputs without their graph; deep supervision gives a list."""
    return outputs.detach() if isinstance(outputs, Tensor) else [o.detach() for o in outputs]


def padded(index: Tensor, network: nn.Module) -> Tensor:
    """``index``, on CUDA or for a compiled network repeated up to one of a few sizes; starts with ``index`` itself.

    Attacked, running and crossed samples come in every number. Each new batch size costs a search of cuDNN for its
    algorithms, and size 1 is a graph of its own under ``torch.compile``; four sizes per octave waste at most a quarter.
    The repeated samples get the same values twice. In eager mode a single one stays alone (of two volumes, half a
    batch), and on the CPU the exact number is best.
    """
    count = len(index)
    if count == 0 or ((count == 1 or index.device.type == "cpu") and not is_compiled(network)):
        return index
    step = max(2, 2 ** (count.bit_length() - 3))
    size = math.ceil(count / step) * step
    return index.repeat(math.ceil(size / count))[:size]


def any_batch_size(images: Tensor, network: nn.Module) -> Tensor:
    """Tell ``torch.compile`` that the batch size varies: one graph then serves all sizes."""
    if is_compiled(network):
        torch._dynamo.maybe_mark_dynamic(images, 0)
    return images
