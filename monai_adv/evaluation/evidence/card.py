"""Figures, radii and limits of an evaluation for those who only see the model: a bundle's README and metadata, a card.

The card's front matter has the fields that the Hugging Face Hub documents (``model-index`` of its ``modelcard.md``:
task, dataset and metrics, each with its type). What is written lies between two marks, or under one key, so that
writing again replaces it and leaves the rest as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from monai_adv.errors import InputError, did_you_mean, first_cause
from monai_adv.evaluation.codec import optional, plain_values
from monai_adv.evaluation.evidence.document import digest_in
from monai_adv.evaluation.evidence.json_entry import with_entry
from monai_adv.evaluation.evidence.left_open import not_tested
from monai_adv.evaluation.evidence.subgroups import kept_subgroups
from monai_adv.evaluation.figures.results import Figures, ModelResults, gather
from monai_adv.evaluation.figures.sentences import robustness
from monai_adv.evaluation.records import CLEAN, WORST, Level, level_name
from monai_adv.files import write_whole
from monai_adv.foreign_text import printable
from monai_adv.metrics.statistics import Summary
from monai_adv.threats import Norm, RadiusUnit
from monai_adv.yaml_text import read_yaml

BEGIN, END = "<!-- monai-adv: robustness -->", "<!-- monai-adv: end of robustness -->"
KEY = "robustness"
TASKS = {"segmentation": ("image-segmentation", "dice"), "classification": ("image-classification", "accuracy")}
"""Kind of model -> task and metric, as the Hub calls them."""
UNMARKED = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


Free = dict[str, Any]
"""Metadata of a bundle, the front matter of a card: their form is their owners' and the Hub's own, not ours."""


@dataclass(frozen=True, kw_only=True)
class CardFigure:
    """A mean score with its 95 % interval; without an attack there is no radius."""

    attack: str
    norm: Norm | None = optional()
    eps: float | None = optional()
    unit: RadiusUnit | None = optional()
    value: float
    low: float
    high: float
    cases: int

    @classmethod
    def of(cls, summary: Summary, level: Level | None = None) -> CardFigure:
        """Of unchanged images, or the worst case at a level."""
        found = cls(
            attack=CLEAN, value=summary.mean, low=summary.interval.low, high=summary.interval.high,
            cases=summary.count,
        )  # fmt: skip
        if level is None:
            return found
        return replace(found, attack=WORST, norm=level.norm, eps=level.eps, unit=level.unit)


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What stands under :data:`KEY` in the metadata of a bundle.

    Attributes:
        measured_with: name and version of this package.
        date: ISO 8601.
        attacks: name of the plan.
        measure: dice or accuracy.
        unit_of_radii: in words.
        figures: clean, and the worst case at each radius.
        trust: how far the figures can be trusted.
        evidence: digest of ``evidence.json``; "" where there is none.
    """

    measured_with: str
    date: str
    attacks: str
    measure: str
    unit_of_radii: str
    figures: tuple[CardFigure, ...]
    trust: str
    evidence: str


@dataclass(frozen=True)
class Card:
    """What is told about one model.

    Attributes:
        folder: of the evaluation.
        figures: of the evaluation.
        model: of it.
    """

    folder: Path
    figures: Figures
    model: ModelResults

    @classmethod
    def of(cls, folder: str | Path, model: str | None = None) -> Card:
        """Read an evaluation.

        Args:
            folder: of the evaluation.
            model: which of several.

        Raises:
            InputError: no evaluation, an unknown model, several and none chosen, or one that is not finished.
        """
        figures = gather(folder)
        known = {m.name: m for m in figures.models}
        if model is None and len(known) > 1:
            raise InputError.of("model", model, " or ".join(known), "a card is about one model")
        if model is not None and model not in known:
            raise InputError.of("model", model, "one that was measured", did_you_mean(model, known))
        chosen = known[model] if model is not None else figures.models[0]
        if chosen.unfinished or not figures.levels:
            raise InputError.of("folder", str(folder), "a finished evaluation", "go on with it first")
        return cls(Path(folder), figures, chosen)

    def section(self) -> str:
        """Markdown, between its marks."""
        model, one = self.model, "patient" if self.model.kind == "segmentation" else "image"
        count = model.summaries[""].count
        score = "mean Dice" if one == "patient" else "accuracy"
        evaluation, robust = self.figures.evaluation, robustness(self.model, self.figures.levels)
        rows = [f"| unchanged | {_cell(model.summaries[''])} |"]
        for level in self.figures.levels:
            noise = model.attacks.get(model.noise, {}).get(level.key)
            if noise:
                rows.append(f"| random noise, {level_name(level)} | {_cell(noise)} |")
            rows.append(f"| worst case, {level_name(level)} | {_cell(model.summaries[level.key])} |")
        for row in model.variations.rows if model.variations else ():
            rows += [f"| {row.name}, {s.level} | {_cell(s.summary)} |" for s in row.strengths]
        lines = [
            BEGIN,
            "## Robustness",
            "",
            f"Measured on {count} {one}{'' if count == 1 else 's'} with monai-adv {evaluation.versions['monai-adv']}, "
            f"{evaluation.started[:10]}; attacks: {plain_text(evaluation.settings.attacks)}. "
            f"The figures are **{model.verdict.word}**; robustness: **{robust.word}**.",
            "",
            f"| {one}s | {score} in % (95 % interval) |",
            "|---|---|",
            *rows,
            "",
            f"Radii are in {plain_text(model.unit)}. Attacked: {plain_text(model.space)}. The worst case is the lowest "
            "score that any attack found: the true one can be lower.",
            "",
            "Limits:",
            "",
            *(
                f"- {each.sentence}"
                for each in not_tested(self.figures, kept_subgroups(self.folder, self.figures) is not None)
            ),
            END,
        ]
        return printable("\n".join(lines))

    def metadata(self) -> Robustness:
        """For ``metadata.json``."""
        model, evaluation = self.model, self.figures.evaluation
        worst = [CardFigure.of(model.summaries[v.key], v) for v in self.figures.levels]
        return Robustness(
            measured_with=f"monai-adv {evaluation.versions['monai-adv']}",
            date=evaluation.started[:10],
            attacks=evaluation.settings.attacks,
            measure=TASKS[model.kind][1],
            unit_of_radii=model.unit,
            figures=(CardFigure.of(model.summaries[""]), *worst),
            trust=model.verdict.word,
            evidence=digest_in(self.folder),
        )

    def model_index(self, dataset: str) -> list[Free]:
        """For the front matter of a card of the Hugging Face Hub.

        Args:
            dataset: its name.
        """
        task, metric = TASKS[self.model.kind]
        metrics = [{"type": metric, "name": f"{metric}, unchanged images", "value": _rounded(self.model.summaries[""])}]
        metrics += [
            {"type": metric, "name": f"{metric}, worst case at {level_name(v)}",
             "value": _rounded(self.model.summaries[v.key])} for v in self.figures.levels
        ]  # fmt: skip
        slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "dataset"
        result = {"task": {"type": task}, "dataset": {"type": slug, "name": dataset}, "metrics": metrics}
        return [{"name": printable(self.model.name), "results": [result]}]


def into_bundle(card: Card, bundle: str | Path) -> list[Path]:
    """Write into ``docs/README.md`` and ``configs/metadata.json`` of a bundle; all else in them stays.

    Returns:
        the files.

    Raises:
        InputError: no bundle, or files in it that cannot be read or written. Nothing is written then.
    """
    place = Path(bundle)
    readme, metadata = place / "docs" / "README.md", place / "configs" / "metadata.json"
    try:
        written = metadata.read_bytes().decode("utf-8")
        content = json.loads(written)
    except (OSError, ValueError) as error:
        allowed = "a bundle, with configs/metadata.json"
        raise InputError.of("bundle", str(bundle), allowed, first_cause(error)) from error
    if not isinstance(content, dict):
        raise InputError.of("bundle", str(metadata), "metadata that are a mapping")
    text = _with_section(readme, card.section(), f"# {content.get('name', place.name)}\n")
    _write(readme, text)
    _write(metadata, with_entry(written, KEY, plain_values(card.metadata())))
    return [readme, metadata]


def as_hub_card(card: Card, file: str | Path, dataset: str) -> Path:
    """Write a card for the Hugging Face Hub, or into the one that is there.

    Other fields of its front matter stay; comments in it do not.

    Raises:
        InputError: a file that cannot be read or written. Nothing is written then.
    """
    path = Path(file)
    text = _with_section(path, card.section(), f"# {printable(card.model.name)}\n")
    front, body = _front_matter(path, text)
    front.setdefault("tags", ["medical", "adversarial-robustness"])
    front["model-index"] = card.model_index(dataset)
    _write(path, f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{body}")
    return path


def _with_section(path: Path, section: str, title: str) -> str:
    """The text of a file with the section in its place, or at its end."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else title
    except (OSError, ValueError) as error:
        raise InputError.of("card", str(path), "a text file that can be read", first_cause(error)) from error
    begins, ends = text.count(BEGIN), text.count(END)
    if (begins, ends) == (0, 0):
        return f"{text.rstrip()}\n\n{section}\n"
    if (begins, ends) != (1, 1) or text.index(BEGIN) > text.index(END):
        found = f"{begins} lines {BEGIN!r} and {ends} lines {END!r} in {path}"
        raise InputError.of("card", found, "one of each, in this order", "remove what is left of an older section")
    before, _, rest = text.partition(BEGIN)
    return before + section + rest.partition(END)[2]


def _front_matter(path: Path, text: str) -> tuple[Free, str]:
    """Front matter and body of a card."""
    match = re.match(r"---\n(.*?)^---\n", text, re.DOTALL | re.MULTILINE)
    if match is None:
        return {}, text
    try:
        front = read_yaml(match[1]) or {}
        if not isinstance(front, Mapping):
            raise ValueError("it is not a mapping")
    except (ValueError, yaml.YAMLError) as error:
        raise InputError.of("card", str(path), "a front matter in YAML", first_cause(error)) from error
    return dict(front), text[match.end() :]


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise InputError.of("card", str(path), f"a file that can be written ({error.strerror})") from error


def _cell(summary: Summary) -> str:
    low, high = 100 * summary.interval.low, 100 * summary.interval.high
    between = f" ({low:.1f} to {high:.1f})" if summary.interval.exists else ""
    return "not defined" if math.isnan(summary.mean) else f"{100 * summary.mean:.1f}{between}"


def _rounded(summary: Summary) -> float | None:
    return None if math.isnan(summary.mean) else round(summary.mean, 4)


def plain_text(text: str) -> str:
    """Text from elsewhere, without a meaning in Markdown."""
    return " ".join(printable(text).split()).translate(UNMARKED)
