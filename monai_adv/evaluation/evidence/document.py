"""``evidence.json``: an evaluation in one file for machines and archives, with hashes of all that it rests on.

Everything in it but the time of writing follows from the folder of the evaluation, so that :mod:`.verify` can make it
again and compare. Its schema is ``evidence.schema.json`` beside this file. Names of patients are in it only where a
case was left out, or chosen by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from monai_adv.evaluation import seal, store
from monai_adv.evaluation.certify.kept import read_certified
from monai_adv.evaluation.clock import now
from monai_adv.evaluation.codec import Json, plain, plain_values, typed
from monai_adv.evaluation.described import LevelEntry, ModelEntry
from monai_adv.evaluation.evidence import certified
from monai_adv.evaluation.evidence.code import files_hash
from monai_adv.evaluation.evidence.content import (
    Cases,
    Check,
    Decided,
    Evidence,
    Figure,
    GroupFigure,
    Hashes,
    MeasuredLevel,
    Measurement,
    ModelEvidence,
    ModelFile,
    ModelHashes,
    RecordsHash,
    SessionEntry,
    SubgroupEvidence,
)
from monai_adv.evaluation.evidence.decisions import Decision, decide
from monai_adv.evaluation.evidence.history import purpose_of, sessions
from monai_adv.evaluation.evidence.left_open import deviations, not_tested
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.evidence.subgroups import Subgroups, kept_subgroups
from monai_adv.evaluation.figures.results import Figures, ModelResults
from monai_adv.evaluation.figures.sentences import robustness
from monai_adv.evaluation.figures.tables import Cell, table_rows
from monai_adv.files import write_whole
from monai_adv.metrics.statistics import Summary

NAME = "evidence.json"
SCHEMA = "urn:monai-adv:evidence:1"
KEPT = (
    "evaluation.json",
    "history.json",
    "subgroups.json",
    "records",
    "probes",
    "problems",
    "pictures",
    "certificates",
)
"""What of an evaluation's folder its figures rest on."""
CERTIFICATES = "certificates.csv"
"""The table of `monai-adv certify`."""


def write_evidence(folder: Path, figures: Figures, output: Path, report: Mapping[str, str]) -> Path:
    """Write the evidence of an evaluation beside its report.

    Args:
        folder: of the evaluation.
        figures: what was gathered there.
        output: where the report lies.
        report: its files with their hashes.

    Returns:
        the file.

    Raises:
        OSError: it cannot be written.
    """
    found = document(folder, figures, now(), report)
    content = plain_values(replace(found, digest=digest_of(plain_values(found))))
    check_schema(content)
    write_whole(output / NAME, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
    return output / NAME


def document(folder: Path, figures: Figures, written: str, report: Mapping[str, str]) -> Evidence:
    """All but the digest."""
    evaluation, history = figures.evaluation, sessions(folder)
    groups = kept_subgroups(folder, figures)
    purpose = purpose_of(history)
    rows = table_rows(figures)
    return Evidence(
        schema=SCHEMA,
        written=written,
        intended_use=purpose.intended_use,
        acceptance=purpose.criteria,
        measurement=Measurement(
            started=evaluation.started,
            machine=evaluation.machine,
            versions=evaluation.versions,
            settings=evaluation.settings,
            levels=tuple(MeasuredLevel(**vars(LevelEntry.of(v)), words=v.words) for v in figures.levels),
            command=evaluation.run_file,
            sessions=tuple(SessionEntry(at=s.at, machine=s.machine, records=s.records, code=s.code) for s in history),
        ),
        models=tuple(
            _model(folder, figures, model, evaluation.models[i], purpose, rows)
            for i, model in enumerate(figures.models)
        ),
        subgroups=_subgroups(groups) if groups else None,
        comparisons=tuple(figures.comparisons),
        not_tested=tuple(not_tested(figures, groups is not None)),
        deviations=tuple(deviations(figures, history)),
        hashes=Hashes(records=records_hash(folder), report=dict(report)),
    )


def _model(
    folder: Path,
    figures: Figures,
    model: ModelResults,
    entry: ModelEntry,
    purpose: Purpose,
    rows: list[dict[str, Cell]],
) -> ModelEvidence:
    marks, settings = store.Store(folder).marks(model.name), figures.evaluation.settings
    mine = [_of_table(row) for row in rows if row["model"] == model.name]
    mine += [
        _mean(severity, f"corruption: {name}", summary)
        for name, found in model.corruptions.items() for severity, summary in found.items()
    ]  # fmt: skip
    mine += [
        _mean(strength.level, f"variation: {row.name}", strength.summary)
        for row in (model.variations.rows if model.variations else ()) for strength in row.strengths
    ]  # fmt: skip
    mine += certified.beside_attacks(folder, figures, model)
    proven = certified.proof(folder, figures, model)
    decisions = [decide(c, model, figures, proven.get(c.level)) for c in purpose.criteria if not settings.certify]
    trust, checks, word = model.verdict, tuple(model.flags), robustness(model, figures.levels).word
    if settings.certify:  # the tables above are of attacks and empty
        mine, trust, checks = certified.alone(folder, entry, settings.certify)
        word = certified.NOT_ATTACKED
        cases = read_certified(store.Store(folder), entry.name, entry.cases)
        decisions = [certified.decide_alone(c, cases, entry, settings.certify.seed) for c in purpose.criteria]
    return ModelEvidence(
        name=model.name,
        kind=model.kind,
        classes=model.classes,
        attacked=model.space,
        unit=model.unit,
        cases=Cases(count=len(entry.cases), hash=seal.checksum({"cases": list(entry.cases)})),
        hashes=ModelHashes(
            in_memory=entry.fingerprint,
            all_in_files=entry.in_files,
            files=entry.files,
            data=entry.data,
            plan=seal.checksum(plain({"stages": entry.stages, "corruptions": entry.corruptions})),
            plan_code=settings.attacks_code,
        ),
        files=tuple(ModelFile(name=Path(p).name, bytes=mark[0], sha256=mark[3]) for p, mark in marks.items()),
        trust=trust,
        checks=tuple(Check(name=f.name, outcome=f.outcome, measured=f.measured) for f in checks),
        robustness=word,
        figures=tuple(mine),
        acceptance=tuple(_decided(each) for each in decisions),
    )


def _of_table(row: Mapping[str, Cell]) -> Figure:
    """Without the name of a patient."""
    content = {name: value for name, value in row.items() if name not in ("model", "lowest_patient")}
    return typed(Figure, {"low": None, "high": None} | content)


def _mean(level: str, attack: str, summary: Summary) -> Figure:
    return Figure(
        level=level, attack=attack, of="all", measure="mean score", value=summary.mean, low=summary.interval.low,
        high=summary.interval.high, count=summary.count,
    )  # fmt: skip


def _decided(found: Decision) -> Decided:
    criterion, interval = found.criterion, found.measured.interval
    return Decided(
        measure=criterion.measure, level=criterion.level, outcome=found.outcome, why=found.why,
        value=found.measured.value, low=interval.low, high=interval.high, count=found.measured.count,
    )  # fmt: skip


def _subgroups(found: Subgroups) -> SubgroupEvidence:
    return SubgroupEvidence(
        table=found.table.name,
        hash=found.table.hash,
        edges=found.table.binned,
        groups=tuple(
            GroupFigure(model=g.model, column=g.column, group=g.name, small=g.small, level=key, value=s.mean,
                        low=s.interval.low, high=s.interval.high, count=s.count)
            for g in found.groups for key, s in g.summaries.items()
        ),
        gaps=found.gaps,
    )  # fmt: skip


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a file without its digest, in whatever order and spacing."""
    return seal.checksum({name: value for name, value in content.items() if name != "digest"}, SCHEMA)


def digest_in(folder: str | Path) -> str:
    """The digest of the evidence in a folder, computed anew; "" where there is none."""
    path = Path(folder) / NAME
    return digest_of(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ""


def records_hash(folder: Path) -> RecordsHash:
    """Of all files that the figures rest on."""
    places = [folder / name for name in KEPT]
    found = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    kept = [file for file in found if file.is_file() and not file.name.endswith(".partial")]
    digest = files_hash((file.relative_to(folder).as_posix(), file) for file in kept)
    return RecordsHash(sha256=digest, files=len(kept))


@cache
def schema() -> Json:
    """The JSON schema of ``evidence.json``, draft 2020-12."""
    found: Json = json.loads(files(__package__).joinpath("evidence.schema.json").read_text(encoding="utf-8"))
    return found


def check_schema(content: Mapping[str, Any]) -> None:
    """Hold a document against the schema.

    Raises:
        jsonschema.ValidationError: says what does not fit.
    """
    from jsonschema import Draft202012Validator

    Draft202012Validator(schema()).validate(dict(content))
