"""Is an acceptance criterion met? Decided on the bound of the interval that speaks against the model.

A figure of few cases is known to some points only. A criterion "at least" is passed if the whole 95 % interval lies at
or above the bound, failed if it lies below, and otherwise not decided by so many cases; "at most" the other way round.
Several criteria have to be passed together, so that no correction for their number is due (Berger, Technometrics 1982:
intersection-union tests).

A certificate is a lower bound of the truth: it can show that "at least" is reached, and never that it is missed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import stats

from monai_adv.evaluation.evidence.purpose import KEPT, SCORE, Criterion
from monai_adv.evaluation.figures.results import Figures, ModelResults
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Kind
from monai_adv.metrics.statistics import FEWEST, Interval, Scores, wilson

Outcome = Literal["passed", "FAILED", "not decided", "not measured"]


@dataclass(frozen=True)
class Measured:
    """A figure with its interval over cases.

    Attributes:
        value: NaN where nothing is measured.
        interval: 95 %.
        count: cases behind it.
    """

    value: float
    interval: Interval
    count: int


@dataclass(frozen=True)
class Decision:
    """What became of a criterion for one model.

    Attributes:
        criterion: see there.
        measured: the figure.
        outcome: see the module.
        why: in a sentence; "" where the numbers say it all.
    """

    criterion: Criterion
    measured: Measured
    outcome: Outcome
    why: str


def decide(
    criterion: Criterion, model: ModelResults, figures: Figures, proven: Sequence[float] | None = None
) -> Decision:
    """Decide one criterion for one model.

    A criterion under attack is passed only if the measurement is reliable: where attacks got lost the truth is lower.
    It can be failed by any measurement. What the attacks leave open a certificate may prove.

    Args:
        criterion: see there.
        model, figures: what was measured.
        proven: lower bounds of every case's score at this radius; None: nothing is proven.
    """
    found = _measured(criterion, model, figures)
    if proven is not None and criterion.measure == SCORE and found.outcome not in ("passed", "FAILED"):
        by_proof = decide_proven(criterion, proven, model.kind, figures.evaluation.settings.seed)
        return by_proof if by_proof.outcome == "passed" else found
    return found


def decide_proven(criterion: Criterion, values: Sequence[float], kind: Kind, seed: int) -> Decision:
    """Decide a criterion by lower bounds: passed, or not decided.

    Args:
        criterion: with ``at_least``.
        values: lower bound of every case; NaN where there is none, as of a class that is not there.
        kind: of the model.
        seed: of the bootstrap.

    Example:
        Of 60 images 58 are proven to stay right: the interval begins at 88.6 %:

        >>> criteria = [Criterion("score", "l2-0.25", bound, True, "as agreed") for bound in (0.85, 0.9)]
        >>> [decide_proven(each, [1.0] * 58 + [0.0] * 2, "classification", 0).outcome for each in criteria]
        ['passed', 'not decided']
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Decision(criterion, NOTHING, "not measured", "no case has a defined value")
    interval = bound_interval(known, kind, seed)
    found = Measured(sum(known) / len(known), interval, len(known))
    if not interval.exists:
        return Decision(criterion, found, "not decided", interval.how)
    if interval.low >= criterion.bound:
        return Decision(criterion, found, "passed", "proven by the certificate")
    return Decision(
        criterion,
        found,
        "not decided",
        "the certificate does not reach it, and only an attack can show that it is missed",
    )


def bound_interval(values: Sequence[float], kind: Kind, seed: int) -> Interval:
    """95 % interval over cases of a mean lower bound."""
    if kind == "classification":
        return wilson(round(sum(values)), len(values))
    return statistics.bootstrap(values, seed=seed)


def _measured(criterion: Criterion, model: ModelResults, figures: Figures) -> Decision:
    if criterion.level not in model.summaries or not model.summaries[criterion.level].count:
        return Decision(criterion, NOTHING, "not measured", "no case has been measured at this radius yet")
    found = measure(criterion, model, figures)
    if not found.count or math.isnan(found.value):
        return Decision(criterion, found, "not measured", "no case has a defined value")
    outcome, why = _compared(criterion, found, "patient" if figures.kind == "segmentation" else "image")
    if outcome == "passed" and criterion.level and model.verdict.word != "reliable":
        return Decision(criterion, found, "not decided", f"the figures are {model.verdict.word}")
    return Decision(criterion, found, outcome, why)


def told(name: str, decisions: Sequence[Decision]) -> list[str]:
    """What became of a model's criteria, for a terminal: one line, none without any."""
    counts = Counter(decision.outcome for decision in decisions)
    counted = ", ".join(f"{counts[word]} {word}" for word in get_args(Outcome) if counts[word])
    return [f"{name}: acceptance criteria {together(decisions)} ({counted})"] if counts else []


def together(decisions: Sequence[Decision]) -> Outcome | None:
    """Of all criteria: one that failed is enough; None without any."""
    outcomes = [d.outcome for d in decisions]
    order: tuple[Outcome, ...] = ("FAILED", "not measured", "not decided", "passed")
    return next((o for o in order if o in outcomes), None)


def measure(criterion: Criterion, model: ModelResults, figures: Figures) -> Measured:
    """The figure that a criterion is about."""
    name, key = criterion.measure, criterion.level
    seed = figures.evaluation.settings.seed
    if name == SCORE:
        summary = model.summaries[key]
        return Measured(summary.mean, summary.interval, summary.count)
    if name == KEPT:
        return share_kept(figures.scores(model.name, ""), figures.scores(model.name, key), model.kind, seed=seed)
    word, _, of = name.partition(" ")
    if word == "hd95_mm":
        return median_distance(figures.scores(model.name, key), of)
    if word == "false_positive":
        lacking = [s for s in figures.scores(model.name, key).values() if of in s.absent]
        found = sum(of in s.false_positives for s in lacking)
        return Measured(found / len(lacking) if lacking else math.nan, wilson(found, len(lacking)), len(lacking))
    row = model.rows[key][model.classes.index(of) if of else 1]
    return Measured(row.values[word], row.intervals[word], row.counts[word])


def share_kept(clean: Scores, attacked: Scores, kind: Any, *, seed: int = 0) -> Measured:
    """Mean score under attack over the mean clean score, of the same cases, with an interval of the ratio.

    Classification: of the images that were right, how many stay right (Wilson). Segmentation: BCa bootstrap over pairs.

    Example:
        >>> from monai_adv.metrics.score import Score
        >>> clean = {("", n): Score(n, 0.8) for n in "abcdef"}
        >>> share_kept(clean, {key: Score(key[1], 0.6) for key in clean}, "segmentation").value
        0.75
    """
    both = [k for k in clean if k in attacked and not math.isnan(clean[k].score) and not math.isnan(attacked[k].score)]
    before, after = (np.array([scores[k].score for k in both]) for scores in (clean, attacked))
    if not both or not before.mean() > 0:
        return NOTHING
    if kind == "classification":
        kept, right = int(((before == 1) & (after == 1)).sum()), int((before == 1).sum())
        return Measured(kept / right, wilson(kept, right), right)
    return Measured(float(after.mean() / before.mean()), _ratio_interval(before, after, seed), len(both))


def median_distance(scores: Scores, name: str) -> Measured:
    """The median HD95 in mm of the cases that have the class, with the interval of order statistics.

    Where a class was not found at all its distance is not defined; here it counts as infinite: leaving those cases out
    would reward a model for losing them. The interval holds without any assumption on the distribution (Conover,
    Practical Nonparametric Statistics, 1999).

    Example:
        >>> from monai_adv.metrics.score import Score
        >>> scores = {("", str(n)): Score(str(n), 0.5, {"a": 0.5}, {"a": float(n)}) for n in range(1, 10)}
        >>> found = median_distance(scores, "a")
        >>> found.value, (found.interval.low, found.interval.high)
        (5.0, (2.0, 8.0))
    """
    there = [s for s in scores.values() if name in s.dice and name not in s.absent and not math.isnan(s.dice[name])]
    values = sorted(math.inf if math.isnan(s.hd95.get(name, math.nan)) else s.hd95[name] for s in there)
    count = len(values)
    if not count:
        return NOTHING
    # The upper one of two in the middle: their mean is not defined where one is infinite.
    middle = values[count // 2]
    below = int(stats.binom.ppf(0.025, count, 0.5))
    if below < 1:
        return Measured(middle, Interval(math.nan, math.nan, f"{count} cases: too few for an interval"), count)
    return Measured(middle, Interval(values[below - 1], values[count - below], "order statistics"), count)


NOTHING = Measured(math.nan, Interval(math.nan, math.nan, "nothing is measured"), 0)


def _compared(criterion: Criterion, found: Measured, one: str) -> tuple[Outcome, str]:
    sign = 1 if criterion.at_least else -1
    distance = sign * (found.value - criterion.bound)
    if not found.interval.exists:
        if distance < 0 and found.count >= FEWEST:
            return "FAILED", found.interval.how
        return "not decided", found.interval.how
    worst, best = sorted(sign * (bound - criterion.bound) for bound in (found.interval.low, found.interval.high))
    if worst >= 0:
        return "passed", ""
    if best < 0:
        return "FAILED", ""
    return (
        "not decided",
        f"{found.count} {one}{'s' * (found.count != 1)} do not decide it: the interval holds the bound",
    )


def _ratio_interval(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], seed: int) -> Interval:
    if len(before) < FEWEST:
        return Interval(math.nan, math.nan, f"{len(before)} cases: too few for an interval")

    def ratio(after: Any, before: Any, axis: int) -> Any:
        return after.mean(axis) / before.mean(axis)

    if np.ptp(after - before * (after.mean() / before.mean())) < statistics.EQUAL:
        return Interval(math.nan, math.nan, "every case keeps the same share: no interval")
    for method in ("BCa", "percentile"):  # almost all cases equal: BCa has no acceleration
        with np.errstate(all="ignore"):
            found = stats.bootstrap(
                (after, before), ratio, paired=True, n_resamples=statistics.RESAMPLES, method=method,
                rng=np.random.default_rng(seed), vectorized=True,
            )  # fmt: skip
        low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
        if math.isfinite(low) and math.isfinite(high):
            return Interval(low, high, f"bootstrap ({method})")
    return Interval(math.nan, math.nan, "the share is not defined for some resamples")
