"""The ensemble that an evaluation of a segmentation runs: complementary attacks, then a polish of the worst image.

Classification has AutoAttack; for segmentation there is no such standard. The parts are APGD (Croce & Hein, ICML 2020)
on a class-balanced cross-entropy and on the task's own loss; the radius-reduction schedule of SEA (Croce, Singh, Hein,
ECCV 2024) on the Jensen-Shannon divergence, whose gradient fades where a voxel is lost: it finds what lies beyond the
basin of the clean image; sharp Dice, whose loss becomes the score during the run; SEA's other losses; and Square
(Andriushchenko et al., ECCV 2020), which needs no gradient and so shows where gradients lie. Composition and schedules
were chosen by measuring, see benchmarks/segmentation_strength.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from monai_adv.attacks.ensemble import Ensemble, EnsembleAttack, Stage
from monai_adv.attacks.relay import Phase, Relay
from monai_adv.attacks.sea import SEA, balanced_masked_cross_entropy, jensen_shannon, radius_reduction
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.attacks.square import Square
from monai_adv.errors import InputError
from monai_adv.threats import Threat

Version = Literal["quick", "standard", "full"]
VERSIONS: tuple[Version, ...] = get_args(Version)


def stages(threat: Threat, version: Version = "standard") -> tuple[Stage, ...]:
    """The attacks of a version, in the order they run.

    | version | gradient steps | random-search queries |
    |---|---|---|
    | quick | 40 | - |
    | standard | 300 | 200 |
    | full | 1400 | 1000 |

    Args:
        threat: norm, radius, box, channels.
        version: how thorough.

    Raises:
        InputError: an unknown version.

    Example:
        >>> [stage.name for stage in stages(Threat("l2", 0.1), "quick")]
        ['APGD relay', 'sharp Dice']
        >>> sum((s.attack.most_passes().backward_input for s in stages(Threat("l2", 0.1))), 0)
        300
    """
    if version == "quick":
        last = SharpDice(threat, 20, sharpness=(1.0, 8.0), from_worst=True)
        return Stage("APGD relay", relay(threat, 10, 10)), Stage("sharp Dice", last)
    search = (
        Stage("APGD relay", relay(threat, 20, 20)),
        Stage("APGD, falling radius", Relay(threat, radius_reduction(jensen_shannon, 60))),
        Stage("sharp Dice", SharpDice(threat, 100)),
    )
    if version == "standard":
        return *search, Stage("Square", Square(threat, 200, until="lowest")), *polish(threat, 50)
    if version == "full":
        return (
            *search,
            Stage("sharp Dice, random start", SharpDice(threat, 100, start="surface")),
            *SEA(threat).stages(),
            Stage("Square", Square(threat, 1000, until="lowest")),
            *polish(threat, 100),
        )
    raise InputError.of("version", version, "one of " + ", ".join(VERSIONS))


def polish(threat: Threat, steps: int) -> tuple[Stage, Stage]:
    """Sharp Dice from the worst image so far, twice: slices that share a Dice learn in between how low it is."""
    attack = SharpDice(threat, steps, 0.08, sharpness=(3.0, 8.0), from_worst=True)
    return Stage("sharp Dice, polish", attack), Stage("sharp Dice, polish again", attack)


def relay(threat: Threat, opening: int, closing: int, start: Literal["clean", "surface"] = "clean") -> Relay:
    """The class-balanced masked cross-entropy opens, the task's own loss closes from what it found."""
    return Relay(threat, (Phase(opening, balanced_masked_cross_entropy), Phase(closing)), start=start)


@dataclass(frozen=True)
class SegmentationEnsemble(EnsembleAttack):
    """The worst case of each sample over the stages of a version; survivors only go on.

    Args:
        threat: norm, radius, box, channels.
        version: see :func:`stages`.

    Example:
        ``SegmentationEnsemble(Threat("l2", 0.1))(network, images, target, task, generator=generator).summary``
        tells what each stage attacked and what it cost.
    """

    version: Version = "standard"

    def __post_init__(self) -> None:
        _ = self.ensemble  # checks the settings

    @property
    def ensemble(self) -> Ensemble:
        """The stages, with a look at the clean images first."""
        return Ensemble(stages(self.threat, self.version), until="lowest")
