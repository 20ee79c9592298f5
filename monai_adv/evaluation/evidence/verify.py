"""Are the files of an evaluation still those that were written? ``monai-adv verify``.

Three things are held against each other: the evidence with its own digest, the evidence with the records of the
evaluation from which it is made again, and both with the files on this machine: report, weights, images, labels, code.

A hash is no signature. Whoever can write to the folder and knows this program can change records, report and evidence
together and compute all hashes anew. What then still tells is a digest that was kept elsewhere: on the signed page, in
a register, in another system; give it as ``digest``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monai_adv.errors import InputError, first_cause
from monai_adv.evaluation import store
from monai_adv.evaluation.codec import Json, plain_values, typed
from monai_adv.evaluation.evidence.code import code_hash
from monai_adv.evaluation.evidence.content import Evidence, Measurement, ModelEvidence
from monai_adv.evaluation.evidence.document import CERTIFICATES, NAME, check_schema, digest_of, document, records_hash
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.models.fingerprint import contents, marks_of
from monai_adv.evaluation.sealed_folder import is_begun

REPORT = ("report.html", "results.json", "results.csv", "tables.csv")
"""Files that every report of attacks has."""
FIGURES = "records and figures"
"""What cannot be checked of a report alone."""
Outcome = Literal["matches", "DIFFERS", "not checked"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        what: it is.
        outcome: see there.
        why: what differs, or why it could not be checked; "" otherwise.
    """

    what: str
    outcome: Outcome
    why: str = ""

    def __str__(self) -> str:
        return f"{self.outcome:<11} {self.what}{': ' + self.why if self.why else ''}"


def verify(folder: str | Path, digest: str | None = None) -> list[Line]:
    """Hold evidence, records and files against each other.

    Args:
        folder: of the report, with ``evidence.json``.
        digest: of the evidence as it was kept elsewhere.

    Returns:
        a line for everything that was looked at.

    Raises:
        InputError: no evidence there, or something that is none.
    """
    folder = Path(folder)
    content = _read(folder / NAME)
    lines = list(_of_evidence(content, digest))
    if lines[0].outcome != "matches":  # nothing can be said of something with another shape
        return lines
    evidence = typed(Evidence, content, null_is_nan=True)
    certified = evidence.measurement.settings.certify is not None
    lines += _of_report(folder, evidence.hashes.report, [CERTIFICATES] if certified else REPORT)
    if is_begun(folder):
        lines += _of_records(folder, content, evidence)
    else:
        lines.append(Line(FIGURES, "not checked", "only the report is here, not the evaluation's folder"))
    for model in evidence.models:
        lines += _of_model(folder, model)
    return [*lines, _of_code(evidence.measurement)]


def exit_code(lines: list[Line]) -> int:
    """1 if something differs, else 2 if something could not be checked, else 0."""
    outcomes = {line.outcome for line in lines}
    return 1 if "DIFFERS" in outcomes else 2 if "not checked" in outcomes else 0


def _read(path: Path) -> Json:
    todo = "write it again with monai-adv report, or with the same monai-adv certify, if the evaluation is still there"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError.of("folder", str(path.parent), f"one with {NAME} ({first_cause(error)})", todo) from error
    if not isinstance(content, dict):
        raise InputError.of(str(path), "something else", "the evidence that monai-adv wrote", todo)
    return content


def _of_evidence(content: Json, digest: str | None) -> Iterator[Line]:
    from jsonschema import ValidationError

    try:
        check_schema(content)
        yield Line("evidence.json, by its schema", "matches")
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        yield Line("evidence.json, by its schema", "DIFFERS", f"{place}: {error.message[:150]}")
    found = digest_of(content)
    own = content.get("digest") == found
    yield Line("evidence.json, by its digest", "matches" if own else "DIFFERS", "" if own else "it was changed")
    if digest is not None:
        same = digest.strip().lower() == found
        yield Line(
            "evidence.json, by the digest that was kept elsewhere", "matches" if same else "DIFFERS",
            "" if same else f"here it is {found}",
        )  # fmt: skip


def _of_report(folder: Path, listed: Mapping[str, str], needed: Sequence[str]) -> Iterator[Line]:
    for name, expected in sorted(listed.items()):
        path = folder / name
        if Path(name).name != name:
            why = "that is no file of the report"
        elif not path.is_file():
            why = "it is gone"
        else:
            why = "" if hashlib.sha256(path.read_bytes()).hexdigest() == expected else "it was changed"
        yield Line(f"report, {name}", "DIFFERS" if why else "matches", why)
    for name in needed:
        if name not in listed:
            yield Line(f"report, {name}", "DIFFERS", "the evidence does not list it")


def _of_records(folder: Path, content: Json, evidence: Evidence) -> Iterator[Line]:
    same = evidence.hashes.records == records_hash(folder)
    yield Line("records", "matches" if same else "DIFFERS", "" if same else "files were changed, added or removed")
    try:
        for path in sorted(folder.glob("pictures/*/*/*.npz")):
            store.check_picture(folder, path)
        again = document(folder, gather(folder, attacked=False), evidence.written, {})
    except InputError as error:
        yield Line("figures, from the records", "DIFFERS", str(error).rstrip("."))
        return
    yield from against(content, again)


def against(written: Json, again: Evidence) -> Iterator[Line]:
    """Evidence as it was written against the same made again from the records, part by part."""
    made = plain_values(again)
    for key in made:
        if key not in ("schema", "written", "hashes", "models"):
            yield _compared(key, written[key], made[key])
    if (names := [m["name"] for m in written["models"]]) != (known := [m.name for m in again.models]):
        yield Line("models, from the records", "DIFFERS", f"the evidence has {names}, the records {known}")
        return
    for one, other in zip(written["models"], made["models"], strict=True):
        for key in other:
            yield _compared(f"{other['name']}, {key}", one[key], other[key])


def _compared(what: str, written: Any, again: Any) -> Line:
    place = next(_differences(written, again), None)
    return Line(f"{what}, from the records", "matches" if place is None else "DIFFERS", place or "")


def _of_model(folder: Path, model: ModelEvidence) -> Iterator[Line]:
    name, marks = model.name, store.Store(folder).marks(model.name)
    if not model.hashes.all_in_files:
        yield Line(f"{name}, weights and data", "not checked", "some came from memory; their hash is in the evidence")
    if model.hashes.plan_code:
        yield Line(f"{name}, its plan of attacks", "not checked", "that would run the plan's code")
    if not model.files:
        return
    if not marks:
        yield Line(f"{name}, files", "not checked", "where they lie is known only to the folder of the evaluation")
        return
    here = [path for path in marks if Path(path).exists()]
    now = marks_of(map(Path, here))
    changed = [path for path in here if now[path][3] != marks[path][3]]
    for path in changed:
        yield Line(f"{name}, {path}", "DIFFERS", "its content was changed")
    if gone := [path for path in marks if path not in here]:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        yield Line(f"{name}, files", "not checked", f"not on this machine: {gone[0]}{more}")
    if here and not changed:
        yield Line(f"{name}, contents of {len(here)} of {len(marks)} files", "matches")
    if model.hashes.files != contents(marks):
        yield Line(f"{name}, hash of its files", "DIFFERS", "it is not that of the files that are listed")


def _of_code(measurement: Measurement) -> Line:
    if {session.code for session in measurement.sessions} == {code_hash()}:
        return Line("code of monai-adv", "matches")
    version = measurement.versions.get("monai-adv", "another one")
    return Line("code of monai-adv", "not checked", f"measured by {version}; what is installed here is other code")


def _differences(written: Any, again: Any, place: str = "") -> Iterator[str]:
    """Where two plain values differ; numbers to rounding, as another machine sums in another order."""
    if isinstance(written, dict) and isinstance(again, dict):
        for key in [*again, *(k for k in written if k not in again)]:
            yield from _differences(written.get(key), again.get(key), f"{place}.{key}" if place else key)
    elif isinstance(written, list) and isinstance(again, list) and len(written) == len(again):
        for i, pair in enumerate(zip(written, again, strict=True)):
            yield from _differences(*pair, f"{place}[{i}]")
    elif isinstance(written, float | int) and isinstance(again, float | int) and type(written) is not bool:
        if not math.isclose(written, again, rel_tol=1e-9, abs_tol=1e-12):
            yield f"{place or 'it'} is {written:g}, by the records {again:g}"
    elif written != again:
        yield f"{place or 'it'} is {_short(written)}, by the records {_short(again)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
