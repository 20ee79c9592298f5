"""CAT: curriculum adversarial training.

Source: Cai et al., "Curriculum adversarial training", IJCAI 2018. In lesson k the batch is mixed from k + 1 equal
parts: part i is attacked with i steps of PGD, part 0 is clean, so that the network does not forget the easier lessons.
The next lesson begins when the training accuracy under this one exceeds a threshold, or has not risen for some epochs;
then the weights of the lesson's best epoch are restored first. Training starts with lesson 0, standard training, and
stays in the last one to its end.

The authors' code judges a lesson either by the training accuracy (threshold 0.95) or by that of a validation split
(patience of 10 epochs). A defence has no validation data; here both rules look at the training accuracy under the
lesson, over all ranks, with *right* as the task says (Dice above its threshold). Restoring the best epoch is idle under
the first rule: the epoch that passes the threshold is the best one. The optimiser keeps its momentum.

The step of i-step PGD is 2 eps / i. (The code multiplies it by a random number from 1 to 10 / i; ours does not.) Which
samples form which part is drawn anew for every batch, because hosts order their batches (nnU-Net puts the patches with
foreground last). A batch smaller than k + 1 is spread over the parts at random, each equally likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.network_state import bare
from monai_adv.settings import positive, setting
from monai_adv.tasks.base import TrainingTask, take

PRESETS: dict[str, dict[str, Any]] = {
    "cat_cifar": {"norm": "linf", "eps": 0.032, "steps": 7, "attack_mode": "train", "box": (0.0, 1.0)},
    "cat_mnist": {"norm": "linf", "eps": 0.3, "steps": 40, "attack_mode": "train", "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class CATSettings(AttackSettings):
    """Hyper-parameters of curriculum adversarial training."""

    steps: int = setting(7, "gradient steps of the last lesson", "a whole number >= 1", positive)
    relative_step: float | None = setting(
        None, "step as a fraction of the radius; none: 2 / the part's steps", "a number > 0 or none", positive
    )
    lesson_threshold: float = setting(
        0.95, "the next lesson begins when the training accuracy exceeds this", "a number in [0, 1]",
        lambda v: 0 <= v <= 1,
    )  # fmt: skip
    patience: int = setting(
        10, "or when it has not risen for this many epochs; the best epoch's weights are restored then",
        "a whole number >= 1", positive,
    )  # fmt: skip


class CAT(Defense):
    """Adversarial training in lessons of more and more attack steps.

    Example:
        It starts as standard training, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> cat = CAT(task)
        >>> cat.lesson, bool(cat(network, images, target) == task.training_loss(network(images), target))
        (0, True)
    """

    settings_class = CATSettings
    settings: CATSettings

    def __init__(
        self, task: TrainingTask, settings: CATSettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self.lesson = 0
        self._best = -1.0
        """The best training accuracy of an epoch in this lesson, ..."""
        self._waited = 0
        """... the epochs since, ..."""
        self._weights: dict[str, Tensor] = {}
        """... and the network as it was at that epoch's end."""
        self._network: nn.Module | None = None

    def attach(self, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The network whose weights lessons restore."""
        super().attach(network, optimizer)
        self._network = network

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: the loss of the mixed batch."""
        self.begin(batch)
        self._network = network  # a loop of one's own may not attach it
        if self.lesson == 0 or self.settings.eps == 0:
            part = self.clean_part(network, batch)
        else:
            part = self.noisy_part(network, batch, self.mixed(network, batch))
        seen = part.output if part.noisy_output is None else part.noisy_output
        assert seen is not None
        self.statistics.add("lesson_right", self.task.correct(seen, batch.target).float())
        yield part

    def mixed(self, network: nn.Module, batch: Batch) -> Tensor:
        """``(B, C, *spatial)`` the batch in the order it came, its parts attacked with 0 to ``lesson`` steps."""
        count, parts = len(batch.images), self.lesson + 1
        device, generator = batch.images.device, self.generator(batch.images.device)
        order = torch.randperm(count, generator=generator, device=device)
        # The offset changes nothing where the parts are equal; in a small batch it gives each part its turn.
        part_of = (order * parts + torch.randint(parts, (1,), generator=generator, device=device)) // count
        images, clean = batch.images, count
        for steps in range(1, parts):
            rows = (part_of == steps).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            part = Batch(batch.images[rows], take(batch.target, rows))
            step = self.settings.relative_step or 2 / steps
            ascent = self.settings.ascent(self.channels, steps=steps, relative_step=step)
            images = images.index_copy(0, rows, self.attack(network, part, ascent)[0])
            clean -= len(rows)
        for name in ("attacked", "dead_gradient"):
            self.statistics.add(name, torch.zeros(0, device=device), of=clean)
        return images

    def on_epoch_end(self) -> dict[str, float]:
        """Go to the next lesson if this one is learnt; returns the figures of the epoch and its lesson."""
        figures = {**super().on_epoch_end(), "lesson": float(self.lesson)}
        if self.lesson == self.settings.steps or self.settings.eps == 0 or "lesson_right" not in figures:
            return figures  # nothing more to learn, or an epoch without a step
        right = figures["lesson_right"]  # the same on every rank
        self._waited += 1
        if right > self._best:
            self._best, self._waited = right, 0
            self._weights = {k: v.detach().clone() for k, v in self._weights_of().items()}
        if right > self.settings.lesson_threshold or self._waited >= self.settings.patience:
            self._plain_network().load_state_dict(self._weights)
            self.lesson += 1
            self._best, self._waited, self._weights = -1.0, 0, {}
        return figures

    def state_dict(self) -> dict[str, Any]:
        """As every defence; the lesson, and the weights of its best epoch."""
        weights = {k: v.cpu() for k, v in self._weights.items()}
        own = {"lesson": self.lesson, "best": self._best, "waited": self._waited, "weights": weights}
        return {**super().state_dict(), **own}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """As every defence; a lesson beyond the last one of the settings is the last one."""
        super().load_state_dict(saved)
        self.lesson = min(saved["lesson"], self.settings.steps)
        self._best, self._waited, self._weights = saved["best"], saved["waited"], dict(saved["weights"])

    def _plain_network(self) -> nn.Module:
        """Without the wrappers that put their prefix before every name."""
        assert self._network is not None  # there has been a step
        return bare(self._network)

    def _weights_of(self) -> dict[str, Tensor]:
        return self._plain_network().state_dict()


METHOD = Method(
    "CAT",
    CAT,
    family="early_stop",
    idea="images attacked with 0 to K steps, K growing lesson by lesson",
    paper="Cai et al., IJCAI 2018",
    state="the lesson, and the best weights under it",
    cost="up to K + 3",
    most=lambda s: s.steps + 3,
    presets=PRESETS,
)
