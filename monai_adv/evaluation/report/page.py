"""The report of an evaluation: one page that a clinician can read, and the same numbers for machines."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FunctionLoader, StrictUndefined

from monai_adv.attacks.autoattack import AutoAttack
from monai_adv.errors import InputError
from monai_adv.evaluation.described import Family, StageEntry
from monai_adv.evaluation.evidence.document import records_hash, write_evidence
from monai_adv.evaluation.evidence.glossary import GLOSSARY
from monai_adv.evaluation.evidence.history import sessions
from monai_adv.evaluation.evidence.subgroups import Subgroups, gap_sentence, kept_subgroups
from monai_adv.evaluation.evidence.summary import MARKS, figure_text, summary_of
from monai_adv.evaluation.evidence.summary import Summary as FirstPage
from monai_adv.evaluation.figures.results import Figures, ModelResults, gather
from monai_adv.evaluation.figures.sentences import opening, robustness, telling_level
from monai_adv.evaluation.figures.tables import as_csv, as_json, as_table
from monai_adv.evaluation.records import Level, level_name
from monai_adv.evaluation.report.as_text import axis_name, duration, interval, number, p_value, percent, points
from monai_adv.evaluation.report.bounds import ModelBounds, bounds_of
from monai_adv.evaluation.report.bounds import as_csv as bounds_csv
from monai_adv.evaluation.report.curves import Curve, chains, per_attack_curve, repetitions, worst_case_curve
from monai_adv.evaluation.report.trained import trained
from monai_adv.evaluation.report.variations import VariationFigures, variation_figures
from monai_adv.evaluation.report.worst_cases import WorstCase, worst_cases_of
from monai_adv.evaluation.settings import VERSIONS
from monai_adv.files import write_whole
from monai_adv.foreign_text import printable
from monai_adv.metrics import statistics
from monai_adv.metrics.statistics import Comparison, Summary, Test
from monai_adv.threats import Threat

SIGNIFICANT = 0.05
MOST_PATIENTS = 500
"""Rows of the table of patients, the lowest first; ``results.csv`` has all."""
MOST_COLUMNS = 6
"""Classes that get a column of their own in the table of all attacks; more are in ``tables.csv`` only."""
KNOWS: dict[Family, str] = {
    "random": "nothing",
    "white-box": "everything",
    "black-box": "its outputs",
    "transfer": "nothing: it has another model",
}


@dataclass(frozen=True)
class PatientRow:
    """A row of the table of patients: the anchor of its picture ("" if there is none), its score at every level."""

    name: str
    anchor: str
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Headline:
    """Clean score of a model; at some radii its worst case, random noise, and share of the intensity range."""

    clean: Summary
    levels: tuple[tuple[Level, Summary, str, str], ...]


def write_report(
    folder: str | Path,
    results: Figures | None = None,
    output: str | Path | None = None,
    bounds: Sequence[ModelBounds] | None = None,
) -> Path:
    """Write ``report.html``, ``results.json``, ``results.csv``, ``tables.csv``, curves as PNG, and ``evidence.json``.

    Each is written whole or not at all. The page needs no other file and no network; its curves are SVG whose points
    tell their values. A few lines of its own sort the tables of patients, which can be read without them. An
    evaluation that has not finished gets a page as well, which says so.

    Args:
        folder: of the evaluation.
        results: what :func:`gather` found in it; None: it is gathered here.
        output: where to write; default: the same folder.
        bounds: what :func:`bounds_of` found in it; None: they are read here.

    Returns:
        the page.

    Raises:
        InputError: not the folder of an evaluation, or one that cannot be written.
    """
    folder = Path(folder)
    results = gather(folder) if results is None else results
    main, per_model = _curves(results)
    summary = summary_of(results, sessions(folder), records_hash(folder).sha256, folder)
    bounds = bounds_of(folder, results) if bounds is None else bounds
    groups = kept_subgroups(folder, results)
    page = render(
        results, main, per_model, worst_cases_of(folder, results), summary, bounds, groups,
        variation_figures(folder, results),
    )  # fmt: skip
    output = folder if output is None else Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        curves = (*main, *(c for found in per_model.values() for c in found), *(found.curve for found in bounds))
        parts = {f"{curve.name}.png": curve.png for curve in curves}
        parts |= {"results.json": as_json(results).encode(errors="backslashreplace")}
        tables = [("results.csv", as_csv(results)), ("tables.csv", as_table(results)), ("report.html", page)]
        tables += [("certificates.csv", bounds_csv(bounds))] if bounds else []
        for name, text in tables:
            parts[name] = text.encode(errors="backslashreplace")
        for name, content in parts.items():
            write_whole(output / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
        write_evidence(folder, results, output, hashes)
    except OSError as error:
        raise InputError.of("folder", str(output), f"a folder that can be written ({error.strerror})") from error
    return output / "report.html"


def render(
    results: Figures,
    curves: Sequence[Curve],
    per_model: Mapping[str, Sequence[Curve]],
    worst_cases: Mapping[str, Sequence[WorstCase]],
    summary: FirstPage | None = None,
    bounds: Sequence[ModelBounds] = (),
    groups: Subgroups | None = None,
    variation_figures: Mapping[str, VariationFigures] | None = None,
) -> str:
    """The page as text.

    Args:
        results: the numbers.
        curves: the main figures, one per norm and unit.
        per_model: name -> its figures, one line per attack.
        worst_cases: name -> pictures with captions.
        summary: the first page, where a purpose was stated.
        bounds: of smoothed models, what is proven beside what was found.
        groups: of the cases, where a table of them was given.
        variation_figures: name -> what is drawn of its natural variations.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown,
        loader=FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
    )  # fmt: skip
    environment.filters.update(
        percent=percent,
        points=points,
        p=p_value,
        interval=interval,
        seconds=duration,
        data_uri=_data_uri,
        number=number,
    )
    template = environment.get_template("page.html.j2")
    segmentation = results.kind == "segmentation"
    return template.render(
        results=results,
        summary=summary,
        smoothed=bounds,
        variation_figures=variation_figures or {},
        marks=MARKS,
        figure_text=figure_text,
        glossary=GLOSSARY,
        groups=groups,
        gap_sentence=gap_sentence,
        evaluation=results.evaluation,
        settings=results.evaluation.settings,
        models=results.models,
        levels=results.levels,
        chains=chains(results.levels),
        curves=curves,
        repeated=len(repetitions([m.name for m in results.models])) < len(results.models),
        per_model=per_model,
        worst_cases=worst_cases,
        segmentation=segmentation,
        score="Dice" if segmentation else "accuracy",
        one="patient" if segmentation else "image",
        level_name=level_name,
        short_name=lambda level: level_name(level).replace(" ", "\u00a0"),
        level_names={level.key: level_name(level) for level in results.levels},
        knows=KNOWS,
        per_class=max(len(m.classes) for m in results.models) <= MOST_COLUMNS,
        measure="dice" if segmentation else "sensitivity",
        probing=sum(m.probes.seconds for m in results.models if m.probes),
        opening=opening(results),
        trained=trained,
        robustness={m.name: robustness(m, results.levels) for m in results.models},
        patients={m.name: _patients(results, m, worst_cases[m.name]) for m in results.models} if segmentation else {},
        anchors={m.name: {p.case: p.id for p in worst_cases[m.name]} for m in results.models},
        most_patients=MOST_PATIENTS,
        headline=_headline,
        in_words=_all_in_words,
        deviations=_deviations(results),
        noise={m.name: m.noise for m in results.models},
        settings_of=_settings_of,
        doubtful=[m.name for m in results.models if m.verdict.word == "not reliable"],
        nan=math.isnan,
        points=points,
        percent=percent,
        resamples=statistics.RESAMPLES,
        fewest=statistics.FEWEST,
    )


def _shown(value: Any) -> Any:
    """Names from elsewhere, without control characters; jinja escapes what is markup in them."""
    return printable(value) if type(value) is str else value


# ---------------------------------------------------------------------------------------------------------- sentences


def _headline(model: ModelResults, levels: Sequence[Level]) -> Headline:
    """At up to three radii of the first norm."""
    measured = [v for v in levels if v.key in model.summaries and model.summaries[v.key].count]
    first = [v for v in measured if (v.norm, v.unit) == (measured[0].norm, measured[0].unit)]
    if len(first) > 3:
        middle = telling_level([model], first[1:-1])
        first = [first[0], *([middle] if middle else []), first[-1]]
    noise, relative = model.attacks.get(model.noise, {}), model.probes.relative if model.probes else {}
    told = tuple(
        (
            level,
            model.summaries[level.key],
            f"{percent(noise[level.key].mean)}\u00a0%" if level.key in noise else "",
            f"{100 * relative[level.key]:.2g}\u00a0%" if level.key in relative else "",
        )
        for level in first
    )
    return Headline(model.summaries[""], told)


def _in_words(comparison: Comparison, score: str) -> str:
    """What the paired test says, for a reader who does not read p-values."""
    test: Test = comparison.tests[0]
    if comparison.count == 0:
        return "No case was scored for both models."
    if math.isnan(test.p):
        return f"No test: {test.note}."
    higher, lower = (
        (comparison.second, comparison.first) if comparison.difference > 0 else (comparison.first, comparison.second)
    )
    if test.holm < SIGNIFICANT:
        little = ", by less than 0.1 points" if abs(comparison.difference) < 5e-4 else ""
        return (
            f"{higher} has the higher {score} than {lower}{little}; chance alone would rarely give such a difference."
        )
    if test.p < SIGNIFICANT:
        return "Not convincing: a small p by itself, but one of several tests."
    return "These cases do not show a difference; that is not proof that there is none."


def _all_in_words(
    comparisons: Sequence[Comparison], score: str, names: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """(sentence, radii that it is true of) for two models."""
    places: dict[str, list[str]] = {}
    for comparison in comparisons:
        places.setdefault(_in_words(comparison, score), []).append(names.get(comparison.level, "unchanged"))
    return list(places.items())


def _deviations(results: Figures) -> list[tuple[list[str], tuple[str, ...]]]:
    """How the attacks differ from AutoAttack as published: (names of the models, sentences)."""
    found: dict[tuple[str, ...], list[str]] = {}
    for model in results.models:
        found.setdefault(_deviations_of(model, results.evaluation.settings.attacks), []).append(model.name)
    return [(names, sentences) for sentences, names in found.items()]


def _deviations_of(model: ModelResults, attacks: str) -> tuple[str, ...]:
    if attacks not in VERSIONS:
        return (f"The attacks are the plan {attacks}, which was given: the worst case is over those and random noise.",)
    if model.kind == "segmentation":
        return (
            "AutoAttack is defined for classification. For segmentation the worst case per patient over the attacks "
            "below counts, judged by the hard Dice of each patient.",
        )
    if attacks == "quick":
        return ("“Quick” is not AutoAttack: its attacks are fewer, shorter and all use gradients.",)
    besides = ("Random noise is run besides, which can only lower the worst case.",) if model.noise else ()
    name: Literal["standard", "plus"] = "standard" if attacks == "standard" else "plus"
    return AutoAttack(Threat("linf", 1.0), len(model.classes), name).deviations + besides


def _settings_of(stage: StageEntry) -> str:
    """``"APGD: steps 100, loss dlr"``, without what is empty."""
    settings = dict(stage.settings)
    kind = str(settings.pop("attack", ""))
    parts = _short(settings)
    return f"{kind}: {parts}" if kind and parts else kind or parts


def _short(value: Any) -> str:
    """Example:

    >>> _short({"phases": [{"attack": "Phase", "steps": 20, "loss": "cross_entropy"}], "until": "lowest", "box": None})
    'phases [steps 20, loss cross entropy], until lowest'
    """
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if k != "attack" and v not in (None, "", [], {})}
        return ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in kept.items())
    if isinstance(value, list):
        parts = (
            "; ".join(map(_short, value))
            if any(isinstance(v, Mapping) for v in value)
            else ", ".join(map(_short, value))
        )
        return f"[{parts}]"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


# ------------------------------------------------------------------------------------------------- curves and tables


def _curves(results: Figures) -> tuple[list[Curve], dict[str, list[Curve]]]:
    groups, records, kind = chains(results.levels), results.records, results.kind
    if not records:
        return [], {m.name: [] for m in results.models}
    unit = results.models[0].unit if len({m.unit for m in results.models}) == 1 else "units of each model's input"
    noise = results.models[0].noise
    main = [worst_case_curve(results.joint, group, kind, axis_name(group[0], unit), noise) for group in groups]
    per_model = {
        m.name: [
            per_attack_curve(records, m.name, group, kind, axis_name(group[0], m.unit), number)
            for group in groups
            if any(r.model == m.name and r.level == group[0].key for r in records)
        ]
        for number, m in enumerate(results.models, start=1)
    }
    return main, per_model


def _patients(results: Figures, model: ModelResults, shown: Sequence[WorstCase]) -> list[PatientRow]:
    """The lowest at the last radius first."""
    keys = ["", *(v.key for v in results.levels if v.key in model.summaries)]
    columns = [results.scores(model.name, key) for key in keys]
    anchors = {p.case: p.id for p in shown}
    rows = [
        PatientRow(
            patient,
            anchors.get(patient, ""),
            tuple(c[case, patient].score if (case, patient) in c else math.nan for c in columns),
        )
        for case, patient in columns[0]
    ]
    return sorted(rows, key=lambda row: (math.isnan(row.scores[-1]), row.scores[-1]))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
