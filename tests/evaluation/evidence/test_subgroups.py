"""Scores per group: tables that do not fit are refused by name, gaps are those of hand-made groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import monai_adv
from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation.evidence.group_table import GroupTable, edges_of
from monai_adv.evaluation.evidence.subgroups import gap_sentence, subgroups_of
from monai_adv.evaluation.evidence.verify import verify
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.outcome import Results
from monai_adv.evaluation.records import Record
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.store import Store, read_subgroups
from monai_adv.metrics.score import Score
from monai_adv.metrics.two_groups import bootstrap_difference, newcombe
from tests.places import TESTS
from tests.planted_evaluation import dice_score, folder_of, label_score

GOOD = "case,site,age\n" + "".join(f"p{n},{'AB'[n % 2]},{20 + n}\n" for n in range(24))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "which is empty"),
        ("case,site\n", "which has no row"),
        ("case\np0\n", "allowed is 'case' and another one"),
        ("case;site\np0;A\n", "put commas between the columns"),
        ("patient,site\np0,A\n", "allowed is 'case' and another one"),
        ("case,site\np0,A\np0,B\np1,A\np1,A\n", "received 'p0, p1 twice', allowed is one row for each case"),
        ("case,site,site\np0,A,B\n", "site twice"),
        ("case,site\np0,A,x\n", "3 values in row 2 of t.csv"),
        ("case,site\np0\n", "1 values in row 2"),
        ("case,age\n" + "".join(f"p{n},{n}\n" for n in range(9)) + "p9,inf\n", "allowed is finite numbers"),
        ("case,id\n" + "".join(f"p{n},x{n}\n" for n in range(21)), "21 different values in 'id'"),
        ('case,site\n"p0,A\n', "a CSV file that can be read"),
        ("case,site\np0,\xff\n", "a CSV file that can be read"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as error:
        GroupTable.read(tmp_path / "t.csv")
    assert said in str(error.value)


def test_no_such_file_and_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a CSV file that can be read"):
        GroupTable.read(tmp_path / "none.csv")
    with pytest.raises(InputError, match="allowed is a table"):
        GroupTable.read(3)


def test_cases_that_do_not_match_are_named() -> None:
    table = GroupTable.read({"case": ["a", "b", "c"], "site": ["x", "y", "x"]})
    table.check(["c", "b", "a"])
    with pytest.raises(InputError, match="received 'd: no row in table'"):
        table.check("abcd")
    with pytest.raises(InputError, match="received 'b, c: a row, but is not evaluated, in table'"):
        table.check("a")


def test_numbers_are_binned_at_quartiles_or_at_given_edges() -> None:
    ages = {"case": [f"p{n}" for n in range(8)], "age": [10, 20, 30, 40, 50, 60, 70, 80]}
    table = GroupTable.read(ages)
    assert table.binned == {"age": [27.5, 45.0, 62.5]}
    assert table.groups("age") == ["< 27.5", "27.5 to < 45", "45 to < 62.5", "≥ 62.5"]
    assert list(table.columns["age"].values()) == [g for g in table.groups("age") for _ in range(2)]
    table = GroupTable.read(ages, {"age": [20, 80]})  # an edge belongs to the group above it
    assert list(table.columns["age"].values()) == ["< 20", *["20 to < 80"] * 6, "≥ 80"]
    codes = GroupTable.read({"case": list("abc"), "sex": ["0", "1", "0"]})
    assert (codes.binned, codes.groups("sex")) == ({}, ["0", "1"])
    scanners = GroupTable.read({"case": list("abc"), "tesla": ["3", "1.5", ""]})
    assert scanners.groups("tesla") == ["1.5", "3", "not given"]


@pytest.mark.parametrize(
    ("edges", "said"),
    [({"size": [1]}, "unknown column of table"), ({"age": [2, 1]}, "in ascending order"), ({"age": []}, "ascending"),
     ({"site": [1]}, "allowed is numbers, where edges are given")],
)  # fmt: skip
def test_edges_that_do_not_fit(edges: dict[str, list[float]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GroupTable.read({"case": ["a", "b"], "age": [1, 2], "site": ["x", "y"]}, edges)


@pytest.mark.parametrize("word", ["age", "=1", "age=", "age=a"])
def test_edges_on_the_command_line(word: str) -> None:
    with pytest.raises(InputError, match="subgroup-edges"):
        edges_of([word])


@given(st.lists(st.integers(-50, 50), min_size=8, max_size=60, unique=True))
@settings(max_examples=50, deadline=None)
def test_every_case_is_in_one_group_and_their_order_is_that_of_the_numbers(numbers: list[int]) -> None:
    table = GroupTable.read({"case": list(map(str, range(len(numbers)))), "x": numbers})
    order = table.groups("x")
    places = [order.index(table.columns["x"][str(i)]) for i in range(len(numbers))]
    assert len(order) == 4
    assert all(a <= b for a, b in zip(*[sorted(zip(numbers, places, strict=True))] * 2, strict=True))
    assert [p for _, p in sorted(zip(numbers, places, strict=True))] == sorted(places)


def test_newcombe_swaps_sides_and_widens_with_confidence() -> None:
    one, other = newcombe(9, 10, 3, 10), newcombe(3, 10, 9, 10)
    assert (one.low, one.high) == (-other.high, -other.low)
    # Newcombe 1998, Table II (c): 9 of 10 and 3 of 10.
    assert (round(one.low, 4), round(one.high, 4)) == (0.1705, 0.8090)
    assert newcombe(9, 10, 3, 10, 0.99).low < one.low
    assert not newcombe(0, 0, 1, 2).exists


def test_the_bootstrap_of_a_difference_is_near_the_t_interval() -> None:
    one, other = [0.7 + 0.01 * n for n in range(20)], [0.5 + 0.02 * n for n in range(15)]
    found = bootstrap_difference(one, other)
    exact = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert found.low == pytest.approx(exact.low, abs=0.02)
    assert found.high == pytest.approx(exact.high, abs=0.02)
    assert not bootstrap_difference(one, other[:5]).exists
    assert not bootstrap_difference([0.5] * 9, [0.6] * 9).exists


def planted(folder: Path, scores: dict[str, tuple[Score, Score]]) -> Path:
    """Patient or image -> clean and attacked score, in one record each."""
    clean, attacked = (tuple(pair[i] for pair in scores.values()) for i in (0, 1))
    return folder_of(folder, [
        Record("net", "all", "", "clean", clean, clean), Record("net", "all", "l2-5", "APGD-CE", attacked, attacked)
    ])  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Of site A all 20 stay right under attack, of B half of 20; of C there are 5 alone."""

    def one(n: int, right: bool) -> Score:
        return label_score(f"p{n}", 0, (0.9, 0.1) if right else (0.1, 0.9))

    scores = {f"p{n}": (one(n, True), one(n, n < 20 or n % 2 == 0)) for n in range(45)}
    return planted(tmp_path / "store", scores)


TABLE = {"case": [f"p{n}" for n in range(45)], "site": ["A"] * 20 + ["B"] * 20 + ["C"] * 5}


def test_groups_and_their_gap_are_those_that_were_planted(images: Path) -> None:
    found = Results(images).subgroups(TABLE)
    frame = found.frame().set_index(["group", "level"])
    assert frame.loc[("A", "l2-5"), "score"] == 1
    assert frame.loc[("B", "l2-5"), "score"] == 0.5
    assert frame.loc[("C", "l2-5"), ["cases", "small"]].tolist() == [5, True]
    wilson = stats.binomtest(10, 20).proportion_ci(method="wilson")
    assert frame.loc[("B", "l2-5"), ["low", "high"]].tolist() == pytest.approx(list(wilson))
    clean, attacked = found.gaps
    assert (clean.level, clean.difference) == ("", 0)
    assert (attacked.highest, attacked.lowest, attacked.difference) == ("A", "B", 0.5)  # C is too small
    expected = newcombe(20, 20, 10, 20)
    assert (attacked.interval.low, attacked.interval.high) == (expected.low, expected.high)
    assert "chance alone would rarely" in gap_sentence(attacked, gather(images), "accuracy")
    assert "site, l2-5: A is 50.0 points" in repr(found)


def test_the_interval_holds_for_all_pairs_of_groups(images: Path) -> None:
    sites = ["A"] * 15 + ["B"] * 15 + ["C"] * 15
    gap = Results(images).subgroups(TABLE | {"site": sites}).gaps[1]
    worst = sum(n < 20 or n % 2 == 0 for n in range(30, 45))
    expected = newcombe(15, 15, worst, 15, 1 - 0.05 / 3)
    assert (gap.interval.low, gap.interval.high) == (expected.low, expected.high)


def test_a_table_that_does_not_fit_the_results_is_refused(images: Path) -> None:
    less = {k: v[1:] for k, v in TABLE.items()}
    with pytest.raises(InputError, match="p0: no row"):
        Results(images).subgroups(less)
    with pytest.raises(InputError, match="x: a row, but is not evaluated"):
        Results(images).subgroups({k: [*v, "x"] for k, v in TABLE.items()})
    assert len(Results(images).subgroups(pandas.DataFrame(TABLE)).groups) == 3


def test_groups_of_dice_are_on_the_page_and_in_the_evidence(tmp_path: Path) -> None:
    scores = {f"p{n}": (dice_score(f"p{n}", 0.8 + 0.005 * n), dice_score(f"p{n}", 0.5 + 0.1 * (n % 2) + 0.005 * n))
              for n in range(24)}  # fmt: skip
    folder = planted(tmp_path / "store", scores)
    (tmp_path / "t.csv").write_text(GOOD)
    table = GroupTable.read(tmp_path / "t.csv", {"age": [30]})
    Store(folder).add_subgroups(table)
    assert read_subgroups(folder, GroupTable) == table
    page = write_report(folder).read_text()
    assert "site: B" in page
    assert "age: &lt; 30" in page
    assert "site B has 10.5 points more Dice than A" in page  # 0.1, and half a point of each second patient
    content = json.loads((folder / "evidence.json").read_text())["subgroups"]
    assert (content["table"], content["hash"], content["edges"]) == ("t.csv", table.hash, {"age": [30]})
    assert {line.outcome for line in verify(folder) if "subgroups" in line.what} == {"matches"}
    found = subgroups_of(table, gather(folder))
    small = [g.name for g in found.groups if g.small]
    assert small == []
    assert [g.count for g in found.groups] == [12, 12, 10, 14]


def test_a_table_that_comes_later_is_kept_and_told(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("case,site\n" + "".join(f"p{n},{s}\n" for n, s in enumerate(TABLE["site"][1:])))
    words = ["report", str(images), "--subgroups", str(table)]
    assert main(words) == 2
    assert "p44: no row in t.csv" in capsys.readouterr().err
    assert read_subgroups(images, GroupTable) is None
    table.write_text("case,site\n" + "".join(f"p{n},{s}\n" for n, s in enumerate(TABLE["site"])))
    assert main(words) == 0
    assert "site: B" in (images / "report.html").read_text()
    (told,) = [d for d in json.loads((images / "evidence.json").read_text())["deviations"] if "subgroups" in d]
    assert "after 2 results were known" in told


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factory = f"{TESTS / 'tiny_models.py'}:classifier"
    table = tmp_path / "t.csv"
    words = ["evaluate", "--factory", factory, "--norm", "linf", "--eps", "0.02", "-o", str(tmp_path / "out"),
             "--attacks", "quick", "--device", "cpu", "--cases", "12", "-y", "--subgroups", str(table)]  # fmt: skip
    table.write_text("case,site\n" + "".join(f"{n},A\n" for n in range(11)))
    assert main(words) == 2
    assert "'11: no row in t.csv'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # before anything was written
    table.write_text("case,site\n" + "".join(f"{n},{'A' if n < 11 else 'B'}\n" for n in range(12)))
    assert main(words) in (0, 3)
    assert 'class="small"' in (tmp_path / "out" / "report.html").read_text()
    assert main([*words[:-2], "--subgroup-edges", "age=3"]) == 2


def test_from_python(tmp_path: Path) -> None:
    import torch

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    data: Any = torch.rand(12, 1, 4, 4), torch.arange(12) % 2
    more: Any = {"norm": "linf", "eps": 0.01, "attacks": "quick", "folder": tmp_path / "out"}
    with pytest.raises(InputError, match="11: no row"):
        monai_adv.evaluate(network, *data, **more, subgroups={"case": range(11), "site": ["A"] * 11})
    assert not (tmp_path / "out").exists()
    monai_adv.evaluate(network, *data, **more, subgroups={"case": range(12), "site": ["A"] * 12})
    assert read_subgroups(tmp_path / "out", GroupTable) is not None
