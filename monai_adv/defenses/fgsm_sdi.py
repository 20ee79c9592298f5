"""FGSM-SDI: fast adversarial training with a sample-dependent adversarial initialisation.

Source: Jia et al., "Boosting fast adversarial training with learnable adversarial initialization", IEEE TIP 2022. A
small network g looks at the image and at the direction of its gradient, and says where a one-step
attack begins: ``eta_0 = g(x, dir grad L(x))``, ``eta = P(eta_0 + alpha * eps * dir grad L(x + eta_0))``. Every 20th
batch g takes a step that raises the loss which the classifier lowers. Its gradient flows through eta_0 alone.

That loss has soft labels, ``(1 - s) L(f(x'), y) + s * CE(f(x'), uniform)``. The authors leave 1/2 to the label and
spread the rest over the others, which is s = 5/9 for ten classes and would say nothing for two classes; with uniform
over all classes the label stays ahead for any number of them.

L2: g's output is projected into the ball. Segmentation: the uniform part is a mean over voxels and resolutions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_adv.attacks.base import input_gradient
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, frozen
from monai_adv.settings import positive, setting
from monai_adv.tasks.base import Output, Points, Target, TrainingTask
from monai_adv.tasks.divergence import mean_over_points
from monai_adv.threats import per_sample

PRESETS: dict[str, dict[str, Any]] = {
    # No box: the authors' code does not cut the attacked image to the range of intensities.
    "fgsm_sdi_cifar": {"norm": "linf", "eps": 8 / 255, "attack_mode": "train"},
}


@dataclass(frozen=True)
class FGSMSDISettings(DefenseSettings):
    """Hyper-parameters of FGSM-SDI."""

    relative_step: float = setting(1.0, "step as a fraction of the radius", "a number > 0", positive)
    label_smoothing: float = setting(
        5 / 9, "share s of the uniform distribution in the labels (5/9: the authors' for ten classes)",
        "a number in [0, 1)", lambda v: 0 <= v < 1,
    )  # fmt: skip
    generator_every: int = setting(20, "batches between two steps of the generator", "a whole number >= 1", positive)
    generator_lr: float = setting(1e-3, "learning rate of the generator (Adam)", "a number > 0", positive)
    attack_mode: Mode = setting("eval", "network mode during the attack (official: train)")


class FGSMSDI(Defense):
    """One-step adversarial training whose first point is found by a generator that trains against the network.

    The generator is made at the first batch, for its channels and spatial axes (1 to 3).

    Example:
        Switched off, its loss is the clean loss, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
        >>> images, target = torch.randn(4, 1, 3, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> sdi = FGSMSDI(task, FGSMSDISettings(eps=0, label_smoothing=0))
        >>> bool(sdi(network, images, target) == task.training_loss(network(images), target))
        True
    """

    settings_class = FGSMSDISettings
    settings: FGSMSDISettings

    def __init__(
        self, task: TrainingTask, settings: FGSMSDISettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self.initializer: Initializer | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0
        self._waiting: Mapping[str, Any] | None = None
        """The generator of a checkpoint, until the first batch says what it works on."""

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``(1 - s) L(f(x'), y) + s * CE(f(x'), uniform)``."""
        self.begin(batch)
        noisy = batch.images
        if self.settings.eps > 0:
            self.threat.check(batch.images)
            noisy = self._attacked(network, batch)
        output = network(noisy)
        yield self.part(batch, self._smoothed_loss(output, batch.target), noisy=output)

    def state_dict(self) -> dict[str, Any]:
        """As every defence, and the generator with its optimiser."""
        own = self._waiting
        if self.initializer is not None and self._optimizer is not None:
            parts = {"weights": self.initializer.state_dict(), "optimizer": self._optimizer.state_dict()}
            own = {**copy.deepcopy(parts), "steps": self._steps}
        return {**super().state_dict(), "initializer": own}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore bit for bit; the generator follows with the next batch."""
        super().load_state_dict(saved)
        self._waiting = saved["initializer"]
        self.initializer, self._optimizer, self._steps = None, None, 0

    def _attacked(self, network: nn.Module, batch: Batch) -> Tensor:
        """The images with one step from where the generator says; first it learns, when it is its turn."""
        images, target = batch.images, batch.target
        initializer, optimizer = self._ready(images)
        scorable = self.task.scorable(target)
        direction = self._direction(network, batch, images)
        if self._steps % self.settings.generator_every == 0:
            self._improve(initializer, optimizer, network, batch, direction)
        self._steps += 1
        initializer.eval()
        with torch.no_grad():
            first = self._first(initializer, images, direction)
        direction = self._direction(network, batch, images + first)
        self.statistics.add("attacked", scorable.float())
        self.statistics.add("dead_gradient", direction.flatten(1).eq(0).all(1) & scorable)
        with torch.no_grad():
            noisy = images + self._second(images, first, direction)
            return torch.where(per_sample(scorable, images), noisy, images)

    def _first(self, initializer: Initializer, images: Tensor, direction: Tensor) -> Tensor:
        """``eta_0``: the generator's perturbation; a gradient may flow into the generator."""
        delta = initializer(torch.cat([images, direction], 1)).to(images.dtype)
        if self.channels is not None:
            index = torch.tensor(self.channels, device=images.device)
            delta = torch.zeros_like(images).index_copy(1, index, delta)
        radius = self.threat.radius(images)
        return self.threat.project(per_sample(radius, delta) * delta, images, radius)

    def _second(self, images: Tensor, first: Tensor, direction: Tensor) -> Tensor:
        """``eta = P(eta_0 + alpha * eps * direction)``."""
        radius = self.threat.radius(images)
        step = per_sample(self.settings.relative_step * radius, direction) * direction
        return self.threat.project(first + step, images, radius)

    def _direction(self, network: nn.Module, batch: Batch, x: Tensor) -> Tensor:
        """Steepest ascent of the loss at ``x``."""
        with frozen(network, self.settings.attack_mode) as model, torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            _, gradient = input_gradient(
                model(x), x, lambda output: self.task.sample_loss(output, batch.target), self.settings.attack_mode
            )
        self.count(batch, forward=1, backward_input=1)
        return self.threat.direction(gradient)

    def _improve(
        self,
        initializer: Initializer,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        batch: Batch,
        direction: Tensor,
    ) -> None:
        """A step of the generator, up the loss that the network goes down."""
        images = batch.images
        initializer.train()
        # Nobody scales this loss, so half precision could lose its gradient.
        with torch.autocast(images.device.type, enabled=False), torch.enable_grad():
            first = self._first(initializer, images, direction)
            second = self._second(images, first, self._direction(network, batch, images + first))
            with frozen(network, self.settings.attack_mode) as model:
                loss = -self._smoothed_loss(model(images + second), batch.target)
                parameters = list(initializer.parameters())
                gradients = torch.autograd.grad(loss, parameters)
        self.count(batch, forward=1, backward_input=1)
        _average_over_ranks(gradients)
        _average_over_ranks(b for b in initializer.buffers() if b.is_floating_point())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    def _smoothed_loss(self, output: Output, target: Target) -> Tensor:
        loss = self.task.training_loss(output, target)
        share = self.settings.label_smoothing
        if share == 0:
            return loss
        uniform = mean_over_points(self.task.all_points(output, target), _to_uniform).mean()
        return (1 - share) * loss + share * uniform

    def _ready(self, images: Tensor) -> tuple[Initializer, torch.optim.Optimizer]:
        """The generator and its optimiser; made for such images at first, the same on every rank."""
        if self.initializer is not None and self._optimizer is not None:
            return self.initializer, self._optimizer
        outputs = images.shape[1] if self.channels is None else len(self.channels)
        initializer = Initializer(2 * images.shape[1], outputs, images.ndim - 2, self.settings.seed).to(images)
        optimizer = torch.optim.Adam(initializer.parameters(), self.settings.generator_lr, weight_decay=5e-4)
        if self._waiting is not None:
            weights = self._waiting["weights"]
            saved, own = ({k: v.shape for k, v in state.items()} for state in (weights, initializer.state_dict()))
            if saved != own:
                raise InputError.of(
                    "images", tuple(images.shape), "images of the channels and axes that the checkpoint's generator "
                    "was trained on", "start a new training from the checkpoint's weights",
                )  # fmt: skip
            initializer.load_state_dict(weights)
            optimizer.load_state_dict(copy.deepcopy(self._waiting["optimizer"]))
            self._steps, self._waiting = self._waiting["steps"], None
        self.initializer, self._optimizer = initializer, optimizer
        return initializer, optimizer


class Initializer(nn.Module):
    """The generator of the authors: convolutions of width 3 with 64 channels, one residual block, a tanh.

    For six and three channels of images it has their 79,174 weights less one, a scalar that they never use.

    Args:
        inputs: channels of image and gradient direction.
        outputs: channels of the perturbation, in units of the radius.
        axes: spatial axes, 1 to 3.
        seed: of its weights.

    Raises:
        InputError: another number of axes.
    """

    def __init__(self, inputs: int, outputs: int, axes: int, seed: int = 0, width: int = 64) -> None:
        super().__init__()
        if not 1 <= axes <= 3:
            raise InputError.of("images", f"{axes} spatial axes", "1 to 3: the generator of FGSMSDI has convolutions")
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers are touched
            torch.default_generator.manual_seed(seed)
            self.entry = nn.Sequential(
                convolution(inputs, width, 3, padding=1, bias=False), norm(width, eps=1e-3), nn.ReLU()
            )
            self.residual = nn.Sequential()
            for _ in range(2):
                layer = convolution(width, width, 3, padding=1)
                nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))
                self.residual.extend([norm(width, affine=False), nn.PReLU(), layer])
            self.exit = nn.Sequential(norm(width, affine=False), convolution(width, outputs, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, outputs, *spatial)`` in (-1, 1)."""
        entered = self.entry(x)
        perturbation: Tensor = self.exit(entered + self.residual(entered))
        return perturbation


def _to_uniform(points: Points) -> Tensor:
    """``(B, N)`` cross-entropy with the uniform distribution over the classes."""
    return points.logits.logsumexp(1) - points.logits.mean(1)


def _average_over_ranks(tensors: Iterable[Tensor]) -> None:
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


METHOD = Method(
    "FGSMSDI",
    FGSMSDI,
    family="cheap",
    idea="images attacked with one step, begun where a small network says",
    paper="Jia et al., IEEE TIP 2022",
    state="that network and its optimiser",
    cost="7.2, and that network's",
    most=lambda s: 7 + 4 / s.generator_every,
    presets=PRESETS,
)
