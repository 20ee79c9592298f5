"""DAT: dynamic adversarial training, whose attack stops at a convergence that is asked for.

Source: Wang et al., "On the convergence and robustness of adversarial training", ICML 2019, equation 6 and Algorithm 1.
The first-order stationary condition of an iterate x_k in the ball of radius eps around x_0,

    c(x_k) = max_{|x - x_0| <= eps} <x - x_k, g> = eps |g|_dual - <x_k - x_0, g>,    g = grad L(f(x_k), y),

is what the loss could still gain to first order: 0 for a converged attack, never negative inside the ball. PGD steps
while c > c_t, at least once, and ``c_t = max(c_max (1 - t / T'), 0)`` falls epoch by epoch, so that attacks become
stronger. g is the gradient of the sample's own loss; that of a batch mean would make c smaller by the batch size.

The paper has L-infinity only, where the dual norm is the sum of absolute values; for L2 it is the L2 norm. c is in the
unit of the loss and grows with the number of voxels, so that the paper's c_max of 0.5 belongs to CIFAR's 32 x 32 images
and to the cross-entropy. ``relative`` divides by c of a clean image with the same gradient, eps |g|_dual: the share of
the gain that is left, 1 at a clean start and 0 at the end, which means the same for all sizes, losses and tasks. It is
the default for segmentation: a Dice loss lies between -1 and 0, so that c in its unit is small from the start, and most
of the training would be with attacks of a single step.

The paper's x_0 is the clean image. The official code starts at a random point and measures c around that, though it
projects around the clean image (c can be negative there); ``PRESETS["official"]`` does so too. That code also weighs
samples by their own loss, which is not in the paper nor here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.attacks.ascent import Iterate
from monai_adv.attacks.projected_steps import Start
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.settings import not_negative, positive, setting
from monai_adv.threats import Threat, per_sample

PRESETS: dict[str, dict[str, Any]] = {
    "dat_cifar": {"norm": "linf", "eps": 0.031, "steps": 10, "relative_step": 0.25, "c_max": 0.5, "c_epochs": 100,
                  "box": (0.0, 1.0)},
    "official": {"start": "ball", "fosc_around": "start"},
}  # fmt: skip


@dataclass(frozen=True)
class DATSettings(AttackSettings):
    """Hyper-parameters of DAT."""

    start: Start = setting(
        "clean", "first point: the clean image, a random one in the ball or on its surface (official: ball), or 0.001 "
        "standard normal",
    )  # fmt: skip
    c_max: float = setting(
        0.5, "criterion at which the attack stops in the first epoch, in units of the loss (see relative)",
        "a number >= 0 (0: SAT)", not_negative,
    )  # fmt: skip
    c_epochs: float = setting(
        5 / 6,
        "T': epochs over which the criterion falls to 0; below 1 a share of the training",
        "a number > 0",
        positive,
    )
    relative: bool | None = setting(
        None, "the criterion is a share of eps times the gradient's dual norm, the same for all image sizes and "
        "losses; none: true for segmentation, false for one label per sample", "true, false, none",
    )  # fmt: skip
    fosc_around: Literal["clean", "start"] = setting(
        "clean", "x_0 of the criterion: the clean image (paper), or the attack's first point (official)"
    )


class DAT(Defense):
    """Adversarial training with attacks that converge better and better.

    Example:
        The criterion halves the steps at first, and is gone after ``c_epochs``:

        >>> from monai_adv.tasks import ClassificationTask
        >>> dat = DAT(ClassificationTask(), DATSettings(c_max=0.5, c_epochs=100))
        >>> for epoch in (0, 50, 100, 110):
        ...     dat.on_epoch_start(epoch)
        ...     print(dat.criterion)
        0.5
        0.25
        0.0
        0.0
    """

    settings_class = DATSettings
    settings: DATSettings

    @property
    def criterion(self) -> float:
        """c_t of this epoch."""
        settings = self.settings
        if settings.c_max == 0:
            return 0.0
        return max(settings.c_max * (1 - self.epoch / self.epochs_of("c_epochs", settings.c_epochs)), 0.0)

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x'), y)`` with x' converged to the epoch's criterion, or after K steps."""
        self.begin(batch)
        settings = self.settings
        # A converged sample does not move under further steps, so that at 0 there is nothing to stop.
        off = self.criterion == 0 and settings.fosc_around == "clean"
        ascent = settings.ascent(self.channels, leave=None if off else self._converged(batch.images))
        noisy, result, _ = self.attack(network, batch, ascent)
        self.statistics.add("attack_steps", result.steps, of=len(batch.images))
        yield self.noisy_part(network, batch, noisy)

    def _converged(self, images: Tensor) -> Callable[[Iterate], Tensor]:
        """``(b,)`` bool of an iterate: the samples that have made a step and are as stationary as asked for."""
        radius = self.threat.radius(images)
        origin = torch.zeros_like(images)  # minus the clean image
        relative = self.settings.relative

        def leave(iterate: Iterate) -> Tensor:
            index = iterate.index
            nonlocal relative
            if relative is None:
                relative = self.task.points(iterate.output, iterate.target).labels.shape[1] > 1
            if iterate.number == 0:
                if self.settings.fosc_around == "start":
                    origin[index] = iterate.delta
                return torch.zeros_like(index, dtype=torch.bool)
            delta = iterate.delta - origin[index]
            left, most = fosc(self.threat, radius[index], delta, iterate.gradient)
            # A gradient of zero gives 0 / 0: it does not go on either.
            go_on = (left / most if relative else left / iterate.scale) > self.criterion
            return ~go_on

        return leave


def fosc(threat: Threat, radius: Tensor, delta: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """First-order stationary condition, and its value at delta = 0.

    Args:
        threat: norm and channels; the box plays no part.
        radius: ``(B,)`` in the norm's unit.
        delta: ``(B, C, *spatial)`` perturbation.
        gradient: ``(B, C, *spatial)`` of each sample's loss.

    Returns:
        ``(B,)`` c and ``(B,)`` eps times the dual norm of the gradient, in the unit of the loss.

    Example:
        A perturbation that follows the gradient to the end leaves nothing to gain:

        >>> gradient = torch.tensor([[3.0, -4.0]])
        >>> [c.item() for c in fosc(Threat("linf", 0.5), torch.tensor([0.5]), torch.zeros(1, 2), gradient)]
        [3.5, 3.5]
        >>> fosc(Threat("linf", 0.5), torch.tensor([0.5]), torch.tensor([[0.5, -0.5]]), gradient)[0].item()
        0.0
    """
    furthest = per_sample(radius, gradient) * threat.direction(gradient)
    # The difference comes first: entry by entry it is 0 for a converged L-infinity attack, whatever the rounding.
    left = ((furthest - delta) * gradient).flatten(1).sum(1)
    return left, (furthest * gradient).flatten(1).sum(1)


METHOD = Method(
    "DAT",
    DAT,
    family="early_stop",
    idea="attacked images, of attacks that converge better epoch by epoch",
    paper="Wang et al., ICML 2019",
    state="nothing",
    cost="up to 2K + 3",
    most=lambda s: 2 * s.steps + 3,
    presets=PRESETS,
)
