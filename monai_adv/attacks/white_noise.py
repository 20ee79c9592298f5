"""White noise: the random, not the adversarial, attacker.

Source: the noise evaluation of Ma & Liang, CMPB 2023, section 3 (the worst of 100 draws), with zero-mean noise; their
code draws one-sided noise (``sided="positive"``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Problem,
    Strongest,
    one_of,
    prepared,
)
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen
from monai_adv.statistics import Passes
from monai_adv.threats import per_sample


@dataclass
class WhiteNoiseResult(AttackResult):
    """The result of white noise, with its mean over the draws.

    Attributes:
        mean_margin: ``(B,)`` mean of the task's margin.
        share_wrong: ``(B,)`` share of the draws on which the network is wrong.
    """

    mean_margin: Tensor = field(default_factory=Tensor)
    share_wrong: Tensor = field(default_factory=Tensor)


@dataclass(frozen=True)
class WhiteNoise(BaseAttack[WhiteNoiseResult]):
    """Random noise of the threat's full size, uniform on the L2 sphere or in the L-inf box, and what it does.

    Args:
        threat: norm, radius, box, channels.
        draws: how many noisy versions of each sample the network sees.
        sided: ``"both"``: zero-mean noise. ``"positive"``: every voxel only gets brighter, as in the IMA authors' code
            (L-inf: uniform in [0, radius]; L2: uniform in [0, 1], scaled to the radius). In L2 this is close to a
            brightness shift: its direction has a cosine of about 0.87 with the image of ones.
        keep: which draw ``images`` is: the ``"worst"``, or the ``"first"``, a fair sample of what noise does.
        mode: network mode during the attack, restored afterwards.

    Example:
        >>> from monai_adv.threats import Threat
        >>> noise = WhiteNoise(Threat("l2", 3.0, unit="norm"))
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> noisy = noise.draw(images, torch.Generator().manual_seed(0))
        >>> [round(float(size), 4) for size in (noisy - images).flatten(1).norm(dim=1)]
        [3.0, 3.0]
    """

    draws: int = 1
    sided: Literal["both", "positive"] = "both"
    keep: Literal["worst", "first"] = "worst"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError.of("draws", self.draws, "a whole number >= 1")
        one_of("sided", self.sided, ("both", "positive"))
        one_of("keep", self.keep, ("worst", "first"))
        one_of("mode", self.mode, get_args(Mode))

    @property
    def random(self) -> bool:
        """Always."""
        return True

    def run(self, problem: Problem) -> WhiteNoiseResult:
        """Show the network ``draws`` noisy versions of each sample: all of them, for the mean."""
        images, target, task, generator = problem.images, problem.target, problem.task, problem.generator
        assert generator is not None
        everyone = torch.arange(len(images), device=images.device)
        kept, passes = Strongest(images, task, "wrong"), Passes()
        broken = torch.zeros_like(kept.broken)
        margins, wrongs = [], []
        with frozen(problem.network, self.mode) as model, torch.no_grad():
            for draw in range(self.draws):
                noisy = images + self._noise(images, problem.radius, generator)
                output = model(any_batch_size(noisy, model))
                passes.forward += len(noisy)
                if draw == 0:
                    task.check(output, target)
                one = Strongest(images, task, "wrong")
                wrongs.append(one.update(everyone, noisy, output, target))
                margins.append(one.margin)
                broken |= one.broken
                if self.keep == "worst" or draw == 0:
                    kept.update(everyone, noisy, output, target)
        return WhiteNoiseResult(
            kept.images,
            kept.wrong,
            kept.margin,
            torch.zeros_like(broken),
            broken,
            passes,
            mean_margin=torch.stack(margins).mean(0),
            share_wrong=torch.stack(wrongs).to(kept.margin).mean(0),
        )

    def draw(self, images: Tensor, generator: torch.Generator, radius: Tensor | None = None) -> Tensor:
        """``(B, C, *spatial)`` one noisy version of each sample, drawn from ``generator`` on the images' device.

        Raises:
            InputError: images that the threat cannot be applied to.
        """
        images, radius = prepared(self.threat, images, radius, generator, random=True)
        return images + self._noise(images, radius, generator)

    def most_passes(self) -> Passes:
        """A forward per draw."""
        return Passes(forward=self.draws)

    def _noise(self, images: Tensor, radius: Tensor, generator: torch.Generator) -> Tensor:
        l2 = self.threat.norm == "l2"
        if self.sided == "both":
            return self.threat.random(images, radius, generator, surface=l2)
        brighter = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
        brighter = self.threat.direction(brighter, images) if l2 else brighter
        return self.threat.project(brighter * per_sample(radius, brighter), images, radius)
