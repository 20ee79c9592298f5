"""LLR: local linearity regularisation: a loss that is close to linear around every training image.

Source: Qin et al., "Adversarial robustness through local linearization", NeurIPS 2019, equations 5 to 9, with the gap
``g(d) = |l(x + d) - l(x) - <d, grad l(x)>|`` and d* its maximum in the ball::

    L(f(x), y) + lam * g(d*) + mu * |<d*, grad_x l(x)>|

The search for d* holds the gradient at x fixed; the loss does not (double backpropagation). Within the search the
authors stop one more gradient, which ours keeps: it ascends the gap itself and finds larger ones. The absolute values
are taken per sample. At d = 0 the gap and its gradient are 0, so the search starts at a random point. Here it is PGD in
the defence's norm (the authors take signed Adam steps).

Networks of ReLUs are piecewise linear, which makes the gap noisy; the authors use softplus. With BatchNorm in training
mode the images x and x + d* are normalised with statistics of their own, and samples share them. The network runs in
single precision also under autocast: the gap is a small difference of losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.attacks.reference import WithReference
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.gr import losses_and_gradient, single_precision
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.network_state import any_batch_size, frozen, unwrap_ddp
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Target

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's own weights, divided by the 2 of its clean loss: 2 L + 4 (gap + 0.3 |<d, grad>|).
    "llr_cifar": {"norm": "linf", "eps": 8 / 255, "steps": 10, "relative_step": 0.25, "lam": 2.0, "mu": 0.6,
                  "box": (0.0, 1.0)},
    # The MIRST paper: the usual weights 4 and 3 in the other order. It did not converge there.
    "mirst_busi": {"norm": "linf", "eps": 5 / 255, "steps": 2, "relative_step": 0.5, "lam": 3.0, "mu": 4.0,
                   "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class LLRSettings(AttackSettings):
    """Hyper-parameters of local linearity regularisation."""

    lam: float = setting(4.0, "weight of the linearity gap", "a number >= 0", not_negative)
    mu: float = setting(3.0, "weight of the slope towards d*", "a number >= 0", not_negative)
    steps: int = setting(2, "gradient steps K of the search", "a whole number >= 1", lambda v: v > 0)
    relative_step: float | None = setting(
        0.5, "step as a fraction of the radius; none: 4 / steps", "a number > 0 or none", lambda v: v > 0
    )
    start: Literal["gaussian", "ball", "surface"] = setting(
        "ball", "first point of the search; at the clean image itself the gap has no gradient"
    )


class LLR(Defense):
    """The clean loss, plus lam times the largest gap to a linear loss nearby, plus mu times the slope towards it.

    Example:
        With lam = mu = 0 it is standard training, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> llr = LLR(task, LLRSettings(lam=0, mu=0))
        >>> bool(llr(network, images, target) == task.training_loss(network(images), target))
        True
    """

    settings_class = LLRSettings
    settings: LLRSettings
    eager_only = "LLR differentiates the network twice"

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x), y) + mean (lam * gap(d*) + mu * |<d*, grad_x l>|)``."""
        self.begin(batch)
        settings, target = self.settings, batch.target
        if (settings.lam == 0 and settings.mu == 0) or settings.eps == 0:  # d* = 0: both terms are 0
            yield self.clean_part(network, batch)
            return
        with single_precision(batch.images) as images:
            delta = self._largest_gap(network, Batch(images, target)) - images
            output = network(images.requires_grad_())
            losses, gradient = losses_and_gradient(self.task, output, target, images, create_graph=True)
            noisy_output = unwrap_ddp(network)(images.detach() + delta)
            noisy_losses = self.task.sample_training_loss(noisy_output, target)
            slope = (delta * gradient).flatten(1).sum(1)
            gap = (noisy_losses - losses - slope).abs()
            loss = self.task.training_loss(output, target) + (settings.lam * gap + settings.mu * slope.abs()).mean()
        self.statistics.add("linearity_gap", gap.detach())
        self.statistics.add("slope", slope.detach().abs())
        yield self.part(batch, loss, output, noisy_output, backward_input=1, full=3)

    def _largest_gap(self, network: nn.Module, batch: Batch) -> Tensor:
        """``(B, C, *spatial)`` images x + d* of the search."""
        with frozen(network, self.settings.attack_mode) as model, torch.enable_grad():
            images = any_batch_size(batch.images.detach().clone(), model).requires_grad_()
            losses, gradient = losses_and_gradient(self.task, model(images), batch.target, images, create_graph=False)
        self.count(batch, forward=1, backward_input=1)

        def gap(reference: list[Tensor], output: Output, target: Target) -> Tensor:
            clean, losses, gradient = reference
            *outputs, images = output
            loss = self.task.sample_training_loss(outputs[0] if len(outputs) == 1 else outputs, target)
            return (loss - losses - ((images - clean) * gradient).flatten(1).sum(1)).abs()

        task, packed = WithReference.of(self.task, gap, batch.target, [batch.images, losses, gradient])
        ascent = self.settings.ascent(self.channels)
        return self.attack(_WithInput(unwrap_ddp(network)), batch, ascent, task=task, target=packed)[0]


class _WithInput(nn.Module):
    """A network that returns its input behind its outputs: the gap is a function of both."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        output = self.network(images)
        return [*([output] if isinstance(output, Tensor) else output), images]


METHOD = Method(
    "LLR",
    LLR,
    family="gradient",
    idea="clean images, and a loss that is nearly linear around them",
    paper="Qin et al., NeurIPS 2019",
    state="nothing",
    cost="2K + 11",
    most=lambda s: 2 * s.steps + 11 if s.lam or s.mu else 3,
    presets=PRESETS,
)
