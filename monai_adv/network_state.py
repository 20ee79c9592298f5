"""Use a network for an attack and leave it exactly as it was found (design rule 2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Mode = Literal["eval", "train"]


def unwrap_ddp(network: nn.Module) -> nn.Module:
    """The network inside a DDP wrapper: an attack must not trigger gradient synchronisation."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def is_compiled(network: nn.Module) -> bool:
    """Whether ``torch.compile`` wrapped this network."""
    return isinstance(unwrap_ddp(network), torch._dynamo.OptimizedModule)


@contextmanager
def frozen(network: nn.Module, mode: Mode = "eval") -> Iterator[nn.Module]:
    """Freeze the weights and fix the mode for an attack; yields the network without a DDP wrapper.

    A compiled network computes weight gradients even for ``autograd.grad(loss, images)`` unless the weights did not
    require gradients when it was traced, so freezing saves a third of every attack step there. In eager mode it costs
    nothing. On exit ``requires_grad`` of every parameter, ``training`` of every submodule, every buffer (BatchNorm
    statistics) and the default random streams (dropout) are as before.

    Args:
        network: the model, possibly compiled, possibly wrapped in DDP.
        mode: ``"eval"`` (BatchNorm uses its running statistics, dropout is off) or ``"train"``.
    """
    network = unwrap_ddp(network)
    flags = [(p, p.requires_grad) for p in network.parameters()]
    modes = [(m, m.training) for m in network.modules()]
    # In eval mode no layer writes a buffer or draws a random number, so nothing has to be copied.
    buffers = [(b, b.clone()) for b in network.buffers()] if mode == "train" else []
    devices = {p.device for p, _ in flags if p.device.type == "cuda"}
    streams = torch.random.fork_rng(devices=list(devices)) if mode == "train" else nullcontext()
    try:
        with streams:
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


def detached(outputs: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Outputs without their graph; deep supervision gives a list."""
    return [o.detach() for o in outputs] if isinstance(outputs, list | tuple) else outputs.detach()
