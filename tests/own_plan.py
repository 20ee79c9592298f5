"""Plans of a user's own, as ``--attacks`` names them; each is a function of the threat and the number of classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv.attacks import FGSM, PGD
from monai_adv.attacks.base import AttackResult, judged
from monai_adv.attacks.ensemble import Stage
from monai_adv.attacks.foreign import Foreign
from monai_adv.statistics import Passes
from monai_adv.threats import Threat


def sign_step(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
    """One step along the sign of the gradient, in [0, 1]: against two linear logits nothing is stronger in L-inf."""
    x = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    return (inputs + eps * gradient.sign()).clamp(0, 1).detach()


def exact(threat: Threat, classes: int) -> list[Stage]:
    """A step by hand."""
    return [Stage("my step", Foreign(threat, sign_step, most=Passes(1, 1)))]


def nothing(threat: Threat, classes: int) -> None:
    """Forgot to return."""


def other_radius(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("too far", FGSM(replace(threat, eps=2 * float(threat.eps))))]


def other_norm(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("wrong norm", FGSM(Threat("l2", threat.eps, unit="norm")))]


def other_box(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("no box", FGSM(replace(threat, box=(-9.0, 9.0))))]


def no_attack(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("bare", sign_step)]  # type: ignore[arg-type]


def no_stage(threat: Threat, classes: int) -> list[Any]:
    return [FGSM(threat)]


def twice(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("a", FGSM(threat)), Stage("a", PGD(threat, 2))]


def fails(threat: Threat, classes: int) -> list[Stage]:
    raise KeyError("steps")


@dataclass(frozen=True)
class Breaks:
    """An attack that breaks its contract in one way."""

    threat: Threat
    how: str

    def __call__(self, network: nn.Module, images: Tensor, target: Any, task: Any, **_: Any) -> Any:
        changed = {
            "budget": images + 1.5 * float(self.threat.eps),
            "shape": images[:, :, 1:],
            "dtype": images.double(),
            "nan": images / 0 * 0,
        }.get(self.how, images)
        result = judged(network, images, target, task)[0]
        return changed if self.how == "type" else AttackResult(**{**vars(result), "images": changed})

    def most_passes(self) -> Passes:
        return Passes(1)


class ByHand:
    """The attack protocol in a class that is no dataclass."""

    def __init__(self, threat: Threat, draws: int) -> None:
        self.threat, self.draws = threat, draws
        self._drawn = 0

    def __call__(self, network: nn.Module, images: Tensor, target: Any, task: Any, **_: Any) -> AttackResult:
        self._drawn += 1
        return judged(network, images, target, task)[0]

    def most_passes(self) -> Passes:
        return Passes(self.draws)


def by_hand(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("by hand", ByHand(threat, 3))]


def one_argument(threat: Threat) -> list[Stage]:
    return by_hand(threat, 2)


def one_stage(threat: Threat, classes: int) -> Stage:
    return by_hand(threat, classes)[0]


def wrong_setting(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("a", PGD(threat, steps=None))]  # type: ignore[arg-type]


def loss_fails(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("mine", PGD(threat, 2, loss=lambda points, progress: points.target))]  # type: ignore[attr-defined]


def beyond_budget(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("broken", Breaks(threat, "budget"))]


def other_shape(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("broken", Breaks(threat, "shape"))]


def other_dtype(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("broken", Breaks(threat, "dtype"))]


def not_a_number(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("broken", Breaks(threat, "nan"))]


def a_tensor(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("broken", Breaks(threat, "type"))]
