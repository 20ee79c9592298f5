"""Customized adversarial training: a radius for every sample, and a label as uncertain as that radius is large.

Source: Cheng et al., "CAT: customized adversarial training for improved robustness", IJCAI 2022, Algorithm 1. Each
sample has a radius eps_i, at first 0. At each visit the sample is attacked within eps_i + eta; if the network stays
right, the radius becomes that, otherwise it stays as it was. The label is ``(1 - s_i) onehot(y) + s_i u`` with u drawn
from Dirichlet(1, ..., 1) and a share s_i proportional to eps_i, in the attack and, with the new radius, in the loss.

The cross-entropy is linear in the label, so the loss of a sample is ``(1 - s_i) L(f(x'), y) + s_i CE(f(x'), u)`` with
the host's own L. This also defines the segmentation: one u per sample, whose cross-entropy is averaged over voxels and
resolutions. The loss called mix adds ``eps_i relu(max_{k != y} z_k - z_y + kappa)``, a mean over points as well.

The paper's share is c eps_i with c = 10 and eps_i up to 0.03. With an L2 radius of 12 that label would be negative, so
shares are stated at the largest radius: ``s_i = smoothing eps_i / eps`` with smoothing = 0.3, and likewise
``margin_weight`` for mix. The step is a fraction of the sample's own radius; the paper's is 0.007 for all.

The authors' later code shrinks the radius of *right* samples; the paper's sign is used here. Whether the network is
right on x' is read from the training forward, which is made anyway, if the network computes there what it does in the
mode of the attack; otherwise the attack looks at its last image itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.attacks.losses import lead_of_others
from monai_adv.attacks.projected_steps import Start
from monai_adv.attacks.reference import WithReference
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.margins import SharedMargin
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.errors import InputError
from monai_adv.network_state import computes_as_in, detached
from monai_adv.sample_state import SampleState
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Points, Target, Task, TrainingTask
from monai_adv.tasks.divergence import mean_over_points

PRESETS: dict[str, dict[str, Any]] = {
    "customized_cifar": {"norm": "linf", "eps": 0.03, "eta": 0.005, "steps": 10, "relative_step": 0.25,
                         "box": (0.0, 1.0)},
    "customized_cifar_mix": {"norm": "linf", "eps": 0.03, "eta": 0.005, "steps": 10, "relative_step": 0.25,
                             "loss": "mix", "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class CustomizedATSettings(SharedMargin, AttackSettings):
    """Hyper-parameters of customized adversarial training."""

    eps: float = setting(0.1, "largest radius of a sample", "a finite number >= 0 (0: off)", not_negative,
                         radius=True)  # fmt: skip
    eta: float | None = setting(
        None, "growth of a sample's radius per visit, in the unit of eps; none: eps / 6", "0 <= eta <= eps",
        not_negative, radius=True,
    )  # fmt: skip
    eps_first: float = setting(0.0, "radius of a sample at first, in the unit of eps", "0 <= eps_first <= eps",
                               not_negative, radius=True)  # fmt: skip
    smoothing: float = setting(
        0.3, "share of the random label at the largest radius (0: hard labels)", "a number in [0, 1]",
        lambda v: 0 <= v <= 1,
    )  # fmt: skip
    loss: Literal["xent", "mix"] = setting("xent", "cross-entropy alone (xent), or with a margin loss (mix)")
    margin_weight: float = setting(
        0.03, "mix: weight of the margin loss at the largest radius", "a number >= 0", not_negative
    )
    kappa: float = setting(10.0, "mix: the margin that logits should have", "a number >= 0", not_negative)
    start: Start = setting(
        "clean", "first point: the clean image, a random one in the ball or on its surface, or 0.001 standard normal"
    )

    def check(self) -> None:
        super().check()
        for name, value in (("eta", self.growth), ("eps_first", self.eps_first)):
            if value > self.eps:
                raise InputError.of(name, value, f"at most eps, here {self.eps}", "eps is the largest radius")
        if self.eps > 0 and self.growth == 0 and self.eps_first == 0:
            raise InputError.of("eta", self.eta, "a number > 0 where eps_first is 0", "no radius would ever grow")

    @property
    def growth(self) -> float:
        """``eta``, or a sixth of ``eps``."""
        return self.eps / 6 if self.eta is None else self.eta


class CustomizedAT(Defense):
    """Adversarial training with a radius and a soft label for each sample.

    Example:
        The radius of a sample that stays right grows visit by visit:

        >>> from monai_adv.sample_state import SampleIds
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images = nn.Linear(1, 2), torch.tensor([[1.0], [-1.0]])
        >>> network.weight.data, network.bias.data = torch.tensor([[0.0], [1.0]]), torch.zeros(2)
        >>> method = CustomizedAT(ClassificationTask(), CustomizedATSettings(norm="linf", eps=0.5, eta=0.25))
        >>> method.bind(SampleIds({"train": 2}), "cpu")
        >>> for _ in range(2):  # the second sample is wrong without an attack
        ...     loss = method(network, images, torch.tensor([1, 1]), torch.arange(2))
        ...     print(method.radii.values.tolist())
        [0.25, 0.0]
        [0.5, 0.0]
    """

    settings_class = CustomizedATSettings
    settings: CustomizedATSettings
    needs_ids = True

    def __init__(
        self, task: TrainingTask, settings: CustomizedATSettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self.radii = SampleState(self.settings.eps_first, "Customized AT radii", shared=self.settings.shared)
        self.states = {"radii": self.radii}

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: the mean over samples of ``(1 - s_i) L(f(x'_i), y_i) + s_i CE(f(x'_i), u_i)``."""
        self.begin(batch)
        settings = self.settings
        ids = self.ids(batch)
        radius = self.radii[ids].to(batch.images)
        tried = (radius + settings.growth).clamp(max=settings.eps)
        soft = settings.eps > 0 and (settings.smoothing > 0 or settings.loss == "mix")
        labels = _RandomLabels(len(batch.images), self.generator(batch.images.device))

        task: Task = self.task
        target = batch.target
        if soft:
            rows = torch.arange(len(batch.images), device=batch.images.device)
            task, target = WithReference.of(
                self.task, self._attacked_loss(labels), batch.target, [rows, tried / settings.eps]
            )
        agree = computes_as_in(network, settings.attack_mode)
        ascent = settings.ascent(self.channels, check_last=not agree)
        noisy, result, index = self.attack(network, batch, ascent, task=task, target=target, radius=tried)

        output = network(noisy)
        right = self.task.correct(detached(output), batch.target)[index] if agree else ~result.wrong
        radius = radius.index_copy(0, index, torch.where(right, tried[index], radius[index]))
        self.radii.update(ids[index], radius[index])
        if soft:
            hard = self.task.sample_training_loss(output, batch.target)
            points = self.task.all_points(output, batch.target)
            loss = self._soft_loss(hard, points, labels.of(points), radius / settings.eps).mean()
        else:
            loss = self.task.training_loss(output, batch.target)
        yield self.part(batch, loss, noisy=output)

    def on_epoch_end(self) -> dict[str, float]:
        """The figures of every defence, and the mean and spread of the radii."""
        return {**super().on_epoch_end(), **self.spread("radius", self.radii)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """As every defence; radii above a smaller eps than before are cut."""
        super().load_state_dict(saved)
        self.radii.values = self.radii.values.clamp(max=self.settings.eps)

    def _attacked_loss(self, labels: _RandomLabels) -> Any:
        """What the attack raises: the same loss, at full resolution and with the radius that is tried."""

        def loss(reference: list[Tensor], output: Output, target: Target) -> Tensor:
            rows, share = reference
            points = [(1.0, self.task.points(output, target))]
            return self._soft_loss(self.task.sample_loss(output, target), points, labels.of(points)[rows], share)

        return loss

    def _soft_loss(self, hard: Tensor, points: list[tuple[float, Points]], label: Tensor, share: Tensor) -> Tensor:
        """``(B,)`` loss with the soft label.

        Args:
            hard: ``(B,)`` loss with the label y.
            points: of every resolution.
            label: ``(B, K)`` the random labels u.
            share: ``(B,)`` radius of each sample as a fraction of the largest.
        """
        settings = self.settings
        share = share.to(hard)
        smoothing = settings.smoothing * share
        random = mean_over_points(points, lambda p: -(label.to(hard)[:, :, None] * p.logits.log_softmax(1)).sum(1))
        loss = (1 - smoothing) * hard + smoothing * random
        if settings.loss == "mix":
            loss = loss + settings.margin_weight * share * mean_over_points(points, self._margin_loss)
        return loss

    def _margin_loss(self, points: Points) -> Tensor:
        """``(B, N)`` how far the logit of y is from exceeding all others by kappa."""
        return (lead_of_others(points) + self.settings.kappa).relu()


class _RandomLabels:
    """``(B, K)`` draws from Dirichlet(1, ..., 1), made when the number of classes K is known; the same ever after."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator
        self.values: Tensor | None = None

    def of(self, points: list[tuple[float, Points]]) -> Tensor:
        """The draws for all samples of the batch, for points of these classes."""
        if self.values is None:
            shape = (self.count, points[0][1].logits.shape[1])
            values = torch.empty(shape, device=self.generator.device).exponential_(generator=self.generator)
            self.values = values / values.sum(1, keepdim=True)
        return self.values


METHOD = Method(
    "CustomizedAT",
    CustomizedAT,
    family="margins",
    idea="attacked images with soft labels, within a radius of each sample's own",
    paper="Cheng et al., IJCAI 2022",
    state="a radius per sample",
    cost="up to 2K + 4",
    most=lambda s: 2 * s.steps + 4,
    presets=PRESETS,
)
