"""How much of the spread of runs is the seed's, and how much is rounding's.

Two runs differ by half the square of the difference of what they reached, or, for outcomes, by 1
where these are not the same. Over pairs of copies of one seed the mean of that is what rounding
does; over pairs of runs of different seeds it is what rounding and the seed do together. The share
of the former in the latter is rounding's; the rest is the seed's, the intraclass correlation.
For numbers and as many copies of every seed these are the variance components of a one-way
analysis of variance (Searle, Casella, McCulloch, Variance Components (1992)); pairs need no such
balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glass_cnn.outcomes import Floats


class Spread(NamedTuple):
    """Rounding's part in the spread of something over runs; not-a-number where it is not known."""

    runs: int
    seeds: int
    copied: int
    """seeds with copies"""
    within: float
    """mean difference of two copies of a seed"""
    total: float
    """mean difference of runs of different seeds"""
    share: float
    """within / total, at most 1"""
    low: float
    high: float
    """ends of the interval of `share`; not-a-number where copies of a seed never differ, too"""


def of_outcomes(seeds: Sequence[int], outcomes: Sequence[str], confidence: float) -> Spread:
    """Of the ends of runs: `within` and `total` are shares of pairs that end differently."""
    codes = np.unique(outcomes, return_inverse=True)[1]
    return spread(seeds, (codes[:, None] != codes[None, :]).astype(float), confidence)


def of_values(seeds: Sequence[int], values: Sequence[float | None], confidence: float) -> Spread:
    """Of numbers: `within` and `total` are variances. What is no number is left out."""
    known = np.array(values, float)
    there = np.isfinite(known)
    known = known[there]
    return spread(np.array(seeds)[there], (known[:, None] - known[None, :]) ** 2 / 2, confidence)


def spread(
    seeds: Sequence[int] | NDArray[np.int64],
    difference: Floats,
    confidence: float,
    resamples: int = 2000,
) -> Spread:
    """Rounding's part, from the seed of each run and the difference of any two, [runs, runs].

    The interval is a bootstrap over seeds, those with copies and those without by themselves; of a
    single seed with copies these are drawn instead, and nothing is said of other seeds. The same
    runs give the same interval.
    """
    names, place, count = np.unique(seeds, return_inverse=True, return_counts=True)
    copied = count > 1
    if not copied.any() or len(names) < 2:
        nothing = [float("nan")] * 5
        return Spread(len(place), len(names), int(copied.sum()), *nothing)
    rng = np.random.default_rng(0)
    weights = np.zeros((resamples, len(names)))
    for group in (copied, ~copied):
        if size := int(group.sum()):
            weights[:, group] = rng.multinomial(size, np.full(size, 1 / size), resamples)
    draws = np.ones((resamples, len(place)))
    if copied.sum() == 1:
        own = place == np.flatnonzero(copied)[0]
        size = int(own.sum())
        draws[:, own] = rng.multinomial(size, np.full(size, 1 / size), resamples)
    once = np.ones((1, len(names))), np.ones((1, len(place)))
    within, total = (float(part[0]) for part in _parts(difference, place, *once))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.divide(*_parts(difference, place, weights, draws))
        share = float(np.divide(within, total))
    shares = shares[np.isfinite(shares)]
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    # Of copies that never differed every resample says the same, which is no interval.
    ends = np.quantile(shares, tails) if len(shares) and within > 0 else [np.nan, np.nan]
    found = [float(np.minimum(value, 1)) for value in (share, *ends)]
    return Spread(len(place), len(names), int(copied.sum()), within, total, *found)


def _parts(
    difference: Floats, place: NDArray[np.intp], weights: Floats, draws: Floats
) -> tuple[Floats, Floats]:
    """Mean difference within seeds and between them, for each resample.

    Args:
        difference: of any two runs, [runs, runs].
        place: which seed each run has, [runs].
        weights: how often each seed was drawn, [resamples, seeds].
        draws: how often each run was drawn among those of its seed, [resamples, runs].
    """
    member = (place[:, None] == np.arange(weights.shape[1])).astype(float)  # [runs, seeds]
    alike = member @ member.T  # whether two runs have the same seed
    size = draws @ member
    own = (draws @ (difference * alike) * draws) @ member
    pairs = size**2 - draws**2 @ member
    has_pairs = pairs > 0
    inside = own / np.where(has_pairs, pairs, 1)
    counted = weights * has_pairs
    each = (weights / size) @ member.T * draws
    others = (each @ (difference * (1 - alike)) * each).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = (counted * inside).sum(axis=1) / counted.sum(axis=1)
        total = others / (weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1))
    return within, total
