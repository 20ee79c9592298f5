"""Which samples a batch holds, for methods that remember samples: a slice of a case in 2D, a case in 3D."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.sample_state import SampleIds


def samples_of(dataset: Any, slices: bool) -> SampleIds:
    """All samples of nnU-Net's data set.

    Args:
        dataset: as the host's trainer makes it.
        slices: each slice of a case is a sample; otherwise the case.
    """
    cases = dataset.identifiers
    if slices:
        return SampleIds({case: int(dataset.load_case(case)[0].shape[1]) for case in cases})
    return SampleIds(dict.fromkeys(cases, 1))


def ids_of(batch: dict[str, Any], samples: SampleIds, slices: bool, loader: Any, method: str) -> Tensor:
    """Their ids ``(B,)``, on the CPU.

    Args:
        batch: the host's.
        samples: of :func:`samples_of`.
        slices: each slice of a case is a sample.
        loader, method: for the refusal.

    Raises:
        InputError: the loader does not say which samples it returns.
    """
    for name in ("keys", "slices") if slices else ("keys",):
        if name not in batch:
            todo = "derive it from nnunet_trainers.slice_loader.SliceDataLoader"
            raise unknown_samples(loader, f"the key {name!r} in its batches", method, todo)
    return samples.index(batch["keys"], batch["slices"] if slices else [0] * len(batch["keys"]))


def unwrapped(loader: Any) -> Any:
    """The loader that makes batches, without batchgenerators' processes around it."""
    return getattr(loader, "generator", getattr(loader, "data_loader", loader))


def unknown_samples(loader: Any, what: str, method: str, todo: str) -> InputError:
    """For a loader of the user's own.

    Args:
        loader: perhaps in wrappers of nnU-Net's.
        what: is missing.
        method: by name.
        todo: what to do.
    """
    return InputError.of(
        "data loader", f"{type(unwrapped(loader)).__name__} without {what}",
        f"a loader that says which case and slice each sample is: {method} remembers every sample", todo,
    )  # fmt: skip
