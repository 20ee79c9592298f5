"""Defense: turns a clean batch into a training loss, and keeps its own state.

A method is one file of this package, its entry :data:`METHOD` included; the registry collects them.
"""

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.registry import METHODS, method

__all__ = ["METHODS", "Batch", "Defense", "LossPart", "Method", "method"]
