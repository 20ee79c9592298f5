"""Acceptance criteria: what is refused, and that the bound of the interval decides, not the figure."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation.checks.verdict import Verdict
from monai_adv.evaluation.codec import plain, typed
from monai_adv.evaluation.evidence.decisions import (
    Outcome,
    decide,
    decide_proven,
    median_distance,
    share_kept,
    together,
)
from monai_adv.evaluation.evidence.history import Session, purpose_of, sessions, told_late
from monai_adv.evaluation.evidence.purpose import Purpose, measures_of
from monai_adv.evaluation.evidence.summary import draft_sentence, summary_of, told
from monai_adv.evaluation.figures.results import Figures, gather
from monai_adv.evaluation.records import Level, Record
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.store import Store, read_evaluation
from monai_adv.metrics.score import Score
from tests.places import TESTS
from tests.planted_evaluation import dice_score, folder_of, label_score, plant

RELIABLE = Verdict("reliable", ())
GOOD: dict[str, Any] = {"measure": "score", "norm": "l2", "eps": 5, "unit": "norm", "at_least": 0.5, "reason": "r"}


def criterion(**changed: Any) -> Any:
    kept = {k: v for k, v in (GOOD | changed).items() if v is not None}
    return Purpose.stated(None, [kept]).criteria[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"at_least": 80}, "allowed is a share between 0 and 1; 80 % is 0.8"),
        ({"at_least": -0.1}, "allowed is a share between 0 and 1"),
        ({"at_least": math.nan}, "allowed is a share between 0 and 1"),
        ({"at_least": "much"}, "at_least: received 'much'"),
        ({"at_most": 0.5, "at_least": None}, "allowed is at_least for 'score', of which a higher one is better"),
        ({"at_most": 0.5}, "received 'at_least and at_most'"),
        ({"at_least": None}, "received 'no bound'"),
        ({"measure": "hd95_mm posterior"}, "allowed is at_most for 'hd95_mm posterior'"),
        ({"measure": "hd95_mm posterior", "at_least": None, "at_most": 0}, "allowed is a distance in mm > 0"),
        ({"reason": None}, "reason: received None"),
        ({"reason": " "}, "reason: received ' '"),
        ({"reason": "long" * 600}, "received '2400 characters'"),
        ({"norm": None}, "norm: received None, allowed is 'l2' or 'linf', where eps is given"),
        ({"eps": None}, "received 'norm or unit without eps'"),
        ({"unit": "HU"}, "unit: received 'HU'"),
        ({"most_lost": 1.2}, "most_lost: received 1.2"),
        ({"measure": "dice posterior", "most_lost": 0.2}, "allowed is given with the measure 'score'"),
        ({"measure": "share kept", "norm": None, "eps": None, "unit": None}, "unchanged images keep all"),
        ({"threshold": 0.5}, "unknown key of acceptance 1"),
    ],
)
def test_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        criterion(**changed)
    assert said in str(error.value)


@pytest.mark.parametrize("given", [{"measure": "score"}, "score", ["score"], [[1]]])
def test_only_a_list_of_mappings(given: Any) -> None:
    with pytest.raises(InputError, match="mapping"):
        Purpose.stated(None, given)


def test_a_measure_twice_at_a_radius_is_refused() -> None:
    with pytest.raises(InputError, match="one criterion for a measure at a radius"):
        Purpose.stated(None, [GOOD, GOOD | {"at_least": 0.6}])
    with pytest.raises(InputError, match="one criterion for a measure at a radius"):  # most_lost is "share kept"
        Purpose.stated(None, [GOOD | {"most_lost": 0.1}, GOOD | {"measure": "share kept"}])


def test_radii_that_are_not_measured_and_measures_that_a_model_does_not_have_are_refused() -> None:
    purpose = Purpose.stated("use", [GOOD])
    purpose.check_levels([Level("l2", 5, "norm")])
    with pytest.raises(InputError, match="allowed is a radius that is measured: L2, 5 RMS; L-inf 5"):
        purpose.check_levels([Level("l2", 5, "rms"), Level("linf", 5, "norm")])
    with pytest.raises(InputError, match="allowed is a measure of net: score, share kept, dice tumour, hd95_mm tumour"):
        Purpose.stated(None, [GOOD | {"measure": "dice tumor"}]).check_model("net", "segmentation", ["tumour"])
    purpose.check_model("net", "classification", ["a", "b", "c"])
    with pytest.raises(InputError, match="sensitivity c"):  # of three classes none is the positive one
        Purpose.stated(None, [GOOD | {"measure": "sensitivity"}]).check_model("net", "classification", ["a", "b", "c"])


def test_what_is_read_is_what_was_written() -> None:
    purpose = Purpose.stated("use", [GOOD | {"most_lost": 0.1}, {"measure": "score", "at_least": 0.9, "reason": "x"}])
    assert typed(Purpose, json.loads(json.dumps(plain(purpose)))) == purpose
    assert [c.level for c in purpose.criteria] == ["l2-5", "l2-5", ""]


def classifier(tmp_path: Path, right: int, count: int = 100, clean: int = 100) -> Figures:
    """Of ``count`` images ``clean`` are right, ``right`` of them at L2 5."""

    def scores(good: int) -> list[Score]:
        return [label_score(str(n), n % 2, (1 - (n + (n >= good)) % 2, (n + (n >= good)) % 2)) for n in range(count)]

    before, after = tuple(scores(clean)), tuple(scores(right))
    records = [
        Record("net", "images", "", "clean", before, before),
        Record("net", "images", "l2-5", "APGD-CE", after, after, forward=101, attacked=count),
    ]
    return gather(folder_of(tmp_path / "f", records))


@pytest.mark.parametrize(
    ("right", "bound", "outcome"),
    # Wilson's interval of 80 of 100 is 71.1 to 86.7 %.
    [(80, 0.711, "passed"), (80, 0.712, "not decided"), (80, 0.866, "not decided"), (80, 0.868, "FAILED")],
)
def test_the_lower_bound_decides(tmp_path: Path, right: int, bound: float, outcome: Outcome) -> None:
    figures = classifier(tmp_path, right)
    model = replace(figures.models[0], verdict=RELIABLE)
    decision = decide(criterion(at_least=bound), model, figures)
    assert decision.outcome == outcome
    assert decision.measured.value == 0.8
    assert ("100 images do not decide it" in decision.why) == (outcome == "not decided")


def test_a_criterion_under_attack_is_passed_by_reliable_figures_only(tmp_path: Path) -> None:
    figures = classifier(tmp_path, 80)
    model = figures.models[0]
    assert model.verdict.word == "not enough measured"  # one radius
    passed = decide(criterion(at_least=0.5), model, figures)
    assert (passed.outcome, passed.why) == ("not decided", "the figures are not enough measured")
    assert decide(criterion(at_least=0.9), model, figures).outcome == "FAILED"
    clean = criterion(norm=None, eps=None, unit=None, at_least=0.9)
    assert decide(clean, model, figures).outcome == "passed"  # no attack has a part in it


def test_a_certificate_proves_what_the_attacks_leave_open_and_fails_nothing(tmp_path: Path) -> None:
    """Proven of 80 of 100: Wilson's interval begins at 71.1 %. The attacks left 80, by too few figures."""
    figures, proven = classifier(tmp_path, 80), [1.0] * 80 + [0.0] * 20
    model = figures.models[0]
    passed = decide(criterion(at_least=0.711), model, figures, proven)
    assert (passed.outcome, passed.why) == ("passed", "proven by the certificate")
    assert decide(criterion(at_least=0.712), model, figures, proven).outcome == "not decided"
    assert decide(criterion(at_least=0.9), model, figures, proven).outcome == "FAILED"  # by the attacks
    assert decide(criterion(at_least=0.5, measure="sensitivity"), model, figures, proven).outcome == "not decided"
    alone = decide_proven(criterion(at_least=0.9), proven, "classification", 0)
    assert (alone.outcome, alone.measured.value) == ("not decided", 0.8)
    assert "only an attack can show that it is missed" in alone.why
    assert decide_proven(criterion(), [], "classification", 0).outcome == "not measured"


def test_every_measure_is_decided_by_its_own_figure(tmp_path: Path) -> None:
    figures = classifier(tmp_path, 80, clean=90)
    model = replace(figures.models[0], verdict=RELIABLE)
    for measure in measures_of("classification", model.classes):
        found = decide(criterion(measure=measure, at_least=0.5), model, figures)
        expected = 80 / 90 if measure == "share kept" else 0.8
        assert found.measured.value == pytest.approx(expected), measure
        assert found.outcome == "passed"


def test_few_and_equal_cases_never_pass(tmp_path: Path) -> None:
    def figures(values: list[float]) -> Figures:
        scores = [dice_score(str(n), v) for n, v in enumerate(values)]
        folder = tmp_path / str(len(values))
        return gather(folder_of(folder, plant("net", scores, {("l2-5", "APGD-CE"): scores})))

    for values, bound, outcome in (
        ([0.9, 0.8, 0.9], 0.1, "not decided"), ([0.1, 0.2, 0.1], 0.9, "not decided"),
        ([0.9] * 7, 0.5, "not decided"), ([0.1] * 8, 0.5, "FAILED"),
    ):  # fmt: skip
        found = figures(values)
        model = replace(found.models[0], verdict=RELIABLE)
        assert decide(criterion(at_least=bound), model, found).outcome == outcome, values


def test_not_measured_yet(tmp_path: Path) -> None:
    figures = classifier(tmp_path, 80)
    assert decide(criterion(eps=7), figures.models[0], figures).outcome == "not measured"
    assert together([]) is None


def test_a_class_that_is_lost_is_infinitely_far() -> None:
    """Seven cases, four of them without any found voxel: the median is not that of the other three."""
    scores = {("", str(n)): Score(str(n), 0.5, {"a": 0.0 if n > 2 else 0.5},
                                  {"a": math.nan if n > 2 else 1.0}) for n in range(7)}  # fmt: skip
    assert median_distance(scores, "a").value == math.inf
    absent = {key: replace(s, absent=("a",)) for key, s in scores.items()}
    assert median_distance(absent, "a").count == 0


def test_the_share_kept_is_a_ratio_of_means_over_the_same_cases() -> None:
    clean = {("", str(n)): dice_score(str(n), 0.5 + 0.05 * n) for n in range(8)}
    half = {key: dice_score(key[1], s.score / 2) for key, s in clean.items()}
    found = share_kept(clean, half, "segmentation")
    assert found.value == pytest.approx(0.5)
    assert not found.interval.exists  # every case keeps the same share
    other = half | {("", "0"): dice_score("0", 0.0)}
    found = share_kept(clean, other, "segmentation")
    assert found.interval.low < found.value < 0.5 < 1
    assert share_kept(clean, {}, "segmentation").count == 0


def test_what_is_stated_after_the_results_is_told(tmp_path: Path) -> None:
    figures_folder = tmp_path / "f"
    classifier(tmp_path, 80)
    store = Store(figures_folder)
    first = Purpose.stated("use", [GOOD])
    Session(at="2026-11-21T14:00:00", machine="m", records=0, command="", purpose=first).keep(store)
    Session(at="2026-11-21T15:00:00", machine="m", records=10, command="", purpose=None).keep(store)
    assert (purpose_of(sessions(figures_folder)), told_late(sessions(figures_folder))) == (first, [])
    Session(
        at="2026-11-22T15:00:00",
        machine="m",
        records=200,
        command="",
        purpose=Purpose.stated("use", [GOOD | {"at_least": 0.4}]),
    ).keep(store)
    (sentence,) = told_late(sessions(figures_folder))
    assert "changed on 2026-11-22 15:00, after 200 results were known" in sentence
    summary = summary_of(gather(figures_folder), sessions(figures_folder), "", figures_folder)
    assert summary is not None
    assert summary.models[0].decisions[0].criterion.bound == 0.4
    assert told(summary) == ["net: acceptance criteria not decided (1 not decided)"]
    page = write_report(figures_folder).read_text()
    assert page.index("Summary for the file") < page.index("changed on 2026-11-22") < page.index('aria-label="Verdict"')


def test_no_purpose_no_summary(tmp_path: Path) -> None:
    classifier(tmp_path, 80)
    assert "Summary for the file" not in write_report(tmp_path / "f").read_text()
    assert told(summary_of(gather(tmp_path / "f"), sessions(tmp_path / "f"), "", tmp_path / "f")) == []


def test_the_draft_names_the_figures_or_says_why_there_is_none(tmp_path: Path) -> None:
    figures = classifier(tmp_path, 80)
    model = figures.models[0]
    assert draft_sentence(model, figures, set()) == "No sentence is proposed: the figures are not enough measured."
    text = draft_sentence(replace(model, verdict=RELIABLE), figures, set()).replace("\u00a0", " ")
    assert "net reached an accuracy of 100.0 %" in text
    assert "changes of at most L2 5 lowered it to 80.0 % (95 % interval 71.1 to 86.7 %)" in text
    assert "cannot be excluded" in text


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    factory = f"{TESTS / 'tiny_models.py'}:classifier"
    return {"factory": [factory], "norm": "linf", "eps": [0.02], "attacks": "quick", "device": "cpu", "cases": 4,
            "yes": True, "output": str(tmp_path / "out")}  # fmt: skip


def run(tmp_path: Path, content: dict[str, Any]) -> int:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return main(["evaluate", "--run", str(tmp_path / "run.yaml")])


def test_a_run_file_states_the_purpose_and_gives_it_back(tmp_path: Path, asked: dict[str, Any]) -> None:
    criteria = [{"measure": "score", "norm": "linf", "eps": 0.02, "at_least": 0.5, "reason": "<b>as agreed</b>"}]
    stated = {"intended_use": "Telling a from b.", "acceptance": criteria}
    assert run(tmp_path, asked | stated) in (0, 3)
    kept = yaml.safe_load(read_evaluation(tmp_path / "out").run_file)
    assert (kept["intended-use"], kept["acceptance"]) == (stated["intended_use"], criteria)
    assert purpose_of(sessions(tmp_path / "out")) == Purpose.stated(stated["intended_use"], criteria)
    assert "&lt;b&gt;as agreed&lt;/b&gt;" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"eps": 0.03}, "allowed is a radius that is measured: L-inf 0.02"), ({"measure": "dice a"}, "score, share kept")],
)
def test_a_criterion_that_cannot_be_decided_stops_before_anything_is_written(
    tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str], changed: dict[str, Any], said: str
) -> None:
    stated = {"measure": "score", "norm": "linf", "eps": 0.02, "at_least": 0.5, "reason": "as agreed"}
    assert run(tmp_path, asked | {"acceptance": [stated | changed]}) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
