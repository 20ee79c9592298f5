"""Plans: which attacks ``quick``, ``standard`` and ``full`` stand for, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, get_args

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
from monai_adv.evaluation.codec import Plain
from monai_adv.evaluation.described import CorruptionEntry, Family, StageEntry
from monai_adv.evaluation.plans import Plan
from monai_adv.evaluation.records import CORRUPTION as PREFIX
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.settings import EvaluationSettings, Version
from monai_adv.metrics.score import Kind
from monai_adv.statistics import Passes
from monai_adv.threats import Threat

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

    def settings(self) -> Plain:
        """Of the attack, in plain values; the threat is told by the level.

        They decide whether a folder may be gone on with: of an attack that is no dataclass its public attributes count.
        """
        if is_dataclass(self.attack):
            plain: Plain = _plain(self.attack)
            return plain
        own = {n: v for n, v in getattr(self.attack, "__dict__", {}).items() if n != "threat" and n[0] != "_"}
        return {"attack": type(self.attack).__name__, **_plain(own)}

    def entry(self) -> StageEntry:
        """As ``evaluation.json`` has it."""
        return StageEntry(name=self.name, family=self.family, settings=self.settings())


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


@dataclass(frozen=True)
class AttackPlan:
    """The attacks that an evaluation makes on a model: built once where the model is opened, and handed on.

    Args:
        kind: of the model.
        classes: how many it has.
        settings: of the evaluation.
        make: the stages against a threat, see :func:`stages`.

    Raises:
        AttackError: a plan of the user's own that cannot be run; at the first use.

    Example:
        >>> plan = AttackPlan("classification", 2, EvaluationSettings((Level("linf", 0.1),), "quick"))
        >>> plan.names(Level("linf", 0.1))
        ['white noise', 'FGSM', 'PGD-20', 'PGD-20 from random starts']
    """

    kind: Kind
    classes: int
    settings: EvaluationSettings
    make: Callable[[Kind, Version | Plan, Threat, int], list[Stage]] = stages

    @cached_property
    def by_level(self) -> dict[str, tuple[Stage, ...]]:
        """Key of a level -> its stages, against the radius as it was given."""
        box = self.settings.box
        return {v.key: tuple(self._stages(Threat(v.norm, v.eps, box, unit="norm"))) for v in self.settings.levels}

    @cached_property
    def corruptions(self) -> tuple[Corruption, ...]:
        """The natural corruptions."""
        return tuple(corruptions(self.settings.attacks))

    def names(self, level: Level) -> list[str]:
        """Of the stages of a level."""
        return [stage.name for stage in self.by_level[level.key]]

    def most_passes(self) -> dict[str, tuple[Passes, ...]]:
        """Key of a level -> what each stage costs an input that is never finished."""
        return {key: tuple(stage.attack.most_passes() for stage in found) for key, found in self.by_level.items()}

    def against(self, level: Level, threat: Threat) -> list[Stage]:
        """The stages of a level against what it means for one case.

        Raises:
            AttackError: a plan of the user's own that has other stages then.
        """
        found = self._stages(threat)
        if (names := [stage.name for stage in found]) != self.names(level):
            allowed = f"the same for every threat of a level, here {', '.join(self.names(level))}"
            raise AttackError.of("attacks", f"stages {', '.join(names)}", allowed)
        return found

    def _stages(self, threat: Threat) -> list[Stage]:
        return self.make(self.kind, self.settings.attacks, threat, self.classes)


def corruptions(version: Version | Plan) -> list[Corruption]:
    """The natural corruptions of a version: none (quick, a plan), all at severities 1, 3, 5 (standard), or all five."""
    severities: dict[Any, tuple[int, ...]] = {"standard": (1, 3, 5), "full": (1, 2, 3, 4, 5)}
    return [Corruption(name, severity) for name in CORRUPTIONS for severity in severities.get(version, ())]


def corruption_entry(corruption: Corruption) -> CorruptionEntry:
    """Attack and level of its records."""
    return CorruptionEntry(name=PREFIX + corruption.name, severity=str(corruption.severity))


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
