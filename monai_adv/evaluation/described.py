"""What is evaluated and how: the content of ``evaluation.json``, typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from monai_adv.certificates.settings import Certification, Smoothing
from monai_adv.evaluation.codec import Plain, optional
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.sealed_folder import FORMAT
from monai_adv.given import Box
from monai_adv.metrics.score import Kind
from monai_adv.threats import Norm, RadiusUnit

Family = Literal["random", "white-box", "black-box", "transfer"]
"""What an attack knows of the network."""


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """One attack of a level.

    Attributes:
        name: of its records.
        family: what it knows.
        settings: its own, without the threat, which the level tells.
    """

    name: str
    family: Family
    settings: Plain


@dataclass(frozen=True, kw_only=True)
class CorruptionEntry:
    """One natural corruption.

    Attributes:
        name: the attack of its records.
        severity: their level.
    """

    name: str
    severity: str


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model.

    Attributes:
        name, kind, classes, space: as the model says.
        unit: of network inputs, in words.
        cases: names of those selected.
        problems: files left out, with reasons.
        stages: key of a level -> its attacks in the order they run.
        corruptions: that are measured besides.
        fingerprint: of what is in memory.
        files: of the contents of all files.
        computes: see :func:`monai_adv.evaluation.models.fingerprint.computed`.
        data: of images and labels alone.
        in_files: whether weights and data all come from files.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    space: str
    unit: str
    cases: tuple[str, ...]
    problems: tuple[str, ...]
    stages: dict[str, tuple[StageEntry, ...]]
    corruptions: tuple[CorruptionEntry, ...]
    fingerprint: str = ""
    files: str = ""
    computes: dict[str, list[float]] = field(default_factory=dict)
    data: str = ""
    in_files: bool = False

    @property
    def attacks_per_case(self) -> int:
        """Stages of all levels."""
        return sum(map(len, self.stages.values()))


@dataclass(frozen=True, kw_only=True)
class SettingsEntry:
    """What the user decided, but for the levels; see :class:`monai_adv.evaluation.settings.EvaluationSettings`.

    Attributes:
        attacks: quick, standard, full, or the name of a plan; "none" where the smoothed versions are certified alone.
        attacks_code: of a plan, hash of its code.
        cases: None, a number, or names.
        device: its type.
        smooth: noise and draws, where the smoothed versions of the models are attacked and certified.
        certify: noise and draws, where they are certified and not attacked.
        variations: natural variations that are measured beside the attacks.
        fuse: the attacks searched on copies of the networks with BatchNorm folded.
    """

    attacks: str
    seed: int
    batch_size: int
    cases: int | tuple[str, ...] | None
    box: Box | None
    device: str
    threads: int
    attacks_code: str = optional("")
    smooth: Smoothing | None = optional()
    certify: Certification | None = optional()
    variations: tuple[str, ...] = ()
    fuse: bool = optional(False)


@dataclass(frozen=True, kw_only=True)
class LevelEntry:
    """One radius; see :class:`monai_adv.evaluation.records.Level`."""

    key: str
    norm: Norm
    eps: float
    unit: RadiusUnit

    @classmethod
    def of(cls, level: Level) -> LevelEntry:
        """As the file has it."""
        assert level.unit is not None
        return cls(key=level.key, norm=level.norm, eps=level.eps, unit=level.unit)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation.

    Attributes:
        format: of the folder.
        started: date and time, ISO 8601.
        machine: in words: processor or GPU, cores.
        versions: of Python and the packages.
        settings: of the user.
        levels: ascending within a norm.
        words: key of a level -> how the user wrote the radius, where that is not the number itself.
        models: in the order of the command line.
        run_file: what was asked for on the command line, as YAML for ``--run``, or the words of ``certify``; "" from
            Python.
    """

    format: int = FORMAT
    started: str
    machine: str
    versions: dict[str, str]
    settings: SettingsEntry
    levels: tuple[LevelEntry, ...]
    words: dict[str, str]
    models: tuple[ModelEntry, ...]
    run_file: str
