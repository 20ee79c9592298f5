"""What an evaluation will cost: an upper bound before it starts, and a prediction once a few cases have run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from monai_adv.attacks.base import input_gradient
from monai_adv.evaluation.plans import Stage
from monai_adv.evaluation.subject import Case, Record
from monai_adv.network_state import device_of, frozen
from monai_adv.statistics import Passes
from monai_adv.tasks import take, to_device

SCORING = 5
"""Forwards per input that a stage spends on its aim and on scores: of its images, of two versions, of the worst."""

CLEAN = 2
"""Forwards per input of the clean record."""

PICTURES = 2
"""Forwards per input for the pictures of a level."""


@dataclass(frozen=True)
class Size:
    """How much a case asks for: network inputs, and their voxels in all channels together."""

    inputs: int
    voxels: int


@dataclass(frozen=True)
class Timing:
    """Seconds per voxel of a forward, and of the backward of an input gradient."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Cost:
    """Passes in inputs, and seconds of one process."""

    forward: int
    backward: int
    seconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward, self.seconds + other.seconds)


def measure(case: Case, batch_size: int) -> Timing:
    """Time one forward and one input gradient of the first batch, each after one that warms up."""
    device = device_of(case.network)
    images, target = case.images[:batch_size].to(device), to_device(case.target, device)
    target = take(target, torch.arange(len(images), device=device))
    seconds = []
    with frozen(case.network) as network:
        for gradient in (False, False, True, True):
            start = time.perf_counter()
            x = images.clone().requires_grad_(gradient)
            with torch.set_grad_enabled(gradient):
                output = network(x)
            if gradient:
                input_gradient(output, x, lambda o: case.task.sample_loss(o, target), "eval")
            del output
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    voxels = images.numel()
    return Timing(seconds[1] / voxels, max(seconds[3] - seconds[1], 0.0) / voxels)


def bound(plan: Mapping[str, Sequence[Stage]], sizes: Iterable[Size], timing: Timing, corruptions: int = 0) -> Cost:
    """What one model costs if no input is ever finished: nothing can cost more passes.

    Args:
        plan: stages per level.
        sizes: of the cases.
        timing: of the network.
        corruptions: number of natural corruptions, each one forward.

    Example:
        One level of PGD with 10 steps: 11 forwards and 10 backwards, and 9 forwards for scores and pictures.

        >>> from monai_adv.attacks import PGD
        >>> from monai_adv.threats import Threat
        >>> plan = {"l2-1": [Stage("PGD", PGD(Threat("l2", 1.0), steps=10))]}
        >>> bound(plan, [Size(inputs=1, voxels=100)], Timing(0.001, 0.001))
        Cost(forward=20, backward=10, seconds=3.0)
    """
    most = [stage.attack.most_passes() for stages in plan.values() for stage in stages]
    forward = CLEAN + corruptions + PICTURES * len(plan) + sum(passes.forward + SCORING for passes in most)
    return priced(Passes(forward, sum(passes.backward_input for passes in most)), sizes, timing)


def priced(passes: Passes, sizes: Iterable[Size], timing: Timing) -> Cost:
    """Passes that every input of some cases makes."""
    forward, backward = passes.forward, passes.backward_input
    total = Cost(0, 0, 0.0)
    for size in sizes:
        seconds = size.voxels * (forward * timing.forward + backward * timing.backward)
        total += Cost(forward * size.inputs, backward * size.inputs, seconds)
    return total


def predict(seconds: Mapping[str, float], sizes: Mapping[str, Size]) -> float:
    """Seconds of a model's cases in all, from those that have run: in proportion to their voxels.

    Example:
        >>> predict({"a": 3.0}, {"a": Size(1, 100), "b": Size(2, 200)})
        9.0
    """
    known = sum(sizes[case].voxels for case in seconds if case in sizes)
    return sum(seconds.values()) / max(known, 1) * sum(size.voxels for size in sizes.values())


def measured(records: Iterable[Record]) -> Cost:
    """What the records cost."""
    total = Cost(0, 0, 0.0)
    for record in records:
        total += Cost(record.forward, record.backward, record.seconds)
    return total


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(42), duration(600), duration(36000)
        ('42 s', '10 min', '10 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.3g} h"
