"""A linear classifier of any rank, whose distances to its boundaries are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearClassifier(nn.Module):
    """``z_k = <w_k, x> + b_k``; the boundary to class l is ``(z_y - z_l) / ||w_y - w_l||`` (dual norm) away."""

    def __init__(self, classes: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, *shape, generator=generator, dtype=dtype))
        self.bias = nn.Parameter(torch.randn(classes, generator=generator, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.flatten(1).T + self.bias

    @torch.no_grad()
    def distances(self, images: Tensor, labels: Tensor, norm: str) -> Tensor:
        """``(B, K)`` to the boundary with each class; inf for the label itself."""
        logits, flat = self(images), self.weight.flatten(1)
        size = (flat[labels][:, None] - flat[None]).norm(p=2 if norm == "l2" else 1, dim=2)
        distance = (logits.gather(1, labels[:, None]) - logits) / size
        return distance.scatter(1, labels[:, None], torch.inf)


def problem(
    classes: int, shape: tuple[int, ...], count: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[LinearClassifier, Tensor, Tensor]:
    """A classifier, images, and the labels that it gives them."""
    network = LinearClassifier(classes, shape, seed, dtype)
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed + 1), dtype=dtype)
    return network, images, network(images).argmax(1).detach()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
