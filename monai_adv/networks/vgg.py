"""VGG16, with and without BatchNorm: the network of the ARFL paper, which MONAI lacks.

Source: Simonyan & Zisserman, Very deep convolutional networks for large-scale image recognition (ICLR 2015),
configuration D. Parameters have torchvision's names and shapes, so its ImageNet weights load.
"""

from __future__ import annotations

from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.networks.resnet import check_shape

# Channels of the convolutions; M is a max-pooling.
CONFIGURATION_D = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M"


class VGG16(nn.Module):
    """VGG16 for two-dimensional images ``(N, in_channels, H, W)`` of at least 32 x 32.

    ``features[28]`` (``features[40]`` with BatchNorm) is the last convolution, conv5_3.

    Args:
        in_channels: channels of an image.
        num_classes: scores per image.
        batch_norm: a BatchNorm after every convolution (VGG16-BN).
        dropout: probability, in the two hidden layers of the classifier.
        widen_factor: of all hidden layers, as in MONAI's ResNet; 0.25 for a machine without a GPU.

    Raises:
        InputError: a number of channels or classes below 1, or a layer that ``widen_factor`` leaves without a channel.

    Example:
        >>> VGG16().features[28]
        Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        batch_norm: bool = False,
        dropout: float = 0.5,
        widen_factor: float = 1.0,
    ) -> None:
        super().__init__()
        check_shape(2, in_channels, num_classes)
        if not 1 <= 64 * widen_factor < float("inf"):
            raise InputError.of("widen_factor", widen_factor, "1/64 or more", "the first layer has 64 channels")
        layers: list[nn.Module] = []
        channels = in_channels
        for item in CONFIGURATION_D.split():
            if item == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            width = int(int(item) * widen_factor)
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            channels = width
            if batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = int(4096 * widen_factor)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, num_classes)``."""
        scores: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return scores


def vgg16(in_channels: int = 3, num_classes: int = 2, dropout: float = 0.5, widen_factor: float = 1.0) -> VGG16:
    """VGG16 without BatchNorm."""
    return VGG16(in_channels, num_classes, False, dropout, widen_factor)


def vgg16_bn(in_channels: int = 3, num_classes: int = 2, dropout: float = 0.5, widen_factor: float = 1.0) -> VGG16:
    """VGG16-BN, with a BatchNorm after every convolution."""
    return VGG16(in_channels, num_classes, True, dropout, widen_factor)
