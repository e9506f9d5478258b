"""How strongly collapses depend on something, at equal other settings. Pure functions of numbers.

Counts are arrays [strata, levels]: what is compared is the levels, within each stratum. Times are
compared the same way, for a log-rank test is one of counts whose strata are the moments at which
runs collapsed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from glass_cnn.analysis.statistics import difference, rate

FARTHEST = 30.0
"""of a logarithm of a hazard ratio: beyond it stands 0 or infinity"""


class Effect(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


# --- how often -------------------------------------------------------------------------------


def association(hits: ArrayLike, of: ArrayLike) -> float | None:
    """p-value that hits are as frequent on all levels of a stratum; None where nothing can tell.

    The test of Cochran (1954), Mantel and Haenszel (1959), generalized to several levels: the sum
    over strata of what is more than expected, against its covariance under the hypergeometric law.
    """
    k, n = np.asarray(hits, float), np.asarray(of, float)
    all_k, all_n = k.sum(axis=1), n.sum(axis=1)
    told = all_n > 1
    k, n, all_k, all_n = k[told], n[told], all_k[told], all_n[told]
    excess = (k - n * (all_k / all_n)[:, None]).sum(axis=0)
    scale = all_k * (all_n - all_k) / (all_n**2 * (all_n - 1))
    covariance = np.diag((scale * all_n) @ n) - n.T @ (scale[:, None] * n)
    size, directions = np.linalg.eigh(covariance)
    some = size > 1e-9 * max(1e-300, float(size.max()))  # the sum of all is zero but for rounding
    freedom = int(some.sum())
    if not freedom:
        return None
    statistic = float(((directions.T @ excess)[some] ** 2 / size[some]).sum())
    return float(stats.chi2.sf(statistic, freedom))


def rate_difference(hits: ArrayLike, of: ArrayLike, confidence: float = 0.95) -> Effect | None:
    """Rate on the first of two levels less that on the second, pooled over strata.

    Weights of Mantel and Haenszel, variance of Sato (Biometrics 45, 1323 (1989)); where that is
    zero, since no rate is anything but 0 or 1, Newcombe's interval of all strata together. None
    unless a stratum has both levels.
    """
    k, n = np.asarray(hits, float), np.asarray(of, float)
    told = (n > 0).all(axis=1)
    (a, c), (m, o) = k[told].T, n[told].T
    total = m + o
    weight = (m * o / total).sum()
    if not weight:
        return None
    value = float(((a * o - c * m) / total).sum() / weight)
    first = (m**2 * c - o**2 * a + m * o * (o - m) / 2) / total**2
    second = (a * (o - c) + c * (m - a)) / (2 * total)
    variance = float(value * first.sum() + second.sum()) / weight**2
    if variance <= 0:
        one, other = (rate(int(x.sum()), int(y.sum()), confidence) for x, y in ((a, m), (c, o)))
        return Effect(*difference(one, other, confidence))
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    return Effect(value, max(-1.0, value - reach), min(1.0, value + reach))


def heterogeneity(hits: ArrayLike, of: ArrayLike) -> float | None:
    """p-value that the odds ratio of two levels is one in all strata (Woolf, ½ added to counts)."""
    k, n = np.asarray(hits, float), np.asarray(of, float)
    told = (n > 0).all(axis=1)
    yes, no = k[told] + 0.5, n[told] - k[told] + 0.5
    if len(yes) < 2:
        return None
    logarithm = np.log(yes / no) @ [1, -1]
    weight = 1 / (1 / yes + 1 / no).sum(axis=1)
    mean = (weight * logarithm).sum() / weight.sum()
    return float(stats.chi2.sf((weight * (logarithm - mean) ** 2).sum(), len(yes) - 1))


# --- how soon --------------------------------------------------------------------------------

Lives = tuple[Sequence[float], Sequence[bool]]
"""times since learned, and whether the run collapsed then or was seen no longer"""


class Moments(NamedTuple):
    """What happened when runs collapsed: arrays [moments, levels]."""

    collapsed: NDArray[np.int64]
    at_risk: NDArray[np.int64]


def moments(strata: Iterable[Sequence[Lives]]) -> Moments:
    """Runs that collapsed, and those at risk, at each moment of each stratum at which one did.

    A stratum has the lives of the runs of each level.
    """
    collapsed, at_risk = [], []
    for stratum in strata:
        pairs = ((np.asarray(t, float), np.asarray(e, bool)) for t, e in stratum)
        arms = [(np.sort(t), np.sort(t[e])) for t, e in pairs]
        when = np.unique(np.concatenate([events for _, events in arms]))
        ends = [np.searchsorted(e, when, "right") - np.searchsorted(e, when) for _, e in arms]
        left = [len(t) - np.searchsorted(t, when) for t, _ in arms]
        collapsed.append(np.stack(ends, axis=1))
        at_risk.append(np.stack(left, axis=1))
    return Moments(np.concatenate(collapsed), np.concatenate(at_risk))


def log_rank(strata: Sequence[Sequence[Lives]]) -> float | None:
    """p-value that runs of all levels collapse as soon; None where no test is possible."""
    return association(*moments(strata))


def hazard_ratio(strata: Sequence[Sequence[Lives]], confidence: float = 0.95) -> Effect | None:
    """Hazard of collapse on the first of two levels over that on the second (Cox 1972).

    Partial likelihood, stratified, ties after Efron (1977); the interval is where twice the
    logarithm falls by no more than the quantile of χ², so it is defined where only one of the
    levels collapses, too: from or to 0 or infinity. None without a collapse while both had runs.
    """
    ends, left = moments(strata)
    told = (left > 0).all(axis=1)
    ends, left = ends[told], left[told]
    count = ends.sum(axis=1)
    if not count.sum():
        return None
    # Of d that collapse together the i-th leaves i/d of them all out of those at risk.
    row = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
    risk = left[row] - (place / count[row])[:, None] * ends[row]
    first, second = risk.T
    hits = int(ends[:, 0].sum())

    def likelihood(beta: float) -> float:
        return float(hits * beta - np.log(first * math.exp(beta) + second).sum())

    def slope(beta: float) -> float:
        hazard = first * math.exp(beta)
        return float(hits - (hazard / (hazard + second)).sum())

    best = _root(slope, -FARTHEST, FARTHEST)
    fall = likelihood(best) - float(stats.chi2.ppf(confidence, 1)) / 2
    low = _root(lambda beta: fall - likelihood(beta), -FARTHEST, best)
    high = _root(lambda beta: likelihood(beta) - fall, best, FARTHEST)
    return Effect(*(_exponential(beta) for beta in (best, low, high)))


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls becomes 0; an end where it does not."""
    if low == high or falling(low) <= 0:
        return low
    return high if falling(high) >= 0 else float(optimize.brentq(falling, low, high))


def _exponential(beta: float) -> float:
    if beta <= -FARTHEST:
        return 0.0
    return math.inf if beta >= FARTHEST else math.exp(beta)
