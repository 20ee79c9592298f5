"""``monai-adv compare``: planted versions get the outcome that was planted; other data, radii or plans are refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation.evidence.changes import changes
from monai_adv.evaluation.evidence.history import Session
from monai_adv.evaluation.store import Store
from monai_adv.metrics.score import Score
from tests.planted_evaluation import dice_score, folder_of, plant

CLEAN = [dice_score(f"p{n}", 0.8 + 0.01 * n) for n in range(8)]


def version(
    folder: Path, lost: Any, model: str = "net", level: str = "l2-5", attack: str = "APGD-CE", **more: Any
) -> Path:
    """Of patient n ``lost(n)`` is lost at the radius."""
    attacked = [dice_score(s.case, s.score - lost(n)) for n, s in enumerate(CLEAN)]
    return folder_of(folder, plant(model, CLEAN, {(level, attack): attacked}), **{"data": "d1", **more})


def test_better_worse_and_within_noise(tmp_path: Path) -> None:
    old = version(tmp_path / "old", lambda n: 0.3)
    for name, lost, outcome in (
        ("better", lambda n: 0.2 + 0.001 * n, "better"),
        ("worse", lambda n: 0.4 + 0.001 * n, "worse"),
        ("noise", lambda n: 0.3 + (0.01 + 0.001 * n) * (-1) ** n, "within noise"),
        ("same", lambda n: 0.3, "within noise"),
        ("few", lambda n: 0.3 + 0.1 * (n < 2), "not decided"),
    ):
        found = changes(old, version(tmp_path / name, lost))
        clean, attacked = found.rows
        assert (clean.level, clean.outcome, clean.comparison.difference) == ("", "within noise", 0)
        assert attacked.outcome == outcome, name
        assert found.worse == (outcome == "worse")
        if name == "better":
            # All eight patients gained: 2 / 2**8, twice by Holm's correction only if both rows had a test.
            assert attacked.p == pytest.approx(2 / 2**8)
            assert attacked.comparison.difference == pytest.approx(0.1 - 0.0035)
            assert (attacked.comparison.better, attacked.comparison.worse) == (8, 0)


def test_holm_corrects_over_all_rows(tmp_path: Path) -> None:
    def two(folder: Path, gained: float) -> Path:
        attacked = {(key, "APGD-CE"): [dice_score(s.case, s.score - 0.3 + gained * (1 + 0.1 * n))
                                       for n, s in enumerate(CLEAN)] for key in ("l2-5", "l2-6")}  # fmt: skip
        return folder_of(folder, plant("net", CLEAN, attacked))

    found = changes(two(tmp_path / "a", 0.0), two(tmp_path / "b", 0.05))
    assert [row.p for row in found.rows[1:]] == pytest.approx([2 * 2 / 2**8] * 2)
    raw = stats.wilcoxon([0.05 * (1 + 0.1 * n) for n in range(8)]).pvalue
    assert found.rows[1].p == pytest.approx(2 * raw)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"level": "l2-6"}, "allowed is the same radii"),
        ({"level": "l2-5-rms"}, "allowed is the same radii"),
        ({"attack": "Square"}, "another plan of attacks"),
        ({"data": "d2"}, "net on other data"),
        ({"settings": {"attacks": "quick"}}, "attacks standard and quick"),
        ({"settings": {"box": [0, 1]}}, "allowed is the same box"),
        ({"classes": ["anterior", "other"]}, "another classes"),
        ({"unit": "HU"}, "another unit"),
        ({"cases": [f"p{n}" for n in range(8)][::-1]}, "other cases of net (in another order)"),
        ({"cases": [f"p{n}" for n in range(1, 9)], "data": "d2"}, "net (only in OLD: p0; only in NEW: p8)"),
    ],
)
def test_what_was_not_measured_in_the_same_way_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    old, new = version(tmp_path / "old", lambda n: 0.3), version(tmp_path / "new", lambda n: 0.2, **more)
    with pytest.raises(InputError) as error:
        changes(old, new)
    assert said in str(error.value)
    assert "measure both versions in the same way" in str(error.value)


def test_models_are_paired_by_name_or_alone(tmp_path: Path) -> None:
    old = version(tmp_path / "old", lambda n: 0.3, "v1")
    found = changes(old, version(tmp_path / "new", lambda n: 0.2 + n / 1000, "v2", fingerprint="cd"))
    assert found.rows[1].outcome == "better"
    assert found.told == ("v2 is compared with v1.",)
    head, clean, attacked, *told = repr(found).splitlines()
    assert head.split()[:2] == ["model", "images"]
    assert clean.startswith("v2     unchanged  83.5")
    assert attacked.startswith("v2     L2 5       53.5    63.")
    assert told == ["v2 is compared with v1."]
    two = plant("x", CLEAN, {("l2-5", "APGD-CE"): CLEAN}) + plant("y", CLEAN, {("l2-5", "APGD-CE"): CLEAN})
    with pytest.raises(InputError, match="the models v1 and x, y"):
        changes(old, folder_of(tmp_path / "two", two))


def test_what_else_differs_is_told(tmp_path: Path) -> None:
    old = version(tmp_path / "old", lambda n: 0.3)
    new = version(
        tmp_path / "new", lambda n: 0.3, settings={"seed": 8, "fuse": True}, space="patches", fingerprint="cd", data=""
    )
    told = "\n".join(changes(old, new).told)
    assert "could not be checked" in told
    assert "deployed in another way" in told
    assert "seed: 7 before, 8 now" in told
    assert "fuse: False before, True now; the last digits depend on it." in told
    assert "are the same in both" in "\n".join(changes(old, old).told)


def test_what_is_in_no_row_is_told(tmp_path: Path) -> None:
    def both(folder: Path, *names: str, code: str) -> Path:
        records = [r for name in names for r in plant(name, CLEAN, {("l2-5", "APGD-CE"): CLEAN})]
        folder_of(folder, records, data="d1", corruptions=[{"name": "corruption:blur", "severity": "1"}])
        Session(at="2026-11-21T14:00:00", machine="m", records=0, command="", code=code * 64).keep(Store(folder))
        return folder

    found = changes(both(tmp_path / "a", "x", "y", code="a"), both(tmp_path / "b", "y", "z", code="b"))
    assert {row.model for row in found.rows} == {"y"}
    told = found.told
    assert told[:2] == (
        "Not compared, as it is only in OLD: x.", "Not compared, as it is only in NEW: z.",
    )  # fmt: skip
    assert "What natural corruptions and variations leave is not compared; see both reports." in told
    assert "Measured by other code of monai-adv." in told


def test_figures_that_are_not_reliable_decide_nothing(tmp_path: Path) -> None:
    """Planted as the runner would leave it: an attack that finds less than random noise."""

    def planted(folder: Path, lost: float = 0.01) -> Path:
        attacked = [dice_score(s.case, s.score - lost) for s in CLEAN]
        noise = [dice_score(s.case, s.score - 0.3) for s in CLEAN]
        return folder_of(folder, plant("net", CLEAN, {("l2-5", "white noise"): noise, ("l2-5", "APGD-CE"): attacked}))

    row = changes(planted(tmp_path / "a"), planted(tmp_path / "b")).rows[1]
    assert row.outcome == "not decided"
    assert row.why.startswith("the figures of OLD and NEW are not reliable (")
    row = changes(planted(tmp_path / "c"), planted(tmp_path / "d", 0.4)).rows[1]
    assert row.why.startswith("the figures of OLD are not reliable (")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = version(tmp_path / "old", lambda n: 0.3), version(tmp_path / "new", lambda n: 0.4 + n / 1000)
    words = ["compare", str(old), str(new), "--json", str(tmp_path / "changes.json")]
    assert main(words) == 5
    assert "worse" in capsys.readouterr().out
    content = json.loads((tmp_path / "changes.json").read_text())
    assert [row["outcome"] for row in content["rows"]] == ["within noise", "worse"]
    assert main(["compare", str(new), str(old)]) == 0
    assert main(["compare", str(old), str(tmp_path / "nowhere")]) == 2
    assert main([*words[:-1], str(tmp_path)]) == 2
    assert "a file that can be written" in capsys.readouterr().err


def test_what_is_not_defined_is_a_dash(tmp_path: Path) -> None:
    """Patients without foreground have no Dice."""
    empty = [Score(f"p{n}", math.nan, {"anterior": math.nan, "posterior": math.nan}, {}) for n in range(8)]
    both = [folder_of(tmp_path / name, plant("net", empty, {("l2-5", "APGD-CE"): empty})) for name in "ab"]
    lines = [re.split(r"\s{2,}", line) for line in repr(changes(*both)).splitlines()[1:3]]
    assert [line[:5] for line in lines] == [["net", where, "-", "-", "-"] for where in ("unchanged", "L2 5")]
