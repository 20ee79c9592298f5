"""What the trainers cannot make robust, said in one sentence before the training begins."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from monai.engines.trainer import SupervisedTrainer
from torch import Tensor

from monai_adv.errors import InputError, did_you_mean

TASKS = "classification and segmentation by one network with one image as input"
REQUIRED = ("device", "max_epochs", "train_data_loader", "network", "optimizer", "loss_function")

OTHER_TRAINERS = {
    "object detection": ("detector",),
    "a GAN": ("g_network", "d_network", "g_optimizer", "d_optimizer", "g_inferer", "recon_loss_function"),
    "a diffusion model": ("autoencoder_model", "diffusion_unet", "controlnet", "noise_scheduler", "latent_shape"),
    "an interactive or prompted model": ("hyper_kwargs",),
}
"""Arguments that give away what a trainer that is not SupervisedTrainer trains."""


def check_arguments(owner: str, given: Mapping[str, Any]) -> None:
    """Refuse the arguments of trainers of another kind.

    Raises:
        InputError: which they are, and what they are arguments of.
    """
    known = set(inspect.signature(SupervisedTrainer.__init__).parameters) - {"self"}
    unknown = sorted(set(given) - known)
    for kind, signs in OTHER_TRAINERS.items():
        if set(unknown) & set(signs):
            found = ", ".join(unknown)
            raise InputError.of("trainer", f"{found}: arguments of {kind}", f"{TASKS}", f"{owner} cannot train {kind}")
    if unknown:
        raise InputError.of(
            "trainer",
            ", ".join(unknown),
            f"arguments of SupervisedTrainer and of {owner}",
            did_you_mean(unknown[0], known),
        )


def check_present(owner: str, given: Mapping[str, Any]) -> None:
    """Refuse a trainer that lacks what every SupervisedTrainer has."""
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise InputError.of(
            "trainer", f"nothing for {', '.join(missing)}", f"{TASKS}", f"{owner} is a SupervisedTrainer"
        )


def image_and_label(batch: Any) -> tuple[Tensor, Tensor]:
    """Of what the bundle's ``prepare_batch`` returned.

    Raises:
        InputError: it is not one image and one label.
    """
    inputs, label, *rest = batch
    if any(_something(part) for part in rest):
        raise InputError.of(
            "prepare_batch", "further inputs of the network", "an image and a label",
            "a defence attacks images; let the network take one input",
        )  # fmt: skip
    for name, values in (("image", inputs), ("label", label)):
        if not isinstance(values, Tensor):
            found = type(values).__name__ + (f" with {sorted(map(str, values))}" if isinstance(values, dict) else "")
            raise InputError.of(
                name, found, "a tensor",
                f"{TASKS} is supported: not several truths (HoVerNet), boxes (detection), or none (registration, GANs)",
            )  # fmt: skip
    return inputs, label


def mask_channels(images: Tensor, channels: tuple[int, ...] | None) -> list[int]:
    """Attacked channels that hold nothing but 0 and 1 while others hold intensities: guidance, clicks, masks.

    Args:
        images: ``(B, C, *spatial)``.
        channels: those that are attacked; ``None``: all.
    """
    if images.shape[1] < 2:
        return []
    flat = images.movedim(1, 0).flatten(1)
    binary = ((flat == 0) | (flat == 1)).all(1)
    if bool(binary.all()):
        return []
    attacked = torch.ones_like(binary) if channels is None else torch.zeros_like(binary)
    if channels is not None:
        attacked[list(channels)] = True
    return (binary & attacked).nonzero().flatten().tolist()


def _something(part: Any) -> bool:
    return part.numel() > 0 if isinstance(part, Tensor) else bool(part)
