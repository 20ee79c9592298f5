"""What an evaluation will cost: an upper bound before it starts, and a prediction once a few cases have run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from monai_adv.attacks.base import Attack
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.square import Square
from monai_adv.attacks.white_noise import WhiteNoise
from monai_adv.certificates import Smoothing
from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation.costs import Cost, Size
from monai_adv.evaluation.models.protocol import Case
from monai_adv.evaluation.records import Record
from monai_adv.network_state import device_of
from monai_adv.networks.fused import fused
from monai_adv.statistics import Passes
from monai_adv.tasks import take, to_device
from monai_adv.threats import Threat

SCORING = 5
"""Forwards per input that a stage spends on its aim and on scores: of its images, of two versions, of the worst."""

OPENED = 1
"""Forwards per input as a case is opened: of slices that share a Dice, so that attacks know what it is made of."""

CLEAN = 2
"""Forwards per input of the clean record, once its case is open."""

VARIED = OPENED + 1
"""Forwards per input of a natural variation: the changed file is opened as a case of its own, and scored."""

SOME = Threat("l2", 1e-3, unit="norm")
"""For attacks that are timed and not used: so small that hardly anything is finished."""

PICTURES = 2
"""Forwards per input for the pictures of a level."""


@dataclass(frozen=True)
class Timing:
    """Seconds per voxel, in the dearest way that an attack makes them.

    Attributes:
        forward: of a forward, with what an attack does around it.
        backward: of an input gradient and the step along it.
        scoring: of a forward that is scored, in the original geometry where there is one.
    """

    forward: float
    backward: float
    scoring: float = 0.0


def measure(
    case: Case, batch_size: int, clock: Callable[[], float] = time.perf_counter, *, fuse: bool = False
) -> Timing:
    """Time steps of attacks and a scoring on one case, each after one that warms up.

    Both a full batch and a single input are timed, and the dearer one counts: what survives long attacks is few inputs,
    and a pass of few costs more for each. With ``fuse`` the steps are those of the fused copy, and scoring is not.

    Raises:
        InputError: a network that cannot be called on these images, or only where no gradient is wanted, or not fused.
    """
    try:
        network = fused(case.network, case.images[:batch_size]) if fuse else case.network
        return _timing(case, network, batch_size, clock)
    except InputError:
        raise
    except Exception as error:  # of the network's own code, or of a loss that does not fit its output
        count = min(batch_size, len(case.images))
        found = f"{case.name} in a batch of {(count, *case.images.shape[1:])}"
        allowed = "images that it takes, also where a gradient is wanted"
        raise InputError.of("network", found, allowed, in_a_sentence(error).rstrip(".")) from error


def _timing(case: Case, network: nn.Module, batch_size: int, clock: Callable[[], float]) -> Timing:
    forward = backward = 0.0
    for count in sorted({1, min(batch_size, len(case.images))}):
        voxels = case.images[:count].numel()
        query = max(_seconds(case, network, count, attack, clock) / 3 for attack in _without_gradients(case))
        step = _seconds(case, network, count, PGD(SOME, 2), clock) / 3
        forward, backward = max(forward, query / voxels), max(backward, 1.5 * (step - query) / voxels)
    case.scores(case.images)
    start = clock()
    case.scores(case.images)
    return Timing(forward, backward, (clock() - start) / case.images.numel())


def _without_gradients(case: Case) -> list[Attack]:
    """Attacks of three forwards; the random search needs room for its windows."""
    attacks: list[Attack] = [WhiteNoise(SOME, draws=3)]
    return attacks if case.images.ndim < 3 else [*attacks, Square(SOME, queries=2, until="lowest")]


def _seconds(case: Case, network: nn.Module, count: int, attack: Attack, clock: Callable[[], float]) -> float:
    """The longer of two runs on the first inputs, after one that warms up."""
    device = device_of(network)
    images, target = case.images[:count].to(device), to_device(take(case.target, torch.arange(count)), device)
    seconds = []
    for _ in range(3):
        start = clock()
        attack(network, images, target, case.task, generator=torch.Generator(device).manual_seed(0))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return max(seconds[1:])


def bound(
    most: Mapping[str, Sequence[Passes]],
    sizes: Iterable[Size],
    timing: Timing,
    corruptions: int = 0,
    variations: int = 0,
    varied: Iterable[Size] | None = None,
    smooth: Smoothing | None = None,
    fuse: bool = False,
) -> Cost:
    """What one model costs if no input is ever finished: nothing can cost more passes.

    Args:
        most: of the stages of each level, see :meth:`~monai_adv.evaluation.search.plan.AttackPlan.most_passes`.
        sizes: of the cases.
        timing: of the network.
        corruptions: number of natural corruptions of network inputs, each one forward.
        variations: number of natural variations of files, at all severities.
        varied: the largest sizes that these can give the cases; None: those that they have.
        smooth: of smoothed models, whose every input is ``draws`` of the network; they are certified as well.
        fuse: what attacks find on fused copies is confirmed by the networks. An attack that is repeated because it was
            not is left out: there are next to none.

    Example:
        One level of PGD with 10 steps: 11 forwards and 10 backwards, and 10 forwards for what is opened, scores and
        pictures.

        >>> from monai_adv.attacks import PGD
        >>> most = {"l2-1": [PGD(Threat("l2", 1.0), steps=10).most_passes()]}
        >>> bound(most, [Size(inputs=1, voxels=100)], Timing(0.125, 0.125))
        Cost(forward=21, backward=10, seconds=387.5)
    """
    stages = [passes for level in most.values() for passes in level]
    sizes = list(sizes)
    scored = OPENED + CLEAN + corruptions + PICTURES * len(most) + (SCORING + fuse) * len(stages)
    attacks = sum(stages, Passes())
    if smooth:
        attacks += Passes(forward=_certified(smooth, sum(key.startswith("l2") for key in most)))
    scoring = replace(timing, forward=max(timing.scoring, timing.forward))
    found = priced(attacks, sizes, timing) + priced(Passes(forward=scored), sizes, scoring)
    return found + priced(Passes(forward=VARIED * variations), sizes if varied is None else varied, scoring)


def _certified(smooth: Smoothing, levels: int) -> int:
    """Passes of the smoothed model that cost what its certificate does, and the draws that judge its worst images."""
    draws = smooth.n0 + smooth.n + (levels + 1) * (smooth.n + 1)
    checks = 4 * (levels + 3)  # whether it answers alike, as the case is opened and each time it is voted on
    return math.ceil((draws + checks) / smooth.draws) + levels + 2  # the names of the images come with their scores


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
