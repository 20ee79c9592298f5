"""What a run tells about itself: per-step averages and network passes, without a host sync per step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Passes:
    """Network passes, counted in samples: one forward of a batch of 8 is 8.

    Attributes:
        forward: F.
        backward_input: B_in, gradients with respect to the input only.
        backward_full: B_full, gradients with respect to the weights.
    """

    forward: int = 0
    backward_input: int = 0
    backward_full: int = 0

    def in_forwards(self) -> float:
        """One number in units of a forward: B_in counts 1 and B_full counts 2 (FLOPs of convolutions)."""
        return self.forward + self.backward_input + 2 * self.backward_full

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.forward + other.forward,
            self.backward_input + other.backward_input,
            self.backward_full + other.backward_full,
        )


@dataclass
class Statistics:
    """Means over the samples of an epoch; the sums stay on the device until :meth:`summary`."""

    passes: Passes = field(default_factory=Passes)
    samples: int = 0
    counted: dict[str, int] = field(default_factory=dict)
    """Of the last :meth:`summary`, on how many samples each mean stands."""
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, of: int | None = None) -> None:
        """Add per-sample values; ``of`` is the number of samples where those without a value count 0."""
        total = values.sum(dtype=wide_dtype(values.device))
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + (len(values) if of is None else of)

    def so_far(self) -> dict[str, float]:
        """What :meth:`summary` would return for the samples of this rank alone; goes on counting."""
        means = {name: float(total) / max(self._counts[name], 1) for name, total in self._sums.items()}
        return {**means, "passes_per_sample": self.passes.in_forwards() / max(self.samples, 1)}

    def summary(self) -> dict[str, float]:
        """Means over the whole epoch and all ranks, and passes per sample in forwards; then starts afresh.

        What only some ranks have added is a mean over their samples.
        """
        own = {name: (float(self._sums[name]), self._counts[name]) for name in sorted(self._sums)}
        own["passes_per_sample"] = float(self.passes.in_forwards()), self.samples
        ranks = [own]
        if dist.is_available() and dist.is_initialized():
            ranks *= dist.get_world_size()
            dist.all_gather_object(ranks, own)
        names = sorted({name for rank in ranks for name in rank} - {"passes_per_sample"})
        total = {
            name: [sum(parts) for parts in zip(*(rank[name] for rank in ranks if name in rank), strict=True)]
            for name in [*names, "passes_per_sample"]
        }
        self.counted = {name: int(total[name][1]) for name in names}
        self._sums, self._counts, self.passes, self.samples = {}, {}, Passes(), 0
        return {name: value / max(count, 1) for name, (value, count) in total.items()}


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest float that a device has: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
