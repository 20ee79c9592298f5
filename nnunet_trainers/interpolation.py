"""A checkpoint between a plain nnU-Net and the robust one that was fine-tuned from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_adv.errors import InputError
from monai_adv.interpolation import interpolated
from nnunet_trainers.checkpoint import SECTION, is_plain, kept, read_any, trained_by

KEPT = ("trainer_name", "init_args", "inference_allowed_mirroring_axes")
"""What nnU-Net needs to predict. Nobody can train on from such a file: no optimiser has been there."""


def checkpoints_between(plain: Path, robust: Path, shares: Sequence[float]) -> Iterator[dict[str, Any]]:
    """What nnU-Net's commands take with ``-chk``, in the folder of the robust model.

    Args:
        plain, robust: checkpoints of one data set, plans, configuration and fold.
        shares: of the robust weights, see :func:`monai_adv.interpolation.interpolated`.

    Raises:
        InputError: files that cannot be read, models of different things, or the two the wrong way round.
    """
    start, end = read_any(plain), read_any(robust)
    if not is_plain(start):
        raise InputError.of(
            "PLAIN", f"{plain} of {trained_by(start)}", "a model that no defence has trained", "it comes first"
        )
    for what, ours, theirs in zip(("data set", "plans", "configuration", "fold"), *map(_of, (start, end)), strict=True):
        if ours != theirs:
            raise InputError.of(
                what, f"{ours} in {plain}, {theirs} in {robust}", "the same in both",
                "take the model that the fine-tuning started from",
            )  # fmt: skip
    section = kept(end).get(SECTION, {})
    for share in shares:
        yield {
            **{name: end[name] for name in KEPT if name in end},
            "network_weights": interpolated(start["network_weights"], end["network_weights"], share),
            SECTION: {**section, "interpolated": {"plain": plain.name, "robust": robust.name, "share": share}},
        }


def _of(checkpoint: Mapping[str, Any]) -> tuple[Any, ...]:
    made_of = checkpoint.get("init_args") or {}
    plans = made_of.get("plans") or {}
    named = plans.get("dataset_name"), plans.get("plans_name"), made_of.get("configuration"), made_of.get("fold")
    return tuple(None if name is None else str(name) for name in named)
