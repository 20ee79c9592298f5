"""Per-sample memory of a defence: numbers for every training sample, keyed by a stable id.

A margin belongs to a patient's slice, not to a position in a shuffled batch. ``SampleIds`` gives every sample of the
training set a fixed index; ``SampleState`` holds one value per index, merges what several ranks and repeated draws say
about the same sample, and travels in the checkpoint together with the ids it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.statistics import wide_dtype


class SampleIds:
    """The training samples in a fixed order: ``{group: number of samples in it}``.

    nnU-Net 2D uses one group per case with one sample per slice, 3D one group per case with one sample; a plain list of
    ``n`` samples is ``SampleIds({"train": n})``. The order of the mapping does not matter.

    Example:
        >>> ids = SampleIds({"case_b": 2, "case_a": 3})
        >>> len(ids), ids.index(["case_b", "case_a"], [1, 2]).tolist()
        (5, [4, 2])
    """

    def __init__(self, groups: Mapping[str, int]) -> None:
        if not groups or any(n < 1 for n in groups.values()):
            raise InputError.of("groups", dict(groups), "a mapping of at least one group to its number of samples >= 1")
        self.groups = dict(sorted(groups.items()))
        self._offsets: dict[str, int] = {}
        total = 0
        for name, count in self.groups.items():
            self._offsets[name] = total
            total += count
        self._total = total

    def __len__(self) -> int:
        return self._total

    def index(self, groups: Sequence[str], members: Sequence[int]) -> Tensor:
        """``(B,)`` int64 indices of samples given by group and position inside the group.

        Raises:
            InputError: for a group or a position that was not announced.
        """
        for name, member in zip(groups, members, strict=True):
            if name not in self.groups or not 0 <= member < self.groups[name]:
                raise InputError(
                    f"sample {name!r} [{member}] is not among the {len(self)} samples in {len(self.groups)} groups "
                    "that were announced at the start; announce every training sample before the first step."
                )
        return torch.tensor([self._offsets[g] + int(m) for g, m in zip(groups, members, strict=True)])

    def group_of(self) -> Tensor:
        """``(len,)`` int64: the number of each sample's group, in the order of :attr:`groups`.

        Example:
            >>> SampleIds({"case_b": 2, "case_a": 3}).group_of().tolist()
            [0, 0, 0, 1, 1]
        """
        return torch.repeat_interleave(torch.tensor(list(self.groups.values())))

    def differences(self, other: Mapping[str, int]) -> str:
        """One phrase that says how ``other`` differs from these groups; empty if it does not."""
        missing = sorted(set(self.groups) - set(other))
        extra = sorted(set(other) - set(self.groups))
        resized = sorted(n for n in set(self.groups) & set(other) if self.groups[n] != other[n])
        parts = [("without", missing), ("also with", extra), ("with another number of samples in", resized)]
        return "; ".join(f"{word} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                         for word, names in parts if names)  # fmt: skip


class SampleState:
    """One float, or an array of floats, per training sample.

    Args:
        default: value of a sample that was never updated.
        name: what the values are, for error messages.
        shape: of one sample's value; ``()`` is one number.
        shared: one value for all samples of a group (the slices of a case): each draw of one of them counts as one of
            the group, so that repeated draws, which are averaged, are the rule.

    The values live on the device given to :meth:`bind`; reads and updates never wait for the device.
    """

    def __init__(
        self, default: float, name: str = "state", shape: tuple[int, ...] = (), *, shared: bool = False
    ) -> None:
        self.default = default
        self.name = name
        self.shape = shape
        self.shared = shared
        self.ids: SampleIds | None = None
        self.values = torch.empty(0)
        self._group_of = torch.empty(0, dtype=torch.long)

    def bind(self, ids: SampleIds, device: torch.device | str = "cpu") -> None:
        """Announce the training samples; every value becomes the default."""
        self.ids = ids
        self._group_of = ids.group_of().to(device)
        count = len(ids.groups) if self.shared else len(ids)
        self.values = torch.full((count, *self.shape), float(self.default), device=device)

    def __getitem__(self, index: Tensor) -> Tensor:
        if self.ids is None:
            raise InputError(
                f"{self.name}: no samples are known; call the defence's bind(ids, device) before its first step."
            )
        return self.values[self._place(index)]

    def _place(self, index: Tensor) -> Tensor:
        """Where the values of these samples stand."""
        return self._group_of[index] if self.shared else index

    def update(self, index: Tensor, new: Tensor) -> None:
        """Set the values of the drawn samples, on all ranks alike.

        A sample drawn several times in one step, in one batch or on several ranks, becomes the mean of what its draws
        say: the result does not depend on the order of a batch nor on the number of ranks. Under ``torch.distributed``
        every rank must call this the same number of times (an empty index is allowed).
        """
        wide = wide_dtype(self.values.device)
        size = self.values[:1].numel()
        # Column 0 counts the draws of a sample, the others sum its values.
        total = torch.zeros(len(self.values), 1 + size, dtype=wide, device=self.values.device)
        drawn = torch.cat([total.new_ones(len(index), 1), new.to(wide).reshape(len(index), size)], 1)
        # index_put with accumulate is deterministic on the CPU; on CUDA the order of the float64 additions is not,
        # which matters only below float32 resolution.
        total.index_put_((self._place(index),), drawn, accumulate=True)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        count, columns = total[:, :1], self.values.reshape(-1, size)
        mean = (total[:, 1:] / count.clamp(min=1)).to(columns)
        self.values = torch.where(count > 0, mean, columns).view_as(self.values)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and one tensor: loads with ``weights_only=True``."""
        if self.ids is None:
            raise RuntimeError(f"{self.name}: bind the sample ids before saving")
        return {"groups": dict(self.ids.groups), "values": self.values.detach().cpu().clone()}

    def check(self, saved: Mapping[str, Any]) -> None:
        """Refuse a saved state of other samples, before anything is changed.

        Raises:
            InputError: the ids differ from the bound ones; the message says how.
        """
        if self.ids is None:
            raise RuntimeError(f"{self.name}: bind the sample ids before loading")
        difference = self.ids.differences(saved["groups"])
        if difference:
            raise InputError(
                f"{self.name}: the checkpoint belongs to {sum(saved['groups'].values())} other samples "
                f"({difference}) than the {len(self.ids)} of this training; restore the split and the preprocessed "
                "data it was trained on, or start a new training."
            )

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the values bit for bit; see :meth:`check` for what is refused.

        Values that were saved of samples, where groups share one now, become the group's mean; the other way round
        every sample gets its group's.
        """
        self.check(saved)
        values = saved["values"].to(self.values)
        if len(values) < len(self.values):
            values = values[self._group_of]
        elif len(values) > len(self.values):
            sums = torch.zeros_like(self.values).index_add(0, self._group_of, values)
            counts = torch.bincount(self._group_of, minlength=len(self.values)).to(sums)
            values = sums / counts.view(-1, *[1] * len(self.shape))
        self.values = values
