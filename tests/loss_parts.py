"""Run the loss parts of a defence and look at what comes out: values, gradients, passes, the images that were seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.defenses import METHODS, Batch, Defense
from tests.conftest import LinearNetwork
from tests.defense_toys import BATCH, KINDS, Toy, toy

__all__ = ["KINDS", "gradients", "line", "make", "only_the_regulariser", "problem", "run", "seen_images"]


def problem(kind: str) -> tuple[Toy, Batch]:
    """The toy of a kind, and its first batch."""
    one = toy(kind, "standard")
    return one, one.batch(torch.arange(BATCH))


def only_the_regulariser(kind: str) -> tuple[Toy, Batch]:
    """A toy whose training loss is 0, so that a regulariser is all that is trained."""
    one, batch = problem(kind)
    one.task = one.task.with_loss(
        lambda output, target: (output if isinstance(output, Tensor) else output[0]).sum() * 0
    )
    return one, batch


def make(key: str, task: Any, **settings: Any) -> Any:
    """A defence with settings."""
    method = METHODS[key]
    return method.defense(task, method.settings(**settings))


def run(defense: Defense, network: nn.Module, batch: Batch) -> list[float]:
    """Backward of every part; the values."""
    values = []
    for part in defense.losses(network, batch):
        part.loss.backward()
        values.append(part.loss.item())
    return values


def gradients(key: str, kind: str, **settings: Any) -> tuple[list[float], list[Tensor]]:
    """Values of the parts and the weight gradients of one step of a method on a toy."""
    one, batch = problem(kind)
    values = run(make(key, one.task, **settings), one.network, batch)
    return values, [torch.zeros_like(p) if p.grad is None else p.grad for p in one.network.parameters()]


def line(weight: float = 1.0) -> LinearNetwork:
    """``f(x) = weight * x`` in one dimension."""
    network = LinearNetwork((1,))
    with torch.no_grad():
        network.weight.fill_(weight)
    return network


def seen_images(defense: Defense, network: nn.Module, batch: Batch) -> list[list[float]]:
    """The one-dimensional images of every training forward (those of an attack require a gradient), in order."""
    seen: list[list[float]] = []

    def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].requires_grad:
            seen.append(inputs[0][:, 0].tolist())

    handle = network.register_forward_pre_hook(listen)
    run(defense, network, batch)
    handle.remove()
    return seen
