"""Every number of the report against one computed by hand."""

from __future__ import annotations

import math
import warnings
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_adv.errors import InputError
from monai_adv.evaluation import records as kept
from monai_adv.evaluation.figures.comparisons import compare_all
from monai_adv.evaluation.records import Level, Record, own_scores, parse_level, worst_scores
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Score
from monai_adv.metrics.statistics import (
    auc,
    bootstrap,
    compare,
    detection,
    holm,
    mcnemar,
    per_class_detection,
    per_class_dice,
    quartiles,
    summarise,
    wilson,
)
from tests.planted_evaluation import CLASSES, dice_score, label_score, plant


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _scores(values, prefix="case"):
    return {(f"{prefix}{i}", f"{prefix}{i}"): dice_score(f"{prefix}{i}", v) for i, v in enumerate(values)}


def _answers(values):
    return {(f"{i}", f"{i}"): Score(f"{i}", v) for i, v in enumerate(values)}


@given(
    st.sampled_from(["l2", "linf"]),
    st.floats(1e-6, 1e6),
    st.sampled_from(["norm", "raw"]),
)
def test_a_level_is_read_back_from_its_key(norm, eps, unit):
    level = Level(norm, float(f"{eps:g}"), unit)
    assert parse_level(level.key) == level


def test_another_key_is_refused():
    with pytest.raises(InputError, match="a key such as"):
        parse_level("corruption-3")


def test_worst_scores_do_not_depend_on_the_order_and_ignore_corruptions():
    a = [dice_score("a", 0.9), dice_score("b", 0.8)]
    records = plant(
        "m", a, {("l2-5", "PGD"): [dice_score("a", 0.5), dice_score("b", 0.7)],
                 ("l2-5", "Square"): [dice_score("a", 0.6), dice_score("b", 0.2)]},
    )  # fmt: skip
    bad = Record("m", "a", "l2-5", "corruption: blur", (dice_score("a", 0.0),), (dice_score("a", 0.0),))
    for order in ([*records, bad], [bad, *records[::-1]]):
        assert {k[1]: s.score for k, s in worst_scores(order, "m", "l2-5").items()} == {"a": 0.5, "b": 0.2}
    assert {k[1]: s.score for k, s in own_scores(records, "m", "Square", "l2-5").items()} == {"a": 0.6, "b": 0.2}
    assert kept.attacks([*records, bad]) == ["PGD", "Square"]
    assert kept.corruptions([*records, bad]) == [("corruption: blur", "l2-5")]


def test_levels_are_sorted_by_radius_within_norm_and_unit():
    records = plant(
        "m", [dice_score("a", 1)], {(k, "PGD"): [dice_score("a", 0)] for k in ("linf-0.1", "l2-15", "l2-5")}
    )
    assert [v.key for v in kept.levels(records)] == ["l2-5", "l2-15", "linf-0.1"]


def test_summary_names_the_worst_patient_and_counts_what_is_not_defined():
    summary = summarise(_scores([0.5, 0.25, 0.75]) | {("d", "d"): Score("d", math.nan)}, "segmentation")
    assert (summary.mean, summary.lowest, summary.lowest_case) == (0.5, 0.25, "case1")
    assert (summary.count, summary.undefined) == (3, 1)
    assert summary.interval.how == "3 cases: too few for an interval"


def test_summary_of_nothing_is_a_sentence():
    summary = summarise({("d", "d"): Score("d", math.nan)}, "segmentation")
    assert math.isnan(summary.mean)
    assert (summary.count, summary.undefined, summary.interval.how) == (0, 1, "no case has a defined score")


def test_wilson_by_its_formula():
    k, n, z = 37, 50, 1.959963984540054
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = wilson(k, n)
    assert (interval.low, interval.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert wilson(0, 0).how == "no cases"


@given(st.integers(1, 50), st.data())
def test_wilson_contains_the_proportion_and_stays_in_range(n, data):
    k = data.draw(st.integers(0, n))
    interval = wilson(k, n)
    assert -1e-12 <= interval.low <= k / n + 1e-12
    assert k / n - 1e-12 <= interval.high <= 1 + 1e-12


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = [0.5 + 0.01 * ((i * 37) % 21 - 10) for i in range(40)]
    interval = bootstrap(values, seed=3)
    assert interval == bootstrap(values, seed=3)
    mean = sum(values) / 40
    error = (sum((v - mean) ** 2 for v in values) / 39 / 40) ** 0.5
    assert interval.low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_bootstrap_says_why_there_is_none():
    assert bootstrap([0.1] * 5).how == "5 cases: too few for an interval"
    assert bootstrap([0.3] * 9).how == "every case has the same value: no interval"
    assert not bootstrap([0.3] * 9).exists
    assert bootstrap([0.0] * 30 + [1e-9]).exists


def test_quartiles():
    assert quartiles(_scores([0.0, 0.25, 0.5, 0.75, 1.0])) == (0.25, 0.75)
    assert all(math.isnan(v) for v in quartiles({}))


def test_dice_and_hd95_per_class_with_their_counts():
    scores = _scores([0.0, 0.5, 0.75])  # anterior: 0, 1, 1; posterior: 0, 0, 0.5; HD95: none, 5, 2.5 mm
    anterior, posterior = per_class_dice(scores, CLASSES)
    assert anterior.values == pytest.approx({"dice": 2 / 3, "lowest": 0.0, "hd95": 3.75})
    assert posterior.values == pytest.approx({"dice": 0.5 / 3, "lowest": 0.0, "hd95": 3.75})
    assert anterior.counts == {"dice": 3, "lowest": 3, "hd95": 2}


def test_a_class_that_never_occurs_is_not_defined():
    row = per_class_dice(_scores([0.5]), ["nowhere"])[0]
    assert all(math.isnan(v) for v in row.values.values())
    assert row.counts["dice"] == 0


def test_binary_detection_by_hand():
    truth = [1, 1, 1, 0, 0, 0, 0]
    found = [0.9, 0.8, 0.3, 0.2, 0.1, 0.6, 0.4]
    table = {
        (str(i), str(i)): label_score(str(i), t, (1 - p, p)) for i, (t, p) in enumerate(zip(truth, found, strict=True))
    }
    result = detection(table, ["benign", "malignant"])
    assert result.of == "positive class: malignant"
    # 2 of 3 found, 3 of 4 cleared, 1 false alarm; pairs in order: 4 + 4 + 2 of 12
    assert result.values == pytest.approx({"sensitivity": 2 / 3, "specificity": 0.75, "f1": 4 / 6, "auc": 10 / 12})


def test_three_classes_are_averaged_against_the_rest():
    rows = [(0, (0.8, 0.1, 0.1)), (1, (0.2, 0.7, 0.1)), (1, (0.6, 0.3, 0.1)), (2, (0.1, 0.2, 0.7))]
    table = {(str(i), str(i)): label_score(str(i), t, p) for i, (t, p) in enumerate(rows)}
    result = detection(table, ["a", "b", "c"])
    assert result.values["sensitivity"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert result.values["specificity"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert result.values["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert result.values["auc"] == pytest.approx(1.0)


def test_a_broken_output_is_wrong_in_every_measure():
    nan = math.nan
    table = {
        ("0", "0"): label_score("0", 1, (nan, nan)),
        ("1", "1"): label_score("1", 0, (nan, nan)),
        ("2", "2"): label_score("2", 1, (0.1, 0.9)),
        ("3", "3"): label_score("3", 0, (0.8, 0.2)),
    }
    row = per_class_detection(table, ["benign", "malignant"])[1]
    assert row.values == pytest.approx({"sensitivity": 0.5, "specificity": 0.5, "f1": 0.5, "auc": 0.25})


def test_a_class_that_no_case_has_gives_no_number():
    table = {("0", "0"): label_score("0", 0, (0.9, 0.1))}
    values = detection(table, ["benign", "malignant"]).values
    assert math.isnan(values["sensitivity"])
    assert math.isnan(values["auc"])
    assert values["specificity"] == 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_auc_counts_pairs(positive, negative):
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positive, negative)]
    assert auc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))


def test_mcnemar_is_the_sign_test_on_the_cases_that_differ():
    # 1 of 8: two-sided (1 + 8 + 8 + 1) / 256
    assert mcnemar(1, 7).p == pytest.approx(2 * (1 + 8) / 2**8)
    assert "nothing to test" in mcnemar(0, 0).note


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_raises_no_p_by_more_than_bonferroni(p):
    corrected = holm(p)
    assert all(a <= b <= min(1.0, a * len(p)) + 1e-12 for a, b in zip(p, corrected, strict=True))


def test_holm_leaves_out_what_was_not_tested():
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == 0.04
    assert math.isnan(corrected[1])
    assert corrected[2] == 0.04


def test_paired_tests_by_hand():
    first = _scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    second = _scores([0.11, 0.22, 0.33, 0.44, 0.55, 0.66])
    found = compare(first, second, "segmentation", names=("a", "b"), level="l2-5")
    assert (found.count, found.better, found.worse) == (6, 6, 0)
    assert found.difference == pytest.approx(0.035)
    tests = {t.name: t for t in found.tests}
    assert tests["Wilcoxon, paired"].p == pytest.approx(2 / 2**6)
    spread = math.sqrt(sum((d - 0.035) ** 2 for d in (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)) / 5 / 6)
    from scipy import stats

    assert tests["t, paired"].p == pytest.approx(2 * stats.t.sf(0.035 / spread, 5))


def test_mann_whitney_of_two_separated_groups():
    low, high = _scores([0.1 + i / 100 for i in range(6)]), _scores([0.5 + i / 50 for i in range(6)])
    found = compare(low, high, "segmentation", names=("a", "b"), level="")
    assert next(t.p for t in found.tests if t.name == "Mann-Whitney U") == pytest.approx(2 / math.comb(12, 6))


def test_identical_models_get_a_sentence():
    scores = _scores([0.1 * i for i in range(8)])
    found = compare(scores, scores, "segmentation", names=("a", "b"), level="")
    assert found.difference == 0
    assert all(math.isnan(t.p) and "the same on every case" in t.note for t in found.tests)


def test_few_cases_few_differences_and_equal_differences_get_a_sentence():
    few = compare(_scores([0.1] * 5), _scores([0.2] * 5), "segmentation", names=("a", "b"), level="")
    assert {t.note for t in few.tests} == {"5 cases: too few for a test"}
    some = compare(_scores([0.5] * 8), _scores([0.5] * 6 + [0.6, 0.7]), "segmentation", names=("a", "b"), level="")
    assert some.tests[0].note == "the scores differ on 2 cases only: too few for a test"
    shift = compare(_scores([0.25] * 8), _scores([0.5] * 8), "segmentation", names=("a", "b"), level="")
    assert "no spread" in shift.tests[1].note


def test_only_shared_cases_are_compared_and_pairs_with_a_nan_are_not():
    first = _answers([1, 0, 1, 1])
    second = _answers([1, 1, math.nan])
    found = compare(first, second, "classification", names=("a", "b"), level="")
    assert (found.count, found.better, found.worse) == (2, 1, 0)
    assert found.tests[0].p == 1.0
    nothing = compare(first, {}, "classification", names=("a", "b"), level="")
    assert nothing.count == 0
    assert math.isnan(nothing.difference)


def test_every_pair_and_level_is_corrected_together():
    clean = [dice_score(str(i), 0.9) for i in range(6)]
    low = [dice_score(str(i), 0.1 + i / 100) for i in range(6)]
    high = [dice_score(str(i), 0.2 + i / 50) for i in range(6)]
    records = plant("a", clean, {("l2-5", "PGD"): low, ("linf-0.1", "PGD"): low})
    records += plant("b", clean, {("l2-5", "PGD"): high, ("linf-0.1", "PGD"): high})
    found = compare_all(records, "segmentation")
    assert [c.level for c in found] == ["", "l2-5", "linf-0.1"]
    wilcoxon = [next(t for t in c.tests if t.name == "Wilcoxon, paired") for c in found]
    assert math.isnan(wilcoxon[0].holm)
    assert [t.holm for t in wilcoxon[1:]] == pytest.approx([2 * 2 / 2**6] * 2)


def test_lowest_cases_and_totals():
    clean = [dice_score("a", 0.9), dice_score("b", 0.8), dice_score("c", 0.95)]
    attacked = [dice_score("a", 0.3), dice_score("b", 0.1), dice_score("c", 0.3)]
    records = plant("m", clean, {("l2-5", "PGD"): attacked})
    keys = statistics.lowest_cases(own_scores(records, "m", "clean"), worst_scores(records, "m", "l2-5"), 3)
    assert [k[1] for k in keys] == ["b", "c", "a"]
    total = kept.totals(records, "m")
    assert (total.forward, total.backward, total.seconds, total.largest) == (306, 300, 7.5, 0.999999)
