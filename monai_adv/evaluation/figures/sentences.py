"""What an evaluation says in words: how robust a model is, and three sentences for everybody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from monai_adv.evaluation.figures.results import Figures, ModelResults
from monai_adv.evaluation.records import Level, level_name
from monai_adv.wording import counted

HOLDS, WEAK = 0.75, 0.5
"""Shares of the clean score: from the first on a model holds, below the second it is not robust."""
WORDS = (
    (0.9, "nearly all"), (HOLDS, "most"), (WEAK, "more than half"), (0.25, "less than half"), (0.1, "little"),
    (-math.inf, "next to nothing"),
)  # fmt: skip
MOST_NAMES = 4
"""Models that one sentence names; of more, the best and the worst."""


@dataclass(frozen=True)
class Robustness:
    """How much of its clean score a model keeps.

    Attributes:
        word: the badge.
        tone: its colour; "good" only if the figures are reliable as well.
        shares: (radius, share of the clean mean that is kept), in the order of the radii.
    """

    word: str
    tone: Literal["good", "open", "bad"]
    shares: tuple[tuple[Level, float], ...]

    @property
    def text(self) -> str:
        """Example: "keeps 62 % of its clean score at L2 5 (more than half), 6 % at L2 15 (next to nothing)"."""
        parts = [f"{_whole(share)} at {radius_name(level)} ({_in_words(share)})" for level, share in self.shares]
        parts[:1] = [first.replace(" %", " % of its clean score", 1) for first in parts[:1]]
        return f"keeps {', '.join(parts)}" if parts else "nothing has been attacked yet"


def robustness(model: ModelResults, levels: Sequence[Level]) -> Robustness:
    """The lowest share over the radii decides: falling at one of them is falling."""
    clean = model.summaries[""].mean
    known = [(v, model.summaries[v.key].mean / clean) for v in levels if v.key in model.summaries and clean > 0]
    shares = tuple((level, share) for level, share in known if not math.isnan(share))
    if not shares:
        return Robustness("not known", "open", ())
    lowest = min(share for _, share in shares)
    if lowest < WEAK:
        return Robustness("not robust", "bad", shares)
    if lowest < HOLDS:
        return Robustness("partly robust", "open", shares)
    if clean < WEAK:
        return Robustness("steady, but weak on unchanged images", "open", shares)
    if model.verdict.word != "reliable":
        return Robustness(f"looks robust, but: {model.verdict.word}", "open", shares)
    return Robustness("robust at every radius measured", "good", shares)


def opening(results: Figures) -> tuple[str, str, str]:
    """What was measured, what was found, what follows; one sentence each."""
    return _measured(results), _found(results), _follows(results)


def telling_level(models: Sequence[ModelResults], levels: Sequence[Level]) -> Level | None:
    """Where the models together are closest to half of their clean scores; None without a level."""

    def distance(level: Level) -> float:
        known = [m.summaries for m in models if level.key in m.summaries]
        return sum(abs(s[level.key].mean - s[""].mean / 2) for s in known) / max(len(known), 1)

    known = [v for v in levels if any(v.key in m.summaries for m in models) and not math.isnan(distance(v))]
    return min(known, key=distance, default=None)


def radius_name(level: Level) -> str:
    """Example:

    >>> radius_name(Level("l2", 0.1, "rms")), radius_name(Level("l2", 21, "raw"))
    ('RMS 0.1', 'RMS 21 (file units)')
    """
    if not level.is_rms:
        return level_name(level)
    return f"RMS {level.radius}" + (" (file units)" if level.unit == "raw" else "")


def _measured(results: Figures) -> str:
    one = "patient" if results.kind == "segmentation" else "image"
    most = max(m.summaries[""].count for m in results.models)
    who = results.models[0].name if len(results.models) == 1 else f"{len(results.models)} models"
    where = ", ".join(radius_name(v) for v in results.levels)
    if not where:
        return f"{who} answered for {counted(most, one)}; nothing has been attacked yet."
    of = "The scans" if one == "patient" else "The images"
    return f"{of} ({counted(most, one)}) were changed on purpose, by at most {where}, to make {who} err."


def _found(results: Figures) -> str:
    level = telling_level(results.models, results.levels)
    score = "Dice" if results.kind == "segmentation" else "accuracy"
    kept = {}
    for model in results.models:
        if level is None:
            break
        clean = results.joint_mean(model.name, "")
        share = results.joint_mean(model.name, level.key) / clean if clean > 0 else math.nan
        if not math.isnan(share):
            kept[model.name] = share
    if level is None or not kept:
        return "No score under attack is known yet."
    ranked = sorted(kept, key=kept.__getitem__, reverse=True)
    first, *others = kept if len(kept) <= MOST_NAMES else (ranked[0], ranked[-1])
    said = f"{first} keeps {_whole(kept[first])} of its {score} at {radius_name(level)}"
    said += "".join(f", {name} {_whole(kept[name])}" for name in others)
    if len(kept) > MOST_NAMES:
        return f"Of {len(kept)} models, {said}: the most and the least."
    if len(kept) == 1:
        model = next(m for m in results.models if m.name == first)
        noise = model.attacks.get(model.noise, {}).get(level.key)
        if noise and not math.isnan(noise.mean):
            said += f", and {_whole(noise.mean / model.summaries[''].mean)} under random noise of that size"
    return f"{said}."


def _follows(results: Figures) -> str:
    models = results.models
    by_word = {w: [m for m in models if m.verdict.word == w] for w in dict.fromkeys(m.verdict.word for m in models)}
    if bad := by_word.get("not reliable"):
        trust = f"Do not quote the figures of {_names(bad)}: a check FAILED, and the truth is lower"
    elif few := by_word.get("not enough measured"):
        trust = f"Too little was measured to rely on it ({'; '.join(few[0].verdict.reasons)})"
    elif by_word.get("not fully checked"):
        trust = "No check failed, but some were not run, so this is a first look"
    else:
        trust = "The figures can be trusted"
    found = {m.name: robustness(m, results.levels) for m in models}
    if weak := [m for m in models if found[m.name].tone == "bad"]:
        return f"{trust}; do not rely on {_names(weak)} where images may be changed on purpose."
    if any(not f.shares for f in found.values()):
        return f"{trust}."
    lowest = min(share for f in found.values() for _, share in f.shares)
    whose = "its" if len(models) == 1 else "their"
    return f"{trust}; at every radius measured at least {_whole(lowest)} of {whose} clean score is kept."


def _in_words(share: float) -> str:
    return next(word for limit, word in WORDS if share >= limit)


def _whole(share: float) -> str:
    """Rounded down: 74.9 % is not 75 %."""
    return f"{math.floor(100 * share + 1e-9)} %"


def _names(models: Sequence[ModelResults]) -> str:
    return ", ".join(m.name for m in models)
