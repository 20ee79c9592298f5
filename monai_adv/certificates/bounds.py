"""What counts of draws prove: confidence bounds, radii, and how many draws a statement needs.

Sources: Clopper & Pearson, Biometrika 1934 (the exact interval); Cohen, Rosenfeld, Kolter, "Certified adversarial
robustness via randomized smoothing", ICML 2019, theorem 1 (the radius); Fischer, Baader, Vechev, "Scalable certified
segmentation via randomized smoothing", ICML 2021 (one test for each voxel); Holm, Scand. J. Statist. 1979.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from monai_adv.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]


def lower_bound(count: Ints, draws: int, alpha: float) -> Floats:
    """Lower Clopper-Pearson bound of a probability: it is below with probability ``1 - alpha`` or more.

    Args:
        count: how many of the draws came out, of any shape.
        draws: how many there were.
        alpha: probability of being wrong.

    Example:
        All of them: the bound solves ``p ** draws = alpha``:

        >>> bool(np.isclose(lower_bound(np.array(100), 100, 0.001), 0.001 ** (1 / 100)))
        True
    """
    count = np.asarray(count)
    return np.where(count > 0, stats.beta.ppf(alpha, np.maximum(count, 1), draws - count + 1), 0.0)


def radius(probability: Floats, sigma: float) -> Floats:
    """L2 radius within which the class with this probability stays the most frequent; 0 up to 1/2.

    Cohen et al., theorem 1, with ``p_B = 1 - p_A``: ``sigma * Phi^-1(p_A)``.

    Example:
        >>> radius(np.array([0.5, 0.8413447460685429, 0.3]), 0.25).round(6).tolist()
        [0.0, 0.25, 0.0]
    """
    return np.asarray(sigma * stats.norm.ppf(np.maximum(probability, 0.5)))


def agree(count: Ints, draws: int, tau: float, alpha: float) -> Bools:
    """Which of many probabilities are above ``tau``, all these statements together wrong with probability ``alpha``.

    A binomial test for each, corrected after Holm, which assumes nothing about how the counts depend on each other, as
    those of neighbouring voxels do.

    Args:
        count: how many of the draws came out, one entry for each test, of any shape.
        draws: how many there were.
        tau: at least 1/2, below 1.
        alpha: probability that any of the statements is wrong.

    Example:
        Of 8 draws at tau 1/2, eight alike have a p-value of 1/256, seven of 9/256:

        >>> agree(np.array([8, 7]), 8, 0.5, 0.04).tolist(), agree(np.array([8, 7, 7]), 8, 0.5, 0.04).tolist()
        ([True, True], [True, False, False])
    """
    p_value = stats.binom.sf(np.arange(draws + 1) - 1, draws, tau)  # a table: there are more voxels than counts
    return holm(p_value[np.asarray(count)], alpha)


def differ(most: Ints, next_most: Ints, alpha: float) -> Bools:
    """Where the most frequent answer really is more frequent than the next; together wrong with probability ``alpha``.

    Cohen et al., algorithm PREDICT: a two-sided test of ``most`` among the draws of both; Holm for several.

    Example:
        >>> differ(np.array([10, 6]), np.array([0, 4]), 0.01).tolist()
        [True, False]
    """
    most, both = np.asarray(most), np.asarray(most) + np.asarray(next_most)
    pairs, where = np.unique(np.stack([most.ravel(), both.ravel()]), axis=1, return_inverse=True)
    p_value = np.minimum(1, 2 * stats.binom.sf(pairs[0] - 1, pairs[1], 0.5))
    return holm(p_value[where.ravel()].reshape(most.shape), alpha)


def holm(p_value: Floats, alpha: float) -> Bools:
    """Which hypotheses are rejected, with probability ``alpha`` of rejecting any true one (Holm, 1979).

    Example:
        >>> holm(np.array([0.02, 0.01, 0.04]), 0.04).tolist()
        [True, True, True]
        >>> holm(np.array([0.02, 0.02, 0.02]), 0.04).tolist()
        [False, False, False]
    """
    flat = np.asarray(p_value).ravel()
    order = np.argsort(flat, kind="stable")
    passed = flat[order] <= alpha / np.arange(len(flat), 0, -1)
    rejected = np.empty(len(flat), bool)
    rejected[order] = np.logical_and.accumulate(passed)
    return rejected.reshape(np.shape(p_value))


def least_draws(tau: float, alpha: float, tests: int = 1) -> int:
    """The fewest draws with which anything can be shown: all of them alike, ``tau ** n <= alpha / tests``.

    Example:
        >>> least_draws(0.75, 0.001, 100_000)
        65
    """
    found = max(1, math.ceil(math.log(alpha / tests) / math.log(tau)))
    return found if tau**found <= alpha / tests else found + 1


def chance_of_losing(margin: float, draws: int) -> float:
    """How likely a vote of so many draws goes against the class that is certified, at most.

    Within the radius R the class has a probability of ``Phi((R - r) / sigma)`` or more at distance r (Cohen et al.,
    proof of theorem 1); it loses no vote of which it has more than half.

    Args:
        margin: ``(R - r) / sigma``, at least 0.
        draws: that vote, independent of those that led there.

    Example:
        At the radius itself it is even; well within it, it does not happen:

        >>> chance_of_losing(0.0, 11), chance_of_losing(0.5, 1000) < 1e-30
        (0.5, True)
    """
    return float(stats.binom.cdf(draws // 2, draws, stats.norm.cdf(margin)))


def check_alpha(alpha: float) -> None:
    """Refuse what is no probability of error.

    Raises:
        InputError: not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise InputError.of("alpha", alpha, "a probability between 0 and 1 of being wrong, such as 0.001")
