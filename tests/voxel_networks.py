"""Segmentation networks that decide voxel by voxel, and a small one that does not; their task and a problem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_adv.tasks import SegmentationSettings, SegmentationTask


def judge(regions: bool = False, ignore_label: int | None = None) -> SegmentationTask:
    settings = SegmentationSettings(empty_target="empty_prediction")
    return SegmentationTask(lambda o, t: o.mean(), settings, regions=regions, ignore_label=ignore_label)


class Voxelwise(nn.Module):
    """Logits ``[0, x]`` (softmax) or ``x`` (region) of every voxel: each voxel decides for itself."""

    def __init__(self, regions: bool = False) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, x: Tensor) -> Tensor:
        return x if self.regions else torch.cat([torch.zeros_like(x), x], 1)


class SmallNet(nn.Module):
    """A nonlinear segmentation network, 2D or 3D."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.layers = nn.Sequential(conv(1, 6, 3, padding=1), nn.Tanh(), conv(6, 3, 3, padding=1)).double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def problem(dims: int, count: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """Images, and the network's own segmentation of them as the truth."""
    network = SmallNet(dims)
    generator = torch.Generator().manual_seed(1)
    images = 2 * torch.randn(count, 1, *(7, 6, 5)[:dims], generator=generator, dtype=torch.float64)
    return network, images, network(images).argmax(1, keepdim=True).detach()


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Sign(nn.Module):
    """Class 1 where a voxel is above ``at``: the smoothed probability of a voxel x is ``Phi((x - at) / sigma)``."""

    def __init__(self, at: float = 0.0) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.at - x, x - self.at], 1)
