"""Rows of a leaderboard: what may stand beside what, and what an ``evidence.json`` contributes to it.

A row is comparable with the rows of its own board only. Evidence holds hashes, so its boards are exact: the same cases
with the same contents, the same radius, the same plan of attacks. A result without hashes never shares a board with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from monai_adv.errors import InputError, first_cause
from monai_adv.evaluation.codec import plain, typed
from monai_adv.evaluation.evidence.certified import CERTIFIED
from monai_adv.evaluation.evidence.content import Evidence, ModelEvidence
from monai_adv.evaluation.evidence.document import NAME
from monai_adv.evaluation.evidence.left_open import LEFT_OUT, NOT_FINISHED
from monai_adv.evaluation.evidence.verify import FIGURES, verify
from monai_adv.evaluation.records import CLEAN, WORST
from monai_adv.files import write_whole

NORMS = {"l2": "L2", "linf": "L-inf"}
OVERALL = ("mean Dice", "accuracy", CERTIFIED)
"""Measures of all classes together: the score of a segmentation, of a classification, and what is proven of either."""


@dataclass(frozen=True, order=True)
class Board:
    """What all rows of a board share.

    Attributes:
        data: the samples.
        model: kind of network, and what of it is attacked.
        radius: with norm and unit.
        attack: in words.
        score: in %.
    """

    data: str
    model: str
    radius: str
    attack: str
    score: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model; None and "" say that something was not measured.

    Attributes:
        board: it belongs to.
        method: it was trained with.
        settings: what differs from the defaults, in words.
        clean, robust: score in % without the attack, and under it.
        certified: lower bound of the score at this radius, in %.
        noise: score in % under white noise of this radius.
        passes: network passes per sample and step; a plain step has 3.
        share: network passes of the training, as a multiple of the plain training's.
        runs: how many trainings, or folds, the figures are a mean of.
        verdict: of the report.
        ranked: False: its figure is no robustness (a constant answer, a verdict of "not reliable"); it is listed last.
        note: what else must be known of it.
        command: that made it.
        source: file that holds the figures.
        date: of the measurement.
    """

    board: Board
    method: str
    settings: str = ""
    clean: float | None = None
    robust: float | None = None
    certified: float | None = None
    noise: float | None = None
    passes: float | None = None
    share: float | None = None
    runs: int = 1
    verdict: str = ""
    ranked: bool = True
    note: str = ""
    command: str = ""
    source: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Rows of one evidence, as a leaderboard keeps them.

    Attributes:
        digest: of the evidence.
        records: hash of the records it was made from; a report that is written again has another digest, not another
            hash of its records.
        checked: how many checks match.
        not_checked: what could not be checked where it was added.
        rows: of its models and radii.
    """

    digest: str
    records: str
    checked: int
    not_checked: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, folder: str | Path, data: str, digest: str | None = None) -> Entry:
        """Verify an evidence as ``monai-adv verify`` does, and take its rows.

        Args:
            folder: with ``evidence.json`` beside its report, or that file.
            data: name of the data set; the evidence knows its hashes only.
            digest: of the evidence as it was kept elsewhere.

        Raises:
            InputError: something differs, nothing was attacked, or cases are missing from the figures.
        """
        folder = Path(folder)
        folder = folder.parent if folder.name == NAME else folder
        if not data.strip():
            raise InputError.of("--data", data, "the name of the data set", "as BreastMNIST, test images")
        lines = verify(folder, digest)
        if wrong := [line for line in lines if line.outcome == "DIFFERS"]:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            what = f"{wrong[0].what}{': ' + wrong[0].why if wrong[0].why else ''}{more}"
            raise InputError(f"{folder}: does not match its evidence, {what}; see monai-adv verify {folder}.")
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        evidence = typed(Evidence, content, null_is_nan=True)
        rows = tuple(row for model in evidence.models for row in rows_of(evidence, model, data.strip()))
        if not rows:
            raise InputError.of(str(folder), "no worst case", "an evaluation with attacks", "give one radius at least")
        not_checked = tuple(line.what for line in lines if line.outcome == "not checked")
        if FIGURES in not_checked:
            rows = tuple(replace(row, note="figures not held against records") for row in rows)
        return cls(
            digest=evidence.digest, records=evidence.hashes.records.sha256,
            checked=sum(line.outcome == "matches" for line in lines),
            not_checked=not_checked, rows=rows,
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Entry:
        """What :meth:`keep` wrote.

        Raises:
            InputError: it is none.
        """
        try:
            return typed(cls, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: is no row of the leaderboard ({first_cause(error)}); add it again.") from error

    def keep(self, folder: Path) -> Path:
        """Write it as a file of its own.

        Args:
            folder: of the rows that are there already.

        Returns:
            the file.

        Raises:
            InputError: the same evidence, or another one of the same records, is there.
        """
        for file in sorted(folder.glob("*.json")):
            other = Entry.read(file)
            for what, same in (("digest", self.digest == other.digest), ("records", self.records == other.records)):
                if same:
                    allowed = f"one that is not there yet; {file} has the same {what}"
                    raise InputError.of("evidence", self.digest[:16], allowed, "delete that file to replace it")
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(plain(self), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(file := folder / f"{self.digest[:16]}.json", content + "\n")
        return file


def rows_of(evidence: Evidence, model: ModelEvidence, data: str) -> Iterator[Row]:
    """A row for every radius at which a model was attacked.

    Args:
        evidence: with its digest.
        model: of its models.
        data: name of the data set.

    Raises:
        InputError: a mean leaves cases out.
    """
    if missing := [said for said in evidence.deviations if said.startswith((LEFT_OUT, NOT_FINISHED))]:
        raise InputError.of("evidence", missing[0], "figures of all cases", "finish the evaluation, or leave none out")
    measurement, hashes = evidence.measurement, model.hashes
    figures = {(f.level, f.attack): f for f in model.figures if f.of == "all" and f.measure in OVERALL}
    cases = f"cases {model.cases.hash[:8]}, " + (
        f"contents {hashes.data[:8]}" if hashes.data else f"contents unknown, model {hashes.in_memory[:8]}"
    )
    box = measurement.settings.box
    bounded = "no box" if box is None else f"box [{box[0]:.12g}, {box[1]:.12g}]"
    for level in measurement.levels:
        worst, clean = figures.get((level.key, WORST)), figures.get(("", CLEAN))
        if worst is None or clean is None:
            continue
        proven = figures.get((level.key, "certificate"))
        counted = [worst, clean, *(found for found in (proven,) if found)]
        if len({found.count for found in counted}) > 1 or any(math.isnan(found.value) for found in counted):
            said = f"means of {', '.join(str(found.count) for found in counted)} samples"
            raise InputError.of(model.name, said, "all of them", "finish the evaluation")
        noise = figures.get((level.key, "white noise"))
        unit = {"norm": "", "rms": " RMS per voxel", "raw": " raw"}[level.unit]
        yield Row(
            board=Board(
                f"{data} ({clean.count} samples, {cases})",
                f"{model.attacked}; intensities: {model.unit}",
                f"{NORMS[level.norm]} {level.eps:.12g}{unit}, {bounded}",
                f"worst case of {measurement.settings.attacks}, plan {hashes.plan[:8]}",
                worst.measure,
            ),
            method=model.name, clean=100 * clean.value, robust=100 * worst.value,
            noise=None if noise is None else 100 * noise.value, verdict=model.trust.word,
            ranked=model.trust.word != "not reliable",
            certified=None if proven is None else 100 * proven.value,
            command=measurement.command, source=f"{evidence.digest[:16]}.json", date=measurement.started[:10],
        )  # fmt: skip
