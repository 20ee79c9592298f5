"""Defense: turns a clean batch into a training loss, and keeps its own state."""

from monai_adv.defenses.base import Batch, Defense, LossPart
from monai_adv.defenses.ima import IMA, IMASettings
from monai_adv.defenses.registry import METHODS, Method, method
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.defenses.standard import Standard
from monai_adv.defenses.trades import TRADES, TRADESSettings

__all__ = [
    "IMA",
    "METHODS",
    "SAT",
    "TRADES",
    "Batch",
    "Defense",
    "IMASettings",
    "LossPart",
    "Method",
    "SATSettings",
    "Standard",
    "TRADESSettings",
    "method",
]
