"""nnU-Net's data loader, extended by the one thing it does not return: which slice a 2D sample was cut from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module


class SliceDataLoader(nnUNetDataLoader):
    """Adds ``batch["slices"]``: for 2D the slice of each sample, for 3D always 0 (the case is the sample)."""

    def get_bbox(self, *args: Any, **kwargs: Any) -> Any:
        lower, upper = super().get_bbox(*args, **kwargs)
        self._slices.append(int(lower[0]) if self.patch_size_was_2d else 0)
        return lower, upper

    def generate_train_batch(self) -> dict[str, Any]:
        self._slices: list[int] = []
        batch: dict[str, Any] = super().generate_train_batch()
        return {**batch, "slices": np.array(self._slices)}


@contextmanager
def slices_in_batches() -> Iterator[None]:
    """While active, nnU-Net's ``get_dataloaders`` builds this loader.

    nnU-Net names its loader class inside a long method and starts the worker processes in there as well, so the
    alternative is to copy that method and miss every later change to it.
    """
    original = trainer_module.nnUNetDataLoader
    trainer_module.nnUNetDataLoader = SliceDataLoader
    try:
        yield
    finally:
        trainer_module.nnUNetDataLoader = original
