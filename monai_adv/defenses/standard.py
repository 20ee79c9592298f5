"""Standard training: no defence. The row that every comparison needs, with the log and checkpoints of the others."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method


class Standard(Defense):
    """The host's own loss on clean images; the settings' radius is that of robust validation alone.

    Example:
        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> bool(Standard(task)(network, images, target) == task.training_loss(network(images), target))
        True
    """

    attacks = False

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x), y)``."""
        self.begin(batch)
        yield self.clean_part(network, batch)


METHOD = Method(
    "Standard",
    Standard,
    family="adversarial",
    idea="clean images",
    paper="",
    state="nothing",
    cost="3",
    most=lambda s: 3,
)
