"""Natural variations of a modality, at severities with a physical meaning: what scanners do without an attacker."""

from monai_adv.variations.base import Modality, NotApplicable, Variation
from monai_adv.variations.inventory import NOT_OFFERED, VARIATIONS, Step, checked_words, modality_of, steps
from monai_adv.variations.scan import Scan

__all__ = [
    "NOT_OFFERED",
    "VARIATIONS",
    "Modality",
    "NotApplicable",
    "Scan",
    "Step",
    "Variation",
    "checked_words",
    "modality_of",
    "steps",
]
