"""IMA: increasing-margin adversarial training.

Source: Ma & Liang, "Increasing-margin adversarial (IMA) training to improve adversarial robustness of neural networks",
Computer Methods and Programs in Biomedicine 2023, Algorithms 1 (training), 2 and 3 (adversarial sample). The default is
the paper. Where the authors' code (SarielMa/Increasing-Margin-Adversarial-Training) differs, an option of
:class:`IMASettings` says so, and ``PRESETS["official"]`` sets them together.

Each training sample has a margin E, at first Delta. A sample that the network gets right is attacked within radius E.
If it stays right, E grows by Delta; if the attack crosses the decision boundary, the sample near the boundary is found
by bisection, trained on, and E shrinks towards its distance. E never exceeds eps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.attacks import PGD, bisect
from monai_adv.defenses.base import Batch, Defense, LossPart, on_any_rank
from monai_adv.errors import InputError
from monai_adv.network_state import detached
from monai_adv.sample_state import SampleIds, SampleState
from monai_adv.settings import Settings, not_negative, positive, setting
from monai_adv.tasks.base import Output, Task, take
from monai_adv.threats import Norm, Threat, Unit


@dataclass(frozen=True)
class IMASettings(Settings):
    """Hyper-parameters of IMA."""

    eps: float = setting(0.1, "largest margin", "a finite number > 0 (0 together with delta 0: off)", not_negative)
    delta: float | None = setting(
        None,
        "first margin and its growth per visit, in the unit of eps; none: eps / 5",
        "0 < delta <= eps",
        not_negative,
    )
    eps_unit: Unit = setting("rms", "unit of eps and delta: RMS change per voxel (rms), or the norm itself (norm)")
    norm: Norm = setting("l2", "norm of the perturbation")
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
    search_result: Literal["midpoint", "last_right"] = setting("midpoint", "which end of the search is trained on")
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
    attack_mode: Literal["eval", "train"] = setting("eval", "network mode during the attack (official: train)")
    seed: int = setting(0, "seed of the random start", "a whole number >= 0", not_negative)

    def check(self) -> None:
        if self.norm == "linf" and self.eps_unit == "rms":
            raise InputError.of("eps_unit", "rms", "'norm' when norm is 'linf'", "an L-inf radius is per voxel already")
        if self.eps_unit == "rms" and self.eps > 1:
            raise InputError.of(
                "eps", self.eps, "at most 1 in the unit rms, one standard deviation in every voxel",
                "set eps_unit to norm if you mean an L2 radius",
            )  # fmt: skip
        if self.eps == 0 and self.delta != 0:
            raise InputError.of("eps", self.eps, "a finite number > 0", "set eps and delta both to 0 to switch IMA off")
        if self.growth > self.eps:
            raise InputError.of("delta", self.delta, f"at most eps, here {self.eps}", "delta is the step, eps the cap")
        if self.growth == 0 and self.eps > 0:
            raise InputError.of(
                "delta", self.delta, "a number > 0", "with delta 0 no margin ever grows; set eps to 0 too"
            )

    @property
    def growth(self) -> float:
        """The margin's step: ``delta``, or a fifth of ``eps``."""
        return self.eps / 5 if self.delta is None else self.delta

    def threat(self, channels: tuple[int, ...] | None = None) -> Threat:
        """The enemy that is trained against: radius eps."""
        return Threat(self.norm, self.eps, unit=self.eps_unit, channels=channels)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
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
}


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
        >>> ima.bind(SampleIds({"train": 2}), "cpu")
        >>> bool(ima(network, images, target, torch.arange(2)) == task.training_loss(network(images), target))
        True
    """

    def __init__(
        self, task: Task, settings: IMASettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.task = task
        self.settings = settings or IMASettings()
        self.threat = self.settings.threat(channels)
        self.margins = SampleState(self.settings.growth, "IMA margins")
        # Only the once-per-epoch rule needs these: the shrunk margin so far, and whether any draw stayed right.
        self._shrunk = SampleState(self.settings.growth, "IMA shrunk margins")
        self._grown = SampleState(0.0, "IMA grown flags")
        self._generator: torch.Generator | None = None

    def bind(self, ids: SampleIds, device: torch.device | str) -> None:
        """Give every training sample the margin delta."""
        for state in (self.margins, self._shrunk, self._grown):
            state.bind(ids, device)
        self._generator = torch.Generator(device).manual_seed(self.settings.seed)

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """Algorithm 1: ``(1 - w) * L(f(x), y) + w * L(f(x~), y)``, where x~ = x for samples that are not attacked.

        The host's loss may couple the samples of a batch (batch Dice), so the noisy loss is taken over the whole batch.
        """
        weight = self.settings.weight_noisy
        output = network(batch.images)
        self._count(batch, forward=1, full=1)
        clean_loss = self.task.training_loss(output, batch.target)
        attacked = self._attacked(output, batch)
        seen = detached(output)
        if self.settings.eps == 0 or not on_any_rank(len(attacked) > 0, batch.images.device):
            self._log(batch, attacked, None)
            yield LossPart(clean_loss, seen)
            return
        yield LossPart((1 - weight) * clean_loss, seen)
        del output, clean_loss, seen

        noisy = batch.images
        found = None
        if len(attacked) > 0:
            found = self._adversarial_samples(network, batch, attacked)
            noisy = noisy.index_copy(0, attacked, found.images)
        noisy_loss = self.task.training_loss(network(noisy), batch.target)
        self._count(batch, forward=1, full=1)
        yield LossPart(weight * noisy_loss)
        self._log(batch, attacked, found)
        self._update_margins(batch, attacked, found)

    def on_epoch_end(self) -> dict[str, float]:
        """Finish the margins of the epoch; returns shares of samples attacked and crossed, margins, passes, ..."""
        settings = self.settings
        if settings.margin_update == "epoch":
            grow = self._grown.values > 0
            margins = torch.where(grow, self.margins.values + settings.growth, self._shrunk.values)
            self.margins.values = margins.clamp(0, settings.eps)
            self._shrunk.values = self.margins.values.clone()
            self._grown.values = torch.zeros_like(margins)
        spread = self.margins.values.cpu().double()
        return {
            **super().on_epoch_end(),
            "margin_mean": float(spread.mean()),
            "margin_std": float(spread.std(correction=0)),
            "margin_at_eps": float((spread >= settings.eps).double().mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Margins with their sample ids and unit, the once-per-epoch helpers, and the stream of random starts."""
        assert self._generator is not None, "bind the sample ids before saving"
        return {
            "unit": f"{self.settings.norm}, {self.settings.eps_unit}",
            "margins": self.margins.state_dict(),
            "shrunk": self._shrunk.state_dict(),
            "grown": self._grown.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore bit for bit; margins above a smaller eps than before are cut.

        On another kind of device (CPU instead of CUDA) the stream of random starts begins anew.

        Raises:
            InputError: the margins belong to other samples or are in another unit; nothing is changed then.
        """
        assert self._generator is not None, "bind the sample ids before loading"
        unit = f"{self.settings.norm}, {self.settings.eps_unit}"
        if saved["unit"] != unit:
            raise InputError.of(
                "norm and eps_unit", unit, f"those of the checkpoint's margins ({saved['unit']})",
                "keep them, or start a new training from the checkpoint's weights with initial_weights",
            )  # fmt: skip
        self.margins.load_state_dict(saved["margins"])  # checks the ids, which the others share
        self._shrunk.load_state_dict(saved["shrunk"])
        self._grown.load_state_dict(saved["grown"])
        for state in (self.margins, self._shrunk):
            state.values = state.values.clamp(max=self.settings.eps)
        stream = saved["generator"].cpu()
        if len(stream) == len(self._generator.get_state()):
            self._generator.set_state(stream)

    @torch.no_grad()
    def _attacked(self, output: Output, batch: Batch) -> Tensor:
        """Indices of the batch's samples to attack: right without an attack (if gated), scorable, with a margin > 0."""
        if self.settings.eps == 0:
            return torch.empty(0, dtype=torch.long, device=batch.images.device)
        chosen = self.task.scorable(batch.target) & (self.margins[batch.ids] > 0)
        if self.settings.clean_gate:
            chosen &= self.task.correct(output, batch.target)
        return chosen.nonzero()[:, 0]

    def _adversarial_samples(self, network: nn.Module, batch: Batch, attacked: Tensor) -> _Found:
        """Algorithm 2 or 3: the noisy sample of each attacked one, and whether the attack crossed the boundary."""
        settings = self.settings
        images, target = batch.images[attacked], take(batch.target, attacked)
        scale = self.threat.scale(images)
        margin = self.margins[batch.ids[attacked]]
        pgd = PGD(
            self.threat,
            steps=settings.steps,
            relative_step=settings.relative_step,
            start="sphere" if settings.random_start else "clean",
            stop="first_wrong" if settings.algorithm == 2 else "never",
            mode=settings.attack_mode,
        )
        result = pgd(
            network,
            images,
            target,
            self.task,
            radius=margin * scale,
            start_radius=(margin - settings.growth).clamp(min=settings.growth) * scale,
            generator=self._generator,
        )
        self.statistics.passes += result.passes
        found = _Found(result.images, result.wrong, result.wrong.clone(), result.dead)
        to_search = result.wrong
        if settings.algorithm == 2 and not settings.random_start:
            to_search = to_search & (result.steps > 0)  # wrong without an attack: the segment is a point
        crossed = to_search.nonzero()[:, 0]
        if len(crossed) > 0:
            right = result.previous if settings.algorithm == 2 else images
            boundary = bisect(
                network,
                right[crossed],
                result.images[crossed],
                take(target, crossed),
                self.task,
                halvings=settings.searches,
                keep=settings.search_result,
                mode=settings.attack_mode,
            )
            self.statistics.passes += boundary.passes
            found.images = found.images.index_copy(0, crossed, boundary.images)
            found.wrong = found.wrong.index_copy(0, crossed, boundary.wrong)
        return found

    @torch.no_grad()
    def _update_margins(self, batch: Batch, attacked: Tensor, found: _Found | None) -> None:
        """Grow by delta, shrink towards the boundary, or stay; margins are cut at eps at once.

        The paper cuts at the end of the epoch. nnU-Net draws a sample several times an epoch, and no attack may leave
        eps.
        """
        settings = self.settings
        ids = batch.ids[attacked]
        if found is None:  # other ranks attacked
            distance = torch.empty(0, device=batch.images.device)
            grows = shrinks = distance.bool()
        else:
            distance = self.threat.size(found.images - batch.images[attacked]) / self.threat.scale(batch.images)
            grows = ~(found.crossed | found.dead)  # a blind attack proves nothing
            shrinks = found.crossed
            if settings.margin_rule == "paper":
                shrinks = shrinks & found.wrong
        if settings.margin_update == "epoch":
            shrunk = self._shrunk[ids]
            self._shrunk.update(ids, torch.where(shrinks, (shrunk + distance) / 2, shrunk))
            self._grown.update(ids, torch.maximum(self._grown[ids], grows.float()))
            return
        margin = self.margins[ids]
        grown = torch.where(grows, margin + settings.growth, margin)
        self.margins.update(ids, torch.where(shrinks, (margin + distance) / 2, grown).clamp(0, settings.eps))

    def _count(self, batch: Batch, forward: int, full: int) -> None:
        self.statistics.passes.forward += forward * len(batch.images)
        self.statistics.passes.backward_full += full * len(batch.images)

    def _log(self, batch: Batch, attacked: Tensor, found: _Found | None) -> None:
        size = len(batch.images)
        none = torch.zeros(1, device=batch.images.device)
        self.statistics.samples += size
        self.statistics.add("attacked", torch.ones_like(attacked, dtype=torch.float), of=size)
        self.statistics.add("crossed", none if found is None else found.crossed.float(), of=size)
        self.statistics.add("dead_gradient", none if found is None else found.dead.float(), of=size)


@dataclass
class _Found:
    """The noisy samples of the attacked part of a batch, and for each whether it crossed, is wrong, had no gradient."""

    images: Tensor
    crossed: Tensor
    wrong: Tensor
    dead: Tensor
