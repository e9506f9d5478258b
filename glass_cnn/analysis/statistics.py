"""Estimates over seeds: rates, their differences, survival. Pure functions of numbers; no files."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from glass_cnn.outcomes import Floats

ALPHA = 0.05
"""Level of tests, for which power is stated too."""

POWER = 0.80
"""Probability with which a difference should be found before it is called detectable."""

ENOUGH = 1000
"""Runs an arm that tell 0 from 1 %, the finest that is asked; more are stated as if so many."""


# --- rates and their differences -------------------------------------------------------------


class Rate(NamedTuple):
    """k of n with a confidence interval; all not-a-number but the interval 0–1 for n = 0."""

    k: int
    n: int
    value: float
    low: float
    high: float


def rate(k: int, n: int, confidence: float = 0.95) -> Rate:
    """A proportion with its Wilson interval; the exact (Clopper–Pearson) one for none and all."""
    if n == 0:
        return Rate(0, 0, math.nan, 0.0, 1.0)
    method = "exact" if k in (0, n) else "wilson"
    interval = stats.binomtest(k, n).proportion_ci(confidence, method)
    return Rate(k, n, k / n, float(interval.low), float(interval.high))


class Comparison(NamedTuple):
    """Two arms' rates: difference a − b with interval, exact p and its adjusted value."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    adjusted: float


def difference(a: Rate, b: Rate, confidence: float = 0.95) -> tuple[float, float, float]:
    """a − b with Newcombe's hybrid score interval (Stat. Med. 17, 873 (1998), method 10)."""
    score_a, score_b = (
        stats.binomtest(r.k, r.n).proportion_ci(confidence, "wilson") for r in (a, b)
    )
    middle = a.value - b.value
    below = math.hypot(a.value - score_a.low, score_b.high - b.value)
    above = math.hypot(score_a.high - a.value, b.value - score_b.low)
    return middle, middle - below, middle + above


def compare(a: Rate, b: Rate) -> float:
    """Fisher's exact test, two-sided, of two arms' rates."""
    return float(stats.fisher_exact([[a.k, a.n - a.k], [b.k, b.n - b.k]]).pvalue)


def compare_arms(rates: Mapping[str, Rate], confidence: float = 0.95) -> list[Comparison]:
    """Exact tests of every pair, adjusted for their number (Benjamini and Hochberg 1995).

    Arms without runs are left out.
    """
    pairs = list(itertools.combinations([(arm, r) for arm, r in rates.items() if r.n], 2))
    values = [compare(x, y) for (_, x), (_, y) in pairs]
    adjusted = stats.false_discovery_control(values) if values else []
    return [
        Comparison(a, b, *difference(x, y, confidence), p, float(q))
        for ((a, x), (b, y)), p, q in zip(pairs, values, adjusted, strict=True)
    ]


# --- time to collapse ------------------------------------------------------------------------


class Survival(NamedTuple):
    """Kaplan–Meier estimate from 0 on, at the times at which runs collapsed or were censored."""

    time: Floats
    survival: Floats
    low: Floats
    high: Floats
    at_risk: NDArray[np.int64]


def survival(time: ArrayLike, collapsed: ArrayLike, confidence: float = 0.95) -> Survival:
    """Share of runs not yet collapsed, against time (any unit), right-censored where they ended.

    The interval is Greenwood's on the log-log scale. It is not defined before the first collapse
    and after the last run collapsed; there, the exact binomial one of the runs at risk bounds it.
    """
    times, events = np.asarray(time, float), np.asarray(collapsed, bool)
    if not len(times):
        empty = np.array([])
        return Survival(empty, empty, empty, empty, np.array([], int))
    curve = stats.ecdf(stats.CensoredData.right_censored(times, ~events)).sf
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # undefined ends are filled in below
        band = curve.confidence_interval(confidence, method="log-log")
    moments = np.union1d(0, curve.quantiles)
    value, low, high = (f.evaluate(moments) for f in (curve, band.low, band.high))
    at_risk = (times[:, None] >= moments[None, :]).sum(axis=0)
    return Survival(moments, value, *_bounded(value, low, high, at_risk, confidence), at_risk)


def _bounded(
    value: Floats, low: Floats, high: Floats, at_risk: NDArray[np.int64], confidence: float
) -> tuple[Floats, Floats]:
    tail = (1 - confidence) / 2
    bound = tail ** (1 / at_risk)  # exact lower bound of a share seen in all of `at_risk`
    lower = np.where(value >= 1, bound, np.where(value <= 0, 0, low))
    upper = np.where(value >= 1, 1, np.where(value <= 0, 1 - bound, high))
    return np.minimum.accumulate(lower), np.minimum.accumulate(upper)


def survival_at(curve: Survival, time: float) -> float:
    """The estimate at one time, from 0 on."""
    return float(curve.survival[np.searchsorted(curve.time, time, side="right") - 1])


def median_time(curve: Survival) -> float | None:
    """Earliest time by which half of the runs have collapsed; None if they never do."""
    reached = np.flatnonzero(curve.survival <= 0.5)
    return float(curve.time[reached[0]]) if len(reached) else None


# --- arms that share seeds -------------------------------------------------------------------


class Paired(NamedTuple):
    """Two arms on the same seeds."""

    a: str
    b: str
    pairs: int
    """seeds that both have finished"""
    both_learned: int
    only_a: int
    """seeds that collapse in a alone"""
    only_b: int
    """seeds that collapse in b alone"""
    both: int
    mcnemar_p: float
    """not a number if no seed learned in both"""
    accuracy_difference: float
    """mean of final accuracy, a − b"""
    accuracy_p: float
    """not a number for fewer than two differences"""


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact McNemar test: are discordant pairs as often one way as the other?"""
    discordant = only_a + only_b
    return float(stats.binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip(differences: ArrayLike, seed: int = 0, resamples: int = 9999) -> float:
    """Two-sided sign-flip permutation test that paired differences are symmetric about zero.

    Exact (all sign patterns) where these are at most `resamples`, else seeded random ones.
    """
    result = stats.permutation_test(
        (np.asarray(differences, float),),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        random_state=np.random.default_rng(seed),
    )
    return float(result.pvalue)


Ends = Mapping[int, tuple[bool | None, float | None]]
"""Seed -> (collapsed, or None if it never learned; final accuracy)."""


def paired(a: str, b: str, runs_a: Ends, runs_b: Ends) -> Paired | None:
    """Compare two arms seed by seed; None if they share fewer than two seeds.

    Collapses are compared where both runs learned, accuracies where both have one.
    """
    seeds = sorted(set(runs_a) & set(runs_b))
    if len(seeds) < 2:
        return None
    fates = [(runs_a[s][0], runs_b[s][0]) for s in seeds]
    fates = [pair for pair in fates if None not in pair]
    finals = np.array([(runs_a[s][1], runs_b[s][1]) for s in seeds], float)
    gaps = finals[:, 0] - finals[:, 1]
    gaps = gaps[np.isfinite(gaps)]
    only_a, only_b = fates.count((True, False)), fates.count((False, True))
    return Paired(
        *(a, b, len(seeds), len(fates), only_a, only_b, fates.count((True, True))),
        mcnemar_p=mcnemar(only_a, only_b) if fates else math.nan,
        accuracy_difference=float(gaps.mean()) if len(gaps) else math.nan,
        accuracy_p=sign_flip(gaps) if len(gaps) > 1 else math.nan,
    )


# --- accuracies across seeds -----------------------------------------------------------------


class Profile(NamedTuple):
    """P(accuracy > τ) over seeds with a pointwise bootstrap band."""

    tau: Floats
    share: Floats
    low: Floats
    high: Floats


def profile(
    accuracies: ArrayLike,
    tau: ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Profile:
    """Performance profile at rising `tau`; the same `seed` gives the same band.

    Not-a-number counts as failed.
    """
    values, marks = np.asarray(accuracies, float), np.asarray(tau, float)
    count = len(values)
    if not count:
        nothing = np.full(len(marks), np.nan)
        return Profile(marks, nothing, nothing, nothing)
    # A resample matters only by how many of its runs fall between which marks.
    place = np.searchsorted(marks, np.where(np.isnan(values), -np.inf, values), side="left")
    held = np.bincount(place, minlength=len(marks) + 1)
    draws = np.random.default_rng(seed).multinomial(count, held / count, size=resamples)
    low, high = np.quantile(
        _above(draws) / count, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0
    )
    return Profile(marks, _above(held) / count, low, high)


def _above(held: NDArray[np.int64]) -> NDArray[np.int64]:
    """Runs above each mark, from the numbers of runs between them (last axis)."""
    return held.sum(axis=-1, keepdims=True) - held.cumsum(axis=-1)[..., :-1]


def median(values: Iterable[float | None]) -> float | None:
    """Median of the finite values; None if there are none."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.median(finite)) if finite else None


# --- what a number of seeds can show ---------------------------------------------------------


def zero_bound(n: int, confidence: float = 0.95) -> float:
    """Upper bound of a rate of which nothing was seen in n runs (exact, two-sided level)."""
    return rate(0, n, confidence).high


@lru_cache(maxsize=8)
def fisher_table(n: int) -> Floats:
    """Two-sided Fisher p-values of all (k₁, k₂) of n each, shape (n + 1, n + 1)."""
    table = np.ones((n + 1, n + 1))
    ways = special.gammaln(n + 1) - special.gammaln(np.arange(n + 1) + 1)
    ways -= special.gammaln(n - np.arange(n + 1) + 1)  # logarithm of n over k
    for total in range(2 * n + 1):
        first = np.arange(max(0, total - n), min(n, total) + 1)
        mass = special.softmax(ways[first] + ways[total - first])  # hypergeometric
        rising = np.sort(mass)
        as_rare = np.searchsorted(rising, mass * (1 + 1e-7), side="right")  # R's tolerance for ties
        table[first, total - first] = np.minimum(rising.cumsum()[as_rare - 1], 1)
    return table


@lru_cache(maxsize=8)
def _found(n: int, alpha: float) -> Floats:
    return (fisher_table(n) <= alpha).astype(float)


def power(n: int, p: float, q: float, alpha: float = ALPHA) -> float:
    """Probability that Fisher's test tells rates p and q apart with n runs an arm (exact)."""
    k = np.arange(n + 1)
    return float(stats.binom.pmf(k, n, p) @ _found(n, alpha) @ stats.binom.pmf(k, n, q))


def seeds_needed(p: float, q: float, alpha: float = ALPHA, limit: int = 400) -> int | None:
    """Smallest number of runs an arm with a power of at least POWER; None beyond `limit`."""
    return next((n for n in range(2, limit + 1) if power(n, p, q, alpha) >= POWER), None)


def detectable(n: int, base: float = 0.0, alpha: float = ALPHA) -> float | None:
    """Smallest rate above `base` (to 1 %) told apart from it with a power of at least POWER."""
    candidates = range(math.floor(base * 100) + 1, 101)
    place = bisect.bisect_left(candidates, POWER, key=lambda c: power(n, base, c / 100, alpha))
    return candidates[place] / 100 if place < len(candidates) else None


def what_seeds_show(n: int, confidence: float = 0.95, arms: int = 2) -> str:
    """Plain words on what n runs an arm (those that learned) can and cannot show."""
    if n == 0:
        return "There is an arm without a run that learned; nothing can be said of its collapses."
    bound = (
        f"With {n} run{'s' * (n > 1)} that learned in an arm, no collapse at all still allows a "
        f"true rate of up to {100 * zero_bound(n, confidence):.2g} % "
        f"({100 * confidence:g} % confidence)."
    )
    return f"{bound} {_what_differences_show(n)}" if arms > 1 else bound


def _what_differences_show(n: int) -> str:
    n = min(n, ENOUGH)
    gap = detectable(n)
    if gap is None:
        return (
            f"No difference between two arms can ever be significant at {ALPHA:g} with so few: "
            f"not even none against all. To tell rates of 20 % and 80 % apart in "
            f"{100 * POWER:.0f} % of studies takes {seeds_needed(0.2, 0.8)} such runs an arm."
        )
    half = detectable(n, 0.5)
    above = f", and one of 50 % from at least {100 * half:.0f} %" if half else ""
    return (
        f"A rate of zero can be told from one of at least {100 * gap:.0f} %{above} "
        f"(a single Fisher's exact test at {ALPHA:g}, found in {100 * POWER:.0f} % of such "
        "studies); smaller differences will mostly be missed, so their absence here shows nothing."
    )
