"""TRADES: a trade-off between clean accuracy and robustness.

Source: Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML 2019, equation 5 and
Algorithm 1: ``L(f(x), y) + beta * max KL(p(x) || p(x'))``. Labels play no part in the attack.

Segmentation: the divergence is summed over the classes and averaged over voxels and resolutions, so that beta means
the same per voxel as per image. (The IMA authors' segmentation code averages over classes and divides by the batch size
once more, which makes the term vanish.)

From a trained segmentation network, flat outputs are the quickest way to a small divergence. ``fixed_target`` closes it
(not in the paper): the clean output is a constant of the divergence, as in virtual adversarial training (Miyato et al.,
IEEE TPAMI 2019, equation 5).
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
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.network_state import any_batch_size, detached, frozen, unwrap_ddp
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Target
from monai_adv.tasks.divergence import kl_divergence

PRESETS: dict[str, dict[str, Any]] = {
    "trades_cifar": {"norm": "linf", "eps": 0.031, "steps": 10, "relative_step": 0.007 / 0.031, "beta": 6.0,
                     "box": (0.0, 1.0)},
    "trades_mnist": {"norm": "linf", "eps": 0.3, "steps": 40, "relative_step": 0.01 / 0.3, "beta": 1.0,
                     "box": (0.0, 1.0)},
    "mirst_busi": {"norm": "linf", "eps": 5 / 255, "steps": 10, "relative_step": 0.25, "beta": 1.0,
                   "box": (0.0, 1.0)},
    "ima_hippocampus": {"norm": "l2", "eps": 15.0, "unit": "norm", "steps": 10, "relative_step": 0.2, "beta": 6.0},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.1, "unit": "rms", "steps": 2, "start": "ball", "beta": 1.0,
                 "fixed_target": True},
}  # fmt: skip


@dataclass(frozen=True)
class TRADESSettings(AttackSettings):
    """Hyper-parameters of TRADES."""

    beta: float = setting(6.0, "weight of the divergence", "a number >= 0 (0: standard training)", not_negative)
    start: Literal["gaussian", "ball", "surface"] = setting(
        "gaussian", "first point of the attack; at the clean image itself the divergence has no gradient"
    )
    fixed_target: bool = setting(
        False, "the output on clean images is what the other is drawn to, and is not drawn itself (paper: false)"
    )


class TRADES(Defense):
    """Clean loss plus beta times the divergence between the outputs on clean and attacked images.

    Example:
        Without the divergence it is standard training, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> trades = TRADES(task, TRADESSettings(beta=0))
        >>> bool(trades(network, images, target) == task.training_loss(network(images), target))
        True
    """

    settings_class = TRADESSettings
    settings: TRADESSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x), y) + beta * mean KL(p(x) || p(x'))``.

        The gradient flows through both outputs, or with ``fixed_target`` through p(x') alone.
        """
        self.begin(batch)
        beta = self.settings.beta
        if beta == 0 or self.settings.eps == 0:  # the divergence is 0 then
            yield self.clean_part(network, batch)
            return
        noisy = kl_attack(self, network, batch)
        output = network(batch.images)
        noisy_output = unwrap_ddp(network)(noisy)
        reference = detached(output) if self.settings.fixed_target else output
        apart = kl_divergence(self.task, reference, noisy_output, batch.target).mean()
        loss = self.task.training_loss(output, batch.target) + beta * apart
        self.statistics.add("divergence", apart.detach()[None])
        yield self.part(batch, loss, output, noisy_output)


def kl_attack(defense: Defense, network: nn.Module, batch: Batch) -> Tensor:
    """``(B, C, *spatial)`` images near the batch's, with outputs as far in KL from the clean ones as can be found."""
    settings = defense.settings
    assert isinstance(settings, AttackSettings)
    with frozen(network, settings.attack_mode) as model, torch.no_grad():
        clean = model(any_batch_size(batch.images, model))
    defense.count(batch, forward=1)
    several = not isinstance(clean, Tensor)

    def apart(reference: list[Tensor], output: Output, target: Target) -> Tensor:
        return kl_divergence(defense.task, reference if several else reference[0], output, target)

    task, target = WithReference.of(defense.task, apart, batch.target, list(clean) if several else [clean])
    return defense.attack(network, batch, settings.ascent(defense.channels), task=task, target=target)[0]


METHOD = Method(
    "TRADES",
    TRADES,
    family="adversarial",
    idea="clean images, and outputs that stay the same under attack",
    paper="Zhang et al., ICML 2019",
    state="nothing",
    cost="2K + 7",
    most=lambda s: 2 * s.steps + 7 if s.beta else 3,
    presets=PRESETS,
    not_recommended={
        "segmentation": "with its default `beta` it took a trained model's clean Dice from 83.4 to 36.9 in 300 steps; "
        "with `preset: finetune` (`beta: 1`, `fixed_target`) the clean Dice stayed what it was"
    },
    harmless=lambda s: s.beta <= 1 and s.fixed_target,
)
