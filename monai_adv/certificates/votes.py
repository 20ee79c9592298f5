"""Counting what a network says about noisy copies of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monai_adv.certificates.settings import Certification
from monai_adv.certificates.smoothed import chunks, copies_at_once, decided, first, two_classes
from monai_adv.errors import InputError
from monai_adv.network_state import any_batch_size, device_of, frozen
from monai_adv.random_streams import random_stream


@dataclass(frozen=True)
class Votes:
    """What the draws said.

    Attributes:
        chosen: ``(B, *spatial)`` int64, the answer that came most often among the first n0 draws, on the CPU.
        count: of the same shape, how often it came among n others.
        classes: how many answers there are.
    """

    chosen: Tensor
    count: Tensor
    classes: int


@torch.no_grad()
def count_votes(
    network: nn.Module,
    images: Tensor,
    settings: Certification,
    *,
    ids: Sequence[str | int] | None = None,
    regions: bool = False,
) -> Votes:
    """Let a network look at noisy copies of each image: n0 to choose an answer, n to count it.

    Args:
        network: images ``(B, C, *spatial)`` to logits; put into eval mode for it, and left as it was.
        images: on any device.
        settings: see :class:`Certification`.
        ids: of the images. The draws of an image follow from its id and the seed, so that they are the same whatever
            stands beside it; choice and count share none. Default: the places in the batch.
        regions: the channels are overlapping regions; the answers are 0 or 1 for each, ``(B, K, *spatial)``.

    Raises:
        InputError: not one id of its own for each image; images that swallow the noise; or a network that answers by
            chance, or otherwise beside other images: its draws would not be those that the proof is about.
    """
    settings.noise.check(images)
    device = device_of(network)
    images = images.to(device).as_subclass(Tensor)
    names = range(len(images)) if ids is None else ids
    if len(set(names)) != len(images) or len(names) != len(images):
        raise InputError.of(
            "ids", f"{len(names)}, {len(set(names))} of them different", f"{len(images)} different ones"
        )
    streams = [random_stream(settings.seed, name, device=device) for name in names]
    with frozen(network) as model:
        output = answers_alike(model, images, settings)
        classes = 2 if regions or output.shape[1] == 1 else output.shape[1]
        chosen = _tally(model, images, settings, settings.n0, streams, regions, classes).argmax(1)
        count = torch.zeros_like(chosen, dtype=torch.int32)
        for answer in _answers(model, images, settings, settings.n, streams, regions):
            count += (answer == chosen).sum(0)
    return Votes(chosen.cpu(), count.cpu(), classes)


def _tally(
    model: nn.Module,
    images: Tensor,
    settings: Certification,
    draws: int,
    streams: Sequence[torch.Generator],
    regions: bool,
    classes: int,
) -> Tensor:
    """``(B, classes, *spatial)`` how often each answer came; what is not finite is none."""
    tally: Tensor | None = None
    for answer in _answers(model, images, settings, draws, streams, regions):
        found = torch.stack([(answer == k).sum(0, dtype=torch.int32) for k in range(classes)], 1)
        tally = found if tally is None else tally + found
    assert tally is not None
    return tally


def _answers(
    model: nn.Module,
    images: Tensor,
    settings: Certification,
    draws: int,
    streams: Sequence[torch.Generator],
    regions: bool,
) -> Iterator[Tensor]:
    """``(draws in this pass, B, ...)`` answers, pass by pass."""
    for count in chunks(draws, copies_at_once(images, settings.inputs_per_pass)):
        copies = images[None] + settings.noise.draws(images, count, streams)
        output = first(model(any_batch_size(copies.flatten(0, 1), model)))
        answer = decided(output, regions)
        yield answer.view(count, len(images), *answer.shape[1:])


@torch.no_grad()
def answers_alike(model: nn.Module, images: Tensor, settings: Certification) -> Tensor:
    """What a network says about the first image, which must be the same a second time, and beside another image.

    Args:
        model: in eval mode.
        images: ``(B, C, *spatial)``, whose noisy copies will share passes.
        settings: of the draws.

    Raises:
        InputError: it says something else: its draws would not be those that the proof is about.
    """
    one = images[:1].to(device_of(model)).as_subclass(Tensor)
    once, again = (first(model(any_batch_size(one, model))) for _ in range(2))
    # Kernels of a GPU may add up in another order.
    if not torch.allclose(once, again, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InputError.of(
            "network", "another answer to the same image", "a network that answers alike each time",
            "its own randomness is not the noise that a certificate is about; switch it off",
        )  # fmt: skip
    if len(images) * copies_at_once(images, settings.inputs_per_pass) > 1:
        generator = torch.Generator(one.device).manual_seed(settings.seed)
        other = one + settings.noise.draws(one, 1, generator)[0]
        beside = first(model(any_batch_size(torch.cat([one, other]), model)))[:1]
        size = float(once[once.isfinite()].abs().max()) if bool(once.isfinite().any()) else 0.0
        if not torch.allclose(once, beside, rtol=1e-3, atol=1e-5 + 1e-3 * size, equal_nan=True):
            raise InputError.of(
                "network", "another answer to the same image beside other images",
                "a network that answers for each image alone",
                "draws that share a pass would decide together, as with batch norm that has no running statistics",
            )  # fmt: skip
    return two_classes(once) if once.shape[1] == 1 else once
