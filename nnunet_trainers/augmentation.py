"""How much of nnU-Net's augmentation a robust training keeps.

nnU-Net's own is made for 1000 epochs, in which a network sees each image hundreds of times. A short training that also
has to withstand an attack ends better with mirroring alone, measured in docs/results/price.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from monai_adv.errors import InputError
from nnunet_trainers.run_settings import FEW_VISITS, Augmentation


def check_augmentation(kind: Augmentation, own: Sequence[str]) -> None:
    """What to leave out is known of nnU-Net's own augmentation only.

    Args:
        kind: the setting `augmentation`.
        own: classes with an augmentation of their own.

    Raises:
        InputError: such a class, and mirroring alone.
    """
    if kind == "mirroring" and own:
        raise InputError.of(
            "augmentation", kind, f"host with {', '.join(own)}, whose augmentation is its own",
            "give augmentation: host",
        )  # fmt: skip


def chosen(own: Sequence[str], visits: float, image: str) -> tuple[bool, str]:
    """What `augmentation: auto` means: whether mirroring is all, and a sentence for the log.

    Args:
        own: classes with an augmentation of their own.
        visits: how often the training sees each image.
        image: what that is, a case or a slice.

    Example:
        >>> chosen([], 10.2, "case")
        (True, 'Augmentation: mirroring alone, as each case is seen about 10 times (`augmentation: auto`: up to 23).')
    """
    if own:
        return False, f"Augmentation: that of {', '.join(own)} (`augmentation: auto`)."
    few = round(visits) <= FEW_VISITS
    which, limit = ("mirroring alone", "up to") if few else ("nnU-Net's own", "mirroring alone up to")
    seen = f"{visits:.0f}" if visits >= 1 else f"{visits:.1g}"
    setting = f"`augmentation: auto`: {limit} {FEW_VISITS}"
    return few, f"Augmentation: {which}, as each {image} is seen about {seen} times ({setting})."


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
