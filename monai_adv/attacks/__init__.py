"""Attack: searches a threat for an input on which the task goes wrong."""

from monai_adv.attacks.base import Attack, AttackResult
from monai_adv.attacks.bisection import BoundaryPoint, bisect
from monai_adv.attacks.pgd import PGD, PGDResult
from monai_adv.attacks.white_noise import WhiteNoise

__all__ = ["PGD", "Attack", "AttackResult", "BoundaryPoint", "PGDResult", "WhiteNoise", "bisect"]
