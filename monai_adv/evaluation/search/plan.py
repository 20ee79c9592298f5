"""Plans: which attacks ``quick``, ``standard`` and ``full`` stand for, cheapest first."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from monai_adv.attacks.autoattack import AutoAttack
from monai_adv.attacks.base import Attack
from monai_adv.attacks.corruptions import CORRUPTIONS, Corruption
from monai_adv.attacks.fgsm import FGSM
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.segmentation_ensemble import stages as segmentation_stages
from monai_adv.attacks.square import Square
from monai_adv.attacks.transfer import Transfer
from monai_adv.attacks.white_noise import WhiteNoise
from monai_adv.evaluation.records import CORRUPTION as PREFIX
from monai_adv.evaluation.settings import Version
from monai_adv.metrics.score import Kind
from monai_adv.threats import Threat

Family = Literal["random", "white-box", "black-box", "transfer"]
FAMILIES: dict[type, Family] = {WhiteNoise: "random", Square: "black-box", Transfer: "transfer"}
NOISE_DRAWS = 10


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
        """What the attack knows of the network."""
        return FAMILIES.get(type(self.attack), "white-box")

    def settings(self) -> dict[str, Any]:
        """Of the attack, in plain values; the threat is told by the level."""
        plain: dict[str, Any] = _plain(self.attack)
        return plain


def stages(kind: Kind, version: Version, threat: Threat, classes: int) -> list[Stage]:
    """The attacks of a version, in the order they run.

    Args:
        kind: classification (a sample is finished when it is wrong) or segmentation (when its Dice is 0).
        version: quick, standard or full.
        threat: of the level.
        classes: number of classes; classification needs it to choose losses and targets.

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
    noise = Stage("white noise", WhiteNoise(threat, NOISE_DRAWS))
    if kind == "segmentation":
        return [noise, *(Stage(s.name, s.attack) for s in segmentation_stages(threat, version))]
    if version == "quick":
        return [noise, *_quick(threat)]
    named = {stage.name: stage for stage in AutoAttack(threat, classes).ensemble.stages}
    if version == "full":
        # What "plus" has under the same name is an attack of "standard" with more restarts.
        named |= {stage.name: stage for stage in AutoAttack(threat, classes, "plus").ensemble.stages}
    return [noise, *(Stage(s.name, s.attack) for s in named.values())]


def corruptions(version: Version) -> list[Corruption]:
    """The natural corruptions of a version: none (quick), all at severities 1, 3, 5 (standard), or at all five."""
    severities: dict[Version, tuple[int, ...]] = {"quick": (), "standard": (1, 3, 5), "full": (1, 2, 3, 4, 5)}
    return [Corruption(name, severity) for name in CORRUPTIONS for severity in severities[version]]


def corruption_key(corruption: Corruption) -> tuple[str, str]:
    """Attack and level of its records."""
    return PREFIX + corruption.name, str(corruption.severity)


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
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "threat"}
        return {"attack": type(value).__name__, **parts}
    return getattr(value, "__name__", None) or type(value).__name__
