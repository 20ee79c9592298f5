"""The smoothed model: what a certificate is about, as a network that can be deployed and attacked.

Source: Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019: ``g(x)`` is
the class that ``f`` gives most often to ``x`` plus Gaussian noise. Salman et al., "Provably robust deep learning via
adversarially trained smoothed classifiers", NeurIPS 2019, equation 6: the mean of the probabilities, through which an
attack finds its way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from monai_adv.certificates.bounds import check_alpha, differ
from monai_adv.errors import InputError
from monai_adv.tasks.base import first_resolution

NO_CLASS = -1
"""In place of a class: the smoothed model abstains."""
COARSEST = 1024
"""Steps that a number of the image's size must have within sigma: with fewer the noise is no Gaussian any more."""
LARGEST = 2**24
"""Numbers of all noisy copies in one pass: 64 MB, and what a network makes of them."""


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the intensities of network inputs.

    Args:
        sigma: its standard deviation in every voxel, in the unit of the network's input.
        channels: that are intensities; None: all.

    Raises:
        InputError: sigma is not a finite number above 0.
    """

    sigma: float
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError.of("sigma", self.sigma, "a finite number > 0", "without noise nothing is certified")

    def check(self, images: Tensor) -> None:
        """Refuse images beside which the noise is lost in rounding; costs a host sync.

        Raises:
            InputError: also for images that are no float tensor, or do not have these channels.
        """
        if images.ndim < 2 or not images.is_floating_point():
            raise InputError.of("images", f"{images.dtype} {tuple(images.shape)}", "a float tensor (B, C, *spatial)")
        if self.channels is not None and not all(0 <= c < images.shape[1] for c in self.channels):
            raise InputError.of("channels", self.channels, f"indices below {images.shape[1]}")
        size = float(images.abs().max()) if images.numel() else 0.0
        if not math.isfinite(size):
            raise InputError.of("images", "NaN or infinity", "finite numbers")
        # Voracek & Hein, ICLR 2023: where noise has few values, counting them proves nothing.
        least = COARSEST * torch.finfo(images.dtype).eps * size
        if self.sigma < least:
            raise InputError.of(
                "sigma", self.sigma, f"at least {least:.3g} beside images of size {size:.3g}",
                "smaller noise is lost in their rounding; scale the images or give float64",
            )  # fmt: skip

    def draws(self, images: Tensor, count: int, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """``(count, B, C, *spatial)`` noise; of several generators ``(count, len(generator), C, *spatial)``.

        Of several each gives the noise of one image, or a single one that of all images alike. They are asked copy by
        copy: what a generator gives depends on how much it is asked for at once, and so would the noise of an image
        depend on what shares a pass with it.
        """
        device, dtype = images.device, images.dtype
        if isinstance(generator, torch.Generator):
            noise = torch.randn(count, *images.shape, generator=generator, device=device, dtype=dtype)
        else:
            copies = [
                torch.stack([torch.randn(images.shape[1:], generator=g, device=device, dtype=dtype) for g in generator])
                for _ in range(count)
            ]
            noise = torch.stack(copies)
        noise = self.sigma * noise
        if self.channels is not None:
            kept = torch.zeros(images.shape[1], dtype=images.dtype, device=images.device)
            kept[list(self.channels)] = 1
            noise = noise * kept.view(1, 1, -1, *[1] * (images.ndim - 2))
        return noise


def first(output: Any) -> Tensor:
    """The full resolution of an output with deep supervision; ``(B,)`` logits as ``(B, 1)``."""
    logits = first_resolution(output)
    return logits[:, None] if logits.ndim == 1 else logits


def decided(output: Tensor, regions: bool) -> Tensor:
    """Class of each sample or voxel ``(B, *spatial)``; with ``regions`` 1 or 0 for each, ``(B, K, *spatial)``.

    A logit that is not finite decides nothing: :data:`NO_CLASS`. One channel of a classifier stands for two classes.

    Example:
        >>> decided(torch.tensor([[0.0, 2.0], [float("nan"), 1.0]]), regions=False).tolist()
        [1, -1]
    """
    if regions:
        return torch.where(output.isfinite(), (output > 0).long(), NO_CLASS)
    if output.shape[1] == 1:
        output = two_classes(output)
    return torch.where(output.isfinite().all(1), output.argmax(1), NO_CLASS)


def two_classes(output: Tensor) -> Tensor:
    """``(B, 1, *spatial)`` logits of "yes" as those of two classes."""
    return torch.cat([torch.zeros_like(output), output], 1)


def chunks(total: int, size: int) -> Iterator[int]:
    """``total`` in pieces of ``size`` and a last one."""
    yield from [size] * (total // size)
    if total % size:
        yield total % size


def copies_at_once(images: Tensor, inputs_per_pass: int) -> int:
    """Noisy copies of a batch that go through a network together; of whole volumes fewer, so that memory holds them.

    Example:
        >>> copies_at_once(torch.empty(8, 1, 4, 4), 64), copies_at_once(torch.empty(1, 1, 512, 512, 300), 64)
        (8, 1)
    """
    return max(1, min(inputs_per_pass // max(1, len(images)), LARGEST // max(1, images.numel())))


def summed(network: nn.Module, images: Tensor, noise: Tensor, regions: bool) -> tuple[Tensor, Tensor]:
    """What a network says about noisy copies of its inputs, summed over the draws.

    Args:
        network: images to logits.
        images: ``(B, C, *spatial)``.
        noise: ``(draws, B or 1, C, *spatial)``.
        regions: each channel is judged for itself.

    Returns:
        the logarithms of summed probabilities, ``(1, B, K, *spatial)`` of each class, with ``regions`` ``(2, B, K,
        *spatial)`` of being inside and outside; and the votes, laid out alike. What is not finite is no vote.
    """
    output = first(network((images[None] + noise).flatten(0, 1)))
    if not regions and output.shape[1] == 1:
        output = two_classes(output)
    # Sums of logarithms: probabilities far below 1 keep their gradient.
    both = [functional.logsigmoid(output), functional.logsigmoid(-output)] if regions else [output.log_softmax(1)]
    answer = decided(output, regions)
    kinds = torch.arange(output.shape[1], device=output.device).view(1, -1, *[1] * (output.ndim - 2))
    voted = torch.stack([answer == 1, answer == 0] if regions else [answer[:, None] == kinds])
    shape = (len(noise), len(images), *output.shape[1:])
    log = torch.stack(both).reshape(len(both), *shape).logsumexp(1)
    return log, voted.reshape(len(both), *shape).sum(1).to(output.dtype)


def as_logits(log: Tensor, draws: int) -> Tensor:
    """``(B, K, *spatial)`` logits of the mean probability, of the first result of :func:`summed`."""
    return log[0] - log[1] if len(log) == 2 else log[0] - math.log(draws)


class SmoothedModel(nn.Module):
    """The majority vote of a network over noisy copies of its input.

    Its output stands for logits: ``log`` of the share of votes for each class (``log(p / (1 - p))`` for regions), so
    that whoever takes the largest takes the majority. Votes have no gradient; an attack gets that of the mean
    probability (Salman et al., equation 6), recomputed piece by piece, so that memory does not grow with the draws.

    All inputs of a batch get the same noise, fixed by the seed: the model is deterministic, and what it says about an
    image does not depend on others in the batch.

    A certificate speaks of infinitely many draws. This model has ``draws`` of them, so that close to the boundary of
    two classes it may decide otherwise: :meth:`predict` abstains there.

    Args:
        network: images ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``, or a list with the full resolution first;
            a sliding window over whole volumes is one too.
        sigma: standard deviation of the noise in every voxel, in the unit of the network's input.
        draws: noisy copies of each input.
        seed: of the noise.
        regions: channels are overlapping regions (a sigmoid each).
        channels: that are intensities and get noise; None: all.
        soft: output the logarithm of the mean probability instead of votes, the model that Salman et al. train.
        inputs_per_pass: noisy copies in one pass of the network.

    Raises:
        InputError: a setting that is not allowed.

    Example:
        Of a linear classifier it is the same classifier; on the boundary it abstains:

        >>> network = nn.Linear(1, 2, bias=False)
        >>> network.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]])})
        <All keys matched successfully>
        >>> model = SmoothedModel(network, sigma=1.0, draws=1000)
        >>> model.predict(torch.tensor([[0.5], [-0.5], [0.0]])).tolist()
        [1, 0, -1]
    """

    def __init__(
        self,
        network: nn.Module,
        sigma: float,
        draws: int = 100,
        *,
        seed: int = 0,
        regions: bool = False,
        channels: Sequence[int] | None = None,
        soft: bool = False,
        inputs_per_pass: int = 64,
    ) -> None:
        super().__init__()
        for name, value in (("draws", draws), ("inputs_per_pass", inputs_per_pass)):
            if value < 1:
                raise InputError.of(name, value, "a whole number >= 1")
        self.network = network
        self.noise = Noise(sigma, None if channels is None else tuple(channels))
        self.draws, self.seed, self.regions, self.soft = draws, seed, regions, soft
        self.inputs_per_pass = inputs_per_pass

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K, *spatial)``; see above."""
        log, votes = self._draw(images)
        soft = as_logits(log, self.draws)
        if self.soft:
            return soft
        # One vote more for each, so that no logarithm is infinite; it changes no majority.
        hard = (votes[0] + 1).log() - ((votes[1] + 1).log() if self.regions else math.log(self.draws))
        return hard + (soft - soft.detach())  # the value of the first, the gradient of the second

    @torch.no_grad()
    def predict(self, images: Tensor, alpha: float = 0.001) -> Tensor:
        """What the smoothed model says, or that it abstains (Cohen et al., algorithm PREDICT).

        Args:
            images: ``(B, C, *spatial)``.
            alpha: probability that the answer for an image is not that of infinitely many draws, in any voxel.

        Returns:
            ``(B, *spatial)`` class indices, with ``regions`` ``(B, K, *spatial)`` 0 or 1; :data:`NO_CLASS` where the
            two most frequent answers are too close to be told apart by these draws.

        Raises:
            InputError: sigma that these images swallow, or alpha that is no probability.
        """
        check_alpha(alpha)
        self.noise.check(images)
        votes = self._draw(images)[1].round().long()
        if self.regions:
            answer, most, following = (votes[0] > votes[1]).long(), votes.amax(0), votes.amin(0)
        else:
            (most, following), answer = votes[0].topk(2, dim=1)[0].unbind(1), votes[0].argmax(1)
        sure = [differ(a.cpu().numpy(), b.cpu().numpy(), alpha) for a, b in zip(most, following, strict=True)]
        return torch.where(torch.from_numpy(np.stack(sure)).to(answer.device), answer, NO_CLASS)

    def _draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of summed probabilities, and votes, of all draws; see :func:`summed`."""
        images = images.as_subclass(Tensor)
        generators = [torch.Generator(images.device).manual_seed(self.seed)]
        log: Tensor | None = None
        votes: Tensor | None = None
        for count in chunks(self.draws, copies_at_once(images, self.inputs_per_pass)):
            noise = self.noise.draws(images, count, generators)
            given = self.network, images, noise, self.regions
            if torch.is_grad_enabled() and images.requires_grad:
                part, voted = checkpoint(summed, *given, use_reentrant=False)
            else:
                part, voted = summed(*given)
            log = part if log is None else torch.logaddexp(log, part)
            votes = voted if votes is None else votes + voted
        assert log is not None
        assert votes is not None
        return log, votes

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        return f"sigma={self.noise.sigma:g}, draws={self.draws}, seed={self.seed}, regions={self.regions}"
