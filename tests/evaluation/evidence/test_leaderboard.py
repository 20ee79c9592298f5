"""The leaderboard: its page follows from the result files, and nobody adds what does not match its evidence."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import leaderboard
from monai_adv.cli.measured import MEASURED, Experiment
from monai_adv.errors import InputError
from monai_adv.evaluation.checks.verdict import Verdict
from monai_adv.evaluation.evidence.document import digest_of, document
from monai_adv.evaluation.evidence.leaderboard import Board, Entry, Row, rows_of
from monai_adv.evaluation.evidence.leaderboard_tables import markdown, ranked
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.store import Store
from tests.places import ROOT
from tests.planted_evaluation import dice_score, folder_of, plant

DOCS = ROOT / "docs"
BOARD = Board("ten images", "a line", "L2 1, no box", "PGD-20", "accuracy")
OURS = [row for read in leaderboard.OURS for row in read()]


def row(method: str, robust: float | None = 1.0, **more: Any) -> Row:
    return Row(board=BOARD, method=method, robust=robust, source="results/a.json", date="2026-11-29", **more)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two planted models: 0.8 clean, 0.5 and 0.6 under attack."""
    folder = tmp_path_factory.mktemp("kept") / "store"
    clean = [dice_score(f"p{n}", 0.8) for n in range(3)]
    records = []
    for model, left in (("SAT|x", 0.6), ("plain", 0.5)):
        attacked = [dice_score(score.case, left) for score in clean]
        records += plant(model, clean, {("linf-0.1", "white noise"): clean, ("linf-0.1", "APGD-CE"): attacked})
    folder_of(folder, records, settings={"box": [0, 1]})
    write_report(folder)
    return folder


@pytest.fixture
def report(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept, tmp_path / "report")
    return tmp_path / "report"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "leaderboard.md").write_text("# Ours\n\n<!-- boards -->\nold\n<!-- end -->\n")
    return tmp_path / "docs"


def add(report: Path, docs: Path, *more: str) -> int:
    return leaderboard.main(["--docs", str(docs), "add", str(report), "--data", "Phantoms", *more])


def boards_of(folder: Path) -> list[Board]:
    content = document(folder, gather(folder), "2026-11-29", {})
    return [found.board for model in content.models for found in rows_of(content, model, "Phantoms")]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------- the page


def test_the_page_is_what_the_result_files_give() -> None:
    assert leaderboard.page(DOCS) == (DOCS / "leaderboard.md").read_text(), "python benchmarks/leaderboard.py page"


def test_every_measured_method_stands_there_with_the_figures_of_the_recommendation() -> None:
    """The table behind `methods --recommend` and the boards say the same of each training."""
    for one in MEASURED:
        close = [
            found
            for found in OURS
            if found.method == one.method
            and (found.clean, found.robust) == pytest.approx((one.clean, one.robust), abs=0.051)
        ]
        costs = [found.share for found in close]
        assert any(cost == pytest.approx(one.cost, abs=0.021) for cost in costs), (one, costs)
        assert any(_holds_plain(found.board, one.experiment) for found in close), one


def _holds_plain(board: Board, experiment: Experiment) -> bool:
    figures = [(found.clean, found.robust) for found in OURS if found.board == board and found.method == "Standard"]
    return any(figure == pytest.approx((experiment.clean, experiment.robust), abs=0.051) for figure in figures)


def test_a_row_is_on_the_board_of_its_data() -> None:
    """Second anatomy: BUSI as nnU-Net's data set 5 does not compete with the hippocampus."""
    runs = json.loads((DOCS / "results" / "price.json").read_text())
    of_lesions = {name: r for name, r in runs.items() if r.get("job", {}).get("dataset") == "5"}
    lesions = {f["clean"] for r in of_lesions.values() for f in r["measured"].values()}
    lesions |= {r["clean"] for r in runs.values() if r.get("job", {}).get("of") in of_lesions}
    shown = [row for row in OURS if row.source == "results/price.json"]
    assert lesions
    for row in shown:
        assert row.board.data.startswith("BUSI" if row.clean in lesions else "Hippocampus")


def test_no_run_is_left_out() -> None:
    """Every method, radius and attack of the result files, by counting them."""

    def results(name: str) -> Any:
        return json.loads((DOCS / "results" / name).read_text())

    def count(source: str) -> int:
        return sum(found.source == f"results/{source}" for found in OURS)

    trainings = {(run["set"], run["method"]) for run in results("classification.json")}
    assert count("classification.json") == 4 * len(trainings)
    certified = results("certificates.json")
    assert count("certificates.json") == sum(len((run.get("cases") or [run])[0]["attacked"]) for run in certified)
    prices = results("price.json").values()
    measured = [run for run in prices if all("worst" in found for found in run.get("measured", {}).values())]
    assert count("price.json") == sum(len(run.get("measured", ())) + ("of" in run.get("job", ())) for run in measured)
    assert {run["job"]["name"] for run in prices if run not in measured} == {
        f"{name}_all"
        for name in (
            "plain_3d",
            "plain_3d_wide",
            "sat_3d",
            "sat_3d_wide",
            "fgsmrs_3d_wide",
            "sat_3d_wide_mirror",
            "sat_3d_wide_mirror_seed1",
            "fgsmrs_3d_wide_mirror",
            "freeat_3d_wide_mirror",
            "mirst_3d_wide_mirror",
            "dual_3d_wide_mirror",
            "dual_3d_wide_mirror_65",
        )
    }  # clean Dice alone
    solid = results("price_3d.json")
    attacked = sum(key.startswith("pgd") for run in solid["runs"] for key in run)
    assert count("price_3d.json") == attacked + sum(map(len, solid["by_epoch"].values()))
    for name in ("hippocampus_2d.json", "hippocampus_3d_fullres.json"):
        runs = {(run["model"], run["radius"]) for run in results(name) if run["condition"] == "PGD-20"}
        assert count(name) == len(runs)
    told = ("accuracy", "g_mean", "sensitivity", "specificity", "f1", "auc", "clean")
    stages = [
        stage
        for bundle in results("bundles.json")["figures"].values()
        for figures in bundle.values()
        for stage in figures
        if not stage.endswith(told)
    ]
    assert count("bundles.json") == len(stages)


def test_every_source_is_there_and_every_row_says_how_it_was_made() -> None:
    for found in OURS:
        assert (DOCS / found.source).is_file(), found.source
        assert found.command, found
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date), found


def test_a_certificate_is_never_above_its_attack() -> None:
    pairs = [(found.certified, found.robust) for found in OURS if found.certified is not None]
    assert pairs
    assert all(low <= high + 1e-4 for low, high in pairs)


# -------------------------------------------------------------------- a board


def test_the_best_worst_case_comes_first_and_a_constant_answer_last() -> None:
    rows = [row("A", 10.0), row("B", None), row("C", 70.0, ranked=False), row("D", 50.0), row("E", 10.0, clean=90.0)]
    assert [found.method for found in ranked(rows)] == ["D", "E", "A", "B", "C"]
    assert [found.method for found in ranked(rows[::-1])] == ["D", "E", "A", "B", "C"]
    table = markdown(rows).splitlines()
    assert [line.split(" | ")[:2] for line in table if line.startswith(("| 1", "| –"))] == [
        ["| 1", "D"], ["| –", "B"], ["| –", "C"],
    ]  # fmt: skip


def test_rows_of_another_radius_are_on_another_board() -> None:
    other = replace(row("B"), board=replace(BOARD, radius="L2 2, no box"))
    assert markdown([row("A"), other]).count("\n### ") == 2


def test_what_was_not_measured_is_said() -> None:
    text = markdown([row("A", certified=0.5), row("B")])
    assert "| A |  | 1.0 | 0.5 |" in text
    assert "| B |  | 1.0 | not measured |" in text
    assert "Not measured here: clean, white noise, passes per sample, cost, plain training = 1, verdict." in text


def test_names_from_elsewhere_have_no_meaning_in_markdown() -> None:
    text = markdown([row("a | b\n# c [x](http://y) <script>", command="`; rm")])
    (line,) = (line for line in text.splitlines() if line.startswith("| 1 |"))
    assert r"a \| b \# c \[x\](http://y) \<script\>" in line


# -------------------------------------------------------------------- a row of somebody


def test_a_verified_evidence_becomes_rows_of_one_board(report: Path, docs: Path) -> None:
    assert add(report / "evidence.json", docs) == 0
    (file,) = (docs / "leaderboard").iterdir()
    entry = Entry.read(file)
    content = json.loads((report / "evidence.json").read_text())
    assert entry.digest == content["digest"]
    assert file.name == f"{entry.digest[:16]}.json"
    assert entry.not_checked == ("SAT|x, weights and data", "plain, weights and data", "code of monai-adv")
    (first, second) = entry.rows
    assert first.board == second.board
    assert first.board.radius == "L-inf 0.1, box [0, 1]"
    assert [(found.method, found.clean, found.robust, found.noise) for found in entry.rows] == [
        ("SAT|x", pytest.approx(80), pytest.approx(60), pytest.approx(80)),
        ("plain", pytest.approx(80), pytest.approx(50), pytest.approx(80)),
    ]
    page = (docs / "leaderboard.md").read_text()
    assert page.startswith("# Ours\n\n<!-- boards -->\nAdded so far:\n\n* [")
    assert r"| 1 | SAT\|x |  | 80.0 | 60.0 | 80.0 | not enough measured |" in page
    assert leaderboard.page(docs) == page


def test_rows_share_a_board_only_if_cases_and_attacks_are_the_same(tmp_path: Path) -> None:
    boards = []
    for name, case, steps in (("a", "p", 10), ("b", "q", 10), ("c", "p", 20)):
        clean = [dice_score(f"{case}{n}", 0.8) for n in range(3)]
        records = plant("m", clean, {("l2-1", "APGD-CE"): clean})
        records = [replace(r, settings={"steps": steps}) if r.level else r for r in records]
        boards += boards_of(folder_of(tmp_path / name, records, data="same"))
    assert len(set(boards)) == 3


def test_a_figure_that_its_report_does_not_trust_leads_no_board(kept: Path) -> None:
    """A network whose gradients say nothing has the best figure of all."""
    content = document(kept, gather(kept), "2026-11-29", {})
    first, second = content.models
    first = replace(first, trust=Verdict("not reliable", ()))
    rows = [found for model in (first, second) for found in rows_of(content, model, "Phantoms")]
    assert [found.method for found in ranked(rows)] == ["plain", "SAT|x"]
    assert rows[0].robust > rows[1].robust


def test_images_that_nobody_hashed_share_no_board(tmp_path: Path) -> None:
    """Case 0 of one folder is not case 0 of another."""
    boards = []
    for name in ("one", "two"):
        clean = [dice_score(str(n), 0.8) for n in range(3)]
        records = plant("m", clean, {("l2-1", "APGD-CE"): clean})
        boards += boards_of(folder_of(tmp_path / name, records, fingerprint=name * 4))
    assert boards[0].data != boards[1].data


def test_an_evidence_is_added_once_also_with_its_report_written_again(
    report: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(report, docs) == 0
    before = contents(docs)
    assert add(report, docs) == 2
    assert "has the same digest" in capsys.readouterr().err.splitlines()[-1]
    content = json.loads((report / "evidence.json").read_text()) | {"written": "2030-01-01T00:00:00"}
    (report / "evidence.json").write_text(json.dumps(content | {"digest": digest_of(content)}))
    assert add(report, docs) == 2
    assert "has the same records" in capsys.readouterr().err.splitlines()[-1]
    assert contents(docs) == before


def test_what_was_tampered_with_is_refused_and_leaves_nothing(
    report: Path, docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(docs)
    evidence = report / "evidence.json"
    content = json.loads(evidence.read_text())
    for figure in content["models"][0]["figures"]:
        figure["value"] = 0.99
    evidence.write_text(json.dumps(content))
    assert add(report, docs) == 2
    assert "evidence.json, by its digest: it was changed" in capsys.readouterr().err.splitlines()[-1]
    evidence.write_text(json.dumps(content | {"digest": digest_of(content)}))  # as whoever knows how would do
    assert add(report, docs) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "SAT|x, figures, from the records: " in said
    assert said.endswith(f"see monai-adv verify {report}.")
    assert contents(docs) == before


def test_a_digest_that_was_kept_elsewhere_counts(report: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(report, docs, "--digest", "0" * 64) == 2
    assert "by the digest that was kept elsewhere: here it is" in capsys.readouterr().err.splitlines()[-1]


def test_the_report_alone_is_taken_and_says_what_was_not_checked(report: Path, docs: Path) -> None:
    alone = report.with_name("alone")
    alone.mkdir()
    for name in json.loads((report / "evidence.json").read_text())["hashes"]["report"]:
        shutil.copy(report / name, alone / name)
    shutil.copy(report / "evidence.json", alone)
    assert add(alone, docs) == 0
    page = (docs / "leaderboard.md").read_text()
    assert "not checked: records and figures" in page
    assert page.count("| figures not held against records |") == 2


def test_a_mean_that_leaves_cases_out_is_refused(tmp_path: Path) -> None:
    """Two of three patients: whoever leaves out the weakest would be first."""
    clean = [dice_score(f"p{n}", 0.8) for n in range(3)]
    records = plant("m", clean, {("l2-1", "APGD-CE"): clean})
    left = [r for r in records if not (r.case == "p2" and r.level)]
    with pytest.raises(
        InputError, match="received 'Not finished: 1 cases of m are in no figure yet.', allowed is figures"
    ):
        boards_of(folder_of(tmp_path / "unfinished", left))
    store = Store(folder_of(tmp_path / "left out", records))
    store.add_problem("m", "p2", "too dark")
    with pytest.raises(InputError, match="received 'Left out: m, p2: too dark', allowed is figures of all cases"):
        boards_of(store.folder)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("nowhere", "Phantoms"), "folder: received 'nowhere', allowed is one with evidence.json"),
        (("nowhere", " "), "--data: received ' ', allowed is the name of the data set"),
    ],
)
def test_bad_input(given: tuple[str, str], error: str) -> None:
    with pytest.raises(InputError, match=re.escape(error)):
        Entry.of(*given)


def test_nothing_attacked_is_no_row(tmp_path: Path) -> None:
    write_report(folder_of(tmp_path / "store", plant("m", [dice_score("p", 0.8)], {})))
    with pytest.raises(InputError, match="received 'no worst case', allowed is an evaluation with attacks"):
        Entry.of(tmp_path / "store", "Phantoms")


@pytest.mark.parametrize("text", ["{}", "[", '{"digest": 3}'])
def test_a_file_that_is_no_row_is_named(text: str, docs: Path) -> None:
    (docs / "leaderboard").mkdir()
    (docs / "leaderboard" / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: is no row of the leaderboard"):
        leaderboard.page(docs)


def test_a_page_without_its_marks_is_left_alone(report: Path, docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (docs / "leaderboard.md").write_text("mine")
    assert (leaderboard.main(["--docs", str(docs), "page"]), add(report, docs)) == (2, 2)
    (one, other) = capsys.readouterr().err.splitlines()
    assert one == other
    assert "received '0 blocks of boards'" in one
    assert list(contents(docs).values()) == [b"mine"]
