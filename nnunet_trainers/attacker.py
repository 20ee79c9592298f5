"""The attacker of a training in the units that the network sees, which the plan knows."""

from __future__ import annotations

from typing import NamedTuple, cast

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from monai_adv.defenses.settings import DefenseSettings
from monai_adv.settings import Settings
from nnunet_trainers.raw_units import plan_raw_unit_of_all
from nnunet_trainers.run_settings import RunSettings


class Attacker(NamedTuple):
    """Settings in network units.

    Attributes:
        training: of the method.
        validation: of the attack that watches it.
        raw_unit: intensity in the files (HU for CT) of one network unit, if it is the same for all cases.
    """

    training: DefenseSettings
    validation: DefenseSettings
    raw_unit: float | None


def attacker_of(sections: dict[str, Settings], plan: PlansManager, configuration: str) -> Attacker:
    """By the settings of a run and its plan.

    Raises:
        InputError: a raw radius where every case has a scale of its own, or a validation radius that is not allowed.
    """
    training = cast(DefenseSettings, sections["defense"])
    eps = cast(RunSettings, sections["run"]).robust_validation_eps or training.eps
    validation = DefenseSettings(eps=eps, unit=training.unit, norm=training.norm, box=training.box)
    manager = plan.get_configuration(configuration)
    raw_unit = plan_raw_unit_of_all(plan, manager)
    todo = (
        f"{', '.join(sorted(set(manager.normalization_schemes)))} scales cases or channels differently, so raw has no "
        "one factor: give the radius in units of the normalised image"
    )
    return Attacker(training.in_network_units(raw_unit, todo), validation.in_network_units(raw_unit, todo), raw_unit)
