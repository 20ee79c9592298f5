"""MIRST: RST with several adversarial instances of each image, from weak to strong.

Source: Sun et al., "MIRST-DM: Multi-instance RST with drop-max layer for robust classification of breast cancer",
MICCAI 2022, equations 1 to 3: ``L(f(x), y) + alpha sum_j beta_j L(f(x_j), y)``. The instances are iterates of one PGD
run that starts at the clean image: the paper's x_3, x_5, x_7, x_9 with x_1 = x, that is the images after 2, 4, 6 and 8
gradient steps. The weakest instance has the largest weight. The paper runs 10 steps, of which the last two are never
used; here they are not made. Neither the radius of the training nor the step is given; see ``PRESETS``.

Each version of the batch has a forward of its own: with BatchNorm in training mode clean and attacked images are
normalised apart, and the memory is that of one version. (One big batch of all five would mix their statistics.)

The drop-max layer (DM) is a layer of the network, not of the training: ``monai_adv.networks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.ascent import Ascent, Iterate
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings, numbers
from monai_adv.errors import InputError
from monai_adv.network_state import Mode
from monai_adv.settings import not_negative, positive, setting

PRESETS: dict[str, dict[str, Any]] = {
    "mirst_busi": {"norm": "linf", "eps": 5 / 255, "relative_step": 0.25, "alpha": 1.0, "box": (0.0, 1.0)},
    # With the step 0.001 of the paper's evaluation the strongest instance goes 0.008 far, not half the radius.
    "mirst_busi_short_step": {"norm": "linf", "eps": 5 / 255, "relative_step": 0.001 / (5 / 255), "alpha": 1.0,
                              "box": (0.0, 1.0)},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.1, "unit": "rms", "instances": "1,2", "betas": "0.5,0.5", "relative_step": 1.0},
}  # fmt: skip


@dataclass(frozen=True)
class MIRSTSettings(DefenseSettings):
    """Hyper-parameters of MIRST; the last of ``instances`` is the number of gradient steps of the attack."""

    alpha: float = setting(1.0, "weight of all instances together", "a number >= 0 (0: standard)", not_negative)
    instances: str | int = setting(
        "2,4,6,8", "gradient steps after which an instance is taken", "increasing whole numbers >= 1, as '2,4,6,8'"
    )
    betas: str | float = setting(
        "0.34,0.28,0.22,0.16", "weight of each instance", "numbers > 0, as many as instances, as '0.5,0.5'"
    )
    relative_step: float | None = setting(
        None, "step as a fraction of the radius; none: 4 / the last of instances", "a number > 0 or none", positive
    )
    attack_mode: Mode = setting("eval", "network mode during the attack")

    def check(self) -> None:
        super().check()
        after, weights = self.after, self.weights
        if after[0] < 1 or any(a >= b for a, b in pairwise(after)):
            raise InputError.of("instances", self.instances, "increasing whole numbers >= 1, as '2,4,6,8'")
        if not all(0 < w < float("inf") for w in weights):
            raise InputError.of("betas", self.betas, "numbers > 0", "leave an instance out instead of weighing it 0")
        if len(weights) != len(after):
            allowed = f"{len(after)} numbers, one for each of instances {self.instances!r}"
            raise InputError.of("betas", self.betas, allowed, "give both")

    @property
    def after(self) -> tuple[int, ...]:
        """``instances`` as numbers."""
        return numbers("instances", self.instances, int, "whole numbers between commas, as '2,4,6,8'")

    @property
    def weights(self) -> tuple[float, ...]:
        """``betas`` as numbers."""
        return numbers("betas", self.betas, float, "numbers between commas, as '0.5,0.5'")


class MIRST(Defense):
    """The clean loss plus the weighted losses of several iterates of one attack.

    Example:
        The instances of a linear network are 2, 4, 6 and 8 steps away:

        >>> from monai_adv.tasks import ClassificationTask
        >>> images, target = torch.zeros(1, 3), torch.tensor([0])
        >>> mirst = MIRST(ClassificationTask(), MIRSTSettings(norm="linf", eps=1.0, relative_step=0.125))
        >>> [float(x.abs().amax()) for x in mirst.instances(nn.Linear(3, 2), Batch(images, target))]
        [0.25, 0.5, 0.75, 1.0]
    """

    settings_class = MIRSTSettings
    settings: MIRSTSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """``L(f(x), y)``, then a part ``alpha beta_j L(f(x_j), y)`` for each instance; with alpha = 0 the first alone.

        The outputs on the last, strongest instance are the ones reported as those on attacked images.
        """
        self.begin(batch)
        yield self.clean_part(network, batch)
        settings = self.settings
        if settings.alpha == 0:
            return
        instances = self.instances(network, batch)
        for number, (images, beta) in enumerate(zip(instances, settings.weights, strict=True), start=1):
            output = network(images)
            loss = settings.alpha * beta * self.task.training_loss(output, batch.target)
            strongest = number == len(instances)
            yield self.part(batch, loss, noisy=output if strongest else None, forward=1, full=1)

    def instances(self, network: nn.Module, batch: Batch) -> list[Tensor]:
        """The batch after each number of steps in ``instances``: one attack, each ``(B, C, *spatial)``."""
        settings = self.settings
        *earlier, last = settings.after
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(iterate: Iterate) -> Tensor:
            if iterate.number in earlier:
                found[iterate.number] = iterate.index, iterate.delta
            return torch.zeros_like(iterate.index, dtype=torch.bool)  # nobody leaves

        ascent = Ascent(
            self.threat,
            steps=last,
            relative_step=settings.relative_step,
            mode=settings.attack_mode,
            check_last=False,
            leave=keep if earlier else None,
        )
        noisy, _, index = self.attack(network, batch, ascent)
        if len(found) == 0:  # nothing was attacked, or there is one instance
            return [batch.images] * len(earlier) + [noisy]
        images = batch.images[index]
        instances = [images.index_copy(0, i, images[i] + delta) for i, delta in (found[k] for k in earlier)]
        return [*(batch.images.index_copy(0, index, x) for x in instances), noisy]


METHOD = Method(
    "MIRST",
    MIRST,
    family="dual",
    idea="clean images, and several iterates of one attack from weak to strong",
    paper="Sun et al., MICCAI 2022",
    state="nothing",
    cost="2K + 3 + 3 per instance (4)",
    most=lambda s: 2 * max(s.after) + 3 + 3 * len(s.after),
    presets=PRESETS,
)
