"""MART: misclassification-aware adversarial training.

Source: Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", ICLR 2020, equations
9 to 11: ``BCE(p(x'), y) + lambda KL(p(x) || p(x')) (1 - p_y(x))`` with the boosted cross-entropy
``BCE = -log p_y(x') - log(1 - max_{k != y} p_k(x'))``. The divergence counts where the clean image is misclassified or
nearly so. The attack raises the cross-entropy of the labels, neither of the two terms above.

The first term of the BCE is the host's own loss, which for classification is the cross-entropy. In a segmentation every
voxel is a classification problem: the second term, the divergence and its weight are those of the voxel, averaged over
voxels and resolutions, while the host's Dice stays in the first term.

The official code adds 1e-4 inside the second logarithm, and so do we: without it the loss of a confident mistake is
infinite. It lets the gradient flow through the weight 1 - p_y(x) as well; ``weight_gradient`` switches that off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from monai_adv.attacks.projected_steps import Start
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.network_state import unwrap_ddp
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Points, Target, TrainingTask
from monai_adv.tasks.divergence import divergence, mean_over_points, point_kl

PRESETS: dict[str, dict[str, Any]] = {
    "mart_cifar": {"norm": "linf", "eps": 0.031, "steps": 10, "relative_step": 0.007 / 0.031, "lam": 5.0,
                   "box": (0.0, 1.0)},
}  # fmt: skip

GAP = 1e-4  # 1.0001 in the official code: bounds the second logarithm by 9.2


@dataclass(frozen=True)
class MARTSettings(AttackSettings):
    """Hyper-parameters of MART."""

    lam: float = setting(5.0, "weight of the divergence", "a number >= 0 (0: no such term)", not_negative)
    weight_gradient: bool = setting(True, "the gradient flows through the weight 1 - p_y(x) too (official)")
    start: Start = setting(
        "gaussian", "first point: the clean image, a random one in the ball or on its surface, or 0.001 standard normal"
    )


class MART(Defense):
    """Boosted cross-entropy of attacked images, and a divergence weighted by how wrong the clean image is.

    Example:
        With two classes the boosted cross-entropy is twice the cross-entropy, because the runner-up is all the rest:

        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> loss = MART(task, MARTSettings(eps=0))(network, images, target)
        >>> torch.allclose(loss, 2 * task.training_loss(network(images), target), rtol=1e-3)
        True
    """

    settings_class = MARTSettings
    settings: MARTSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``BCE(f(x'), y) + lambda * mean (1 - p_y(x)) KL(p(x) || p(x'))``."""
        self.begin(batch)
        settings = self.settings
        if settings.eps == 0:  # x' = x: the divergence is 0
            output = network(batch.images)
            yield self.part(batch, boosted_loss(self.task, output, batch.target), output)
            return
        noisy, _, _ = self.attack(network, batch, settings.ascent(self.channels))
        if settings.lam == 0:
            output = network(noisy)
            yield self.part(batch, boosted_loss(self.task, output, batch.target), noisy=output)
            return
        output = network(batch.images)
        noisy_output = unwrap_ddp(network)(noisy)
        apart = weighted_divergence(self.task, output, noisy_output, batch.target, settings.weight_gradient).mean()
        self.statistics.add("divergence", apart.detach()[None])
        loss = boosted_loss(self.task, noisy_output, batch.target) + settings.lam * apart
        yield self.part(batch, loss, output, noisy_output)


def boosted_loss(task: TrainingTask, output: Output, target: Target) -> Tensor:
    """Scalar: the host's loss, plus the mean over points of ``-log(1 - p of the likeliest wrong class)``."""
    return task.training_loss(output, target) + mean_over_points(task.all_points(output, target), _runner_up).mean()


def weighted_divergence(
    task: TrainingTask, clean: Output, noisy: Output, target: Target, weight_gradient: bool = True
) -> Tensor:
    """``(B,)`` mean over points and resolutions of ``(1 - p_y(x)) KL(p(x) || p(x'))``, in nats."""

    def of_points(p: Points, q: Points) -> Tensor:
        doubt = 1 - p.logits.softmax(1).gather(1, p.labels[:, None])[:, 0]
        return (doubt if weight_gradient else doubt.detach()) * point_kl(p, q)

    return divergence(task, clean, noisy, target, of_points)


def _runner_up(points: Points) -> Tensor:
    """``(B, N)`` second term of the boosted cross-entropy."""
    wrong = points.logits.softmax(1).scatter(1, points.labels[:, None], 0.0).amax(1)
    return -(1 + GAP - wrong).log()


METHOD = Method(
    "MART",
    MART,
    family="adversarial",
    idea="attacked images, and equal outputs where the clean image is wrong",
    paper="Wang et al., ICLR 2020",
    state="nothing",
    cost="2K + 6",
    most=lambda s: 2 * s.steps + (6 if s.lam else 3),
    presets=PRESETS,
)
