"""Attack: searches a threat for an input on which the task goes wrong.

Natural corruptions are in :mod:`monai_adv.attacks.corruptions`: they import MONAI's transforms, which takes seconds.
"""

from monai_adv.attacks.apgd import APGD, TargetedAPGD
from monai_adv.attacks.ascent import Ascended, Ascent
from monai_adv.attacks.autoattack import AutoAttack
from monai_adv.attacks.base import Attack, AttackResult, BaseAttack, Problem
from monai_adv.attacks.bisection import BoundaryPoint, bisect
from monai_adv.attacks.cospgd import CosPGD
from monai_adv.attacks.cw import CW, CWL2, CWL2Result
from monai_adv.attacks.ensemble import Ensemble, EnsembleResult, Stage
from monai_adv.attacks.fab import FAB, FABResult, TargetedFAB
from monai_adv.attacks.fgsm import FGSM
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.relay import Phase, Relay
from monai_adv.attacks.sea import SEA
from monai_adv.attacks.segmentation_ensemble import SegmentationEnsemble
from monai_adv.attacks.segpgd import SegPGD
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.attacks.square import Square
from monai_adv.attacks.transfer import Transfer
from monai_adv.attacks.white_noise import WhiteNoise, WhiteNoiseResult

__all__ = [
    "APGD", "CW", "CWL2", "FAB", "FGSM", "PGD", "SEA",
    "Ascended", "Ascent", "Attack", "AttackResult", "AutoAttack", "BaseAttack", "BoundaryPoint", "CWL2Result",
    "CosPGD", "Ensemble", "EnsembleResult", "FABResult", "Phase", "Problem", "Relay", "SegPGD",
    "SegmentationEnsemble", "SharpDice", "Square", "Stage", "TargetedAPGD", "TargetedFAB", "Transfer", "WhiteNoise",
    "WhiteNoiseResult", "bisect",
]  # fmt: skip
