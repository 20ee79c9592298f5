"""FreeAT: adversarial training for free.

Source: Shafahi et al., "Adversarial training for free!", NeurIPS 2019, Algorithm 1. Each batch is replayed m times,
with a weight update after each. The one backward pass of a replay gives the gradient of the weights and that of the
image; the latter moves the perturbation, which the next replay, and the next batch, begins with. An epoch costs m clean
epochs, so train for 1/m of the epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.settings import positive, setting
from monai_adv.tasks.base import TrainingTask
from monai_adv.threats import per_sample

PRESETS: dict[str, dict[str, Any]] = {
    "free_cifar": {"norm": "linf", "eps": 8 / 255, "replays": 8, "box": (0.0, 1.0)},
    "free_imagenet": {"norm": "linf", "eps": 4 / 255, "replays": 4, "box": (0.0, 1.0)},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.1, "unit": "rms", "replays": 4},
}


@dataclass(frozen=True)
class FreeATSettings(DefenseSettings):
    """Hyper-parameters of Free-AT."""

    replays: int = setting(8, "replays m of each batch, each with a weight update", "a whole number >= 1", positive)
    relative_step: float = setting(1.0, "step as a fraction of the radius", "a number > 0", positive)


class FreeAT(Defense):
    """Adversarial training that shares the backward pass of the weights; m updates per batch.

    The perturbation belongs to positions in a batch, not to samples. A smaller batch uses and moves its first ones;
    images of another size begin with none.

    Example:
        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(1, 2, bias=False)
        >>> network.weight.data = torch.tensor([[-1.0], [1.0]])
        >>> free = FreeAT(ClassificationTask(), FreeATSettings(norm="linf", eps=0.25, replays=2))
        >>> for part in free.losses(network, Batch(torch.tensor([[1.0]]), torch.tensor([1]))):
        ...     part.loss.backward()
        ...     print(part.update, free.perturbation)
        True None
        False tensor([[-0.2500]])
    """

    settings_class = FreeATSettings
    settings: FreeATSettings

    def __init__(
        self, task: TrainingTask, settings: FreeATSettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self.perturbation: Tensor | None = None
        """``(B, C, *spatial)`` that the next batch begins with; on each rank one of its own."""

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """m parts ``L(f(x + delta), y)``, all but the last with a weight update; read them as they come."""
        self.begin(batch)
        images = batch.images
        attacks = self.settings.eps > 0
        radius = self.threat.radius(images)
        kept = delta = torch.zeros_like(images)
        if attacks:
            self.threat.check(images)
            kept = self._kept(images)
            scorable = self.task.scorable(batch.target)
            radius = radius * scorable
            self.statistics.add("attacked", scorable.float())
        for replay in range(self.settings.replays):
            if attacks:
                delta = self.threat.project(kept[: len(images)], images, radius)
            x = (images + delta).detach().requires_grad_(attacks)
            output = network(x)
            loss = self.task.training_loss(output, batch.target)
            yield self.part(batch, loss, noisy=output, update=replay < self.settings.replays - 1)
            del output, loss
            if attacks:
                moved = self._moved(delta, images, radius, x.grad)
                moved = torch.where(per_sample(radius > 0, images), moved, kept[: len(images)])
                self.perturbation = kept = torch.cat([moved, kept[len(images) :]])

    def state_dict(self) -> dict[str, Any]:
        """As every defence, and the perturbation."""
        kept = self.perturbation
        return {**super().state_dict(), "perturbation": None if kept is None else kept.to("cpu", copy=True)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore bit for bit; on several ranks all begin with the perturbation of the rank that saved."""
        super().load_state_dict(saved)
        self.perturbation = saved["perturbation"]

    def _kept(self, images: Tensor) -> Tensor:
        """The perturbation of earlier batches, for at least as many images as these."""
        kept = self.perturbation
        if kept is None or kept.shape[1:] != images.shape[1:]:
            return torch.zeros_like(images)
        more = torch.zeros_like(images[: max(len(images) - len(kept), 0)])
        return torch.cat([kept.to(images), more])

    @torch.no_grad()
    def _moved(self, delta: Tensor, images: Tensor, radius: Tensor, gradient: Tensor | None) -> Tensor:
        """The perturbation after a step along the gradient that the host's backward pass left on the images."""
        if gradient is None:
            raise InputError(
                "FreeAT: a part was asked for before backward was called on the one before; call part.loss.backward() "
                "on each part of defense.losses(network, batch) as it comes."
            )
        direction = self.threat.direction(gradient)
        self.statistics.add("dead_gradient", (direction.flatten(1).eq(0).all(1) & (radius > 0)).float())
        step = per_sample(self.settings.relative_step * radius, direction) * direction
        return self.threat.project(delta + step, images, radius)


METHOD = Method(
    "FreeAT",
    FreeAT,
    family="cheap",
    idea="images attacked with gradients that weight updates leave over",
    paper="Shafahi et al., NeurIPS 2019",
    state="a perturbation",
    cost="3m, for m weight updates",
    most=lambda s: 3 * s.replays,
    presets=PRESETS,
)
