"""Projected gradient descent with a radius, a stop and a bracket of its own for every sample.

Sources: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1 (the
projected step); Ma & Liang, CMPB 2023, Algorithms 2 and 3 (step 4 * radius / K, stop at the first wrong iterate, the
bracket of the last right and the first wrong one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Output, Target, Task, take
from monai_adv.threats import Threat, per_sample


@dataclass
class AttackResult:
    """What an attack found, in the order of the batch.

    Attributes:
        images: ``(B, C, *spatial)`` attacked images, detached.
        previous: the iterate before ``images`` (the clean image if there was none): with ``stop="first_wrong"`` the
            last one on which the network was still right. Not meaningful with ``keep="strongest"``.
        wrong: ``(B,)`` bool: the network is wrong on ``images``.
        dead: ``(B,)`` bool: some gradient was zero or not finite, so the attack stood still: a sign of gradient
            masking.
        steps: ``(B,)`` int: gradient steps that led to ``images``; under ``stop="first_wrong"`` the k of its crossing.
        passes: network passes made, in samples.
    """

    images: Tensor
    previous: Tensor
    wrong: Tensor
    dead: Tensor
    steps: Tensor
    passes: Passes = field(default_factory=Passes)


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent (the attack *raises* ``task.sample_loss``).

    Args:
        threat: norm, radius, box, channels.
        steps: gradient steps K >= 1; the last iterate is checked once more, so a full run makes K + 1 forwards.
        relative_step: step size as a fraction of the radius; ``None``: ``4 / steps`` (IMA paper). ``steps * step``
            should exceed 1, otherwise the attack cannot reach the sphere from the centre.
        start: ``"clean"``, or a random point ``"ball"`` inside the ball / ``"sphere"`` on its surface.
        stop: ``"never"``: all steps for everyone. ``"first_wrong"``: a sample that the network gets wrong leaves the
            batch and keeps that iterate.
        keep: which iterate is returned under ``stop="never"``: the ``"last"`` or the ``"strongest"`` (smallest task
            margin, then largest loss).
        mode: network mode during the attack, restored afterwards.

    Example:
        ``PGD(Threat("l2", 15.0))(network, images, target, task).images`` lies within L2 distance 15 of ``images``, and
        no closer than that when the network is linear.
    """

    threat: Threat
    steps: int = 20
    relative_step: float | None = None
    start: Literal["clean", "ball", "sphere"] = "clean"
    stop: Literal["never", "first_wrong"] = "never"
    keep: Literal["last", "strongest"] = "last"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError.of("steps", self.steps, "a whole number >= 1")
        if self.relative_step is not None and not (math.isfinite(self.relative_step) and self.relative_step > 0):
            raise InputError.of("relative_step", self.relative_step, "a finite number > 0, or None for 4 / steps")
        for name, value, allowed in (
            ("start", self.start, ("clean", "ball", "sphere")),
            ("stop", self.stop, ("never", "first_wrong")),
            ("keep", self.keep, ("last", "strongest")),
            ("mode", self.mode, ("eval", "train")),
        ):
            if value not in allowed:
                raise InputError.of(name, value, "one of " + ", ".join(allowed))
        if self.stop == "first_wrong" and self.keep == "strongest":
            raise InputError.of("keep", "strongest", "'last' when stop is 'first_wrong'", "or let stop be 'never'")

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
    ) -> AttackResult:
        """Attack a batch.

        Args:
            network: any module; compiled or wrapped in DDP is fine. It is left exactly as found.
            images: ``(B, C, *spatial)``.
            target: in the layout the task expects.
            task: loss, correctness, margin.
            radius: ``(B,)`` radius of each sample in the norm's unit; default: the threat's.
            start_radius: ``(B,)`` radius of the random start, at most ``radius`` (the default).
            generator: for the random start; required if there is one.

        Raises:
            InputError: images or radius that the threat cannot be applied to, or a random start without a generator.
        """
        self.threat.check(images)
        radius = self.threat.radius(images) if radius is None else radius.to(images.dtype)
        delta = self._start(images, radius, start_radius, generator)
        with frozen(network, self.mode) as model, torch.enable_grad():
            return self._run(model, images.detach(), target, task, radius, delta)

    def _run(
        self, network: nn.Module, images: Tensor, target: Target, task: Task, radius: Tensor, delta: Tensor
    ) -> AttackResult:
        passes = Passes()
        early, strongest = self.stop == "first_wrong", self.keep == "strongest"
        step = radius * (self.relative_step or 4 / self.steps)
        previous = torch.zeros_like(images)  # perturbations; they become images at the end
        wrong = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        dead = torch.zeros_like(wrong)
        steps = torch.zeros(len(images), dtype=torch.long, device=images.device)
        best_delta, best_margin = delta, torch.full_like(radius, torch.inf)
        best_loss = -best_margin
        active = padded(torch.arange(len(images), device=images.device), network)
        for k in range(self.steps + 1):
            last = k == self.steps
            x = any_batch_size(images[active] + delta[active], network).requires_grad_(not last)
            labels = take(target, active)
            with torch.set_grad_enabled(not last):  # the last check is a pass like those of a bisection
                output = network(x)
            passes.forward += len(x)
            if (early or last) and not strongest:
                wrong[active] |= ~task.correct(output, labels)
            if last and not strongest:
                break
            if strongest:
                # The margin is a step function of the image; the loss decides between equals.
                with torch.no_grad():
                    loss = task.sample_loss(output, labels).to(radius)
                margin = task.margin(output, labels).to(radius)
                better = (margin < best_margin) | ((margin == best_margin) & (loss > best_loss))
                best_margin, best_loss = torch.where(better, margin, best_margin), torch.where(better, loss, best_loss)
                best_delta = torch.where(per_sample(better, delta), delta, best_delta)
                wrong = torch.where(better, ~task.correct(output, labels), wrong)
                steps = torch.where(better, k, steps)
            if last:
                break
            direction = self.threat.direction(_input_gradient(output, x, labels, task))
            passes.backward_input += len(x)
            del output  # its graph, before the next forward
            dead[active] |= direction.flatten(1).eq(0).all(1)
            moved = self.threat.project(
                delta[active] + per_sample(step[active], x) * direction, images[active], radius[active]
            )
            # Samples found wrong stay where they are, also while they are still in the batch.
            running = per_sample(~(wrong[active] & early), x)
            if not strongest:
                steps[active] = torch.where(wrong[active] & early, steps[active], k + 1)
            previous[active] = torch.where(running, delta[active], previous[active])
            delta = delta.index_copy(0, active, torch.where(running, moved, delta[active]))
            if early and k % _sync_interval(images.device) == 0:
                active = padded((~wrong).nonzero()[:, 0], network)
                if len(active) == 0:
                    break
        if strongest:
            delta = best_delta
        return AttackResult(images + delta, images + previous, wrong, dead, steps, passes)

    def _start(
        self, images: Tensor, radius: Tensor, start_radius: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        if self.start == "clean":
            return torch.zeros_like(images)
        if generator is None:
            raise InputError.of("generator", None, "a torch.Generator on the images' device for a random start")
        start_radius = radius if start_radius is None else torch.minimum(start_radius, radius)
        return self.threat.random(images, start_radius, generator, surface=self.start == "sphere")


def _input_gradient(output: Output, x: Tensor, target: Target, task: Task) -> Tensor:
    """Gradient of the per-sample losses for the images; its length per sample is arbitrary, its direction exact.

    The loss is differentiated in single precision down to the logits and scaled there, each sample by a power of two,
    so that the largest entry is about 1. Under autocast the gradient of a mean over N voxels would otherwise underflow
    in the half-precision layers, and that of a small lesion's Dice, scaled by a common factor, overflow: gradient
    masking of our own making.
    """
    outputs = [output] if isinstance(output, Tensor) else list(output)
    leaves = [(o.detach() if o.dtype == torch.float64 else o.detach().float()).requires_grad_() for o in outputs]
    loss = task.sample_loss(leaves[0] if isinstance(output, Tensor) else leaves, target)
    gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    used = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
    largest = torch.stack([g.flatten(1).abs().amax(1) for _, g in used]).amax(0)
    scale = torch.where(largest > 0, torch.exp2(-largest.log2().ceil()), torch.ones_like(largest))
    (gradient,) = torch.autograd.grad(
        [o for o, _ in used], x, [(g * per_sample(scale, g)).to(o.dtype) for o, g in used]
    )
    return gradient


def _sync_interval(device: torch.device) -> int:
    """How often finished samples leave the batch: counting them makes the host wait, which costs nothing on a CPU."""
    return 1 if device.type == "cpu" else 4
