"""GR: gradient regularisation (double backpropagation): small gradients of the loss for the image.

Sources: Ross & Doshi-Velez, "Improving the adversarial robustness and interpretability of deep neural networks by
regularizing their input gradients", AAAI 2018; the MIRST paper (Sun et al., MICCAI 2022) compares with it, lam = 1:
``L(f(x), y) + lam * mean_i ||grad_x l_i||_p^q``. Here l_i is the training loss of sample i alone, so the term does not
depend on the batch size. (The authors' code differentiates the mean over the batch, which makes it B times smaller.)
It is known to be weak against strong attacks.

``gradient="finite_difference"`` is TULIP (Finlay & Oberman, "Scaleable input gradient regularization for adversarial
robustness", 2019): ``|(l(x + h v) - l(x)) / h|^q`` with the direction v = g / ||g|| held fixed; no second derivative.

Segmentation: l_i is a mean over voxels, whose gradient is smaller the more voxels there are, so lam has to be larger
than for one label per image (by about the number of voxels for p = q = 2).

With BatchNorm in training mode samples share statistics, so the gradient of the summed losses for one image contains a
share of its neighbours' losses as well. The network runs in single precision also under autocast: half precision would
lose small gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.network_state import unwrap_ddp
from monai_adv.settings import not_negative, positive, setting
from monai_adv.tasks.base import Output, Target, TrainingTask
from monai_adv.threats import Threat

PRESETS: dict[str, dict[str, Any]] = {
    "mirst_busi": {"norm": "linf", "eps": 5 / 255, "lam": 1.0, "p": 2.0, "q": 2.0, "box": (0.0, 1.0)},
    # TULIP's own code: 0.1 times half the square, a step of 0.01 in images of [0, 1]. (A port of it, with which others
    # compare, has a step of 1 and the weight 1: h 1, lam 0.5.)
    "tulip": {"lam": 0.05, "gradient": "finite_difference", "h": 0.01, "p": 2.0, "q": 2.0, "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class GRSettings(DefenseSettings):
    """Hyper-parameters of gradient regularisation; nothing is attacked in training, eps is that of validation."""

    lam: float = setting(1.0, "weight of the gradient's size", "a number >= 0 (0: standard)", not_negative)
    p: float = setting(2.0, "norm of the gradient: 2, or 1 against L-inf attacks", "a number >= 1", lambda v: v >= 1)
    q: float = setting(2.0, "power of that norm", "a number >= 1", lambda v: v >= 1)
    gradient: Literal["exact", "finite_difference"] = setting(
        "exact", "exact: second-order gradient; finite_difference: a second pass at distance h (TULIP)"
    )
    h: float = setting(0.01, "L2 distance of the finite difference", "a number > 0", positive)

    def check(self) -> None:
        super().check()
        if self.gradient == "finite_difference" and self.p != 2:
            raise InputError.of("p", self.p, "2 with gradient 'finite_difference', whose direction has L2 length 1")


class GR(Defense):
    """The clean loss plus lam times the size of its gradient for the image.

    Example:
        With lam = 0 it is standard training, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> bool(GR(task, GRSettings(lam=0))(network, images, target) == task.training_loss(network(images), target))
        True
    """

    attacks = False
    settings_class = GRSettings
    settings: GRSettings
    eager_only = "GR differentiates the network twice"

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x), y) + lam * mean ||grad_x l||_p^q``."""
        self.begin(batch)
        if self.settings.lam == 0:
            yield self.clean_part(network, batch)
            return
        with single_precision(batch.images) as images:
            output = network(images.requires_grad_())
            loss = self.task.training_loss(output, batch.target)
            size = self._size(network, batch, images, output)
        self.statistics.add("gradient_size", size.detach())
        loss = loss + self.settings.lam * size.mean()
        yield self.part(batch, loss, output, backward_input=1, full=2)

    def _size(self, network: nn.Module, batch: Batch, images: Tensor, output: Output) -> Tensor:
        """``(B,)`` differentiable size of the gradient, over the channels that are intensities."""
        settings = self.settings
        if settings.gradient == "finite_difference":
            losses, gradient = losses_and_gradient(self.task, output, batch.target, images, create_graph=False)
            direction = Threat("l2", 0.0, channels=self.channels, unit="norm").direction(gradient)
            moved = unwrap_ddp(network)(images.detach() + settings.h * direction)
            self.count(batch, forward=1)
            slope = (self.task.sample_training_loss(moved, batch.target) - losses) / settings.h
            return slope.abs().pow(settings.q)
        _, gradient = losses_and_gradient(self.task, output, batch.target, images, create_graph=True)
        if self.channels is not None:
            gradient = gradient[:, list(self.channels)]
        gradient = gradient.flatten(1)
        gradient = gradient if gradient.dtype == torch.float64 else gradient.float()
        if settings.p == settings.q:  # without the root
            return gradient.abs().pow(settings.p).sum(1)
        norm: Tensor = torch.linalg.vector_norm(gradient, settings.p, dim=1)
        return norm.pow(settings.q)


def losses_and_gradient(
    task: TrainingTask, output: Output, target: Target, images: Tensor, *, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """``(B,)`` training loss of each sample, and its gradient for the images that gave ``output``.

    The losses are summed, not averaged: a sample's gradient does not depend on how many others there are.
    """
    losses = task.sample_training_loss(output, target)
    (gradient,) = torch.autograd.grad(losses.sum(), images, create_graph=create_graph, retain_graph=True)
    return losses, gradient


@contextmanager
def single_precision(images: Tensor) -> Iterator[Tensor]:
    """Switches autocast off; yields the images, detached, as they enter the network then."""
    device = images.device.type
    half = torch.is_autocast_enabled(device) and images.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(device, enabled=False):
        yield images.detach().float() if half else images.detach()


METHOD = Method(
    "GR",
    GR,
    family="gradient",
    idea="clean images, and a small gradient of the loss for them",
    paper="Ross & Doshi-Velez, AAAI 2018",
    state="nothing",
    cost="6",
    most=lambda s: 3 if s.lam == 0 else 6 if s.gradient == "exact" else 7,
    presets=PRESETS,
)
