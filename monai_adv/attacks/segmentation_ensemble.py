"""The ensemble that an evaluation of a segmentation runs: complementary attacks, cheapest first, worst case kept.

Classification has AutoAttack; for segmentation there is no such standard. The parts are APGD (Croce & Hein, ICML 2020)
on the task's own loss, which is the score that counts, with and without the radius-reduction schedule of SEA; SEA's
losses (Croce, Singh, Hein, ECCV 2024); SegPGD (Gu et al., ECCV 2022); and Square (Andriushchenko et al., ECCV 2020),
which needs no gradient and so shows where gradients lie. The composition was chosen by measuring, see
benchmarks/segmentation_attacks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from monai_adv.attacks.apgd import APGD
from monai_adv.attacks.ensemble import Ensemble, EnsembleAttack, Stage
from monai_adv.attacks.losses import margin
from monai_adv.attacks.relay import Phase, Relay
from monai_adv.attacks.sea import SEA, balanced_masked_cross_entropy, radius_reduction
from monai_adv.attacks.segpgd import SegPGD
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
        >>> [stage.name for stage in stages(Threat("l2", 5.0), "quick")]
        ['APGD relay']
        >>> sum((s.attack.most_passes().backward_input for s in stages(Threat("l2", 5.0))), 0)
        300
    """
    if version == "quick":
        return (Stage("APGD relay", relay(threat, 20, 20)),)
    square = Stage("Square", Square(threat, 200 if version == "standard" else 1000, until="lowest"))
    if version == "standard":
        return (
            Stage("APGD relay", relay(threat, 20, 20)),
            Stage("APGD relay, long", relay(threat, 60, 90)),
            Stage("APGD, falling radius", Relay(threat, radius_reduction(None, 60))),
            Stage("APGD, logit margin", APGD(threat, 30, margin, until="lowest")),
            Stage("SegPGD", SegPGD(threat, 20)),
            square,
        )
    if version == "full":
        return (
            Stage("APGD relay", relay(threat, 40, 60)),
            Stage("APGD relay, long", relay(threat, 100, 200, "surface")),
            *SEA(threat).stages(),
            Stage("SegPGD", SegPGD(threat, 100)),
            square,
        )
    raise InputError.of("version", version, "one of " + ", ".join(VERSIONS))


def relay(threat: Threat, opening: int, closing: int, start: Literal["clean", "surface"] = "clean") -> Relay:
    """The class-balanced masked cross-entropy opens, the task's own loss closes from what it found."""
    return Relay(threat, (Phase(opening, balanced_masked_cross_entropy), Phase(closing)), start=start)


@dataclass(frozen=True)
class SegmentationEnsemble(EnsembleAttack):
    """The worst case of each sample over the stages of a version; survivors only go on, always from the clean image.

    Args:
        threat: norm, radius, box, channels.
        version: see :func:`stages`.

    Example:
        ``SegmentationEnsemble(Threat("l2", 5.0))(network, images, target, task, generator=generator).summary``
        tells what each stage attacked and what it cost.
    """

    threat: Threat
    version: Version = "standard"

    def __post_init__(self) -> None:
        _ = self.ensemble  # checks the settings

    @property
    def ensemble(self) -> Ensemble:
        """The stages, with a look at the clean images first."""
        return Ensemble(stages(self.threat, self.version), until="lowest")
