"""Gradient ascent as training methods need it: the last iterate, and the way to it.

Not an attack that measures: nobody knows whether the last iterate is the strongest. What measures is
:class:`~monai_adv.attacks.pgd.PGD`.

Sources: as in projected_steps.py; Ma & Liang, CMPB 2023, Algorithm 2 (stop at the first wrong iterate, the bracket of
the last right and the first wrong one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.base import prepared, scaled_input_gradient, sync_interval
from monai_adv.attacks.projected_steps import ProjectedSteps
from monai_adv.errors import InputError
from monai_adv.network_state import any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Output, Target, Task, take
from monai_adv.threats import per_sample


@dataclass
class Ascended:
    """Where an ascent ended, in the order of the batch.

    Attributes:
        images: ``(B, C, *spatial)`` the last iterates, detached, each within its radius and the box.
        wrong: ``(B,)`` bool: the network is wrong on ``images``. Without ``check_last`` known only of samples that
            left because they were wrong.
        dead: ``(B,)`` bool: some gradient was zero or not finite, so that the ascent stood still where it had to go on.
        previous: the iterate before ``images`` (the clean image if there was none): with ``first_wrong`` the last one
            on which the network was still right.
        steps: ``(B,)`` int: gradient steps that led to ``images``; with ``first_wrong`` the k of its crossing.
        passes: network passes made, in samples.
    """

    images: Tensor
    wrong: Tensor
    dead: Tensor
    previous: Tensor
    steps: Tensor
    passes: Passes

    @classmethod
    def of_nothing(cls, images: Tensor) -> Ascended:
        """The result for none of ``images``."""
        none = torch.zeros(0, dtype=torch.bool, device=images.device)
        return cls(images[:0], none, none, images[:0], none.long(), Passes())


@dataclass
class Iterate:
    """What is known before a step, for the samples that are still in the batch.

    The gradient is a pass, which is made when it is asked for: a stop that goes by the output alone saves it where
    nobody goes on.

    Attributes:
        number: k, the gradient steps made so far.
        index: ``(b,)`` positions in the attacked batch; on CUDA some may stand there twice, with equal values.
        delta: ``(b, C, *spatial)`` the perturbation x_k - x_0.
        output, target: of x_k; the target is the one the ascent was given.
    """

    number: int
    index: Tensor
    delta: Tensor
    output: Output
    target: Target
    _backward: Callable[[], tuple[Tensor, Tensor]]

    @cached_property
    def _pass(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            return self._backward()

    @property
    def gradient(self) -> Tensor:
        """``(b, C, *spatial)`` of the summed losses at x_k, times ``scale``; in eval mode of the sample's own."""
        return self._pass[0]

    @property
    def scale(self) -> Tensor:
        """``(b,)`` see :func:`~monai_adv.attacks.base.scaled_input_gradient`."""
        return self._pass[1]


Leave = Callable[[Iterate], Tensor]
"""``(b,)`` bool: the samples that keep this iterate and leave. Early stops of training methods; must not wait for the
device."""


@dataclass(frozen=True)
class Ascent(ProjectedSteps):
    """Projected gradient ascent to its last iterate; fields as in :class:`ProjectedSteps`, and:

    Args:
        first_wrong: a sample that the network gets wrong leaves the batch and keeps that iterate.
        check_last: look at the last iterate; a training method that runs it through the network anyway saves a pass.
        noise: standard deviation of the Gaussian noise added at every step, before the projection (FAT's omega).
        leave: a stop of a method's own, asked before every step.

    Example:
        ``Ascent(Threat("l2", 15.0, unit="norm"))(network, images, target, task).images`` lies within L2 distance 15 of
        ``images``, and no closer than that when the network is linear.
    """

    first_wrong: bool = False
    check_last: bool = True
    noise: float = 0.0
    leave: Leave | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise InputError.of("noise", self.noise, "a finite number >= 0")

    @property
    def random(self) -> bool:
        """Whether the start is random, or the way."""
        return super().random or self.noise > 0

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        target: Target,
        task: Task,
        *,
        radius: Tensor | None = None,
        start_radius: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Ascended:
        """Take the steps of a batch, each sample for itself; the network is left exactly as found.

        Args:
            network: any module; compiled or wrapped in DDP is fine.
            images: ``(B, C, *spatial)``.
            target: in the layout the task expects.
            task: loss and correctness.
            radius: ``(B,)`` radius of each sample in the norm's unit; default: the threat's.
            start_radius: ``(B,)`` radius of the random start, at most ``radius`` (the default).
            generator: on the images' device, for the random start and the noise; required if there is either.

        Raises:
            InputError: images or radius that the threat cannot be applied to, or a random start without a generator.
        """
        images, radius = prepared(self.threat, images, radius, generator, random=self.random)
        delta = self._start(images, radius, start_radius, generator)
        with frozen(network, self.mode) as model, torch.enable_grad():
            return self._climb(model, images, target, task, radius, delta, generator)

    def most_passes(self) -> Passes:
        """K + 1 forwards (K without the last check), K backwards."""
        return Passes(forward=self.steps + self.check_last, backward_input=self.steps)

    def _climb(
        self,
        network: nn.Module,
        images: Tensor,
        target: Target,
        task: Task,
        radius: Tensor,
        delta: Tensor,
        generator: torch.Generator | None,
    ) -> Ascended:
        early = self.first_wrong
        stops = early or self.leave is not None
        passes = Passes()
        wrong = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        left, dead = wrong.clone(), wrong.clone()
        steps = torch.zeros(len(images), dtype=torch.long, device=images.device)
        previous = torch.zeros_like(images)
        active = padded(torch.arange(len(images), device=images.device), network)
        for k in range(self.steps + self.check_last):
            last = k == self.steps
            x = any_batch_size(images[active] + delta[active], network).requires_grad_(not last)
            labels = take(target, active)
            with torch.set_grad_enabled(not last):  # the last check is a pass like those of a bisection
                output = network(x)
            passes.forward += len(x)
            if early or last:
                wrong[active] |= ~task.correct(output, labels)
            if last:
                break

            def backward(x: Tensor = x, output: Output = output, labels: Target = labels, k: int = k) -> Any:
                passes.backward_input += len(x)
                return scaled_input_gradient(
                    output, x, lambda o: self._raised(task, o, labels, k / self.steps), self.mode
                )[1:]

            iterate = Iterate(k, active, delta[active], output, labels, backward)
            if early:
                left |= wrong
            if self.leave is not None:
                with torch.no_grad():
                    left[active] |= self.leave(iterate)
            looks = stops and k % sync_interval(images.device) == 0
            if looks and bool(left.all()):
                break  # nobody needs the gradient
            gradient = iterate.gradient
            del output, iterate, backward  # the graph, before the next forward
            noise = None
            if self.noise > 0:  # drawn for the whole batch: what a sample gets must not depend on who has left
                noise = self.noise * torch.empty_like(images).normal_(generator=generator)[active]
            moved, still = self._step(images[active], delta[active], radius[active], gradient, k, noise)
            # Samples that are done stay where they are, also while they are still in the batch.
            done = left[active]
            dead[active] |= still & ~done
            steps[active] = torch.where(done, steps[active], k + 1)
            previous[active] = torch.where(per_sample(done, x), previous[active], delta[active])
            delta = delta.index_copy(0, active, torch.where(per_sample(done, x), delta[active], moved))
            if looks:
                active = padded((~left).nonzero()[:, 0], network)
        return Ascended(images + delta, wrong, dead, images + previous, steps, passes)
