"""What a trainer says of itself in the log: its settings, and what it took the first batch for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from monai.apps.utils import DEFAULT_FMT
from torch import Tensor

from monai_adv.defenses.base import Defense
from monai_adv.engines.bundle_task import Layout
from monai_adv.settings import ENV_FILE, ENV_PREFIX, Settings, table
from monai_adv.tasks import Output
from monai_adv.tasks.base import first_resolution


def be_heard(logger: logging.Logger) -> None:
    """Print what a trainer says where nobody has configured logging, as MONAI's own handlers do.

    Python would drop it: the price, which weights it starts from, which ones it ends with.
    """
    if logger.hasHandlers() or logger.level != logging.NOTSET:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(DEFAULT_FMT))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def words_of_the_settings(sections: Mapping[str, Settings]) -> str:
    """All settings, and where they can be set."""
    return (
        "settings (* differs from the default; set in the trainer's `settings`, with a file named by "
        f"{ENV_FILE}, or with {ENV_PREFIX}<NAME>):\n{table(sections)}"
    )


def words_of_the_first_batch(
    what: str,
    layout: Layout | None,
    defense: Defense,
    images: Tensor,
    label: Tensor,
    output: Output,
    raw_unit: float | None,
    ids: str | None,
) -> str:
    """What the task is, the threat in all units, and how samples are told apart.

    Args:
        what: kind of the task.
        layout: of a segmentation's labels.
        defense: whose threat it is.
        images, label, output: of the first batch.
        raw_unit: intensity of the files in one network unit.
        ids: where they come from; None: not needed.
    """
    shape = tuple(first_resolution(output).shape)
    if layout is not None:
        what += f" ({layout.words})"
    channels = defense.channels
    which = f"all {images.shape[1]}" if channels is None else f"{list(channels)} of {images.shape[1]}"
    return (
        f"{what}, from labels {tuple(label.shape)} and network outputs {shape}. "
        f"Threat: {defense.threat.describe(images, raw_unit)}, in the units of the network's input; "
        f"attacked channels: {which}. Sample ids: {ids or 'not needed'}."
    )
