"""One slice under noise, as arrays that a page can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monai_adv.errors import InputError
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.noise_case import LOSSES, Case, PreparedCase, segmentation_task
from nnunet_trainers.volume_dice import dice_per_class, mean_dice

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class Example:
    """One slice in the network space of one model (units: standard deviations of the normalised image).

    Attributes:
        slice: index along the first axis of the preprocessed volume.
        radius: L2 radius of the network input: of the slice for a 2D model, of the whole volume for a 3D one.
        image, white_noise, adversarial: ``(C, H, W)`` without noise, with white and with adversarial noise of the
            radius; the noise itself is the difference to ``image``.
        ground_truth, on_image, on_white_noise, on_adversarial: ``(H, W)`` label maps: the truth and what the model
            says.
        dice: mean Dice over the classes in this slice, by ``"image"``, ``"white_noise"``, ``"adversarial"``.
    """

    model: str
    case: str
    slice: int
    radius: float
    image: Image
    white_noise: Image
    adversarial: Image
    ground_truth: Labels
    on_image: Labels
    on_white_noise: Labels
    on_adversarial: Labels
    dice: dict[str, float]

    @property
    def noise(self) -> Image:
        """``(C, H, W)`` adversarial noise."""
        return self.adversarial - self.image


def example(
    models: Sequence[DeployedModel],
    case: Case,
    radius: float,
    slice: int | None = None,
    *,
    steps: int = 20,
    seed: int = 0,
) -> list[Example]:
    """The same slice for each model, each under its own PGD (the worse of the Dice and the cross-entropy attack).

    Args:
        slice: index along the first axis of the preprocessed volume; default: the slice with most foreground.

    Raises:
        InputError: no such slice.
    """
    return [_example(model, case, radius, slice, steps, seed) for model in models]


def _example(model: DeployedModel, case: Case, radius: float, index: int | None, steps: int, seed: int) -> Example:
    prepared = PreparedCase(model, case)
    foreground = model.to_volume(prepared.labels)[0].gt(0).flatten(1).sum(1)
    index = int(foreground.argmax()) if index is None else index
    if not 0 <= index < len(foreground):
        raise InputError.of("slice", index, f"a whole number from 0 to {len(foreground) - 1}")
    only = slice(index, index + 1) if model.is_2d else slice(None)
    shown = {
        "image": prepared.inputs[only],
        "white_noise": prepared.with_white_noise(radius, seed)[only],
        "adversarial": _strongest(prepared, radius, steps, only),
    }

    def drawn(inputs: Tensor) -> npt.NDArray[Any]:
        return (inputs[0] if model.is_2d else inputs[0, :, index]).numpy()

    truth = drawn(prepared.labels[only])[0]
    found = {name: _label_map(model, drawn(prepared.logits(inputs))) for name, inputs in shown.items()}
    labels = model.dataset_json["labels"]
    return Example(
        model=model.name,
        case=case.name,
        slice=index,
        radius=radius,
        **{name: drawn(inputs) for name, inputs in shown.items()},
        ground_truth=truth,
        **{f"on_{name}": labels_found for name, labels_found in found.items()},
        dice={name: mean_dice(dice_per_class(one, truth, labels)) for name, one in found.items()},
    )


def _strongest(prepared: PreparedCase, radius: float, steps: int, only: slice) -> Tensor:
    """The image on which the model does worse, of the attacks on the two losses."""
    target = prepared.target(prepared.labels[only])
    attacked = [prepared.attacked(radius, loss, steps, only)[0] for loss in LOSSES]
    for images in attacked:
        prepared.largest_norm(images, radius, only)
    task = segmentation_task(prepared.model, LOSSES[0])
    return min(attacked, key=lambda images: float(task.margin(prepared.logits(images), target).mean()))


def _label_map(model: DeployedModel, logits: npt.NDArray[Any]) -> Labels:
    """``(K, H, W)`` logits as ``(H, W)`` labels, by the host's rule (regions included)."""
    labels: Tensor = model.label_manager.convert_logits_to_segmentation(torch.from_numpy(logits))
    return labels.numpy()
