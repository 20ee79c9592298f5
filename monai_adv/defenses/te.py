"""TE: adversarial training with temporal ensembling, also called memorization AT.

Source: Dong et al., "Exploring memorization in adversarial training", ICLR 2022: the loss of attacked images plus
``w(t) * ||p(x') - p^||^2``, where p^ is a moving average of the predictions for the same sample without an attack. The
attack maximises the same sum. One-hot labels of hard samples are learnt by heart; soft ones need not be.

The weight is that of the squared norm, a sum over the classes. The authors' code has 300 on the mean over the ten
classes of CIFAR-10, which is 30 on the sum; a weight on the mean over C classes is C times ours. Their ramp goes from
epoch 90 to 150 of 200, counted from 1: 89 to 149 here, where epochs are counted from 0.

Segmentation, a form of our own: predictions per voxel cannot be averaged over visits, because random crops, rotations
and mirroring leave no common coordinates, and for volumes they would not fit into memory. What is remembered instead is
what the network says, on average, about the voxels of a class: a table of K rows for each sample, row c being the
moving average of the mean prediction over its points labelled c. For one label per sample that is TE exactly (one row
is used). Regions are points of two classes and share one table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.reference import WithReference
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.errors import InputError
from monai_adv.network_state import any_batch_size, detached, frozen
from monai_adv.sample_state import SampleState
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Points, Target
from monai_adv.tasks.divergence import mean_over_points

PRESETS: dict[str, dict[str, Any]] = {
    "te_cifar": {"norm": "linf", "eps": 8 / 255, "steps": 10, "relative_step": 0.25, "weight": 30.0,
                 "ramp_start": 89.0, "ramp_end": 149.0, "box": (0.0, 1.0)},
    # The IMA authors' segmentation code: epochs 25 to 35 of 50, counted from 0.
    "ima_hippocampus": {"norm": "l2", "eps": 15.0, "unit": "norm", "steps": 10, "relative_step": 0.25,
                        "start": "gaussian", "ramp_start": 25.0, "ramp_end": 35.0},
}  # fmt: skip

TABLE = "soft_labels"


@dataclass(frozen=True)
class TESettings(AttackSettings):
    """Hyper-parameters of TE."""

    weight: float = setting(
        30.0, "weight of the squared distance to the soft labels (a sum over the classes) after the ramp",
        "a number >= 0 (0: SAT)", not_negative,
    )  # fmt: skip
    momentum: float = setting(
        0.9, "share of the old soft label that a visit keeps", "a number in [0, 1)", lambda v: 0 <= v < 1
    )
    ramp_start: float = setting(
        89 / 200, "epoch, counted from 0, at which the memory starts and its weight begins to grow; below 1 a share of "
        "the training", "a number >= 0", not_negative,
    )  # fmt: skip
    ramp_end: float = setting(
        149 / 200, "epoch, counted from 0, at which the weight is fully there; below 1 a share of the training",
        "a number >= ramp_start", not_negative,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.ramp_end < self.ramp_start:
            raise InputError.of("ramp_end", self.ramp_end, f"at least ramp_start, here {self.ramp_start}")
        if 0 < self.ramp_start < 1 <= self.ramp_end:
            raise InputError.of(
                "ramp_start and ramp_end", (self.ramp_start, self.ramp_end), "both shares below 1, or both epochs"
            )


class TE(Defense):
    """Adversarial training that is held to the network's own former predictions for each sample.

    The memory holds ``K * K`` numbers for each of the training samples, K being the number of classes.

    Example:
        Without the memory it is SAT, bit for bit:

        >>> from monai_adv.defenses.sat import SAT, SATSettings
        >>> from monai_adv.sample_state import SampleIds
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> te, sat = TE(ClassificationTask(), TESettings(weight=0)), SAT(ClassificationTask())
        >>> te.bind(SampleIds({"train": 4}), "cpu")
        >>> bool(te(network, images, target, torch.arange(4)) == sat(network, images, target))
        True
    """

    settings_class = TESettings
    settings: TESettings
    needs_ids = True

    @property
    def started(self) -> bool:
        """Whether the memory is used in this epoch."""
        return self.settings.weight > 0 and self.epoch >= self.epochs_of("ramp_start", self.settings.ramp_start)

    @property
    def weight(self) -> float:
        """``w(t) = weight * exp(-5 (1 - s)^2)`` with s from 0 to 1 over the ramp, 0 before it.

        Example:
            >>> from monai_adv.tasks import ClassificationTask
            >>> te = TE(ClassificationTask(), TESettings(weight=300.0))
            >>> for epoch in (88, 89, 119, 149):
            ...     te.on_epoch_start(epoch, epochs=200)
            ...     print(round(te.weight, 2))
            0.0
            2.02
            85.95
            300.0
        """
        settings = self.settings
        if not self.started:
            return 0.0
        start = self.epochs_of("ramp_start", settings.ramp_start)
        end = self.epochs_of("ramp_end", settings.ramp_end)
        if self.epoch >= end:
            return settings.weight
        return settings.weight * math.exp(-5 * (1 - (self.epoch - start) / (end - start)) ** 2)

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x'), y) + w(t) * mean ||p(x') - p^||^2``."""
        self.begin(batch)
        settings = self.settings
        weight = self.weight
        clean_output: Output | None = None
        if self.started:
            # The sample as it is drawn, augmented, by the network as it would be deployed.
            with frozen(network) as model, torch.no_grad():
                clean_output = detached(model(any_batch_size(batch.images, model)))
            soft_labels = self._remember(batch, clean_output)
        if weight == 0:
            noisy, _, _ = self.attack(network, batch, settings.ascent(self.channels))
        else:
            task, target = WithReference.of(
                self.task,
                lambda soft, output, target: (
                    self.task.sample_loss(output, target) + weight * self._apart(soft[0], output, target)
                ),
                batch.target,
                [soft_labels],
            )
            noisy, _, _ = self.attack(network, batch, settings.ascent(self.channels), task=task, target=target)
        output = network(noisy)
        loss = self.task.training_loss(output, batch.target)
        if weight > 0:
            apart = self._apart(soft_labels, output, batch.target).mean()
            self.statistics.add("soft_label_distance", apart.detach()[None])
            loss = loss + weight * apart
        yield self.part(batch, loss, clean_output, output, full=1)

    def on_epoch_end(self) -> dict[str, float]:
        """The epoch's figures, and the weight of the soft labels."""
        return {**super().on_epoch_end(), "soft_label_weight": self.weight}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """As every defence; a checkpoint from before the ramp has no soft labels."""
        before = self.states
        self.states = {TABLE: self._table(saved[TABLE]["values"].shape[-1])} if TABLE in saved else {}
        try:
            super().load_state_dict(saved)
        except InputError:
            self.states = before
            raise

    def _table(self, classes: int) -> SampleState:
        table = SampleState(0.0, "TE soft labels", (classes, classes))
        if self._bound is not None:
            table.bind(*self._bound)
        return table

    @torch.no_grad()
    def _remember(self, batch: Batch, output: Output) -> Tensor:
        """Update the batch's tables; returns them ``(B, K, K)`` with rows that sum to 1, or 0 if never seen."""
        points = self.task.points(output, batch.target)
        classes = points.logits.shape[1]
        if TABLE not in self.states:
            self.states[TABLE] = self._table(classes)
        table = self.states[TABLE]
        if table.shape != (classes, classes):
            raise InputError.of(
                "network", f"{classes} classes", f"{table.shape[0]} classes, as those of the soft labels",
                "the checkpoint belongs to another network",
            )  # fmt: skip
        ids = self.ids(batch)
        old = table[ids].to(points.logits)
        labelled = (points.labels[:, None] == torch.arange(classes, device=ids.device)[:, None]) & points.valid[:, None]
        labelled = labelled.to(points.logits)  # (B, K, N): which points have which label
        number = labelled.sum(2)[:, :, None]
        with torch.autocast(ids.device.type, enabled=False):  # half precision cannot sum over voxels
            mean = labelled @ points.logits.softmax(1).transpose(1, 2) / number.clamp(min=1)
        momentum = self.settings.momentum
        table.update(ids, torch.where(number > 0, momentum * old + (1 - momentum) * mean, old))
        soft = table[ids].to(points.logits)
        # The average starts from zeros: dividing by its sum corrects that.
        total = soft.sum(2, keepdim=True)
        return torch.where(total > 0, soft / total, 0)

    def _apart(self, soft_labels: Tensor, output: Output, target: Target) -> Tensor:
        """``(B,)`` squared distance of the probabilities from the soft label of each point, a mean over the points."""

        def of_points(points: Points) -> Tensor:
            # (B, K, N) from the table's rows: entry k of the row of the point's label.
            labels = points.labels[:, None].expand(-1, points.logits.shape[1], -1)
            soft = soft_labels.transpose(1, 2).gather(2, labels)
            known = soft.sum(1) > 0
            return (points.logits.softmax(1) - soft).square().sum(1) * known

        return mean_over_points(self.task.all_points(output, target), of_points)


METHOD = Method(
    "TE",
    TE,
    family="ensembling",
    idea="attacked images, and the network's own former predictions as soft labels",
    paper="Dong et al., ICLR 2022",
    state="a table of soft labels per sample",
    cost="2K + 4",
    most=lambda s: 2 * s.steps + (4 if s.weight else 3),
    presets=PRESETS,
    not_recommended={
        "segmentation": "with its default `weight` it took a trained model's clean Dice from 83.4 to 23.9 in 300 "
        "steps; a smaller `weight` has not been measured"
    },
)
