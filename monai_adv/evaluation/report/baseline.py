"""Is a model worse than it was? For a test that runs by itself: an earlier ``results.json`` against a new one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_adv.errors import InputError, first_cause
from monai_adv.evaluation.codec import plain
from monai_adv.evaluation.figures.results import Figures
from monai_adv.evaluation.records import level_name, parse_level
from monai_adv.evaluation.settings import EvaluationSettings

HINT = "measure both in the same way"


@dataclass(frozen=True)
class Drop:
    """One model at one level, as tables call it ("" is clean): mean scores in percent, of the worst case."""

    model: str
    level: str
    before: float
    now: float

    def __str__(self) -> str:
        return f"{self.model}, {self.level or 'clean'}: {self.before:.1f} before, {self.now:.1f} now"


class Baseline:
    """An earlier evaluation.

    Args:
        file: its ``results.json``.
        settings: of the new one.

    Raises:
        InputError: a file that cannot be read, or an evaluation with other radii, attacks or cases.
    """

    def __init__(self, file: str | Path, settings: EvaluationSettings) -> None:
        self.file = str(file)
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            self._means: dict[str, dict[str, float | None]] = {
                m["name"]: {key: summary["mean"] for key, summary in m["summaries"].items()} for m in content["models"]
            }
            self._cases = {m["name"]: sorted(m["cases"]) for m in content["evaluation"]["models"]}
            before = content["evaluation"]["settings"]
            words = content["evaluation"].get("words", {})
            levels = [
                replace(parse_level(v["key"]), words=words.get(v["key"], "")) for v in content["evaluation"]["levels"]
            ]
            asked = plain(settings.entry())
            for word in ("attacks", "attacks_code", "cases", "box"):
                found = asked.get(word)
                if before.get(word) != found:
                    was, here = (_in_words(word, value) for value in (before[word], found))
                    raise InputError.of("--baseline", was, f"{here}, as here", HINT)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError.of("--baseline", self.file, "the results.json of a report", first_cause(error)) from error
        if [level.key for level in levels] != [level.key for level in settings.levels]:
            was, here = ("; ".join(map(level_name, those)) for those in (levels, settings.levels))
            raise InputError.of("--baseline", f"radii {was}", f"{here}, as here", HINT)

    def compare(self, results: Figures) -> Sequence[Drop]:
        """Every model that both have, at every level and clean.

        Raises:
            InputError: no model in common, or one with other cases; it may have lost some that cannot be used.
        """
        common = [m for m in results.models if m.name in self._means]
        if not common:
            allowed = f"one with {', '.join(m.name for m in results.models)}"
            raise InputError.of("--baseline", f"{self.file} with {', '.join(self._means)}", allowed)
        cases = {entry.name: sorted(entry.cases) for entry in results.evaluation.models}
        for model in common:
            if cases[model.name] != self._cases[model.name] or results.problems:
                raise InputError.of("--baseline", self.file, f"the same cases of {model.name}, all of them used", HINT)
        names = {level.key: level_name(level) for level in results.levels}
        return [
            Drop(model.name, names.get(key, ""), _percent(self._means[model.name].get(key)), _percent(summary.mean))
            for model in common
            for key, summary in model.summaries.items()
        ]


def larger_than(drops: Sequence[Drop], most: float) -> list[Drop]:
    """Those by more than so many points; a score that is no longer defined counts."""
    return [d for d in drops if not math.isnan(d.before) and not d.before - d.now <= most]


def _in_words(name: str, value: Any) -> str:
    """A setting as a user would say it."""
    if name == "attacks_code":
        return f"a plan with the code {value[:8]}"
    if value is None:
        return {"cases": "all cases", "box": "no box"}[name]
    return f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _percent(mean: float | None) -> float:
    return math.nan if mean is None else 100 * mean
