"""Networks of the papers, and conversions of any network to what their methods need."""

from monai_adv.networks.drop_max import DropMaxPool1d, DropMaxPool2d, DropMaxPool3d, replace_first_max_pool
from monai_adv.networks.dual_batch_norm import (
    Branch,
    DualNorm,
    branch,
    branch_state_dict,
    deploy_branch,
    dual_batch_norm,
    noisy_parameters,
)
from monai_adv.networks.resnet import (
    InstanceNormResNet,
    drop_max_resnet18,
    drop_max_resnet50,
    instance_norm_resnet18,
)
from monai_adv.networks.vgg import VGG16, vgg16, vgg16_bn

__all__ = [
    "VGG16",
    "Branch",
    "DropMaxPool1d",
    "DropMaxPool2d",
    "DropMaxPool3d",
    "DualNorm",
    "InstanceNormResNet",
    "branch",
    "branch_state_dict",
    "deploy_branch",
    "drop_max_resnet18",
    "drop_max_resnet50",
    "dual_batch_norm",
    "instance_norm_resnet18",
    "noisy_parameters",
    "replace_first_max_pool",
    "vgg16",
    "vgg16_bn",
]
