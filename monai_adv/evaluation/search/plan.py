"""Plans: which attacks ``quick``, ``standard`` and ``full`` stand for, cheapest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

from monai_adv.attacks.autoattack import AutoAttack
from monai_adv.attacks.base import Attack
from monai_adv.attacks.corruptions import CORRUPTIONS, Corruption
from monai_adv.attacks.fgsm import FGSM
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.segmentation_ensemble import stages as segmentation_stages
from monai_adv.attacks.square import Square
from monai_adv.attacks.transfer import Transfer
from monai_adv.attacks.white_noise import WhiteNoise
from monai_adv.errors import AttackError
from monai_adv.evaluation.plans import Plan
from monai_adv.evaluation.records import CORRUPTION as PREFIX
from monai_adv.evaluation.settings import Version
from monai_adv.metrics.score import Kind
from monai_adv.threats import Threat

Family = Literal["random", "white-box", "black-box", "transfer"]
FAMILIES: dict[type, Family] = {WhiteNoise: "random", Square: "black-box", Transfer: "transfer"}
NOISE_DRAWS = 10
NOISE = "white noise"
"""The first stage of every plan: the report compares with it."""


@dataclass(frozen=True)
class Stage:
    """One attack of a plan.

    Attributes:
        name: unique in its plan; the store and the report call it so.
        attack: attacks the inputs that are not finished.
    """

    name: str
    attack: Attack

    @property
    def family(self) -> Family:
        """What the attack knows of the network; one of the user's own says so in an attribute ``family``."""
        known = (family for kind, family in FAMILIES.items() if isinstance(self.attack, kind))
        own: Family = getattr(self.attack, "family", "white-box")
        return next(known, own)

    def settings(self) -> dict[str, Any]:
        """Of the attack, in plain values; the threat is told by the level."""
        plain: dict[str, Any] = _plain(self.attack)
        return plain


def stages(kind: Kind, version: Version | Plan, threat: Threat, classes: int) -> list[Stage]:
    """The attacks of a version, in the order they run.

    Args:
        kind: classification (a sample is finished when it is wrong) or segmentation (when its Dice is 0).
        version: quick, standard, full, or a plan of the user's own.
        threat: of the level.
        classes: number of classes; classification needs it to choose losses and targets.

    Raises:
        AttackError: a plan of the user's own that cannot be run.

    =============  ==============================================  ==========================================
    version        classification                                  segmentation
    =============  ==============================================  ==========================================
    ``quick``      FGSM, PGD with 20 steps, from random starts     the segmentation ensemble's ``quick``
    ``standard``   AutoAttack ``standard``                         the segmentation ensemble's ``standard``
    ``full``       AutoAttack ``standard`` and ``plus``            the segmentation ensemble's ``full``
    =============  ==============================================  ==========================================

    White noise comes first in each.

    Example:
        >>> [stage.name for stage in stages("classification", "quick", Threat("linf", 0.1), 2)]
        ['white noise', 'FGSM', 'PGD-20', 'PGD-20 from random starts']
    """
    noise = Stage(NOISE, WhiteNoise(threat, NOISE_DRAWS))
    if isinstance(version, Plan):
        found = [noise, *(Stage(s.name, s.attack) for s in version(threat, classes))]
        for stage in found:
            _check_own(stage, version, [s.name for s in found])
        return found
    if kind == "segmentation":
        return [noise, *(Stage(s.name, s.attack) for s in segmentation_stages(threat, version))]
    if version == "quick":
        return [noise, *_quick(threat)]
    named = {stage.name: stage for stage in AutoAttack(threat, classes).ensemble.stages}
    if version == "full":
        # What "plus" has under the same name is an attack of "standard" with more restarts.
        named |= {stage.name: stage for stage in AutoAttack(threat, classes, "plus").ensemble.stages}
    return [noise, *(Stage(s.name, s.attack) for s in named.values())]


def corruptions(version: Version | Plan) -> list[Corruption]:
    """The natural corruptions of a version: none (quick, a plan), all at severities 1, 3, 5 (standard), or all five."""
    severities: dict[Any, tuple[int, ...]] = {"standard": (1, 3, 5), "full": (1, 2, 3, 4, 5)}
    return [Corruption(name, severity) for name in CORRUPTIONS for severity in severities.get(version, ())]


def corruption_key(corruption: Corruption) -> tuple[str, str]:
    """Attack and level of its records."""
    return PREFIX + corruption.name, str(corruption.severity)


def _check_own(stage: Stage, plan: Plan, names: list[str]) -> None:
    """Refuse a name that is taken, and a family that there is not."""
    if names.count(stage.name) > 1:
        todo = f"; {NOISE!r} is the one that every plan begins with" if stage.name == NOISE else ""
        raise AttackError(
            f"attacks: the plan {plan.name} has two stages {stage.name!r}, allowed is one of a name{todo}."
        )
    if stage.family not in get_args(Family):
        raise AttackError(
            f"attacks: {stage.name!r} of the plan {plan.name} has the family {stage.family!r}, allowed is one of "
            f"{', '.join(get_args(Family))}."
        )


def _quick(threat: Threat) -> list[Stage]:
    return [
        Stage("FGSM", FGSM(threat)),
        Stage("PGD-20", PGD(threat, 20, until="wrong")),
        Stage("PGD-20 from random starts", PGD(threat, 20, start="ball", until="wrong")),
    ]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(v) for name, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "threat"}
        return {"attack": type(value).__name__, **parts}
    return getattr(value, "__name__", None) or type(value).__name__
