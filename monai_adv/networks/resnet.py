"""Residual networks of the papers, on MONAI's ResNet.

Sources: He et al., Deep residual learning for image recognition (CVPR 2016); drop-max: Sun et al., MIRST-DM (MICCAI
2022), section 2.3; instance norm: Ma & Liang, Increasing-margin adversarial training (CMPB 2023), COVID-19 experiment,
with https://github.com/SarielMa/IMA consulted for the layers.

Parameters have torchvision's names and shapes, so in two dimensions its ImageNet weights load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.networks.drop_max import replace_first_max_pool

WIDTHS = [64, 128, 256, 512]


def drop_max_resnet18(spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 2, **options: Any) -> ResNet:
    """ResNet-18 with drop-max in place of its max-pooling.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of an image.
        num_classes: scores per image.
        options: further arguments of MONAI's ``ResNet``.

    Returns:
        a network ``(N, in_channels, *size) -> (N, num_classes)``.

    Example:
        >>> drop_max_resnet18().maxpool
        DropMaxPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), ceil_mode=False)
    """
    return drop_max_resnet(ResNetBlock, [2, 2, 2, 2], spatial_dims, in_channels, num_classes, options)


def drop_max_resnet50(spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 2, **options: Any) -> ResNet:
    """ResNet-50 with drop-max in place of its max-pooling; arguments as for :func:`drop_max_resnet18`."""
    return drop_max_resnet(ResNetBottleneck, [3, 4, 6, 3], spatial_dims, in_channels, num_classes, options)


def drop_max_resnet(
    block: type[ResNetBlock | ResNetBottleneck],
    layers: list[int],
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    options: dict[str, Any],
) -> ResNet:
    """MONAI's ResNet with the stem of the original (stride 2), which MONAI leaves to its users."""
    check_shape(spatial_dims, in_channels, num_classes)
    network = ResNet(
        block,
        layers,
        WIDTHS,
        **{
            "spatial_dims": spatial_dims,
            "n_input_channels": in_channels,
            "num_classes": num_classes,
            "conv1_t_stride": 2,
            "bias_downsample": False,
            **options,
        },
    )
    return replace_first_max_pool(network)


class InstanceNormResNet(ResNet):
    """MONAI's ResNet with an affine instance norm, ``GroupNorm(C, C)``, where the original has BatchNorm.

    Nothing depends on the other images of a batch, and training and deployment compute the same: an attack made in
    either mode is the same attack. Images need more than 32 elements along some axis.

    Args:
        block, layers, spatial_dims, in_channels, num_classes: as in :func:`drop_max_resnet18`.
        rescale: compute ``(x - 0.5) / 0.5`` first, so that the images, and the radius of an attack, stay in [0, 1].
        options: further arguments of MONAI's ``ResNet``, such as ``widen_factor``.
    """

    def __init__(
        self,
        block: type[ResNetBlock | ResNetBottleneck],
        layers: list[int],
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: int = 2,
        rescale: bool = True,
        **options: Any,
    ) -> None:
        check_shape(spatial_dims, in_channels, num_classes)
        super().__init__(
            block,
            layers,
            WIDTHS,
            **{
                "spatial_dims": spatial_dims,
                "n_input_channels": in_channels,
                "num_classes": num_classes,
                "conv1_t_stride": 2,
                "bias_downsample": False,
                **options,
            },
        )
        self.conv1 = STEMS[spatial_dims](rescale, self.conv1)
        # ResNet(norm=...) reaches the stem only.
        replace_layers(
            self, nn.modules.batchnorm._BatchNorm, lambda layer: nn.GroupNorm(layer.num_features, layer.num_features)
        )


class _Stem:
    """The first convolution, which rescales images: a layer, because TorchScript knows no ``super().forward``."""

    def __init__(self, rescale: bool, like: Any) -> None:
        super().__init__(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding,  # type: ignore[call-arg]
            bias=like.bias is not None,
        )  # fmt: skip
        self.rescale = rescale
        self.load_state_dict(like.state_dict())  # type: ignore[attr-defined]

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Raises:
            InputError: images of at most 32 elements per axis.
        """
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_size(images)
        if self.rescale:
            images = (images - 0.5) / 0.5
        features: Tensor = self._conv_forward(images, self.weight, self.bias)  # type: ignore[attr-defined]
        return features


class Stem1d(_Stem, nn.Conv1d):
    """For lines."""


class Stem2d(_Stem, nn.Conv2d):
    """For images."""


class Stem3d(_Stem, nn.Conv3d):
    """For volumes."""


STEMS: dict[int, Callable[[bool, nn.Module], Any]] = {1: Stem1d, 2: Stem2d, 3: Stem3d}


def instance_norm_resnet18(
    spatial_dims: int = 2, in_channels: int = 1, num_classes: int = 2, rescale: bool = True, **options: Any
) -> InstanceNormResNet:
    """The ResNet-18 of the IMA paper's COVID-19 experiment; arguments as for :class:`InstanceNormResNet`.

    Example:
        >>> isinstance(instance_norm_resnet18().bn1, nn.GroupNorm)
        True
    """
    return InstanceNormResNet(ResNetBlock, [2, 2, 2, 2], spatial_dims, in_channels, num_classes, rescale, **options)


@torch.jit.unused
def check_size(images: Tensor) -> None:
    """The last features of an image of at most 32 elements per axis are single elements, all alike after the norm."""
    if max(images.shape[2:]) <= 32:
        todo = "resize them; the network divides every axis by 32 and needs two elements at the end"
        raise InputError.of("images", tuple(images.shape), "more than 32 elements along some axis", todo)


def replace_layers(network: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Put ``make(layer)`` in place of every layer of a kind."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, kind):
                setattr(parent, name, make(layer))


def check_shape(spatial_dims: int, in_channels: int, num_classes: int) -> None:
    """What MONAI would refuse less clearly."""
    if spatial_dims not in (1, 2, 3):
        raise InputError.of("spatial_dims", spatial_dims, "1, 2 or 3")
    for name, value in {"in_channels": in_channels, "num_classes": num_classes}.items():
        if not isinstance(value, int) or value < 1:
            raise InputError.of(name, value, "a whole number >= 1")
