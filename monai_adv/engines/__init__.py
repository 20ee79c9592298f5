"""The MONAI host: a trainer for each defence, and a robust metric for validation.

``monai_adv.engines.IMATrainer`` stands where a bundle's config has ``SupervisedTrainer``; see docs/monai.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_adv.defenses.registry import METHODS
from monai_adv.errors import say_it_last
from monai_adv.optional import explained

with explained("monai_adv.engines"):
    from monai_adv.engines.robust_metric import RobustMetric
    from monai_adv.engines.robust_scores import RobustScores
    from monai_adv.engines.robust_state import RobustState
    from monai_adv.engines.robust_trainer import RobustTrainer
    from monai_adv.engines.sample_ids import indexed

say_it_last()

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[RobustTrainer]: ...


_TRAINERS = {m.trainer: m.trainer_class(RobustTrainer, __name__, "MONAI (docs/monai.md)") for m in METHODS.values()}
globals().update(_TRAINERS)  # a config names them, and other packages add methods: no list of imports can know them

__all__ = ["RobustMetric", "RobustScores", "RobustState", "RobustTrainer", "indexed", *sorted(_TRAINERS)]
