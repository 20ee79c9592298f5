"""The MONAI host: a trainer for each defence, and a robust metric for validation.

``monai_adv.engines.IMATrainer`` stands where a bundle's config has ``SupervisedTrainer``; see docs/monai.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_adv.defenses.registry import METHODS, Method
from monai_adv.engines.robust_metric import RobustMetric
from monai_adv.engines.robust_state import RobustState
from monai_adv.engines.robust_trainer import RobustTrainer
from monai_adv.engines.sample_ids import indexed

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[RobustTrainer]: ...


def _trainer(method: Method) -> type[RobustTrainer]:
    paper = f" ({method.paper})" if method.paper else ""
    doc = f"{method.name}{paper} in MONAI: trains on {method.idea}. See :class:`RobustTrainer` and docs/monai.md."
    return type(method.trainer, (RobustTrainer,), {"method": method, "__module__": __name__, "__doc__": doc})


_TRAINERS = {method.trainer: _trainer(method) for method in METHODS.values()}
globals().update(_TRAINERS)

__all__ = ["RobustMetric", "RobustState", "RobustTrainer", "indexed", *sorted(_TRAINERS)]
