"""Natural variations of a model's images beside the attacks: which, and what each leaves of a case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.evaluation.codec import Plain
from monai_adv.evaluation.described import CorruptionEntry
from monai_adv.evaluation.models.protocol import Case, Model, Picture
from monai_adv.evaluation.records import CORRUPTION, NOT_APPLICABLE, Record
from monai_adv.metrics.score import Score
from monai_adv.random_streams import seed_of
from monai_adv.variations import NotApplicable, Step, steps
from monai_adv.variations.scan import Change, Scan

TRIED = 3
"""Cases of which one has to be readable, for a first look."""


def variation_entry(step: Step) -> CorruptionEntry:
    """Attack and level of its records."""
    return CorruptionEntry(name=CORRUPTION + step.variation.key, severity=str(step.severity))


def steps_of(words: Sequence[str], model: Any) -> list[Step]:
    """The variations of a model's images, by what its data set calls their channels."""
    return steps(words, model.channel_names) if words else []


def checked_steps(words: Sequence[str], model: Model) -> list[Step]:
    """The same before anything is computed, tried on one of the model's cases.

    Args:
        words: what was asked for.
        model: with its cases.

    Raises:
        InputError: a model whose images cannot be varied, channels of another modality, or images for which none of the
            variations exists.
    """
    if not words:
        return []
    if not (hasattr(model, "load_varied") and hasattr(model, "channel_names")):
        allowed = "none for a model without a method load_varied"
        raise InputError.of("variations", list(words), allowed, f"{model.name} is one of your own")
    found = steps_of(words, model)
    each = {step.variation.key: step for step in found}.values()
    for case in model.cases[:TRIED]:
        try:
            model.load(case)
        except Exception:  # it is told when all cases are read
            continue
        reasons = []
        for step in each:
            if not (reason := _reason(model, case, step)):
                return found
            reasons.append(reason)
        raise InputError.of("variations", " ".join(words), f"variations that exist for {case}", reasons[0])
    return found


def largest(model: Any, case: str) -> Case:
    """A case as large as variations can make it: hosts cut background off, and noise leaves none."""
    found: Case = model.load_varied(case, lambda scan, number: scan.voxels.abs() + 1)
    return found


def _reason(model: Any, case: str, step: Step) -> str:
    """Why a variation does not exist for a case; "" if it does."""
    try:
        model.load_varied(case, step.change(lambda number: 0))
    except NotApplicable as reason:
        return str(reason)
    return ""


def measured(model: Any, case: str, step: Step, seed: int) -> tuple[Record, list[Picture]]:
    """One variation at one severity on a case.

    Args:
        model: a :class:`~monai_adv.evaluation.models.protocol.Varied`, with its cases.
        case: name.
        step: what happens to its images.
        seed: of the evaluation.

    Returns:
        its record, without scores where the variation does not exist for the case, and what a page can draw of it: a
        slice of the case's first image before and after, in the units in which it is varied.
    """
    start, variation = time.perf_counter(), step.variation
    settings: Plain = {
        "meaning": variation.meaning, "level": variation.words(step.severity), "source": variation.source,
        "at": model.varied_at,
    }  # fmt: skip
    seen = _Seen(step.change(partial(_seed, seed, case, variation.key)), step.channels)
    scores: tuple[Score, ...] = ()
    inputs = 0
    try:
        loaded: Case = model.load_varied(case, seen)
        scores, inputs = tuple(loaded.scores(loaded.images)), len(loaded.images)
    except NotApplicable as reason:
        settings[NOT_APPLICABLE] = str(reason)
    entry = variation_entry(step)
    record = Record(
        model.name, case, entry.severity, entry.name, scores, scores,
        forward=inputs, seconds=time.perf_counter() - start, settings=settings,
    )  # fmt: skip
    before, after = seen.slices or (None, None)
    return record, [Picture(score.case, before, after, caption=seen.caption) for score in scores[:1]]


class _Seen:
    """A change that keeps the middle slice of the first image that it changes."""

    def __init__(self, change: Change, channels: tuple[int, ...] | None) -> None:
        self.change, self.channel = change, channels[0] if channels else 0
        self.slices: tuple[Any, ...] = ()
        self.caption = ""

    def __call__(self, scan: Scan, number: int) -> Tensor:
        varied = self.change(scan, number)
        if not self.slices:
            count = scan.voxels.shape[1]
            self.slices = tuple(voxels[self.channel, count // 2].numpy() for voxels in (scan.voxels, varied))
            self.caption = f"slice {count // 2 + 1} of {count}" if count > 1 else ""
        return varied


def _seed(seed: int, case: str, key: str, number: int) -> int:
    """Of all severities the same, so that they show one growing artefact; 56 bits, as in the published figures."""
    return seed_of(seed, case, key, number) >> 7
