"""Pre-training without labels."""

from monai_adv.pretraining.simclr import SimCLR, SimCLRSettings, load_pretrained, nt_xent, pretrain
from monai_adv.pretraining.views import TwoViewDataset, TwoViews, ViewSettings

__all__ = [
    "SimCLR",
    "SimCLRSettings",
    "TwoViewDataset",
    "TwoViews",
    "ViewSettings",
    "load_pretrained",
    "nt_xent",
    "pretrain",
]
