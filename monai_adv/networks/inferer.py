"""A bundle's network as the evaluation attacks it: behind its inferer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers.inferer import SlidingWindowInferer
from monai.utils.misc import fall_back_tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_adv.errors import InputError
from monai_adv.tasks import Output


class BundleNetwork(nn.Module):
    """A network behind its inferer, differentiable with respect to the images; only full-resolution logits come out.

    With a sliding window of several windows, their activations are computed again in the backward.

    Example:
        >>> window = BundleNetwork(nn.Conv2d(1, 2, 1), SlidingWindowInferer((4, 4), mode="gaussian"))
        >>> images = torch.rand(1, 1, 9, 7)
        >>> torch.allclose(window(images), window.network(images), atol=1e-6)
        True
    """

    def __init__(self, network: nn.Module, inferer: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.inferer = network, inferer

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to ``(B, K, *spatial)`` or ``(B, K)``.

        Raises:
            InputError: an output that is no tensor.
        """
        recompute = images.requires_grad and torch.is_grad_enabled() and self._several_windows(images)

        def predict(patches: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            output: Output = (
                checkpoint(self.network, patches, *args, use_reentrant=False, **kwargs)
                if recompute
                else self.network(patches, *args, **kwargs)
            )
            first = output[0] if isinstance(output, list | tuple) else output
            if not isinstance(first, Tensor):
                raise InputError.of("network", f"an output of type {type(first).__name__}", "a tensor of logits")
            return first.clone()  # MONAI multiplies it by the window's weights in place

        result: Tensor = self.inferer(images, predict)
        return result

    def _several_windows(self, images: Tensor) -> bool:
        if not isinstance(self.inferer, SlidingWindowInferer):
            return False
        size = tuple(images.shape[2:])
        return any(n > window for n, window in zip(size, fall_back_tuple(self.inferer.roi_size, size), strict=True))


class ForegroundLogits(nn.Module):
    """A network without its channel 0: a background that a network with one sigmoid per class does not decide by.

    Example:
        >>> ForegroundLogits(nn.Identity())(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([[1., 2.]])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to ``(B, K - 1, *spatial)``."""
        logits: Tensor = self.network(images)
        return logits[:, 1:]
