"""MMA: max-margin adversarial training.

Source: Ding et al., "MMA training: direct input space margin maximization through adversarial training", ICLR 2020.
A sample's margin is its distance to the decision boundary. A sample that the network
gets right is moved onto the boundary and trained on there, which pushes the boundary away, until its margin exceeds
``d_max``, here ``eps``. A sample that it gets wrong is trained on as it is.

"Right" is judged by the soft margin, ``z_y - logsumexp of the other logits > 0``, which is stricter than argmax, and in
the mode in which the boundary is searched. The boundary is where the soft margin is zero. Segmentation: the soft margin
is soft Dice minus threshold.

The authors' code (BorealisAI/mma_training) clamps images to the intensity box during the search only; here the image
that is trained on is clamped as well, so that it is the one that was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.reference import WithReference
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.margins import Known, MeasuredMargin
from monai_adv.defenses.method import Method
from monai_adv.defenses.ranks import on_any_rank
from monai_adv.defenses.settings import AttackSettings
from monai_adv.errors import InputError
from monai_adv.network_state import any_batch_size, detached, frozen, padded, unwrap_ddp
from monai_adv.sample_state import SampleState
from monai_adv.settings import not_negative, positive, setting
from monai_adv.tasks.base import Output, Target, TrainingTask, take
from monai_adv.threats import per_sample

SEARCH_BEYOND = 1.05  # the boundary is searched up to this many eps, so that a margin above eps can be told from eps

PRESETS: dict[str, dict[str, Any]] = {
    "mma_cifar_l2": {"norm": "l2", "eps": 3.0, "unit": "norm", "mineps": 0.5, "box": (0.0, 1.0)},
    "mma_cifar_linf": {"norm": "linf", "eps": 32 / 255, "mineps": 0.005, "box": (0.0, 1.0)},
    "ima_covid": {"norm": "l2", "eps": 12.0, "unit": "norm", "box": (0.0, 1.0)},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.15, "unit": "rms", "steps": 3, "searches": 3},
}  # fmt: skip


@dataclass(frozen=True)
class MMASettings(MeasuredMargin, AttackSettings):
    """Hyper-parameters of MMA."""

    eps: float = setting(0.1, "d_max, the margin from which on a sample is left alone", "a number >= 0", not_negative,
                         radius=True)  # fmt: skip
    mineps: float | None = setting(
        None, "smallest radius of the attack, in the unit of eps; none: eps / 6", "0 < mineps <= eps", positive,
        radius=True,
    )  # fmt: skip
    relative_step: float | None = setting(
        None, "step as a fraction of the radius; none: 2.5 / steps", "a number > 0 or none", positive
    )
    searches: int = setting(10, "halvings of the search for the boundary", "a whole number >= 1", positive)
    clean_weight: float = setting(
        1 / 3, "weight of the clean loss, the margin loss has the rest (0: OMMA)", "a number in [0, 1)",
        lambda v: 0 <= v < 1,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.mineps is not None and self.mineps > self.eps > 0:
            raise InputError.of("mineps", self.mineps, f"at most eps, here {self.eps}", "eps is the largest margin")

    @property
    def smallest(self) -> float:
        """The smallest radius of the attack."""
        return self.eps / 6 if self.mineps is None else self.mineps


class MMA(Defense):
    """Max-margin training: each sample that is right is trained on where it meets the decision boundary.

    Example:
        The boundary of a linear classifier is ``|z_1 - z_0| / ||w_1 - w_0|| = 2 / 2`` away from this sample:

        >>> from monai_adv.sample_state import SampleIds
        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(1, 2, bias=False)
        >>> network.weight.data = torch.tensor([[-1.0], [1.0]])
        >>> mma = MMA(ClassificationTask(), MMASettings(eps=2.0, unit="norm", start="clean", searches=20))
        >>> mma.bind(SampleIds({"train": 1}), "cpu")
        >>> _ = mma(network, torch.tensor([[1.0]]), torch.tensor([1]), torch.tensor([0]))
        >>> round(float(mma.margins.values), 3)
        1.0
    """

    settings_class = MMASettings
    settings: MMASettings
    needs_ids = True

    def __init__(
        self, task: TrainingTask, settings: MMASettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self.margins = SampleState(0.0, "MMA margins", shared=self.settings.shared)
        self._known = Known(self.settings)
        self.states = {"margins": self.margins, "known": self._known}

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """``c L(f(x), y) + (1 - c) / B * [sum over right, margin < eps: L(f(x*), y) + sum over wrong: L(f(x), y)]``.

        Samples that cannot be scored are trained on as they are.
        """
        self.begin(batch)
        clean_weight = self.settings.clean_weight
        with torch.set_grad_enabled(clean_weight > 0):  # OMMA only asks who is right
            output = (network if clean_weight > 0 else unwrap_ddp(network))(batch.images)
        with torch.no_grad():
            scorable = self.task.scorable(batch.target)
            judged = output
            if self.settings.eps > 0:  # otherwise there is no attack whose mode could matter
                judged = self.clean_output(network, batch, output, self.settings.attack_mode)
            right = scorable & (self.task.soft_margin(judged, batch.target) > 0)
        seen: Output | None = detached(output)
        if clean_weight > 0:
            clean_loss = clean_weight * self.task.training_loss(output, batch.target)
            if self.settings.eps == 0 or not on_any_rank(bool(right.any()), batch.images.device):
                wrong_loss = self._weighted(~right, output, batch.target)
                self.count_no_attack(batch, "crossed")
                self._remember(batch, scorable, right, torch.zeros_like(right, dtype=batch.images.dtype))
                yield self.part(batch, clean_loss + (1 - clean_weight) * wrong_loss, output)
                return
            yield self.part(batch, clean_loss, output)
            seen = None
            del clean_loss
        del output

        noisy, margin = self._on_boundary(network, batch, right)
        noisy_output = network(noisy)
        loss = self._weighted(~right | (margin < self.settings.eps), noisy_output, batch.target)
        yield self.part(batch, (1 - clean_weight) * loss, seen, noisy_output, full=1)
        self._remember(batch, scorable, right, margin)

    def on_epoch_end(self) -> dict[str, float]:
        """The epoch's figures, and mean and spread of the margins in the unit of eps."""
        return {**super().on_epoch_end(), **self.spread("margin", self.margins)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """As every defence; margins beyond the search's end of a smaller eps than before are cut."""
        super().load_state_dict(saved)
        self.margins.values = self.margins.values.clamp(max=SEARCH_BEYOND * self.settings.eps)

    @classmethod
    def attacks_right_only(cls, settings: Any) -> bool:
        """By the soft margin."""
        return True

    def _weighted(self, counted: Tensor, output: Output, target: Target) -> Tensor:
        return (counted * self.task.sample_training_loss(output, target)).mean()

    def _on_boundary(self, network: nn.Module, batch: Batch, right: Tensor) -> tuple[Tensor, Tensor]:
        """The images with the right ones moved onto the boundary, and ``(B,)`` margins (0 where not searched).

        Images whose boundary is not within eps do not count in the loss and stay clean.
        """
        settings = self.settings
        ids = self.ids(batch)
        margin = torch.where(self._known.first(ids), settings.eps, self.margins[ids])
        radius = margin.clamp(min=settings.smallest).to(batch.images.dtype)
        ascent = settings.ascent(self.channels, relative_step=settings.relative_step or 2.5 / settings.steps)
        task, packed = WithReference.of(
            self.task, lambda _, output, target: -self.task.soft_margin(output, target), batch.target, []
        )
        images = batch.images
        margin = torch.zeros_like(radius)
        noisy, _, index = self.attack(network, batch, ascent, task=task, target=packed, radius=radius, only=right)
        direction = (noisy[index] - images[index]) / per_sample(radius[index], images)  # at most one unit of eps
        found = self._zero_crossing(network, images[index], take(batch.target, index), direction, radius[index])
        delta = self._in_box(images[index], direction, torch.where(found < settings.eps, found, 0))
        self.statistics.add("crossed", (found < settings.eps).float(), of=len(images))
        return images.index_copy(0, index, images[index] + delta), margin.index_copy(0, index, found)

    @torch.no_grad()
    def _zero_crossing(
        self, network: nn.Module, images: Tensor, target: Target, direction: Tensor, start: Tensor
    ) -> Tensor:
        """``(b,)`` distance along ``direction`` at which the soft margin is 0, halving [0, 1.05 eps] from ``start``."""
        count = len(images)
        if count == 0:  # only other ranks attack
            return start
        index = padded(torch.arange(count, device=images.device), network)
        images, target, direction = images[index], take(target, index), direction[index]
        distance = start[index]
        low, high = torch.zeros_like(distance), torch.full_like(distance, SEARCH_BEYOND * self.settings.eps)
        with frozen(network, self.settings.attack_mode) as model:
            for _ in range(self.settings.searches):
                noisy = images + self._in_box(images, direction, distance)
                right = self.task.soft_margin(model(any_batch_size(noisy, model)), target) > 0
                low, high = torch.where(right, distance, low), torch.where(right, high, distance)
                distance = (low + high) / 2
        self.statistics.passes.forward += self.settings.searches * len(index)
        return distance[:count]

    def _in_box(self, images: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
        """The step of ``distance`` along ``direction``, cut by the box alone."""
        no_ball = torch.full_like(distance, torch.inf)
        return self.threat.project(per_sample(distance, direction) * direction, images, no_ball)

    def _remember(self, batch: Batch, scorable: Tensor, right: Tensor, margin: Tensor) -> None:
        """The margin of the samples that were right, 0 of those that were wrong."""
        ids = self.ids(batch)
        self.margins.update(ids[scorable], margin[scorable])
        self._known.remember(ids[right])


METHOD = Method(
    "MMA",
    MMA,
    family="margins",
    idea="images on the boundary, for those not yet eps away from it",
    paper="Ding et al., ICLR 2020",
    state="a margin per sample",
    cost="up to 2K + 7 + searches",
    most=lambda s: 2 * s.steps + s.searches + (7 if s.clean_weight else 5),
    presets=PRESETS,
)
