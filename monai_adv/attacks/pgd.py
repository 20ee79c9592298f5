"""Projected gradient descent with a radius, a stop and a bracket of its own for every sample.

Sources: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1 (the
projected step); Ma & Liang, CMPB 2023, Algorithms 2 and 3 (step 4 * radius / K, stop at the first wrong iterate, the
bracket of the last right and the first wrong one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from monai_adv.attacks.base import (
    AttackResult,
    Loss,
    Strongest,
    input_gradient,
    sample_loss,
    scaled_input_gradient,
    sync_interval,
)
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Output, Target, Task, take
from monai_adv.threats import Threat, per_sample

Start = Literal["clean", "ball", "sphere", "gaussian"]
GAUSSIAN_START = 0.001  # standard deviation, as in the official code of TRADES, MART, FAT, LBGAT and TE


@dataclass
class PGDResult(AttackResult):
    """The result of PGD, with the way to it.

    Attributes:
        previous: the iterate before ``images`` (the clean image if there was none): with ``stop="first_wrong"`` the
            last one on which the network was still right. Not meaningful with ``keep="strongest"``.
        steps: ``(B,)`` int: gradient steps that led to ``images``; under ``stop="first_wrong"`` the k of its crossing.
    """

    previous: Tensor = field(default_factory=Tensor)
    steps: Tensor = field(default_factory=Tensor)


@dataclass
class Iterate:
    """What PGD knows before it takes a step, for the samples that are still in the batch.

    Attributes:
        number: k, the gradient steps made so far.
        index: ``(b,)`` positions in the attacked batch; on CUDA some may stand there twice, with equal values.
        delta: ``(b, C, *spatial)`` the perturbation x_k - x_0.
        output, target: of x_k; the target is the one the attack was given.
        gradient: ``(b, C, *spatial)`` of the summed losses at x_k, times ``scale``; in eval mode of the sample's own.
        scale: ``(b,)`` see :func:`~monai_adv.attacks.base.scaled_input_gradient`.
    """

    number: int
    index: Tensor
    delta: Tensor
    output: Output
    target: Target
    gradient: Tensor
    scale: Tensor


Leave = Callable[[Iterate], Tensor]
"""``(b,)`` bool: the samples that keep this iterate and leave. Early stops of training methods; must not wait for the
device."""


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (the attack *raises* a loss, by default ``task.sample_loss``).

    Args:
        threat: norm, radius, box, channels.
        steps: gradient steps K >= 1; the last iterate is checked once more, so a full run makes K + 1 forwards.
        relative_step: step size as a fraction of the radius; ``None``: ``4 / steps`` (IMA paper). ``steps * step``
            should exceed 1, otherwise the attack cannot reach the sphere from the centre.
        start: ``"clean"``, or a random point ``"ball"`` inside the ball / ``"sphere"`` on its surface, or
            ``"gaussian"``: 0.001 standard normal (TRADES: the gradient of a divergence is 0 at the clean image).
        stop: ``"never"``: all steps for everyone. ``"first_wrong"``: a sample that the network gets wrong leaves the
            batch and keeps that iterate. ``"lowest"``: it leaves when its margin cannot fall further.
        keep: which iterate is returned: the ``"last"``, or the ``"strongest"`` (smallest task margin, then largest
            loss), which ``stop="lowest"`` needs.
        mode: network mode during the attack, restored afterwards. In ``"train"`` mode BatchNorm takes its statistics
            from the samples that are in the batch, so the attack on a sample depends on which others are attacked with
            it, and on when they leave.
        loss: what is raised, of the task's points; ``None``: ``task.sample_loss``.
        check_last: look at the last iterate; a training method that runs it through the network anyway saves a pass.
            Without it ``wrong`` is false for a sample that never left.
        noise: standard deviation of the Gaussian noise added at every step, before the projection (FAT's omega).
        momentum: share of the earlier gradients, each of Euclidean length 1, that a step keeps (MI-FGSM's mu); needs
            ``keep="strongest"``.
        decay: the step falls to 0 over the run, along a cosine; needs ``keep="strongest"``.
        leave: a stop of a method's own, asked before every step.

    Example:
        ``PGD(Threat("l2", 15.0))(network, images, target, task).images`` lies within L2 distance 15 of ``images``, and
        no closer than that when the network is linear.
    """

    threat: Threat
    steps: int = 20
    relative_step: float | None = None
    start: Start = "clean"
    stop: Literal["never", "first_wrong", "lowest"] = "never"
    keep: Literal["last", "strongest"] = "last"
    mode: Mode = "eval"
    loss: Loss | None = None
    check_last: bool = True
    noise: float = 0.0
    leave: Leave | None = None
    momentum: float = 0.0
    decay: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError.of("steps", self.steps, "a whole number >= 1")
        if self.relative_step is not None and not (math.isfinite(self.relative_step) and self.relative_step > 0):
            raise InputError.of("relative_step", self.relative_step, "a finite number > 0, or None for 4 / steps")
        for name, value, allowed in (
            ("start", self.start, get_args(Start)),
            ("stop", self.stop, ("never", "first_wrong", "lowest")),
            ("keep", self.keep, ("last", "strongest")),
            ("mode", self.mode, ("eval", "train")),
        ):
            if value not in allowed:
                raise InputError.of(name, value, "one of " + ", ".join(allowed))
        if self.stop == "lowest" and self.keep == "last":
            raise InputError.of("keep", "last", "'strongest' when stop is 'lowest'", "or let stop be 'first_wrong'")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise InputError.of("noise", self.noise, "a finite number >= 0")
        if not 0 <= self.momentum < 1:
            raise InputError.of("momentum", self.momentum, "a number in [0, 1)")
        if self.keep == "last" and (self.momentum > 0 or self.decay):
            raise InputError.of("keep", "last", "'strongest' with momentum or decay")
        if self.keep == "strongest" and (self.leave is not None or not self.check_last or self.noise > 0):
            raise InputError.of("keep", "strongest", "'last' with leave, noise or without check_last")

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
        start: Tensor | None = None,
    ) -> PGDResult:
        """Attack a batch.

        Args:
            network: any module; compiled or wrapped in DDP is fine. It is left exactly as found.
            images: ``(B, C, *spatial)``.
            target: in the layout the task expects.
            task: loss, correctness, margin.
            radius: ``(B,)`` radius of each sample in the norm's unit; default: the threat's.
            start_radius: ``(B,)`` radius of the random start, at most ``radius`` (the default).
            generator: for the random start and the noise; required if there is either.
            start: ``(B, C, *spatial)`` perturbations to start from, projected first; default: as the setting says.

        Returns:
            the result; with ``keep="last"`` its ``margin`` is NaN, because margins cost time and training does not
            need them.

        Raises:
            InputError: images or radius that the threat cannot be applied to, or a random start without a generator.
        """
        self.threat.check(images)
        radius = self.threat.radius(images) if radius is None else radius.to(images.dtype)
        if generator is None and ((self.start != "clean" and start is None) or self.noise > 0):
            raise InputError.of(
                "generator", None, "a torch.Generator on the images' device for a random start or noise"
            )
        if start is None:
            delta = self._start(images, radius, start_radius, generator)
        else:
            delta = self.threat.project(start.to(images), images, radius)
        with frozen(network, self.mode) as model, torch.enable_grad():
            if self.keep == "strongest":
                return self._keep_strongest(model, images.detach(), target, task, radius, delta)
            return self._keep_last(model, images.detach(), target, task, radius, delta, generator)

    def most_passes(self) -> Passes:
        """K + 1 forwards (K without the last check), K backwards."""
        return Passes(forward=self.steps + self.check_last, backward_input=self.steps)

    def _keep_last(
        self,
        network: nn.Module,
        images: Tensor,
        target: Target,
        task: Task,
        radius: Tensor,
        delta: Tensor,
        generator: torch.Generator | None,
    ) -> PGDResult:
        early = self.stop == "first_wrong"
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
            _, gradient, scale = scaled_input_gradient(
                output,
                x,
                lambda o: self._raised(task, o, labels, k / self.steps),  # noqa: B023
                self.mode,
            )
            passes.backward_input += len(x)
            if early:
                left |= wrong
            if self.leave is not None:
                with torch.no_grad():
                    left[active] |= self.leave(Iterate(k, active, delta[active], output, labels, gradient, scale))
            del output  # its graph, before the next forward
            noise = None
            if self.noise > 0:  # drawn for the whole batch: what a sample gets must not depend on who has left
                noise = self.noise * torch.empty_like(images).normal_(generator=generator)[active]
            moved, still = self._step(images, delta, radius, gradient, active, noise)
            dead[active] |= still
            # Samples that are done stay where they are, also while they are still in the batch.
            done = left[active]
            steps[active] = torch.where(done, steps[active], k + 1)
            previous[active] = torch.where(per_sample(done, x), previous[active], delta[active])
            delta = delta.index_copy(0, active, torch.where(per_sample(done, x), delta[active], moved))
            if (early or self.leave is not None) and k % sync_interval(images.device) == 0:
                active = padded((~left).nonzero()[:, 0], network)
                if len(active) == 0:
                    break
        unknown = torch.full_like(radius, torch.nan)
        none = torch.zeros_like(wrong)
        return PGDResult(images + delta, wrong, unknown, dead, none, passes, images + previous, steps)

    def _keep_strongest(
        self, network: nn.Module, images: Tensor, target: Target, task: Task, radius: Tensor, delta: Tensor
    ) -> PGDResult:
        passes = Passes()
        best = Strongest(images, task, "wrong" if self.stop == "first_wrong" else "lowest")
        dead = torch.zeros_like(best.wrong)
        steps = torch.zeros(len(images), dtype=torch.long, device=images.device)
        moving, euclidean = torch.zeros_like(images), replace(self.threat, norm="l2")
        active = padded(torch.arange(len(images), device=images.device), network)
        for k in range(self.steps + 1):
            last = k == self.steps
            x = any_batch_size(images[active] + delta[active], network).requires_grad_(not last)
            labels = take(target, active)
            with torch.set_grad_enabled(not last):
                output = network(x)
            passes.forward += len(x)
            if last:
                losses = self._raised(task, output, labels, 1.0)
            else:
                losses, gradient = input_gradient(
                    output,
                    x,
                    lambda o: self._raised(task, o, labels, k / self.steps),  # noqa: B023
                    self.mode,
                )
                passes.backward_input += len(x)
            before = best.margin[active], best.loss[active]
            best.update(active, x.detach(), output, labels, losses)
            del output
            improved = (best.margin[active] != before[0]) | (best.loss[active] != before[1])
            steps[active] = torch.where(improved, k, steps[active])
            if last:
                break
            if self.momentum > 0:
                unit = euclidean.direction(gradient)
                dead[active] |= unit.flatten(1).eq(0).all(1)
                gradient = self.momentum * moving[active] + unit
                moving = moving.index_copy(0, active, gradient)
            moved, still = self._step(images, delta, radius, gradient, active, number=k)
            dead[active] |= still
            delta = delta.index_copy(0, active, moved)
            if self.stop != "never" and k % sync_interval(images.device) == 0:
                active = padded(best.running(), network)
                if len(active) == 0:
                    break
        return PGDResult(best.images, best.wrong, best.margin, dead, best.broken, passes, images, steps)

    def _raised(self, task: Task, output: Output, target: Target, progress: float) -> Tensor:
        """``(b,)`` what the attack raises."""
        return sample_loss(task, self.loss, output, target, progress)

    def _step(
        self,
        images: Tensor,
        delta: Tensor,
        radius: Tensor,
        gradient: Tensor,
        active: Tensor,
        noise: Tensor | None = None,
        number: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The next perturbation of the samples ``active``, and which of them did not move for want of a gradient."""
        direction = self.threat.direction(gradient, images[active])
        step = radius[active] * (self.relative_step or 4 / self.steps)
        if self.decay:
            step = step * ((1 + math.cos(math.pi * number / self.steps)) / 2)
        moved = delta[active] + per_sample(step, direction) * direction
        moved = self.threat.project(moved if noise is None else moved + noise, images[active], radius[active])
        return moved, direction.flatten(1).eq(0).all(1)

    def _start(
        self, images: Tensor, radius: Tensor, start_radius: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        if self.start == "clean" or generator is None:
            return torch.zeros_like(images)
        if self.start == "gaussian":
            noise = torch.empty_like(images).normal_(generator=generator)
            return self.threat.project(GAUSSIAN_START * noise, images, radius)
        start_radius = radius if start_radius is None else torch.minimum(start_radius, radius)
        return self.threat.random(images, start_radius, generator, surface=self.start == "sphere")
