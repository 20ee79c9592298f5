"""FGSMRS: adversarial training with one step from a random start, watched for catastrophic overfitting.

Source: Wong, Rice, Kolter, "Fast is better than free: revisiting adversarial training", ICLR 2020, Algorithm 3: a
random point of the ball, one step of 1.25 eps, projected. As cheap as it gets, but a network can learn to defeat this
one step alone: within an epoch its accuracy under PGD falls to nothing while that under FGSM rises. So every now and
then the batch is attacked with PGD as well, and an epoch in which that accuracy collapses says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import fisher_exact
from torch import Tensor, nn

from monai_adv.attacks import PGD, Ascent
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.network_state import Mode, any_batch_size, frozen
from monai_adv.settings import not_negative, positive, setting
from monai_adv.tasks.base import TrainingTask, take

PRESETS: dict[str, dict[str, Any]] = {
    "wong_cifar": {"norm": "linf", "eps": 8 / 255, "relative_step": 1.25, "attack_mode": "train", "box": (0.0, 1.0)},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.1, "unit": "rms"},
}  # fmt: skip


@dataclass(frozen=True)
class FGSMRSSettings(DefenseSettings):
    """Hyper-parameters of FGSM with random start."""

    relative_step: float = setting(1.25, "step as a fraction of the radius", "a number > 0", positive)
    attack_mode: Mode = setting("eval", "network mode during the attack (official: train)")
    watch_every: int = setting(
        50, "steps between two looks at the accuracy under PGD, beginning with the first of a training (0: none)",
        "a whole number >= 0", not_negative,
    )  # fmt: skip
    watch_steps: int = setting(10, "gradient steps of that PGD", "a whole number >= 1", positive)
    watch_drop: float = setting(
        0.2, "overfitting: the accuracy under PGD is lower than in the best epoch, and than under FGSM, by this much "
        "(and by more than chance explains)",
        "a number in (0, 1]", lambda v: 0 < v <= 1,
    )  # fmt: skip


CHANCE = 0.01
"""A drop that is likelier than this for no reason (Fisher's exact test) is no overfitting: few samples are watched."""


class FGSMRS(Defense):
    """One-step adversarial training; ``overfitting`` among an epoch's figures is 1 when it has failed.

    Example:
        With radius 0 its loss is the clean loss, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> fgsm = FGSMRS(task, FGSMRSSettings(eps=0))
        >>> bool(fgsm(network, images, target) == task.training_loss(network(images), target))
        True
    """

    settings_class = FGSMRSSettings
    settings: FGSMRSSettings

    def __init__(
        self, task: TrainingTask, settings: FGSMRSSettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self._step = 0  # over all epochs, so that short ones cost no more than `cost` says
        self._best = (0, 1)
        """Samples that stayed right under PGD in the best epoch so far, of how many."""

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x'), y)``."""
        self.begin(batch)
        settings = self.settings
        one_step = Ascent(
            self.threat,
            steps=1,
            relative_step=settings.relative_step,
            start="ball",
            mode=settings.attack_mode,
            check_last=False,
        )
        noisy, _, _ = self.attack(network, batch, one_step)
        if settings.eps > 0 and settings.watch_every > 0 and self._step % settings.watch_every == 0:
            self._watch(network, batch, noisy)
        self._step += 1
        yield self.noisy_part(network, batch, noisy)

    def on_epoch_end(self) -> dict[str, float]:
        """The epoch's figures; warns when the network has overfitted to the one step."""
        figures = super().on_epoch_end()
        figures["overfitting"] = 0.0
        if "pgd_right" in figures:
            pgd, fgsm, drop = figures["pgd_right"], figures["fgsm_right"], self.settings.watch_drop
            count = max(self.statistics.counted["pgd_right"], 1)
            right, (best_right, best_count) = round(pgd * count), self._best
            best = best_right / best_count
            if pgd < best - drop and pgd < fgsm - drop and _fell((best_right, best_count), (right, count)):
                figures["overfitting"] = 1.0
                warnings.warn(
                    f"FGSMRS: catastrophic overfitting: accuracy under PGD fell from {best:.2f} to {pgd:.2f} "
                    f"while under FGSM it is {fgsm:.2f}; go back to an earlier checkpoint and train on with a smaller "
                    "eps or relative_step, or with SAT.",
                    stacklevel=2,
                )
            if pgd > best:
                self._best = (right, count)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """As every defence, the best accuracy under PGD so far, and when to look at it next."""
        return {**super().state_dict(), "best_pgd_right": list(self._best), "step": self._step}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore bit for bit."""
        super().load_state_dict(saved)
        self._best = (saved["best_pgd_right"][0], saved["best_pgd_right"][1])
        self._step = saved["step"]

    @torch.no_grad()
    def _watch(self, network: nn.Module, batch: Batch, noisy: Tensor) -> None:
        """Book which samples stay right under PGD, and under the one step that they are trained on.

        Both in eval mode, and without random numbers: watching must not change the training.
        """
        index = self.task.scorable(batch.target).nonzero()[:, 0]
        pgd_right = fgsm_right = torch.zeros(0, device=noisy.device)
        if len(index) > 0:
            images, target = batch.images[index], take(batch.target, index)
            pgd = PGD(self.threat, steps=self.settings.watch_steps, until="wrong")
            result = pgd(network, images, target, self.task)
            self.statistics.passes += result.passes
            pgd_right = (~result.wrong).float()
            with frozen(network) as model:
                fgsm_right = self.task.correct(model(any_batch_size(noisy[index], model)), target).float()
            self.statistics.passes.forward += len(index)
        self.statistics.add("pgd_right", pgd_right)
        self.statistics.add("fgsm_right", fgsm_right)


def _fell(before: tuple[int, int], now: tuple[int, int]) -> bool:
    """Whether a share of (right, count) samples is lower now by more than :data:`CHANCE`."""
    table = [[now[0], now[1] - now[0]], [before[0], before[1] - before[0]]]
    return bool(fisher_exact(table, alternative="less").pvalue < CHANCE)


METHOD = Method(
    "FGSMRS",
    FGSMRS,
    family="cheap",
    idea="images attacked with one step from a random point",
    paper="Wong et al., ICLR 2020",
    state="nothing",
    cost="5, and up to 0.44 for watching",
    most=lambda s: 5 + ((2 * s.watch_steps + 2) / s.watch_every if s.watch_every else 0),
    presets=PRESETS,
)
