"""A trainer for every defence of the registry: ``nnUNetv2_train 4 2d 0 -tr IMATrainer``."""

from __future__ import annotations

from monai_adv.defenses.registry import METHODS, Method
from nnunet_trainers.robust_trainer import RobustTrainer


def _trainer(method: Method) -> type[RobustTrainer]:
    source = f" ({method.paper})" if method.paper else ""
    doc = f"nnU-Net with {method.name}{source}: trains on {method.idea}; see docs/nnunet.md."
    return type(method.trainer, (RobustTrainer,), {"method": method, "__doc__": doc, "__module__": __name__})


# Names of this module, so that nnU-Net finds them and pickle can name them. Methods without a meaning for segmentation
# are there as well: they refuse to start and say why.
globals().update({m.trainer: _trainer(m) for m in METHODS.values()})
