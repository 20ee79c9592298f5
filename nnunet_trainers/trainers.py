"""A trainer for every defence of the registry: ``nnUNetv2_train 4 2d 0 -tr IMATrainer``."""

from __future__ import annotations

from monai_adv.defenses.registry import METHODS
from nnunet_trainers.robust_trainer import RobustTrainer

_TRAINERS = {m.trainer: m.trainer_class(RobustTrainer, __name__, "nnU-Net (docs/nnunet.md)") for m in METHODS.values()}
# Names of this module, so that nnU-Net finds them and pickle can name them. Methods without a meaning for segmentation
# are there as well: they refuse to start and say why.
globals().update(_TRAINERS)

__all__ = list(_TRAINERS)
