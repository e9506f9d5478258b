"""Outcomes by hand-made curves; estimators against closed forms, lifelines and enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter
from scipy import stats

from glass_cnn.analysis import statistics as s

# --- rates -----------------------------------------------------------------------------------


def wilson(k: int, n: int, z: float) -> tuple[float, float]:
    """Wilson (1927), as in any textbook."""
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


@given(st.integers(2, 300), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_rates_have_wilson_intervals(n: int, data: Any, confidence: float) -> None:
    k = data.draw(st.integers(1, n - 1))
    rate = s.rate(k, n, confidence)
    z = stats.norm.ppf((1 + confidence) / 2)
    assert (rate.low, rate.high) == pytest.approx(wilson(k, n, z))
    assert rate.value == k / n


@given(st.integers(1, 300))
def test_none_and_all_have_exact_intervals(n: int) -> None:
    bound = 0.025 ** (1 / n)
    assert s.rate(0, n)[3:] == pytest.approx((0, 1 - bound))
    assert s.rate(n, n)[3:] == pytest.approx((bound, 1))


def test_nothing_tried_says_nothing() -> None:
    rate = s.rate(0, 0)
    assert math.isnan(rate.value)
    assert (rate.low, rate.high) == (0, 1)


def test_differences_have_newcombes_interval() -> None:
    # Newcombe (1998), table II, method 10: 56/70 against 48/80, and 9/10 against 3/10.
    assert s.difference(s.rate(56, 70), s.rate(48, 80)) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=5e-5
    )
    assert s.difference(s.rate(9, 10), s.rate(3, 10)) == pytest.approx(
        (0.6, 0.1705, 0.8090), abs=5e-5
    )


def fisher(k: int, n: int, j: int, m: int) -> float:
    """Two-sided Fisher by enumeration of all tables with these margins."""
    total = k + j

    def mass(i: int) -> float:
        return math.comb(n, i) * math.comb(m, total - i) / math.comb(n + m, total)

    masses = [mass(i) for i in range(max(0, total - m), min(n, total) + 1)]
    return sum(p for p in masses if p <= mass(k) * (1 + 1e-7))


@given(st.integers(1, 15), st.integers(1, 15), st.data())
def test_compare_is_fishers_test(n: int, m: int, data: Any) -> None:
    k, j = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    assert s.compare(s.rate(k, n), s.rate(j, m)) == pytest.approx(fisher(k, n, j, m))


def test_arms_are_compared_pairwise_and_adjusted() -> None:
    rates = {"a": s.rate(9, 12), "b": s.rate(1, 12), "c": s.rate(4, 12), "none": s.rate(0, 0)}
    tests = s.compare_arms(rates)
    assert [(t.a, t.b) for t in tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    order = sorted(t.p for t in tests)
    stepped = [min(p * 3 / rank for p, rank in list(zip(order, (1, 2, 3), strict=True))[i:])
               for i in range(3)]  # fmt: skip
    assert sorted(t.adjusted for t in tests) == pytest.approx(stepped)


def test_arms_without_runs_give_no_tests() -> None:
    assert s.compare_arms({"a": s.rate(0, 0), "b": s.rate(1, 2)}) == []
    assert s.compare_arms({}) == []


# --- time to collapse ------------------------------------------------------------------------

lives = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=30)


@pytest.mark.lasting
@given(lives)
def test_survival_is_lifelines_kaplan_meier(runs: list[tuple[int, bool]]) -> None:
    times, events = zip(*runs, strict=True)
    curve = s.survival(times, events)
    peer = KaplanMeierFitter(alpha=0.05).fit(times, events)
    low, high = 1.0, 1.0  # neither bound ever rises
    for i, t in enumerate(curve.time):
        at_risk = sum(x >= t for x in times)
        value = float(peer.predict(t))
        if 0 < value < 1:
            below, above = peer.confidence_interval_.loc[t]
        else:
            exact = 0.025 ** (1 / at_risk)
            below, above = (exact, 1.0) if value == 1 else (0.0, 1 - exact)
        low, high = min(low, below), min(high, above)
        assert curve.survival[i] == pytest.approx(value)
        assert s.survival_at(curve, t) == curve.survival[i]
        assert (curve.low[i], curve.high[i]) == pytest.approx((low, high), abs=1e-6)
        assert curve.at_risk[i] == at_risk


def test_survival_by_hand_with_ties() -> None:
    # 5 runs: two collapse at 10, one is censored at 10, one collapses at 30, one is censored at 40.
    curve = s.survival([10, 10, 10, 30, 40], [True, True, False, True, False])
    assert curve.time.tolist() == [0, 10, 30, 40]
    assert curve.survival.tolist() == pytest.approx([1, 3 / 5, 3 / 10, 3 / 10])
    assert curve.at_risk.tolist() == [5, 5, 2, 1]
    assert s.median_time(curve) == 30
    assert s.survival_at(curve, 9) == 1
    # Greenwood on the log-log scale at t = 10: var = (1/ln S)²·d/(n(n − d)).
    spread = stats.norm.ppf(0.975) * math.sqrt(2 / (5 * 3)) / math.log(0.6)
    assert (curve.low[1], curve.high[1]) == pytest.approx(
        (0.6 ** math.exp(-spread), 0.6 ** math.exp(spread))
    )
    # Before the first collapse all 5 runs hold: the exact interval of 5 of 5.
    assert (curve.low[0], curve.high[0]) == pytest.approx((0.025 ** (1 / 5), 1))


def test_the_median_time_is_the_first_by_which_half_have_collapsed() -> None:
    assert s.median_time(s.survival([10, 20], [True, True])) == 10
    assert s.median_time(s.survival([10, 20, 30], [True, True, True])) == 20


def test_survival_without_a_collapse_is_bounded_by_the_runs_at_risk() -> None:
    curve = s.survival([10, 20, 20], [False] * 3)
    assert curve.survival.tolist() == [1, 1, 1]
    assert curve.low.tolist() == pytest.approx(
        [0.025 ** (1 / 3), 0.025 ** (1 / 3), 0.025 ** (1 / 2)]
    )
    assert s.median_time(curve) is None


def test_survival_of_nothing_and_of_one() -> None:
    assert len(s.survival([], []).time) == 0
    assert s.survival([5], [True]).survival.tolist() == [1, 0]
    assert s.survival([5], [False]).survival.tolist() == [1, 1]


def test_a_run_that_learned_at_its_end_is_censored_at_once() -> None:
    curve = s.survival([0, 20], [False, True])
    assert curve.time.tolist() == [0, 20]
    assert curve.survival.tolist() == [1, 0]
    assert curve.at_risk.tolist() == [2, 1]


# --- pairs -----------------------------------------------------------------------------------


@given(st.integers(0, 20), st.integers(0, 20))
def test_mcnemar_is_a_sign_test(a: int, b: int) -> None:
    n, k = a + b, min(a, b)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert s.mcnemar(a, b) == pytest.approx(min(1, 2 * tail))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_sign_flip_is_exact_for_few_pairs(gaps: list[int]) -> None:
    assume(any(gaps))
    seen = abs(sum(gaps))
    flips = itertools.product((1, -1), repeat=len(gaps))
    totals = [sum(g * f for g, f in zip(gaps, flip, strict=True)) for flip in flips]
    upper = sum(t >= seen for t in totals) / len(totals)
    assert s.sign_flip(gaps) == pytest.approx(min(1, 2 * upper))


def test_sign_flip_repeats_and_takes_no_difference() -> None:
    gaps = np.random.default_rng(3).normal(0.3, 1, 40)
    assert s.sign_flip(gaps, seed=5) == s.sign_flip(gaps, seed=5)
    assert s.sign_flip(np.zeros(5)) == 1


def test_pairs_by_hand() -> None:
    a: s.Ends = {0: (True, 0.5), 1: (True, 0.5), 2: (False, 0.9), 3: (None, 0.5), 4: (True, 0.5)}
    b: s.Ends = {0: (False, 0.9), 1: (True, 0.5), 2: (False, 0.9), 3: (False, 0.9), 9: (True, 0.1)}
    pair = s.paired("a", "b", a, b)
    assert pair is not None
    assert (pair.pairs, pair.both_learned, pair.only_a, pair.only_b, pair.both) == (4, 3, 1, 0, 1)
    assert pair.accuracy_difference == pytest.approx((-0.4 + 0 + 0 - 0.4) / 4)
    assert s.paired("a", "b", a, {0: (True, 0.5)}) is None


def test_pairs_without_accuracies_do_not_fail() -> None:
    ends: s.Ends = {0: (True, None), 1: (False, math.nan)}
    pair = s.paired("a", "b", ends, ends)
    assert pair is not None
    assert math.isnan(pair.accuracy_difference)
    assert math.isnan(pair.accuracy_p)


def test_pairs_that_never_learned_have_no_test_of_collapses() -> None:
    ends: s.Ends = {0: (None, 0.5), 1: (None, 0.5)}
    pair = s.paired("a", "b", ends, ends)
    assert pair is not None
    assert math.isnan(pair.mcnemar_p)
    assert (pair.both_learned, pair.accuracy_p) == (0, 1)


# --- accuracies ------------------------------------------------------------------------------


def test_profile_by_hand() -> None:
    profile = s.profile([0.5, 0.9, math.nan, 0.99], [0.4, 0.5, 0.95, 1.0])
    assert profile.share.tolist() == [0.75, 0.5, 0.25, 0]


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 1000))
def test_profile_repeats_and_falls(values: list[float], seed: int) -> None:
    tau = np.linspace(0, 1, 11)
    first, second = (s.profile(values, tau, seed=seed, resamples=200) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert (np.diff(first.share) <= 0).all()
    assert (first.low <= first.share + 1e-12).all()
    assert (first.share <= first.high + 1e-12).all()


def test_profile_band_is_the_binomial_of_resampling() -> None:
    values = [0.5] * 6 + [0.99] * 14
    profile = s.profile(values, [0.9], resamples=20_000)
    low, high = stats.binom.ppf([0.025, 0.975], 20, 0.7) / 20
    assert (profile.low[0], profile.high[0]) == pytest.approx((low, high), abs=0.051)


def test_profile_and_median_of_nothing() -> None:
    assert np.isnan(s.profile([], [0.5]).share).all()
    assert s.median([]) is None
    assert s.median([None, math.nan]) is None
    assert s.median([None, 0.9, 0.7]) == pytest.approx(0.8)


# --- what seeds show -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "bound"), [(5, 0.52), (10, 0.31), (20, 0.17), (30, 0.12)])
def test_none_of_n_bounds_the_rate(n: int, bound: float) -> None:
    assert round(s.zero_bound(n), 2) == bound


@pytest.mark.parametrize(("p", "q", "n"), [(0.8, 0.2, 12), (0.5, 0.1, 23), (0.3, 0.0, 21)])
def test_seeds_needed(p: float, q: float, n: int) -> None:
    assert s.seeds_needed(p, q) == n
    assert s.power(n, p, q) >= 0.8 > s.power(n - 1, p, q)


@given(st.integers(1, 12), st.data())
def test_fisher_table_is_scipys(n: int, data: Any) -> None:
    k, j = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    value = stats.fisher_exact([[k, n - k], [j, n - j]]).pvalue
    assert s.fisher_table(n)[k, j] == pytest.approx(value)


def test_power_is_what_simulation_finds() -> None:
    rng = np.random.default_rng(0)
    k, j = rng.binomial(12, 0.8, 20_000), rng.binomial(12, 0.2, 20_000)
    found = (s.fisher_table(12)[k, j] <= 0.05).mean()
    assert s.power(12, 0.8, 0.2) == pytest.approx(found, abs=0.01)


def test_three_an_arm_can_never_be_significant() -> None:
    assert s.fisher_table(3).min() == pytest.approx(0.1)
    assert "can ever be significant" in s.what_seeds_show(3)
    assert "takes 12 such runs an arm" in s.what_seeds_show(3)
    assert "can ever be significant" not in s.what_seeds_show(4)


def test_the_smallest_detectable_rate_is_detected_and_one_per_cent_less_is_not() -> None:
    rate = s.detectable(12)
    assert rate is not None
    assert s.power(12, 0, rate) >= 0.8 > s.power(12, 0, rate - 0.01)
    assert f"{100 * rate:.0f} %" in s.what_seeds_show(12)
    assert s.detectable(3) is None


@pytest.mark.parametrize("base", [0.0, 0.5])
@pytest.mark.parametrize("n", [2, 4, 9, 12, 25, 40])
def test_no_smaller_rate_is_detectable(n: int, base: float) -> None:
    enough = [
        c / 100 for c in range(round(100 * base) + 1, 101) if s.power(n, base, c / 100) >= 0.8
    ]
    assert s.detectable(n, base) == (enough[0] if enough else None)


def test_many_runs_are_told_at_once_and_to_a_tenth() -> None:
    told = s.what_seeds_show(100_000)
    assert "a true rate of up to 0.0037 %" in told
    assert "zero can be told from one of at least 1 %" in told


def test_no_runs_say_so() -> None:
    assert "nothing can be said" in s.what_seeds_show(0)
