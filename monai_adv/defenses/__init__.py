"""Defense: turns a clean batch into a training loss, and keeps its own state."""

from monai_adv.defenses.base import Batch, Defense, LossPart
from monai_adv.defenses.ima import IMA, IMASettings

__all__ = ["IMA", "Batch", "Defense", "IMASettings", "LossPart"]
