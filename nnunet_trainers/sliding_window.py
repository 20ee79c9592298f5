"""nnU-Net's sliding window as one differentiable function.

The host's own predictor runs under ``inference_mode`` and adds the windows up in half precision, so no gradient passes
through it. The windows, their weights and the padding are the host's functions; the sums here are in single precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image  # type: ignore[import-untyped]
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_adv.errors import InputError

TILE_STEP = 0.5  # nnUNetv2_predict's default: neighbouring windows overlap by half


class SlidingWindow(nn.Module):
    """``(B, C, *spatial)`` images of any size to ``(B, K, *spatial)`` logits, window by window.

    Args:
        network: maps patches ``(N, C, *patch_size)`` to logits ``(N, K, *patch_size)``.
        patch_size: size of a window, one number per spatial axis.
        heads: K, the number of classes or regions.
        mirror_axes: spatial axes (0 is the first) over whose flips the logits are averaged; none: no mirroring.
        patches_per_pass: how many patches go through the network together. If a forward needs more than one pass
            and gradients are wanted, each pass is computed again in the backward, so that the activations of one
            pass at a time are in memory.

    Example:
        A network that works voxel by voxel gives the same with and without windows:

        >>> window = SlidingWindow(nn.Conv2d(1, 2, 1), (8, 8), heads=2)
        >>> images = torch.rand(3, 1, 13, 5)
        >>> torch.allclose(window(images), window.network(images), atol=1e-6)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        patch_size: Sequence[int],
        heads: int,
        *,
        mirror_axes: Sequence[int] = (),
        patches_per_pass: int = 64,
    ) -> None:
        super().__init__()
        if patches_per_pass < 1:
            raise InputError.of("patches_per_pass", patches_per_pass, "a whole number >= 1")
        self.network = network
        self.patch_size = tuple(int(n) for n in patch_size)
        self.heads = heads
        self.patches_per_pass = patches_per_pass
        axes = [axis + 2 for axis in mirror_axes]
        self.flips = [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of every voxel.

        Raises:
            InputError: the images do not have the network's number of axes.
        """
        if images.ndim != len(self.patch_size) + 2:
            axes = f"B, C and {len(self.patch_size)} spatial axes"
            raise InputError.of("images", f"shape {tuple(images.shape)}", f"a tensor with {axes}")
        return torch.cat([self._logits(part, len(images)) for part in torch.split(images, self.patches_per_pass)])

    def _logits(self, images: Tensor, of: int) -> Tensor:
        """Of the images of one pass, out of ``of`` images whose activations would be in memory together."""
        padded, unpad = pad_nd_image(images, self.patch_size, "constant", {"value": 0}, True)
        windows = list(self._windows(padded.shape[2:]))
        # The host's weights are in half precision, the smallest of them rounded up to its smallest number.
        weight = compute_gaussian(self.patch_size, value_scaling_factor=10, device=images.device)
        weight = weight.to(images.dtype, copy=True)  # the host caches it, perhaps as an inference tensor
        total = padded.new_zeros(len(padded), self.heads, *padded.shape[2:])
        weights = padded.new_zeros(padded.shape[2:])
        per_pass = max(1, self.patches_per_pass // len(padded))
        alone = of * len(windows) <= self.patches_per_pass
        for first in range(0, len(windows), per_pass):
            together = windows[first : first + per_pass]
            patches = torch.cat([padded[window] for window in together])
            parts = torch.split(self._one_pass(patches, alone=alone), len(padded))
            for window, part in zip(together, parts, strict=True):
                total[window] += part * weight
                weights[window[2:]] += weight
        logits: Tensor = (total / weights)[(slice(None), slice(None), *unpad[2:])]
        return logits

    def _windows(self, size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        corners = compute_steps_for_sliding_window(tuple(size), self.patch_size, TILE_STEP)
        for corner in product(*corners):
            place = (slice(c, c + n) for c, n in zip(corner, self.patch_size, strict=True))
            yield (slice(None), slice(None), *place)

    def _one_pass(self, patches: Tensor, *, alone: bool) -> Tensor:
        if alone or not (torch.is_grad_enabled() and patches.requires_grad):
            return self._mirrored(patches)
        logits: Any = checkpoint(self._mirrored, patches, use_reentrant=False)
        assert isinstance(logits, Tensor)
        return logits

    def _mirrored(self, patches: Tensor) -> Tensor:
        """Mean over the mirrored views; ``flips`` begins with the empty flip."""
        logits: Tensor = self.network(patches)
        for flip in self.flips[1:]:
            logits = logits + self.network(patches.flip(flip)).flip(flip)
        return logits / len(self.flips)
