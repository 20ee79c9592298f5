"""Targeted attacks, one rival class after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from monai_adv.attacks.base import AttackResult, Until, prepared
from monai_adv.attacks.ensemble import WorstCase
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen
from monai_adv.tasks.base import Points, Target, Task, take
from monai_adv.threats import Threat

Result = TypeVar("Result", bound=AttackResult)
Result_co = TypeVar("Result_co", bound=AttackResult, covariant=True)


class RivalAttack(Protocol[Result_co]):
    """An attack that can aim at given classes."""

    @property
    def threat(self) -> Threat: ...

    @property
    def until(self) -> Until: ...

    @property
    def mode(self) -> Mode: ...

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        target: Target,
        task: Task,
        *,
        radius: Tensor | None = None,
        generator: torch.Generator | None = None,
        rivals: Tensor | None = None,
    ) -> Result_co: ...


def against_each_rival(
    attack: RivalAttack[Result],
    targets: int,
    network: nn.Module,
    images: Tensor,
    target: Target,
    task: Task,
    *,
    radius: Tensor | None,
    generator: torch.Generator | None,
    found: Callable[[Tensor, Result], None] | None = None,
) -> AttackResult:
    """Rank the wrong classes of the clean images, then attack towards each; what one target finished is left alone.

    Args:
        attack: towards given classes.
        targets: how many of them.
        network, images, target, task, radius, generator: as in the call of an attack.
        found: told the samples and the result of each target.

    Raises:
        InputError: more targets than wrong classes.
    """
    if isinstance(attack.threat.eps, Tensor):
        raise InputError.of("eps", "a radius per sample", "one number", "give radii to the call: radius=...")
    images, radius = prepared(attack.threat, images, radius, generator, random=False)
    with frozen(network, attack.mode) as model, torch.no_grad():
        output = model(any_batch_size(images, model))
        task.check(output, target)
        rivals = ranked_rivals(task.points(output, target), targets)
    worst = WorstCase.nothing_yet(images, task, attack.until)
    worst.result.passes.forward += len(images)
    for k in range(targets):
        index = worst.running()
        if len(index) == 0:
            break
        result = attack(
            network,
            images[index],
            take(target, index),
            task,
            radius=radius[index],
            generator=generator,
            rivals=rivals[index, k],
        )
        worst.add(index, result)
        if found is not None:
            found(index, result)
    return worst.result


def ranked_rivals(points: Points, count: int) -> Tensor:
    """``(B, count, N)`` the wrong classes with the largest logits, largest first.

    Raises:
        InputError: more than there are.
    """
    wrong_classes = points.logits.shape[1] - 1
    if count > wrong_classes:
        raise InputError.of("targets", count, f"at most {wrong_classes}, the number of wrong classes here")
    return points.logits.scatter(1, points.labels[:, None], -torch.inf).topk(count, dim=1).indices
