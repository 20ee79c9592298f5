"""``nnUNetv2_train 4 2d 0 -tr IMATrainer``."""

from __future__ import annotations

from monai_adv.defenses.ima import IMA, PRESETS, IMASettings
from nnunet_trainers.robust_trainer import RobustTrainer


class IMATrainer(RobustTrainer):
    """Increasing-margin adversarial training (Ma & Liang, CMPB 2023) in nnU-Net; see docs/nnunet.md."""

    defense_class = IMA
    settings_class = IMASettings
    presets = PRESETS
