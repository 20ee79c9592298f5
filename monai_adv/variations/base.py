"""What a variation is: something that scanners and handling do to images, at severities with a physical meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.variations.scan import Scan

Modality = Literal["ct", "mri", "ultrasound", "xray"]


class NotApplicable(Exception):
    """A variation does not exist for this image; the message says why, in words for a table."""


@dataclass(frozen=True)
class Variation:
    """A natural variation of one modality.

    Attributes:
        modality, name: what it is called.
        meaning: what happens, for tables.
        measure: what the levels are, with their unit; ``{}`` stands for the number.
        levels: one per severity, mildest first.
        identity: the level at which nothing happens.
        source: where model and levels come from.
        change: of the scan, the level and a generator for its draws; gives new voxels.
    """

    modality: Modality
    name: str
    meaning: str
    measure: str
    levels: tuple[float, ...]
    identity: float
    source: str
    change: Callable[[Scan, float, torch.Generator], Tensor]

    @property
    def key(self) -> str:
        """``"mri:motion"``, as users write it."""
        return f"{self.modality}:{self.name}"

    def level(self, severity: int) -> float:
        """The level of a severity; 0 is the identity.

        Raises:
            InputError: a severity that there is not.
        """
        if not 0 <= severity <= len(self.levels):
            raise InputError.of("severity", severity, f"a whole number from 0 to {len(self.levels)} for {self.key}")
        return self.levels[severity - 1] if severity else self.identity

    def words(self, severity: int) -> str:
        """The level with its unit, such as ``"20 dB"``."""
        return self.measure.format(f"{self.level(severity):g}")

    def __call__(self, scan: Scan, severity: int, seed: int) -> Tensor:
        """``(C, S, H, W)`` voxels of the varied scan.

        Args:
            scan: the image.
            severity: 0 (nothing, bit for bit) to the number of levels.
            seed: with one seed, the severities show one growing artefact.

        Raises:
            InputError: a severity that there is not.
            NotApplicable: an image for which it does not exist.
        """
        return self.at(scan, self.level(severity), seed)

    def at(self, scan: Scan, level: float, seed: int) -> Tensor:
        """The same at any level."""
        if level == self.identity:
            return scan.voxels.clone()
        generator = torch.Generator().manual_seed(seed)
        return self.change(scan, level, generator)
