"""DSBN: clean and attacked images through normalisation layers of their own (dual batch normalisation).

Source: Han et al., "Advancing diagnostic performance and clinical usability of neural networks via adversarial training
and dual batch normalization", Nature Communications 2021, after Chang et al., "Domain-specific batch normalization for
unsupervised domain adaptation", CVPR 2019: ``L(f_clean(x), y) + L(f_noisy(x'), y)``, where the branches share all
weights but those of the normalisation layers, and the attack goes through the noisy branch. The ARFL paper (Hao et al.,
MICCAI 2024) compares with it.

A converted network uses its clean branch unless told otherwise (``monai_adv.networks.deploy_branch``). The papers test
attacked images through the noisy branch, which supposes that somebody knows which images are attacked.

The network needs layers that differ between branches: BatchNorm, or InstanceNorm with weights (nnU-Net's networks).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.errors import InputError
from monai_adv.network_state import unwrap_ddp
from monai_adv.networks.dual_batch_norm import branch, converted, dual_batch_norm

PRESETS: dict[str, dict[str, Any]] = {
    # Han et al., X-ray, MR and CT.
    "dsbn_xray": {"norm": "linf", "eps": 0.005, "steps": 10, "relative_step": 0.5, "start": "ball",
                  "box": (0.0, 1.0)},
    # Step and start are not given.
    "arfl_mammography": {"norm": "linf", "eps": 0.01, "steps": 7, "relative_step": 0.25, "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class DSBNSettings(AttackSettings):
    """Hyper-parameters of training with dual batch normalisation."""


class DSBN(Defense):
    """The clean loss through one set of normalisation layers plus the loss of attacked images through another.

    Example:
        With radius 0 and branches that are still equal it is twice the clean loss, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> images, target, task = torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), ClassificationTask()
        >>> clean = task.training_loss(network(images), target)
        >>> network = DSBN.prepare(network)
        >>> bool(DSBN(task, DSBNSettings(eps=0))(network, images, target) == 2 * clean)
        True
    """

    settings_class = DSBNSettings
    settings: DSBNSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f_clean(x), y) + L(f_noisy(x'), y)``; DDP wants all weights used in every backward.

        Raises:
            InputError: the network is not converted.
        """
        self.begin(batch)
        if not converted(network):
            raise InputError("network: it has one branch; call attach(network, optimizer) once before training.")
        with branch(network, "noisy"):
            noisy, _, _ = self.attack(network, batch, self.settings.ascent(self.channels))
        with branch(network, "clean"):
            output = network(batch.images)
        with branch(network, "noisy"):
            noisy_output = unwrap_ddp(network)(noisy)
        loss = self.task.training_loss(output, batch.target) + self.task.training_loss(noisy_output, batch.target)
        yield self.part(batch, loss, output, noisy_output)

    @classmethod
    def prepare(cls, network: nn.Module) -> nn.Module:
        """The network with dual normalisation layers.

        Raises:
            InputError: it has no layer that could be doubled.
        """
        return network if converted(network) else dual_batch_norm(network)

    def attach(self, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Converts the network if nobody did, and gives the new weights to the optimiser, each beside its clean twin.

        Raises:
            InputError: the network has no layer that could be doubled, or is wrapped in DDP already.
        """
        network = self.prepare(network)
        if optimizer is None:
            return
        twins = {
            clean: noisy
            for layer in converted(network)
            for clean, noisy in zip(layer.clean.parameters(), layer.noisy.parameters(), strict=True)
        }
        held = {p for group in optimizer.param_groups for p in group["params"]}
        for group in optimizer.param_groups:
            group["params"] += [twins[p] for p in group["params"] if p in twins and twins[p] not in held]


METHOD = Method(
    "DSBN",
    DSBN,
    family="dual",
    idea="clean and attacked images through normalisation layers of their own",
    paper="Han et al., Nature Communications 2021",
    state="nothing",
    cost="2K + 6",
    most=lambda s: 2 * s.steps + 6,
    presets=PRESETS,
)
