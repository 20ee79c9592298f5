"""Targeted attacks, one rival class after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from monai_adv.attacks.base import AttackResult, Problem, Until
from monai_adv.attacks.ensemble import WorstCase
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen
from monai_adv.tasks.base import Points
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

    def run(self, problem: Problem) -> Result_co: ...


def against_each_rival(
    attack: RivalAttack[Result],
    targets: int,
    problem: Problem,
    found: Callable[[Tensor, Result], None] | None = None,
) -> AttackResult:
    """Rank the wrong classes of the clean images, then attack towards each; what one target finished is left alone.

    Args:
        attack: towards given classes.
        targets: how many of them.
        problem: of all samples.
        found: told the samples and the result of each target.

    Raises:
        InputError: more targets than wrong classes.
    """
    images, target, task = problem.images, problem.target, problem.task
    with frozen(problem.network, attack.mode) as model, torch.no_grad():
        output = model(any_batch_size(images, model))
        task.check(output, target)
        rivals = ranked_rivals(task.points(output, target), targets)
    worst = WorstCase.nothing_yet(images, task, attack.until)
    worst.result.passes.forward += len(images)
    for k in range(targets):
        index = worst.running()
        if len(index) == 0:
            break
        result = attack.run(replace(problem.take(index), rivals=rivals[index, k]))
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
