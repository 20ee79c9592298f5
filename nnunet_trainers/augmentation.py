"""How much of nnU-Net's augmentation a robust training keeps.

A short training that also has to withstand an attack does not get along with everything that nnU-Net does to an image
in a training of 1000 epochs: docs/results/price.md has what it gains without.
"""

from __future__ import annotations

import copy
from typing import Any

from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from monai_adv.errors import InputError


def check_augmentation(trainer: type, kind: str, known: tuple[type, ...]) -> None:
    """What to leave out is known of nnU-Net's own augmentation only.

    Args:
        trainer: the class that trains.
        kind: the setting `augmentation`.
        known: the classes whose ``get_training_transforms`` it goes with.

    Raises:
        InputError: a variant that is mixed in, or a subclass, has an augmentation of its own.
    """
    others = [c.__name__ for c in trainer.__mro__ if "get_training_transforms" in vars(c) and c not in known]
    if kind != "host" and others:
        raise InputError.of(
            "augmentation", kind, f"host with {', '.join(others)}, whose augmentation is its own",
            "give augmentation: host",
        )  # fmt: skip


def mirrored_only(transforms: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's transforms of a training, less all that turns, scales or changes the intensities of an image at random.

    What follows the augmentation stays, as masking, the labels' form and what a cascade does to the labels it is given.

    Args:
        transforms: of ``nnUNetTrainer.get_training_transforms``, which stay as they are.

    Returns:
        such that an image is itself or its mirror image, cut to the patch.

    Raises:
        InputError: another nnU-Net, whose augmentation does not end where it is known to.

    Example::

        mirrored_only(nnUNetTrainer.get_training_transforms((64, 64), (-3.14, 3.14), None, (0, 1), False))
        # SpatialTransform (which only cuts), MirrorTransform, RemoveLabelTransform
    """
    steps = list(transforms.transforms)
    end = next((i for i, step in enumerate(steps) if isinstance(step, RemoveLabelTansform)), None)
    if end is None:
        names = ", ".join(type(step).__name__ for step in steps)
        raise InputError.of(
            "augmentation", "mirroring", f"host with this version of nnU-Net, whose transforms are {names}",
            "give augmentation: host",
        )  # fmt: skip
    kept = [_still(step) for step in steps[:end] if not isinstance(step, RandomTransform)]
    return ComposeTransforms(kept + steps[end:])


def _still(step: Any) -> Any:
    """Cuts the patch as before, from an image that was neither turned nor scaled nor bent."""
    if not isinstance(step, SpatialTransform):
        return step
    step = copy.copy(step)
    step.p_rotation = step.p_scaling = step.p_elastic_deform = 0
    return step
