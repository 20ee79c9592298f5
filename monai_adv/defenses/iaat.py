"""IAAT: instance adaptive adversarial training.

Source: Balaji, Goldstein, Hoffman, "Instance adaptive adversarial training: improved accuracy tradeoffs in neural
nets", arXiv 1910.08051, 2019. Every sample has a radius of its own. It grows by gamma while the network
withstands an attack of the larger radius, shrinks by gamma when it does not withstand the present one, and follows
these votes as an exponential moving average. Training is on images attacked within that radius. In the first epochs
there is nothing to average yet: the radius, in the memory too, is eps for samples that are right and 0 for the others.

Differences to the authors' code, each a setting: radii end at eps (``capped``: the paper has no limit; the IMA authors'
comparison has one), the network attacks in eval mode. The IMA authors' comparison has no warm-up, does not ask whether
a sample is right without an attack (``clean_gate``), and trains on wrong ones as they are (``clean_wrong``). The
authors' steps are at least 2/255 long; here they are 2 / K of the radius. Segmentation: a sample withstands an attack
while its Dice stays above the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.attacks import Ascent
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.margins import SharedMargin
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.errors import InputError
from monai_adv.network_state import any_batch_size, detached, frozen
from monai_adv.sample_state import SampleState
from monai_adv.settings import not_negative, positive, setting
from monai_adv.tasks.base import TrainingTask, take

PRESETS: dict[str, dict[str, Any]] = {
    "iaat_cifar": {"norm": "linf", "eps": 8 / 255, "gamma": 1.9 / 255, "capped": False, "warmup_epochs": 10.0,
                   "box": (0.0, 1.0)},
    "official": {"capped": False, "attack_mode": "train"},
    # What the IMA authors' code says; gamma, beta and the number of steps are not in it.
    "ima_covid": {"norm": "l2", "eps": 12.0, "unit": "norm", "warmup_epochs": 0.0, "clean_gate": False,
                  "clean_wrong": "clean", "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class IAATSettings(SharedMargin, AttackSettings):
    """Hyper-parameters of IAAT."""

    gamma: float | None = setting(
        None, "by how much a radius tries to grow, in the unit of eps; none: 0.2375 eps (1.9/255 at 8/255)",
        "a number > 0 or none", positive, radius=True,
    )  # fmt: skip
    beta: float = setting(
        0.1, "weight of a new radius in the moving average", "a number in (0, 1]", lambda v: 0 < v <= 1
    )
    warmup_epochs: float = setting(
        0.09, "first epochs, in which all radii are eps; below 1 a share of the training (official: 10 of 110)",
        "a number >= 0", not_negative,
    )  # fmt: skip
    clean_gate: bool = setting(
        True, "after the warm-up, a sample that is wrong without an attack votes for radius 0; false: it is attacked "
        "as the others are, so that its radius shrinks by gamma (the IMA authors' comparison)",
    )  # fmt: skip
    capped: bool = setting(True, "no radius grows above eps (paper and official: false)")
    clean_wrong: Literal["attack", "clean"] = setting(
        "attack", "samples that are wrong without an attack: attacked within their shrinking radius, or trained on as "
        "they are (the IMA authors' comparison)",
    )  # fmt: skip
    relative_step: float | None = setting(
        None, "step as a fraction of the radius; none: 2 / steps", "a number > 0 or none", positive
    )

    def check(self) -> None:
        super().check()
        if self.gamma is not None and self.capped and self.gamma > self.eps > 0:
            raise InputError.of("gamma", self.gamma, f"at most eps, here {self.eps}", "or set capped to false")

    @property
    def growth(self) -> float:
        """By how much a radius tries to grow."""
        return 0.2375 * self.eps if self.gamma is None else self.gamma


class IAAT(Defense):
    """Adversarial training within a radius that each sample finds for itself.

    Example:
        With radius 0 its loss is the clean loss, bit for bit:

        >>> from monai_adv.sample_state import SampleIds
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> iaat = IAAT(ClassificationTask(), IAATSettings(eps=0))
        >>> iaat.bind(SampleIds({"train": 4}), "cpu")
        >>> loss = iaat(network, images, target, torch.arange(4))
        >>> bool(loss == ClassificationTask().training_loss(network(images), target))
        True
    """

    settings_class = IAATSettings
    settings: IAATSettings
    needs_ids = True

    def __init__(
        self, task: TrainingTask, settings: IAATSettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self.radii = SampleState(0.0, "IAAT radii", shared=self.settings.shared)
        self.states = {"radii": self.radii}

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x'), y)`` with x' within the sample's own radius, which is found first."""
        self.begin(batch)
        if self.settings.eps == 0:
            yield self.clean_part(network, batch)
            return
        with frozen(network, self.settings.attack_mode) as model, torch.no_grad():
            clean_output = detached(model(any_batch_size(batch.images, model)))
            right = self.task.correct(clean_output, batch.target)
        radius = self._radius(network, batch, right)
        noisy, _, _ = self.attack(network, batch, self._ascent(), radius=radius)
        output = network(noisy)
        yield self.part(batch, self.task.training_loss(output, batch.target), clean_output, output, full=1)

    def on_epoch_end(self) -> dict[str, float]:
        """The epoch's figures, and mean and spread of the radii in the unit of eps."""
        return {**super().on_epoch_end(), **self.spread("radius", self.radii)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """As every defence; radii above a smaller eps than before are cut, if they are capped."""
        super().load_state_dict(saved)
        if self.settings.capped:
            self.radii.values = self.radii.values.clamp(max=self.settings.eps)

    @classmethod
    def attacks_right_only(cls, settings: Any) -> bool:
        """A sample that is wrong votes for radius 0."""
        return True

    def _radius(self, network: nn.Module, batch: Batch, right: Tensor) -> Tensor:
        """``(B,)`` radius to train with; votes on the remembered ones and updates them."""
        settings = self.settings
        ids = self.ids(batch)
        scorable = self.task.scorable(batch.target)
        old = self.radii[ids].to(batch.images.dtype)
        warm_up = self.epoch < self.epochs_of("warmup_epochs", settings.warmup_epochs)
        if warm_up:
            vote = torch.where(right, settings.eps, 0.0).to(old)
        else:
            voting = right | (not settings.clean_gate)
            vote = torch.where(voting, self._select(network, batch, old, voting & scorable), 0.0)
        radius = vote if warm_up else settings.beta * vote + (1 - settings.beta) * old
        self.radii.update(ids[scorable], radius[scorable])
        return torch.where(right, radius, 0.0) if settings.clean_wrong == "clean" else radius

    def _select(self, network: nn.Module, batch: Batch, old: Tensor, voting: Tensor) -> Tensor:
        """For the samples that vote: the largest of three radii that the network withstands.

        The larger attack comes first: who withstands it need not be attacked with the smaller one.
        """
        settings = self.settings
        larger = old + settings.growth
        if settings.capped:
            larger = larger.clamp(max=settings.eps)
        withstands_larger = self._withstands(network, batch, larger, voting)
        # At the cap both attacks are the same one, and at radius 0 there is none.
        withstands = self._withstands(network, batch, old, voting & ~withstands_larger & (larger > old)) | (old == 0)
        return torch.where(
            withstands_larger, larger, torch.where(withstands, old, (old - settings.growth).clamp(min=0))
        )

    def _withstands(self, network: nn.Module, batch: Batch, radius: Tensor, only: Tensor) -> Tensor:
        """``(B,)`` bool: of the samples ``only``, those that stay right under an attack of that radius."""
        index = (only & (radius > 0)).nonzero()[:, 0]
        if len(index) == 0:
            return torch.zeros_like(only)
        images = batch.images[index]
        result = self._ascent(check_last=True)(
            network,
            images,
            take(batch.target, index),
            self.task,
            radius=radius[index] * self.threat.scale(images),
            generator=self.generator(images.device),
        )
        self.statistics.passes += result.passes
        return torch.zeros_like(only).index_copy(0, index, ~result.wrong)

    def _ascent(self, **overrides: Any) -> Ascent:
        step = self.settings.relative_step or 2 / self.settings.steps
        return self.settings.ascent(self.channels, relative_step=step, **overrides)


METHOD = Method(
    "IAAT",
    IAAT,
    family="margins",
    idea="attacked images, within a radius that each sample finds for itself",
    paper="Balaji et al., arXiv 1910.08051, 2019",
    state="a radius per sample",
    cost="up to 6K + 6",
    most=lambda s: 6 * s.steps + 6,
    presets=PRESETS,
)
