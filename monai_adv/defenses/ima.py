"""IMA: increasing-margin adversarial training.

Source: Ma & Liang, "Increasing-margin adversarial (IMA) training to improve adversarial robustness of neural networks",
Computer Methods and Programs in Biomedicine 2023, Algorithms 1 (training), 2 and 3 (adversarial sample). The default is
the paper. Where the authors' code (SarielMa/Increasing-Margin-Adversarial-Training) differs, an option of
:class:`IMASettings` says so, and ``PRESETS["official"]`` sets them together.

Each training sample has a margin E, at first Delta. A sample that the network gets right is attacked within radius E.
If it stays right, E grows by Delta; if the attack crosses the decision boundary, the sample near the boundary is found
by bisection, trained on, and E shrinks towards its distance. E never exceeds eps.

Passes for a sample (K ``steps``, N ``searches``; F forward, B_in and B_full the gradient for the images, the weights):

* wrong without an attack, or without foreground: 2 F + 2 B_full;
* attacked, stays right: (K + 3) F + K B_in + 2 B_full;
* attacked, crosses at step k: Algorithm 3 makes (K + N + 3) F + K B_in + 2 B_full, Algorithm 2 makes
  (k + N + 3) F + (k + 1) B_in + 2 B_full.

Not in the paper, and off by default: what :mod:`monai_adv.defenses.margins` says, and growth in proportion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.attacks import Ascent, bisect
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.margins import Known, MeasuredMargin
from monai_adv.defenses.method import Method
from monai_adv.defenses.ranks import on_any_rank
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, computes_as_in
from monai_adv.sample_state import SampleState
from monai_adv.settings import not_negative, positive, setting
from monai_adv.tasks.base import Output, TrainingTask, take


@dataclass(frozen=True)
class IMASettings(MeasuredMargin, DefenseSettings):
    """Hyper-parameters of IMA."""

    eps: float = setting(0.1, "largest margin", "a finite number > 0 (0 together with delta 0: off)", not_negative,
                         radius=True)  # fmt: skip
    delta: float | None = setting(
        None,
        "first margin and its growth per visit, in the unit of eps; none: eps / 5",
        "0 < delta <= eps",
        not_negative,
        radius=True,
    )
    growth_rate: float | None = setting(
        None, "growth per visit as a share of the margin; none: delta (paper)", "a number > 0 or none", positive
    )
    algorithm: Literal[2, 3] = setting(
        3,
        "3: all steps, then search between the clean and the last image (paper, for training with augmentation); "
        "2: stop at the first wrong image and search before it (official)",
    )
    steps: int = setting(20, "gradient steps K", "a whole number >= 1", positive)
    relative_step: float | None = setting(
        None, "step as a fraction of the margin; none: 4 / steps", "a number > 0 or none", positive
    )
    searches: int = setting(10, "halvings of the boundary search", "a whole number >= 0", not_negative)
    search_result: Literal["midpoint", "last_right"] = setting(
        "midpoint", "what is trained on: the middle of what the search leaves, or its end that is still right"
    )
    clean_gate: bool = setting(True, "attack only samples that are right without an attack (official: false)")
    random_start: bool = setting(False, "start on a sphere of radius max(E - delta, delta) (official: true)")
    margin_rule: Literal["paper", "always_shrink"] = setting(
        "paper", "paper: shrink only if the sample trained on is wrong; always_shrink: whenever not grown (official)"
    )
    margin_update: Literal["step", "epoch"] = setting(
        "step", "paper: after every batch; epoch: once per epoch, growing if any draw stayed right (official)"
    )
    weight_noisy: float = setting(
        0.5, "weight of the noisy loss, the clean loss has the rest", "a number in [0, 1]", lambda v: 0 <= v <= 1
    )
    attack_mode: Mode = setting("eval", "network mode during the attack (official: train)")

    def check(self) -> None:
        super().check()
        if self.eps == 0 and self.delta != 0:
            raise InputError.of("eps", self.eps, "a finite number > 0", "set eps and delta both to 0 to switch IMA off")
        if self.growth > self.eps:
            raise InputError.of("delta", self.delta, f"at most eps, here {self.eps}", "delta is the step, eps the cap")
        if self.growth == 0 and self.eps > 0:
            raise InputError.of(
                "delta", self.delta, "a number > 0", "with delta 0 no margin ever grows; set eps to 0 too"
            )
        if self.margin_update == "epoch" and self.first_margin == "measured":
            raise InputError.of(
                "margin_update", "epoch", "'step' where first_margin is 'measured'", "a measured margin counts at once"
            )

    @property
    def growth(self) -> float:
        """The margin's step: ``delta``, or a fifth of ``eps``."""
        return self.eps / 5 if self.delta is None else self.delta


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # The paper's data sets: radius, growth and algorithm (2 where it trains without augmentation). Its two-dimensional
    # images are in [0, 1]; the volumes are z-scored and have no bounds. The authors' code for these images runs
    # Algorithm 3 on all three of its sets, and on COVID-19 and PathMNIST keeps the last right end of the search:
    # algorithm 3, search_result last_right.
    "ima_covid": {"norm": "l2", "eps": 12.0, "delta": 2.0, "unit": "norm", "algorithm": 2, "box": (0.0, 1.0)},
    "ima_pathmnist": {"norm": "l2", "eps": 3.0, "delta": 0.04, "unit": "norm", "box": (0.0, 1.0)},
    "ima_heart": {"norm": "l2", "eps": 20.0, "delta": 5.0, "unit": "norm"},
    "ima_hippocampus": {"norm": "l2", "eps": 15.0, "delta": 2.0, "unit": "norm"},
    "ima_prostate": {"norm": "l2", "eps": 40.0, "delta": 10.0, "unit": "norm"},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.15, "delta": 0.03, "unit": "rms", "steps": 3, "searches": 3,
                 "margin_of": "case", "first_margin": "measured", "growth_rate": 0.2},
    # The authors' segmentation code: what it does, not what the paper says. Its learning rate and precision go with it.
    "official": {
        "algorithm": 2,
        "clean_gate": False,
        "random_start": True,
        "margin_rule": "always_shrink",
        "margin_update": "epoch",
        "attack_mode": "train",
        "dice": "max",
        "threshold_included": True,
        "empty_target": "wrong",
        "attack_loss": "dice_ce",
        "absent_classes": "count",
        "attack_deep_supervision": True,
        "training_loss": "per_sample",
        "lr_schedule": "constant",
        "amp": False,
    },
}  # fmt: skip


class IMA(Defense):
    """Increasing-margin adversarial training.

    Args:
        task: what is right; its training loss is used for clean and noisy images alike.
        settings: see :class:`IMASettings`.
        channels: input channels that are intensities; ``None`` means all.

    Example:
        Switched off, its loss is the clean loss, bit for bit:

        >>> from monai_adv.tasks import SegmentationTask
        >>> network, images = nn.Conv2d(1, 2, 1), torch.randn(2, 1, 4, 4)
        >>> target = torch.ones(2, 1, 4, 4, dtype=torch.long)
        >>> task = SegmentationTask(lambda output, target: nn.functional.cross_entropy(output, target[:, 0]))
        >>> ima = IMA(task, IMASettings(eps=0, delta=0))
        >>> from monai_adv.sample_state import SampleIds
        >>> ima.bind(SampleIds({"train": 2}), "cpu")
        >>> bool(ima(network, images, target, torch.arange(2)) == task.training_loss(network(images), target))
        True
    """

    settings_class = IMASettings
    settings: IMASettings
    needs_ids = True

    def __init__(
        self, task: TrainingTask, settings: IMASettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        growth, shared = self.settings.growth, self.settings.shared
        self.margins = SampleState(growth, "IMA margins", shared=shared)
        self._known = Known(self.settings)
        # Only the once-per-epoch rule needs these: the shrunk margin so far, and whether any draw stayed right.
        self._shrunk = SampleState(growth, "IMA shrunk margins", shared=shared)
        self._grown = SampleState(0.0, "IMA grown flags", shared=shared)
        self.states = {
            "margins": self.margins, "shrunk": self._shrunk, "grown": self._grown, "known": self._known,
        }  # fmt: skip

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """Algorithm 1: ``(1 - w) * L(f(x), y) + w * L(f(x~), y)``, where x~ = x for samples that are not attacked.

        The host's loss may couple the samples of a batch (batch Dice), so the noisy loss is taken over the whole batch.
        """
        self.begin(batch)
        weight = self.settings.weight_noisy
        output = network(batch.images)
        clean_loss = self.task.training_loss(output, batch.target)
        attacked = self._attacked(network, output, batch)
        if self.settings.eps == 0 or not on_any_rank(bool(attacked.any()), batch.images.device):
            self.count_no_attack(batch, "crossed")
            yield self.part(batch, clean_loss, output)
            return
        yield self.part(batch, (1 - weight) * clean_loss, output)
        del output, clean_loss

        found = self._adversarial_samples(network, batch, attacked)
        noisy = batch.images.index_copy(0, found.index, found.images)
        part = self.noisy_part(network, batch, noisy, weight)
        yield part
        self.statistics.add("crossed", found.crossed.float(), of=len(batch.images))
        if found.wrong is None:
            assert part.noisy_output is not None
            found.wrong = ~self.task.correct(part.noisy_output, batch.target)[found.index]
        self._update_margins(batch, found)

    def on_epoch_end(self) -> dict[str, float]:
        """Finish the margins of the epoch; returns shares of samples attacked and crossed, margins, passes, ..."""
        settings = self.settings
        if settings.margin_update == "epoch":
            grow = self._grown.values > 0
            margins = torch.where(grow, self._larger(self.margins.values), self._shrunk.values)
            self.margins.values = margins.clamp(0, settings.eps)
            self._shrunk.values = self.margins.values.clone()
            self._grown.values = torch.zeros_like(margins)
        return {**super().on_epoch_end(), **self.spread("margin", self.margins)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """As every defence; margins above a smaller eps than before are cut."""
        super().load_state_dict(saved)
        for state in (self.margins, self._shrunk):
            state.values = state.values.clamp(max=self.settings.eps)

    @classmethod
    def attacks_right_only(cls, settings: Any) -> bool:
        """Unless the gate is open."""
        return bool(settings.clean_gate)

    @torch.no_grad()
    def _attacked(self, network: nn.Module, output: Output, batch: Batch) -> Tensor:
        """``(B,)`` bool: samples to attack: right without an attack (if gated), scorable, with a margin > 0.

        Right is what the network says in the mode of the attack (so does the authors' code: it runs the clean batch
        again if it attacks in eval mode).
        """
        if self.settings.eps == 0:
            return torch.zeros(len(batch.images), dtype=torch.bool, device=batch.images.device)
        chosen = self.task.scorable(batch.target) & (self._margin(batch) > 0)
        if self.settings.clean_gate:
            clean = self.clean_output(network, batch, output, self.settings.attack_mode)
            chosen &= self.task.correct(clean, batch.target)
        return chosen

    def _margin(self, batch: Batch) -> Tensor:
        """``(B,)`` radius of each sample's attack."""
        ids = self.ids(batch)
        margin = self.margins[ids]
        return torch.where(self._known.first(ids), torch.full_like(margin, self.settings.eps), margin)

    def _larger(self, margin: Tensor) -> Tensor:
        """What a margin grows to."""
        rate = self.settings.growth_rate
        return margin + self.settings.growth if rate is None else margin * (1 + rate)

    def _adversarial_samples(self, network: nn.Module, batch: Batch, attacked: Tensor) -> _Found:
        """Algorithm 2 or 3: the noisy sample of each attacked one, and whether the attack crossed the boundary."""
        settings = self.settings
        margin = self._margin(batch)
        ascent = Ascent(
            self.threat,
            steps=settings.steps,
            relative_step=settings.relative_step,
            start="surface" if settings.random_start else "clean",
            mode=settings.attack_mode,
            first_wrong=settings.algorithm == 2,
        )
        start_radius = (margin - settings.growth).clamp(min=settings.growth)
        _, result, index = self.attack(network, batch, ascent, radius=margin, start_radius=start_radius, only=attacked)
        found = _Found(index, result.images, result.wrong, result.wrong.clone(), result.dead)
        to_search = result.wrong
        if settings.algorithm == 2 and not settings.random_start:
            to_search = to_search & (result.steps > 0)  # wrong without an attack: the segment is a point
        crossed = to_search.nonzero()[:, 0]
        if len(crossed) > 0:
            right = result.previous if settings.algorithm == 2 else batch.images[index]
            # Only one rule asks on which side the midpoint lies; where it can, the training forward answers.
            asked = settings.margin_rule == "paper" and settings.search_result == "midpoint"
            agree = computes_as_in(network, settings.attack_mode)
            boundary = bisect(
                network,
                right[crossed],
                result.images[crossed],
                take(batch.target, index[crossed]),
                self.task,
                halvings=settings.searches,
                keep=settings.search_result,
                mode=settings.attack_mode,
                judge=asked and not agree,
            )
            self.statistics.passes += boundary.passes
            found.images = found.images.index_copy(0, crossed, boundary.images)
            if boundary.wrong is not None:
                found.wrong = result.wrong.index_copy(0, crossed, boundary.wrong)
            elif asked:
                found.wrong = None
        return found

    @torch.no_grad()
    def _update_margins(self, batch: Batch, found: _Found) -> None:
        """Grow by delta, shrink towards the boundary, or stay; margins are cut at eps at once.

        The paper cuts at the end of the epoch. nnU-Net draws a sample several times an epoch, and no attack may leave
        eps.
        """
        settings = self.settings
        ids = self.ids(batch)[found.index]
        distance = self.threat.size(found.images - batch.images[found.index]) / self.threat.scale(batch.images)
        grows = ~(found.crossed | found.dead)  # a blind attack proves nothing
        shrinks = found.crossed
        if settings.margin_rule == "paper":
            assert found.wrong is not None
            shrinks = shrinks & found.wrong
        if settings.margin_update == "epoch":
            shrunk = self._shrunk[ids]
            self._shrunk.update(ids, torch.where(shrinks, (shrunk + distance) / 2, shrunk))
            self._grown.update(ids, torch.maximum(self._grown[ids], grows.float()))
            return
        margin = self.margins[ids]
        margin = torch.where(grows, self._larger(margin), torch.where(shrinks, (margin + distance) / 2, margin))
        searched = found.crossed | ~found.dead
        first = self._known.first(ids) & searched
        margin = torch.where(first, torch.where(found.crossed, distance, settings.eps), margin)
        self.margins.update(ids, margin.clamp(0, settings.eps))
        self._known.remember(ids[searched])


@dataclass
class _Found:
    """The attacked samples of a batch: position, noisy image, whether it crossed, is wrong, had no gradient.

    ``wrong`` is None until the training forward has seen the noisy images.
    """

    index: Tensor
    images: Tensor
    crossed: Tensor
    wrong: Tensor | None
    dead: Tensor


METHOD = Method(
    "IMA",
    IMA,
    family="margins",
    idea="clean images, and images on the boundary within a margin that grows",
    paper="Ma & Liang, CMPB 2023",
    state="a margin per sample",
    cost="up to 2K + 7 + searches",
    most=lambda s: 2 * s.steps + 7 + s.searches,
    presets=PRESETS,
)
