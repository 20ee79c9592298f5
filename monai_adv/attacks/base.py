"""What all attacks share: the call, its result, the strongest image so far, and the gradient for the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Output, Points, Target, Task, first_resolution, take
from monai_adv.threats import Threat, per_sample

Until = Literal["wrong", "lowest"]
"""When a sample is finished: at the first image that the network gets ``wrong``, or at the ``lowest`` score there is
(for segmentation Dice 0; for classification never)."""

Loss = Callable[[Points, float], Tensor]
"""``(B,)`` loss that an attack raises, of the points and of the share of its steps already made (0 to 1)."""


@dataclass
class AttackResult:
    """What an attack found, in the order of the batch.

    Attributes:
        images: ``(B, C, *spatial)`` attacked images, detached, each within its radius and the box.
        wrong: ``(B,)`` bool: the network is wrong on ``images``.
        margin: ``(B,)`` the task's margin of ``images``; ``+inf`` where the network never saw them.
        dead: ``(B,)`` bool: some gradient was zero or not finite, so the attack stood still: a sign of gradient
            masking.
        broken: ``(B,)`` bool: the network gave NaN or infinity on some image of the search. Such an image counts as
            wrong, with the lowest margin.
        passes: network passes made, in samples.
    """

    images: Tensor
    wrong: Tensor
    margin: Tensor
    dead: Tensor
    broken: Tensor
    passes: Passes = field(default_factory=Passes)


class Attack(Protocol):
    """What ensembles, metrics and evaluations ask of an attack. Those of this package derive from :class:`BaseAttack`.

    An attack is a frozen dataclass of its settings; calling it attacks a batch.
    """

    @property
    def threat(self) -> Threat:
        """What the attack may do."""

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        target: Target,
        task: Task,
        *,
        radius: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        """Attack a batch, each sample for itself; the network is left exactly as found.

        Args:
            network: any module, also compiled or wrapped in DDP.
            images: ``(B, C, *spatial)``.
            target: in the layout the task expects.
            task: loss, correctness, margin, points.
            radius: ``(B,)`` radius of each sample in the norm's unit; default: the threat's.
            generator: on the images' device; required by attacks that draw random numbers.
        """

    def most_passes(self) -> Passes:
        """The passes that a sample needs which never finishes; for predicting what an evaluation costs."""


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of the words that are allowed."""
    if value not in allowed:
        raise InputError.of(name, value, "one of " + ", ".join(allowed))


def prepared(
    threat: Threat, images: Tensor, radius: Tensor | None, generator: torch.Generator | None, *, random: bool
) -> tuple[Tensor, Tensor]:
    """What every attack does first: the batch without its graph, and ``(B,)`` the radius of each sample.

    Raises:
        InputError: images that the threat cannot be applied to, another shape of ``radius``, or an attack that draws
            ``random`` numbers without a generator.
    """
    threat.check(images)
    if random and generator is None:
        raise InputError.of(
            "generator", None, "a torch.Generator on the images' device", "this attack draws random numbers"
        )
    if radius is None:
        radius = threat.radius(images)
    elif radius.shape != (len(images),):
        raise InputError.of("radius", tuple(radius.shape), f"one number for each of the {len(images)} images")
    return images.detach(), radius.to(images.dtype)


@dataclass(frozen=True)
class Problem:
    """What an attack was called with, checked: see :meth:`BaseAttack.__call__`.

    Attributes:
        network: as the caller gave it; a search goes through :func:`~monai_adv.network_state.frozen`.
        images: ``(B, C, *spatial)`` without a graph.
        target, task, generator: as the caller gave them. A search checks its first output with ``task.check``.
        radius: ``(B,)`` of each sample, in the dtype of the images.
        start: ``(B, C, *spatial)`` perturbations to start from, within radius and box; None: as the settings say.
        rivals: ``(B,)`` or ``(B, N)`` classes that a targeted attack aims at; None: it is not told.
    """

    network: nn.Module
    images: Tensor
    target: Target
    task: Task
    radius: Tensor
    generator: torch.Generator | None = None
    start: Tensor | None = None
    rivals: Tensor | None = None

    def take(self, index: Tensor) -> Problem:
        """The samples ``index``."""
        start, rivals = (None if values is None else values[index] for values in (self.start, self.rivals))
        images, target, radius = self.images[index], take(self.target, index), self.radius[index]
        return replace(self, images=images, target=target, radius=radius, start=start, rivals=rivals)


Result = TypeVar("Result", bound=AttackResult, covariant=True)


@dataclass(frozen=True)
class BaseAttack(ABC, Generic[Result]):
    """Checks the call of an attack; subclasses say how they search, :meth:`run`, and what that costs.

    Args:
        threat: norm, radius, box, channels.
    """

    takes: ClassVar[tuple[str, ...]] = ()
    """Which of the arguments ``start`` and ``rivals`` the attack knows."""

    threat: Threat

    @property
    def random(self) -> bool:
        """Whether the settings ask for random numbers."""
        return False

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        target: Target,
        task: Task,
        *,
        radius: Tensor | None = None,
        generator: torch.Generator | None = None,
        start: Tensor | None = None,
        rivals: Tensor | None = None,
    ) -> Result:
        """Attack a batch, each sample for itself; the network is left exactly as found.

        Args:
            network, images, target, task, radius, generator: see :class:`Attack`.
            start: ``(B, C, *spatial)`` perturbations to start from, projected first; default: as the settings say.
            rivals: ``(B,)`` or ``(B, N)`` classes that a targeted attack aims at.

        Raises:
            InputError: images that the threat cannot be applied to, labels that no class has, random numbers without a
                generator, another shape of ``radius``, ``start`` or ``rivals``, or an attack that knows none.
        """
        images, radius = prepared(self.threat, images, radius, generator, random=self.random and start is None)
        for name, values in (("start", start), ("rivals", rivals)):
            if values is not None and name not in self.takes:
                raise InputError.of(name, tuple(values.shape), f"None for {type(self).__name__}")
        if start is not None:
            if start.shape != images.shape:
                raise InputError.of("start", tuple(start.shape), f"perturbations of shape {tuple(images.shape)}")
            start = self.threat.project(start.to(images), images, radius)
        if rivals is not None and len(rivals) != len(images):
            raise InputError.of("rivals", tuple(rivals.shape), f"one row for each of the {len(images)} images")
        return self.run(Problem(network, images, target, task, radius, generator, start, rivals))

    @abstractmethod
    def run(self, problem: Problem) -> Result:
        """The search."""

    @abstractmethod
    def most_passes(self) -> Passes:
        """The passes that a sample needs which never finishes; for predicting what an evaluation costs."""


def is_finished(wrong: Tensor, margin: Tensor, lowest_margin: float, until: Until) -> Tensor:
    """``(B,)`` bool: nothing more is to be found for these samples."""
    return wrong if until == "wrong" else wrong & (margin <= lowest_margin)


class Verdict(NamedTuple):
    """What the task says of some images.

    Attributes:
        wrong: ``(b,)`` bool: the network is wrong on them.
        margin: ``(b,)`` the task's margin.
        broken: ``(b,)`` bool: NaN or infinity in the output; such an image is wrong, with the lowest margin.
    """

    wrong: Tensor
    margin: Tensor
    broken: Tensor

    def of(self, rows: Tensor) -> Verdict:
        """The verdict on these images."""
        return Verdict(*(values[rows] for values in self))


class Strongest:
    """The strongest image of each sample so far: smallest margin, then largest loss.

    The margin of a segmentation is a step function of the image, so the loss decides between equals.

    Attributes:
        images, wrong, margin, broken: see :class:`AttackResult`.
    """

    def __init__(self, images: Tensor, task: Task, until: Until) -> None:
        self.task = task
        self.until = until
        self.images = images.clone()
        dtype = images.dtype if images.dtype == torch.float64 else torch.float32
        self.margin = torch.full((len(images),), torch.inf, dtype=dtype, device=images.device)
        self.loss = -self.margin
        self.wrong = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.broken = torch.zeros_like(self.wrong)

    def update(
        self,
        index: Tensor,
        images: Tensor,
        output: Output,
        target: Target,
        loss: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Keep those of ``images`` that are stronger than what was found before.

        Args:
            index: ``(b,)`` which samples these are; repeated ones must be equal.
            images: ``(b, C, *spatial)``, each within its radius unless ``allowed`` says otherwise.
            output, target: of these images.
            loss: ``(b,)`` what the attack raises, to decide between equal margins; ``None``: the first one stays.
            allowed: ``(b,)`` bool: the images that may be kept, for searches that leave the radius; default: all.

        Returns:
            ``(b,)`` bool: the network is wrong on these images.
        """
        verdict = self.judge(output, target)
        self.keep(index, images, verdict, loss, allowed)
        return verdict.wrong

    @torch.no_grad()
    def judge(self, output: Output, target: Target) -> Verdict:
        """What the task says of images with this output; nothing is kept."""
        margin = self.task.margin(output, target).to(self.margin)
        broken = not_finite(output)
        margin = torch.where(broken, self.task.lowest_margin, margin)
        return Verdict(broken | ~self.task.correct(output, target), margin, broken)

    @torch.no_grad()
    def keep(
        self,
        index: Tensor,
        images: Tensor,
        verdict: Verdict,
        loss: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> None:
        """Keep judged images that are stronger; see :meth:`update`."""
        wrong, margin, broken = verdict
        loss = torch.full_like(margin, -torch.inf) if loss is None else loss.detach().to(margin)
        best_margin, best_loss, best_wrong = self.margin[index], self.loss[index], self.wrong[index]
        # An image that is wrong always beats one that is right: at margin 0 both can be.
        better = (wrong & ~best_wrong) | (
            (wrong == best_wrong) & ((margin < best_margin) | ((margin == best_margin) & (loss > best_loss)))
        )
        if allowed is not None:
            better = better & allowed
        self.margin[index] = torch.where(better, margin, best_margin)
        self.loss[index] = torch.where(better, loss, best_loss)
        self.wrong[index] = best_wrong | (better & wrong)
        self.broken[index] |= broken
        self.images[index] = torch.where(per_sample(better, images), images.detach(), self.images[index])

    def ends(self, verdict: Verdict) -> Tensor:
        """``(b,)`` bool: with these images their samples are finished."""
        return is_finished(verdict.wrong, verdict.margin, self.task.lowest_margin, self.until)

    def finished(self) -> Tensor:
        """``(B,)`` bool: nothing more to be found."""
        return is_finished(self.wrong, self.margin, self.task.lowest_margin, self.until)

    def running(self) -> Tensor:
        """Indices of the samples that are not finished. Costs a host sync."""
        return (~self.finished()).nonzero()[:, 0]


def judged(
    network: nn.Module, images: Tensor, target: Target, task: Task, until: Until = "wrong", mode: Mode = "eval"
) -> tuple[AttackResult, Output]:
    """``images`` as the result of an attack that does nothing, and the network's output: one forward."""
    best = Strongest(images, task, until)
    with frozen(network, mode) as model, torch.no_grad():
        output = model(any_batch_size(images, model))
    task.check(output, target)
    best.update(torch.arange(len(images), device=images.device), images, output, target)
    dead = torch.zeros_like(best.wrong)
    return AttackResult(best.images, best.wrong, best.margin, dead, best.broken, Passes(forward=len(images))), output


def continued(
    attack: Attack,
    network: nn.Module,
    images: Tensor,
    target: Target,
    task: Task,
    *,
    worst: Tensor,
    radius: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Call one attack of several: one with ``from_worst`` starts from the ``worst`` images so far, all others anew."""
    if not getattr(attack, "from_worst", False):
        return attack(network, images, target, task, radius=radius, generator=generator)
    polish: Any = attack
    result: AttackResult = polish(
        network, images, target, task, radius=radius, generator=generator, start=worst - images
    )
    return result


def sample_loss(task: Task, loss: Loss | None, output: Output, target: Target, progress: float = 0.0) -> Tensor:
    """``(B,)`` what an attack raises: ``loss`` of the points, or the task's own loss (Dice, cross-entropy)."""
    return task.sample_loss(output, target) if loss is None else loss(task.points(output, target), progress)


def input_gradient(output: Output, x: Tensor, loss: Callable[[Output], Tensor], mode: Mode) -> tuple[Tensor, Tensor]:
    """``(B,)`` per-sample losses, and their gradient for the images ``x``.

    The gradient's length is arbitrary for each sample, its direction exact; see :func:`scaled_input_gradient`.
    """
    losses, gradient, _ = scaled_input_gradient(output, x, loss, mode)
    return losses, gradient


def scaled_input_gradient(
    output: Output, x: Tensor, loss: Callable[[Output], Tensor], mode: Mode
) -> tuple[Tensor, Tensor, Tensor]:
    """``(B,)`` per-sample losses, the gradient of their sum for the images ``x`` times a scale, and the ``(B,)`` scale.

    The loss is differentiated in single precision down to the logits and scaled there, each sample by a power of two,
    so that the largest entry is about 1. Under autocast the gradient of a mean over N voxels would otherwise underflow
    in the half-precision layers, and that of a small lesion's Dice, scaled by a common factor, overflow: gradient
    masking of our own making. A network without a path to its input has the gradient 0.

    In train mode BatchNorm makes every loss a function of all images. Scales of their own would then weigh the losses
    against each other and turn the direction, so all samples get the same one.

    Args:
        output: of the network on ``x``, with its graph.
        x: the images, requiring a gradient.
        loss: of the output.
        mode: in which the network made the output.
    """
    outputs = [output] if isinstance(output, Tensor) else list(output)
    values = [o.clone() if o.is_inference() else o.detach() for o in outputs]
    leaves = [(v if v.dtype == torch.float64 else v.float()).requires_grad_() for v in values]
    losses = loss(leaves[0] if isinstance(output, Tensor) else leaves)
    gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    used = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
    largest = torch.stack([g.abs().reshape(len(g), -1).amax(1) for _, g in used]).amax(0)  # an output may be (B,)
    usable = (largest > 0) & largest.isfinite()
    if mode == "train":
        largest = torch.where(usable, largest, 0).amax().expand(len(largest))
        usable = largest > 0
    scale = torch.where(usable, torch.exp2(-largest.log2().ceil()), torch.ones_like(largest))
    # No output may have a path to the images: no_grad, argmax, ... in the forward, masking at its plainest.
    parts = [(o, (g * per_sample(scale, g)).to(o.dtype)) for o, g in used if o.requires_grad]
    gradient = None
    if parts:
        (gradient,) = torch.autograd.grad([o for o, _ in parts], x, [g for _, g in parts], allow_unused=True)
    return losses.detach(), torch.zeros_like(x) if gradient is None else gradient, scale


def gradient_or_zero(values: Tensor, x: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Gradient of ``values`` for the images ``x``; 0 where the network has no path to its input."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=retain_graph, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def sync_interval(device: torch.device) -> int:
    """How often finished samples leave the batch: counting them makes the host wait, which costs nothing on a CPU."""
    return 1 if device.type == "cpu" else 4


def not_finite(output: Output) -> Tensor:
    """``(B,)`` bool: NaN or infinity in the full-resolution output."""
    values = first_resolution(output)
    return ~values.detach().reshape(len(values), -1).isfinite().all(1)
