"""Margins that do not starve: what methods with a radius for each sample share.

A method that starts from a small radius and lets it grow visit by visit needs many visits; in 2D every slice is a
sample, and a short training sees each a few times. Two ways to need fewer, of our own, both off by default:

* the slices of a case share one margin (``margin_of: case``), so that each draw of any of them counts for all;
* the first margin is measured (``first_margin: measured``): where a sample has never been searched, the attack may go
  as far as eps, and how far the boundary is, or eps, is the sample's margin from then on. It costs no pass more than
  any other visit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from monai_adv.sample_state import SampleState
from monai_adv.settings import Settings, setting


@dataclass(frozen=True)
class SharedMargin(Settings):
    """Whose margin it is."""

    margin_of: Literal["sample", "case"] = setting(
        "sample", "each sample has its own (paper), or all slices of a case have one"
    )

    @property
    def shared(self) -> bool:
        """For :class:`~monai_adv.sample_state.SampleState`."""
        return self.margin_of == "case"


@dataclass(frozen=True)
class MeasuredMargin(SharedMargin):
    """Whose margin it is, and where it begins."""

    first_margin: Literal["given", "measured"] = setting(
        "given", "a sample's first margin: the method's (paper), or as far as an attack within eps finds the boundary"
    )


class Known(SampleState):
    """Which samples have been searched already: above 0.

    Args:
        settings: say whether it matters, and whether the slices of a case share it.
    """

    def __init__(self, settings: MeasuredMargin) -> None:
        super().__init__(0.0, "searched samples", shared=settings.shared)
        self.matters = settings.first_margin == "measured"

    def first(self, ids: Tensor) -> Tensor:
        """``(B,)`` bool: samples whose margin is to be measured now."""
        return (self[ids] == 0) if self.matters else torch.zeros_like(ids, dtype=torch.bool)

    def remember(self, ids: Tensor) -> None:
        """These have been searched; on several ranks all call it, with no ids if there are none."""
        if self.matters:
            self.update(ids, torch.ones(len(ids), device=ids.device))
