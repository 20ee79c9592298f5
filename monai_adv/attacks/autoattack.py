"""AutoAttack for classification: a fixed ensemble of complementary attacks, from two classes up.

Source: Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks", ICML 2020, sections 5 and 6, and the versions of the reference implementation. The targeted DLR loss needs
four classes and the DLR loss three, where the reference fails; what stands in for them is said in ``deviations``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monai_adv.attacks.apgd import APGD, TargetedAPGD
from monai_adv.attacks.base import Attack, Until
from monai_adv.attacks.ensemble import Ensemble, EnsembleAttack, Stage
from monai_adv.attacks.fab import FAB, TargetedFAB
from monai_adv.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from monai_adv.attacks.square import Square
from monai_adv.errors import InputError
from monai_adv.network_state import Mode

Version = Literal["standard", "plus", "rand", "quick"]

EOT = 20
"""Passes that ``rand`` averages over."""


@dataclass(frozen=True)
class AutoAttack(EnsembleAttack):
    """AutoAttack for networks with ``classes`` >= 2 classes.

    ====================  =============================================================================================
    version               stages; each attacks only what the earlier ones left, from the clean image
    ====================  =============================================================================================
    ``standard``          apgd-ce, apgd-t, fab-t, square
    ``plus``              apgd-ce, apgd-dlr and fab with 5 restarts, square, apgd-t, fab-t with 5 restarts
    ``rand``              apgd-ce and apgd-dlr with 20 passes per step, for randomised networks
    ``quick``             not AutoAttack: apgd-ce and apgd-t (3 targets) with 50 steps, square with 500 queries
    ====================  =============================================================================================

    Args:
        threat: with one radius for all (radii per sample go to the call).
        classes: of the network; a single logit counts as two classes.
        version: see the table.
        until: ``"lowest"`` goes on after a sample is wrong, for its smallest margin.
        mode: network mode during the attack, restored afterwards.

    Raises:
        InputError: fewer than two classes, an unknown version.

    Example:
        >>> from monai_adv.threats import Threat
        >>> attack = AutoAttack(Threat("linf", 8 / 255, box=(0, 1)), classes=2)
        >>> [stage.name for stage in attack.ensemble.stages]
        ['apgd-ce', 'apgd-margin', 'fab', 'square']
        >>> AutoAttack(attack.threat, classes=10).deviations
        ()
    """

    classes: int
    version: Version = "standard"
    until: Until = "wrong"
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError.of("classes", self.classes, "2 or more", "a single logit counts as two classes")
        if self.version not in ("standard", "plus", "rand", "quick"):
            raise InputError.of("version", self.version, "one of standard, plus, rand, quick")
        _ = self.ensemble  # checks the rest

    @property
    def targets(self) -> int:
        """Rivals of the targeted attacks: 9, or all the others if there are fewer."""
        return min(9, self.classes - 1)

    @property
    def ensemble(self) -> Ensemble:
        """The stages."""
        if self.version == "standard":
            stages = [self._apgd_ce(), self._apgd_t(), self._fab_t(), self._square()]
        elif self.version == "plus":
            stages = [
                *_restarts(self._apgd_ce()),
                *_restarts(self._apgd_dlr()),
                self._fab(restarts=5),
                self._square(),
            ]
            if self.classes > 2:  # with two classes they are apgd-margin and fab again
                stages += [self._apgd_t(), self._fab_t(restarts=5)]
        elif self.version == "rand":
            stages = [self._apgd_ce(eot=EOT), self._apgd_dlr(eot=EOT)]
        else:
            stages = [self._apgd_ce(steps=50), self._apgd_t(steps=50, targets=min(3, self.targets)), self._square(500)]
        return Ensemble(tuple(stages), self.until, self.classes)

    @property
    def deviations(self) -> tuple[str, ...]:
        """How this differs from the reference of the same name; empty where it does not."""
        found = []
        if self.version == "quick":
            found.append("quick is not AutoAttack: fewer steps, targets and queries, no FAB")
        targeted = self.version != "rand"
        if self.classes == 3 and targeted:
            found.append(
                "3 classes: the targeted DLR loss is not defined; apgd-t raises the logit margin to each rival"
            )
        if self.classes == 2:
            found.append("2 classes: the DLR losses are not defined; APGD raises the logit margin instead")
            if targeted and self.version != "quick":
                found.append("2 classes: the other class is the only rival; FAB is untargeted, which is the same")
        elif self.classes < 10 and targeted:
            found.append(f"{self.classes} classes: {self.targets} targets, all there are, instead of 9")
        if self.version == "rand":
            found.append(
                "a sample is judged by its mean output over the 20 passes of a step, the reference by one of them"
            )
        if self.until == "lowest":
            found.append("attacked for the smallest margin, also after a sample is wrong")
        return tuple(found)

    def describe(self) -> str:
        """Version, stages and deviations in words, for reports."""
        stages = ", ".join(stage.name for stage in self.ensemble.stages)
        text = f"AutoAttack {self.version} ({stages}); {self.threat.describe()}"
        return text + (f". Deviations: {'; '.join(self.deviations)}." if self.deviations else ".")

    def _apgd_ce(self, *, steps: int = 100, eot: int = 1) -> Stage:
        return Stage("apgd-ce", APGD(self.threat, steps, cross_entropy, until=self.until, eot=eot, mode=self.mode))

    def _apgd_dlr(self, *, eot: int = 1) -> Stage:
        name, loss = ("apgd-dlr", dlr) if self.classes > 2 else ("apgd-margin", margin)
        return Stage(name, APGD(self.threat, loss=loss, until=self.until, eot=eot, mode=self.mode))

    def _apgd_t(self, *, steps: int = 100, targets: int | None = None) -> Stage:
        if self.classes == 2:
            return Stage("apgd-margin", APGD(self.threat, steps, margin, until=self.until, mode=self.mode))
        name, loss = ("apgd-t", targeted_dlr) if self.classes > 3 else ("apgd-margin-t", targeted_margin)
        attack = TargetedAPGD(self.threat, targets or self.targets, loss, steps, self.until, mode=self.mode)
        return Stage(name, attack)

    def _fab(self, *, restarts: int = 1) -> Stage:
        attack = FAB(self.threat, restarts=restarts, until="wrong", classes=self.classes, mode=self.mode)
        return Stage("fab", attack)

    def _fab_t(self, *, restarts: int = 1) -> Stage:
        if self.classes == 2:
            return self._fab(restarts=restarts)
        attack = TargetedFAB(self.threat, self.targets, restarts=restarts, until="wrong", mode=self.mode)
        return Stage("fab-t", attack)

    def _square(self, queries: int = 5000) -> Stage:
        return Stage("square", Square(self.threat, queries, until=self.until, mode=self.mode))


def _restarts(stage: Stage, count: int = 5) -> list[Stage]:
    attack: Attack = stage.attack
    return [Stage(f"{stage.name} {i + 1}", attack) for i in range(count)]
