"""From records to the numbers of the report: means, worst cases, intervals over cases, tests between models.

Every function takes plain numbers or :class:`Score`; what cannot be computed is said in a sentence, not returned as a
NaN with a warning. Sources: Wilson, JASA 1927 (interval of a proportion); Efron, JASA 1987 (BCa bootstrap); McNemar,
Psychometrika 1947, in its exact form; Holm, Scand. J. Statist. 1979 (several tests).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from monai_adv.metrics.score import Kind, Score, mean_known

FEWEST = 6
"""With fewer cases no interval and no test is given: five pairs cannot give a two-sided Wilcoxon p below 0.0625."""
RESAMPLES = 9999
EQUAL = 1e-12
"""Scores that differ by less differ by rounding."""

Key = tuple[str, str]
"""Name of the record's case and of the scored patient or image within it."""
Scores = dict[Key, Score]


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval over cases.

    Attributes:
        low, high: NaN when there is none.
        how: the method, or in a sentence why there is none.
    """

    low: float
    high: float
    how: str

    @property
    def exists(self) -> bool:
        """Whether there are two numbers to show."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Summary:
    """Mean over cases with what a mean hides.

    Attributes:
        mean: over the cases with a defined value; NaN if there is none.
        interval: of the mean.
        lowest, lowest_case: the worst patient.
        count: cases with a defined value.
        undefined: cases without one (their ground truth has no class); never in the mean, always counted.
        false_positives: in how many pairs of a case and a class the class was found though the case does not have it.
        absent: how many such pairs there are.
        class_mean: mean over the classes of their mean Dice; NaN for classification.
    """

    mean: float
    interval: Interval
    lowest: float
    lowest_case: str
    count: int
    undefined: int
    false_positives: int = 0
    absent: int = 0
    class_mean: float = math.nan


def summarise(scores: Scores, kind: Kind, *, seed: int = 0) -> Summary:
    """Mean score with its interval (Wilson for classification, BCa bootstrap for Dice) and the worst case."""
    defined = {key: s.score for key, s in scores.items() if not math.isnan(s.score)}
    undefined = len(scores) - len(defined)
    false = sum(len(s.false_positives) for s in scores.values()), sum(len(s.absent) for s in scores.values())
    if not defined:
        return Summary(
            math.nan, Interval(math.nan, math.nan, "no case has a defined score"), math.nan, "", 0, undefined, *false
        )
    values = list(defined.values())
    lowest = min(defined, key=defined.__getitem__)
    interval = wilson(round(sum(values)), len(values)) if kind == "classification" else bootstrap(values, seed=seed)
    mean = float(np.mean(values))
    class_mean = mean_over_classes(scores)
    return Summary(mean, interval, defined[lowest], lowest[1], len(defined), undefined, *false, class_mean)


def mean_over_classes(scores: Scores, *, false_positives: bool = False) -> float:
    """Mean over the classes of their mean Dice over the cases that have them; NaN without any.

    Args:
        scores: of the cases.
        false_positives: those count, as Dice 0, as in the ``foreground_mean`` of nnU-Net's summary.json.

    Example:
        >>> scores = {("a", "a"): Score("a", 0.4, {"organ": 0.8, "tumour": 0.0}, absent=("tumour",)),
        ...           ("b", "b"): Score("b", 0.5, {"organ": 0.6, "tumour": 0.4})}
        >>> round(mean_over_classes(scores), 3), round(mean_over_classes(scores, false_positives=True), 3)
        (0.55, 0.45)
    """
    per_class: dict[str, list[float]] = {}
    for score in scores.values():
        for name, dice in score.dice.items():
            if false_positives or name not in score.absent:
                per_class.setdefault(name, []).append(dice)
    return mean_known(mean_known(values) for values in per_class.values())


def wilson(successes: int, count: int) -> Interval:
    """Wilson's interval of a proportion; good for few cases and near 0 and 1.

    Example:
        Eight of ten:

        >>> interval = wilson(8, 10)
        >>> round(interval.low, 3), round(interval.high, 3)
        (0.49, 0.943)
    """
    if count == 0:
        return Interval(math.nan, math.nan, "no cases")
    result = stats.binomtest(successes, count).proportion_ci(method="wilson")
    return Interval(float(result.low), float(result.high), "Wilson")


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """BCa bootstrap interval of the mean, from resampled cases."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < FEWEST:
        return Interval(math.nan, math.nan, f"{_cases(len(sample))}: too few for an interval")
    if np.ptp(sample) < EQUAL:
        return Interval(math.nan, math.nan, "every case has the same value: no interval")

    def interval(method: str) -> tuple[float, float]:
        generator = np.random.default_rng(seed)
        found = stats.bootstrap((sample,), _average, n_resamples=RESAMPLES, method=method, rng=generator)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        low, high = interval("BCa")
    if math.isfinite(low) and math.isfinite(high):
        return Interval(low, high, "bootstrap (BCa)")
    return Interval(*interval("percentile"), "bootstrap (percentile)")  # almost all cases are equal


def quartiles(scores: Scores) -> tuple[float, float]:
    """Lower and upper quartile over the cases with a defined score; NaN without any."""
    values = [s.score for s in scores.values() if not math.isnan(s.score)]
    if not values:
        return math.nan, math.nan
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


@dataclass(frozen=True)
class ClassRow:
    """One class of a table.

    Attributes:
        values: name of the measure -> value; NaN where not defined.
        counts: name of the measure -> number of cases behind it.
        intervals: name of the measure -> its interval over cases; measures without one are missing.
    """

    name: str
    values: dict[str, float]
    counts: dict[str, int]
    intervals: dict[str, Interval]


def per_class_dice(scores: Scores, classes: Sequence[str], *, seed: int = 0) -> list[ClassRow]:
    """Per class, of the cases that have it: mean and lowest Dice, and the median HD95 in mm where it is defined.

    Also the share of the cases without the class in which it was found.

    HD95 is not defined where the ground truth or the segmentation lacks the class. Under attack these are often the
    worst cases, so the count belongs beside the number.
    """
    rows = []
    for name in classes:
        dice = _defined(s.dice.get(name, math.nan) for s in scores.values() if name not in s.absent)
        distance = _defined(s.hd95.get(name, math.nan) for s in scores.values())
        values = {
            "dice": float(np.mean(dice)) if dice else math.nan,
            "lowest": min(dice) if dice else math.nan,
            "hd95": float(np.median(distance)) if distance else math.nan,
        }
        counts = {"dice": len(dice), "lowest": len(dice), "hd95": len(distance)}
        if absent := sum(name in s.absent for s in scores.values()):
            values["false_positives"] = sum(name in s.false_positives for s in scores.values()) / absent
            counts["false_positives"] = absent
        rows.append(ClassRow(name, values, counts, {"dice": bootstrap(dice, seed=seed)}))
    return rows


def per_class_detection(scores: Scores, classes: Sequence[str]) -> list[ClassRow]:
    """Per class against the rest: sensitivity, specificity, F1, AUC.

    The class found is the one of the largest probability. An output with a NaN found no class, and is ranked below
    (above) all others where the class is (is not) there: it is wrong in every measure.

    Args:
        scores: with ``label`` and ``probabilities``.
        classes: names, in the order of the probabilities.
    """
    labels = np.array([s.label for s in scores.values()], dtype=int)
    table = np.array([s.probabilities for s in scores.values()], dtype=float)
    table = table.reshape(len(labels), -1 if len(labels) else 0)
    broken = ~np.isfinite(table).all(1)
    found = np.where(broken, -1, np.where(np.isfinite(table), table, -1).argmax(1)) if table.size else labels * 0 - 1
    rows = []
    for index, name in enumerate(classes):
        there, said = labels == index, found == index
        right = int((there & said).sum())
        missed, false = int((there & ~said).sum()), int((~there & said).sum())
        # A broken output on a healthy image did not find health either.
        cleared = int((~there & ~said & ~broken).sum())
        values = {
            "sensitivity": _ratio(right, int(there.sum())),
            "specificity": _ratio(cleared, int((~there).sum())),
            "f1": _ratio(2 * right, 2 * right + missed + false + int((~there & broken).sum())),
            "auc": math.nan,
        }
        if table.size:
            probability = np.where(broken, np.where(there, -np.inf, np.inf), table[:, index])
            values["auc"] = auc(probability[there], probability[~there])
        counts = {"sensitivity": int(there.sum()), "specificity": int((~there).sum())}
        intervals = {
            "sensitivity": wilson(right, counts["sensitivity"]),
            "specificity": wilson(cleared, counts["specificity"]),
        }
        rows.append(ClassRow(name, values, {**counts, "f1": len(labels), "auc": len(labels)}, intervals))
    return rows


def auc(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """Area under the ROC curve: how often a positive case is ranked above a negative one (equal ranks count half).

    Example:
        Three of the four pairs are in order:

        >>> auc([0.9, 0.4], [0.1, 0.6])
        0.75
    """
    first, second = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    if not len(first) or not len(second):
        return math.nan
    ranks = stats.rankdata(np.concatenate([first, second]))
    return float((ranks[: len(first)].sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


@dataclass(frozen=True)
class Detection:
    """Classification beyond accuracy.

    Attributes:
        of: which class the numbers are about: the positive one of two, or the mean over all ("macro").
        values: sensitivity, specificity, f1, auc.
        rows: every class against the rest.
    """

    of: str
    values: dict[str, float]
    rows: list[ClassRow]


def detection(scores: Scores, classes: Sequence[str]) -> Detection:
    """Of two classes the second one is the positive one; of more, the mean over the classes where it is defined."""
    rows = per_class_detection(scores, classes)
    if len(classes) == 2:
        return Detection(f"positive class: {classes[1]}", rows[1].values, rows)
    names = ("sensitivity", "specificity", "f1", "auc")
    defined = {n: _defined(r.values[n] for r in rows) for n in names}
    means = {n: float(np.mean(v)) if v else math.nan for n, v in defined.items()}
    return Detection("macro: mean over the classes, each against the rest", means, rows)


@dataclass(frozen=True)
class Test:
    """One statistical test.

    Attributes:
        name: of the test.
        p: two-sided; NaN when it could not be made.
        note: why not, or what else there is to say.
        holm: p after Holm's correction for all tests of this name in the report; NaN without p.
    """

    __test__ = False  # not a test of pytest

    name: str
    p: float
    note: str = ""
    holm: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """Two models on the same cases.

    Attributes:
        level: key; "" for clean.
        count: cases that both have a defined score for.
        difference: mean of second minus first.
        interval: of the difference (bootstrap over cases).
        better, worse: cases on which the second model scores higher, lower.
        tests: the paired test first.
    """

    first: str
    second: str
    level: str
    count: int
    difference: float
    interval: Interval
    better: int
    worse: int
    tests: list[Test] = field(default_factory=list)


def compare(
    first: Scores, second: Scores, kind: Kind, *, names: tuple[str, str], level: str, seed: int = 0
) -> Comparison:
    """Test two models on the cases that they share.

    Segmentation: Wilcoxon's signed-rank test and the t test on the differences, and the Mann-Whitney U test, which
    ignores the pairing (used in the literature, weaker). Classification: McNemar's exact test.
    """
    both = [k for k in first if k in second and not math.isnan(first[k].score) and not math.isnan(second[k].score)]
    a = np.array([first[k].score for k in both])
    b = np.array([second[k].score for k in both])
    difference = np.round(b - a, 12)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    tests = [mcnemar(better, worse)] if kind == "classification" else _paired(a, b)
    mean = float(difference.mean()) if both else math.nan
    interval = bootstrap(difference.tolist(), seed=seed)
    return Comparison(*names, level, len(both), mean, interval, better, worse, tests)


def mcnemar(better: int, worse: int) -> Test:
    """Exact: could the discordant cases be tosses of a coin?

    Example:
        Six of six in favour: ``2 / 2**6``.

        >>> mcnemar(6, 0).p
        0.03125
    """
    if better + worse == 0:
        return Test("McNemar, exact", math.nan, "the two models are right on the same cases: nothing to test")
    return Test("McNemar, exact", float(stats.binomtest(better, better + worse).pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and does not count as a test.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, v in enumerate(p) if not math.isnan(v)), key=lambda i: p[i])
    result, running = [math.nan] * len(p), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[index]))
        result[index] = running
    return result


def _paired(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> list[Test]:
    names = ("Wilcoxon, paired", "t, paired", "Mann-Whitney U")
    difference = np.round(b - a, 12)
    changed = int((difference != 0).sum())
    if len(a) < FEWEST:
        return [Test(n, math.nan, f"{_cases(len(a))}: too few for a test") for n in names]
    if changed == 0:
        return [Test(n, math.nan, "the two models score the same on every case: nothing to test") for n in names]
    if changed < FEWEST:
        note = f"the scores differ on {_cases(changed)} only: too few for a test"
        wilcoxon = Test(names[0], math.nan, note)
    else:
        equal = f"{_cases(len(a) - changed)} with equal scores left out" if changed < len(a) else ""
        wilcoxon = Test(names[0], float(stats.wilcoxon(difference[difference != 0]).pvalue), equal)
    if np.ptp(difference) < EQUAL:
        t = Test(names[1], math.nan, "every case differs by the same amount: the t test has no spread to go by")
    else:
        t = Test(names[1], float(stats.ttest_rel(b, a).pvalue))
    unpaired = Test(names[2], float(stats.mannwhitneyu(b, a).pvalue), "ignores that the cases are the same")
    return [wilcoxon, t, unpaired]


def lowest_cases(clean: Scores, attacked: Scores, count: int) -> list[Key]:
    """The cases that lose most, for the pictures: lowest attacked score first, then the larger loss."""
    keys = [k for k in attacked if k in clean and not math.isnan(attacked[k].score) and not math.isnan(clean[k].score)]
    return sorted(keys, key=lambda k: (attacked[k].score, -clean[k].score))[:count]


def _average(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    return np.asarray(values.mean(axis))


def _defined(values: Iterable[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _cases(count: int) -> str:
    return "no case" if count == 0 else f"{count} case" if count == 1 else f"{count} cases"
