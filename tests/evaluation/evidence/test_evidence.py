"""``evidence.json`` and ``monai-adv verify``: whatever is changed is found, or named as what cannot be checked."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation import seal
from monai_adv.evaluation.evidence.document import check_schema, digest_of, document, schema
from monai_adv.evaluation.evidence.history import Session
from monai_adv.evaluation.evidence.left_open import NEVER_TESTED, deviations
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.evidence.verify import against, exit_code, verify
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.store import Store
from tests.places import TESTS
from tests.planted_evaluation import dice_score, folder_of, plant

FACTORY = TESTS / "tiny_models.py"
CRITERIA = [
    {"measure": "score", "at_least": 0.5, "reason": "half"},
    {"measure": "dice anterior", "norm": "linf", "eps": 0.1, "at_least": 0.2, "reason": "a fifth"},
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two planted models with a purpose, two sessions, and their report."""
    folder = tmp_path_factory.mktemp("kept") / "store"
    clean = [dice_score(f"p{n}", 0.8 + 0.02 * n) for n in range(7)]
    records = []
    for model, lost in (("old", 0.3), ("new", 0.2)):
        attacked = [dice_score(s.case, s.score - lost - 0.01 * n) for n, s in enumerate(clean)]
        records += plant(model, clean, {("linf-0.1", "white noise"): clean, ("linf-0.1", "APGD-CE"): attacked})
    folder_of(folder, records, settings={"cases": 7, "box": [0, 1]}, words={"linf-0.1": "1/10"})
    store, purpose = Store(folder), Purpose.stated("use", CRITERIA)
    Session(at="2026-11-21T14:00:00", machine="m", records=0, command="a: b", code="a" * 64, purpose=purpose).keep(
        store
    )
    Session(at="2026-11-21T15:00:00", machine="n", records=9, command="a: b", code="b" * 64).keep(store)
    store.add_problem("new", "p6", "too dark")
    write_report(folder)
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept, tmp_path / "store")
    return tmp_path / "store"


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evidence.json").read_text())
    return content


def outcomes(folder: Path) -> dict[str, str]:
    return {line.what: line.outcome for line in verify(folder)}


def test_the_schema_is_one_and_names_every_field(kept: Path) -> None:
    Draft202012Validator.check_schema(schema())
    content = read(kept)
    check_schema(content)
    for *above, last in paths(content):
        changed = copy.deepcopy(content)
        place = changed
        for key in above:
            place = place[key]
        if above not in (["measurement", "versions"], ["hashes", "report"]):  # whose keys are names from elsewhere
            place[f"{last}2"] = place.pop(last)
            with pytest.raises(ValidationError):
                check_schema(changed)


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[list[Any]]:
    """Of every value and list in a document; of the entries of a list the first."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths(each, (*here, key))
    else:
        yield list(here)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from paths(value[0], (*here, 0))


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return value[:-1] if value else ["x"]
    return 0.123 if value is None else value + 0.001


def test_every_field_that_is_changed_is_found_even_with_a_new_digest(kept: Path) -> None:
    """All but the time of writing follow from the records; the hashes are held against the files, below."""
    content = read(kept)
    again = document(kept, gather(kept), content["written"], {})
    assert all(line.outcome == "matches" for line in against(content, again))
    tried = 0
    for path in paths(content):
        if path[0] in ("schema", "written", "digest", "hashes"):
            continue
        changed = copy.deepcopy(content)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = other(place[path[-1]])
        assert any(line.outcome == "DIFFERS" for line in against(changed, again)), path
        tried += 1
    assert tried > 60


def test_an_untouched_folder_matches_but_for_what_cannot_be_seen(kept: Path) -> None:
    found = outcomes(kept)
    assert {what for what, outcome in found.items() if outcome != "matches"} == {
        "old, weights and data", "new, weights and data", "code of monai-adv"
    }  # fmt: skip
    assert exit_code(verify(kept)) == 2


def edit(name: str, change: Callable[[Any], Any], seals: bool = False) -> Callable[[Path], None]:
    """Change a JSON file; ``seals``: with a right checksum, as somebody who knows this program would."""

    def tamper(folder: Path) -> None:
        file = next(folder.glob(name))
        content = json.loads(file.read_text())
        change(content)
        if name == "evidence.json":
            content["digest"] = digest_of(content)
        elif seals:
            place = Store(folder)._place(file)
            content = seal.sealed({k: v for k, v in content.items() if k != seal.KEY}, *place)
        file.write_text(json.dumps(content))

    return tamper


def raw(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ")


def score(content: Any) -> None:
    content["record"]["worst"][0]["score"] += 0.1


ATTACKED = "records/old/p3/linf-0.1.*.json"
TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "the page": (raw("report.html"), "report, report.html"),
    "the table": (raw("results.csv"), "report, results.csv"),
    "a curve gone": (lambda folder: (folder / "curve-linf.png").unlink(), "report, curve-linf.png"),
    "a curve no longer listed": (
        edit("evidence.json", lambda c: c["hashes"]["report"].pop("report.html")), "report, report.html"),
    "a file outside": (
        edit("evidence.json", lambda c: c["hashes"]["report"].update({"../x": "0" * 64})), "report, ../x"),
    "a score": (edit(ATTACKED, score), "figures, from the records"),
    "a score with its seal": (edit(ATTACKED, score, seals=True), "records"),
    "a record gone": (lambda folder: next(folder.glob(ATTACKED)).unlink(), "records"),
    "a record more": (lambda folder: (folder / "records" / "x.json").write_text("{}"), "records"),
    "the purpose": (
        edit("history.json", lambda c: c["entries"][0]["purpose"]["criteria"][0].update(bound=0.1), seals=True),
        "acceptance, from the records"),
    "a session hidden": (
        edit("history.json", lambda c: c["entries"].pop(), seals=True), "deviations, from the records"),
    "a problem hidden": (lambda folder: (folder / "problems/new/p6.json").unlink(), "deviations, from the records"),
    "the number of records": (
        edit("evidence.json", lambda c: c["hashes"]["records"].update(files=1)), "records"),
    "another shape": (edit("evidence.json", lambda c: c.pop("models")), "evidence.json, by its schema"),
    "a model less": (edit("evidence.json", lambda c: c["models"].pop()), "models, from the records"),
    "evidence without a new digest": (
        lambda folder: (folder / "evidence.json").write_text(
            (folder / "evidence.json").read_text().replace('"use"', '"any use"')), "evidence.json, by its digest"),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "found"), TAMPERED.values(), ids=TAMPERED.keys())
def test_tampering_is_found(folder: Path, tamper: Callable[[Path], None], found: str) -> None:
    tamper(folder)
    assert outcomes(folder)[found] == "DIFFERS"
    assert exit_code(verify(folder)) == 1


def test_who_can_compute_all_hashes_is_found_by_a_digest_kept_elsewhere_alone(folder: Path) -> None:
    """What the documentation says of forgers."""
    digest = read(folder)["digest"]
    edit(ATTACKED, score, seals=True)(folder)
    write_report(folder)
    assert exit_code(verify(folder)) == 2  # nothing differs
    assert exit_code(verify(folder, digest)) == 1
    assert exit_code(verify(folder, read(folder)["digest"].upper())) == 2


def test_nothing_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (None, "[]", "{", "\0"):
        if content is not None:
            (tmp_path / "evidence.json").write_text(content)
        with pytest.raises(InputError, match="monai-adv report"):
            verify(tmp_path)
    assert main(["verify", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_report_without_its_records_says_what_could_not_be_checked(kept: Path, tmp_path: Path) -> None:
    write_report(kept, output=tmp_path / "copy")
    found = outcomes(tmp_path / "copy")
    assert found["records and figures"] == "not checked"
    assert found["report, report.html"] == found["evidence.json, by its digest"] == "matches"


def test_what_was_not_tested_and_what_went_another_way_is_said(kept: Path) -> None:
    content = read(kept)
    topics = {each["topic"] for each in content["not_tested"]}
    assert topics >= {*NEVER_TESTED, "L2 attacks", "larger changes", "natural corruptions", "subgroups"}
    assert "L-inf attacks" not in topics
    told = "\n".join(deviations(gather(kept), []))
    assert "Left out: new, p6: too dark" in told
    assert "only the first 7" in told
    assert "seed of the random draws is 7" in told
    told = "\n".join(content["deviations"])
    assert "Gone on with on 2026-11-21 15:00, after 9 results." in told
    assert "another machine: n, before m" in told
    assert "by other code of monai-adv" in told


def test_from_the_command_line_to_the_files_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FACTORY, tmp_path / "mine.py")
    words = ["evaluate", "--factory", f"{tmp_path / 'mine.py'}:classifier", "--norm", "linf", "--eps", "0.02", "-o",
             str(tmp_path / "out"), "--attacks", "quick", "--device", "cpu", "--cases", "4", "-y"]  # fmt: skip
    assert main(words) in (0, 3)
    digest, written = (read(tmp_path / "out")[name] for name in ("digest", "written"))
    assert digest in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out"), "--digest", digest]) == 2
    told = capsys.readouterr().out
    assert "matches     tiny, contents of 1 of 1 files" in told
    assert "matches     code of monai-adv" in told
    assert f"Digest of the evidence (SHA-256): {digest}" in told
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# changed\n")
    assert main(["verify", str(tmp_path / "out")]) == 1
    assert f"DIFFERS     tiny, {tmp_path / 'mine.py'}: its content was changed" in capsys.readouterr().out
    (tmp_path / "mine.py").unlink()
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "not checked tiny, files: not on this machine" in capsys.readouterr().out
    (tmp_path / "out" / "evidence.json").unlink()
    clock = "monai_adv.evaluation.evidence.document.now"
    monkeypatch.setattr(clock, lambda: written)
    assert main(["report", str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out"), "--digest", digest]) == 2  # written again in the same second
    monkeypatch.setattr(clock, lambda: "2030-01-01T00:00:00+00:00")
    assert main(["report", str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out"), "--digest", digest]) == 1  # the time of writing is another one
