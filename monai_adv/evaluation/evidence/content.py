"""What stands in ``evidence.json``, typed; ``evidence.schema.json`` tells the same to those who read it without us.

A figure that is not defined is NaN here and null in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from monai_adv.evaluation.checks import verdict
from monai_adv.evaluation.checks.verdict import Verdict
from monai_adv.evaluation.codec import keyed, optional
from monai_adv.evaluation.described import LevelEntry, SettingsEntry
from monai_adv.evaluation.evidence.decisions import Outcome
from monai_adv.evaluation.evidence.left_open import Untested
from monai_adv.evaluation.evidence.purpose import Criterion
from monai_adv.evaluation.evidence.subgroups import Gap
from monai_adv.metrics.score import Kind
from monai_adv.metrics.statistics import Comparison
from monai_adv.threats import Norm, RadiusUnit


@dataclass(frozen=True, kw_only=True)
class MeasuredLevel(LevelEntry):
    """A radius; ``words``: as the user wrote it, where that is not the number itself."""

    words: str


@dataclass(frozen=True, kw_only=True)
class SessionEntry:
    """One command that worked in the folder; see :class:`monai_adv.evaluation.evidence.history.Session`."""

    at: str
    machine: str
    records: int
    code: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How it was measured.

    Attributes:
        started, machine, versions, settings: as in ``evaluation.json``.
        levels: the radii.
        command: what was asked for on the command line, as YAML for ``--run``, or the words of ``certify``.
        sessions: the first one first.
    """

    started: str
    machine: str
    versions: dict[str, str]
    settings: SettingsEntry
    levels: tuple[MeasuredLevel, ...]
    command: str
    sessions: tuple[SessionEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Cases:
    """How many there are, and the hash of their names."""

    count: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class ModelHashes:
    """Of what a model is made of; "" where there is none.

    Attributes:
        in_memory: weights and data as they were opened.
        all_in_files: whether both come from files.
        files: of their contents.
        data: images and labels alone.
        plan: attacks with their settings, and corruptions.
        plan_code: of a plan of the user's own.
    """

    in_memory: str
    all_in_files: bool
    files: str
    data: str
    plan: str
    plan_code: str


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file that a model or its data come from, without its folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """One red flag, in short; see :class:`monai_adv.evaluation.checks.verdict.Flag`."""

    name: str
    outcome: verdict.Outcome
    measured: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the tables.

    Attributes:
        level: key of the radius, "" without an attack, or a severity.
        norm, eps, unit: of the radius.
        attack: its name, "clean", "worst case", "certificate", "corruption: NAME" or "variation: NAME".
        of: class, or "all".
        measure: in the words of ``tables.csv``.
        value: a share, or mm.
        low, high: of its 95 % interval.
        lowest: of the patients.
        count: cases that it is a figure of.
    """

    level: str
    norm: Norm | None = optional()
    eps: float | None = optional()
    unit: RadiusUnit | None = optional()
    attack: str
    of: str = keyed("class")
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    lowest: float | None = optional()
    count: int


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What became of a criterion; see :class:`monai_adv.evaluation.evidence.decisions.Decision`."""

    measure: str
    level: str
    outcome: Outcome
    why: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class ModelEvidence:
    """One model.

    Attributes:
        name, kind, classes, unit: as in ``evaluation.json``.
        attacked: what of it is.
        cases: that were selected.
        hashes: of all that it is made of.
        files: that it comes from.
        trust: how far its figures can be trusted.
        checks: that this rests on.
        robustness: of the model, in a word or two.
        figures: all of the tables.
        acceptance: what became of the criteria, in their order.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    attacked: str
    unit: str
    cases: Cases
    hashes: ModelHashes
    files: tuple[ModelFile, ...]
    trust: Verdict
    checks: tuple[Check, ...]
    robustness: str
    figures: tuple[Figure, ...]
    acceptance: tuple[Decided, ...]


@dataclass(frozen=True, kw_only=True)
class GroupFigure:
    """A group of cases at a level; see :class:`monai_adv.evaluation.evidence.subgroups.Group`."""

    model: str
    column: str
    group: str
    small: bool
    level: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class SubgroupEvidence:
    """Groups and gaps without the table itself, which names patients.

    Attributes:
        table: name of the file.
        hash: of what it says.
        edges: column -> edges of its bins.
        groups, gaps: see :mod:`monai_adv.evaluation.evidence.subgroups`.
    """

    table: str
    hash: str
    edges: dict[str, list[float]]
    groups: tuple[GroupFigure, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, kw_only=True)
class RecordsHash:
    """SHA-256 over all files that the figures rest on, and how many there are."""

    sha256: str
    files: int


@dataclass(frozen=True, kw_only=True)
class Hashes:
    """Of the records, and of the files of the report by their names."""

    records: RecordsHash
    report: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An evaluation in one file.

    Attributes:
        schema: its name.
        written: date and time, ISO 8601.
        intended_use, acceptance: as the user stated them.
        measurement: how it was made.
        models: in the order of the command line.
        subgroups: None where no table of groups was given.
        comparisons: of every pair of models.
        not_tested: what no figure is about.
        deviations: where the evaluation is not the plain whole, a sentence each.
        hashes: of records and report.
        digest: SHA-256 of all the rest; "" before it is known.
    """

    schema: str
    written: str
    intended_use: str
    acceptance: tuple[Criterion, ...]
    measurement: Measurement
    models: tuple[ModelEvidence, ...]
    subgroups: SubgroupEvidence | None
    comparisons: tuple[Comparison, ...]
    not_tested: tuple[Untested, ...]
    deviations: tuple[str, ...]
    hashes: Hashes
    digest: str = optional("")
