"""How strongly collapses depend on something: against published examples, lifelines and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.statistics import logrank_test
from scipy import stats

from glass_cnn.analysis import effects
from glass_cnn.analysis.factors import factor_effects, factors
from glass_cnn.analysis.statistics import rate
from tests import synthetic

# Admissions to six departments of Berkeley in 1973, of men and of women (Bickel, Hammel and
# O'Connell, Science 187, 398 (1975)).
ADMITTED = [[512, 89], [353, 17], [120, 202], [138, 131], [53, 94], [22, 24]]
APPLIED = [[825, 108], [560, 25], [325, 593], [417, 375], [191, 393], [373, 341]]


# --- how often -------------------------------------------------------------------------------


def test_the_test_of_cochran_mantel_and_haenszel_on_a_published_example() -> None:
    # R's mantelhaen.test(UCBAdmissions, correct = FALSE): 1.5246 with one degree of freedom.
    p = effects.association(ADMITTED, APPLIED)
    assert p == pytest.approx(stats.chi2.sf(1.5246, 1), rel=1e-4)


def test_one_stratum_of_several_levels_is_the_test_of_pearson_less_one() -> None:
    hits, of = np.array([[3, 9, 14]]), np.array([[20, 21, 19]])
    pearson = stats.chi2_contingency(np.vstack([hits, of - hits]), correction=False).statistic
    count = of.sum()
    p = stats.chi2.sf(pearson * (count - 1) / count, 2)
    assert effects.association(hits, of) == pytest.approx(p)


def test_a_level_without_runs_and_a_stratum_without_collapses_change_nothing() -> None:
    p = effects.association(ADMITTED, APPLIED)
    more = [[*row, 0] for row in ADMITTED]
    assert effects.association(more, [[*row, 0] for row in APPLIED]) == pytest.approx(p)
    assert effects.association([*ADMITTED, [0, 0]], [*APPLIED, [9, 7]]) == pytest.approx(p)


@pytest.mark.parametrize(("hits", "of"), [([[0, 0]], [[5, 5]]), ([[1, 0]], [[3, 0]]), ([], [])])
def test_no_association_without_collapses_or_levels(hits: Any, of: Any) -> None:
    shape = np.array(hits).reshape(-1, 2), np.array(of).reshape(-1, 2)
    assert effects.association(*shape) is None


def test_a_pooled_difference_of_equal_strata_is_that_of_one() -> None:
    one = effects.rate_difference([[30, 10]], [[40, 40]])
    assert one is not None
    assert one.value == pytest.approx(0.5)
    four = effects.rate_difference([[30, 10]] * 4, [[40, 40]] * 4)
    assert four is not None
    assert four.value == pytest.approx(0.5)
    assert four.high - four.value == pytest.approx((one.high - one.value) / 2)
    wald = 1.959964 * math.sqrt(2 * 0.75 * 0.25 / 40)
    assert one.high - one.value == pytest.approx(wald, rel=1e-6)


def test_the_interval_of_a_pooled_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    of = np.array([[12, 12], [20, 8], [10, 24]])
    low = np.array([0.1, 0.3, 0.5])
    covered = 0
    for _ in range(1000):
        hits = rng.binomial(of, np.stack([low + 0.3, low], axis=1))
        found = effects.rate_difference(hits, of)
        assert found is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.93 <= covered / 1000 <= 0.975


def test_a_difference_without_spread_has_an_interval_all_the_same() -> None:
    found = effects.rate_difference([[10, 0], [12, 0]], [[10, 10], [12, 12]])
    assert found is not None
    assert found.value == 1
    assert 0.7 < found.low < 0.95
    assert effects.rate_difference([[3, 0]], [[5, 0]]) is None


def test_odds_that_differ_between_strata_are_found() -> None:
    same = effects.heterogeneity([[20, 10], [30, 18]], [[40, 40], [40, 40]])
    turned = effects.heterogeneity([[35, 5], [5, 35]], [[40, 40], [40, 40]])
    assert same is not None
    assert turned is not None
    assert same > 0.5
    assert turned < 1e-6
    assert effects.heterogeneity([[1, 2]], [[4, 4]]) is None


# --- how soon --------------------------------------------------------------------------------

lives = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=30)


@pytest.mark.lasting
@given(lives, lives)
def test_log_rank_of_two_is_lifelines(a: Any, b: Any) -> None:
    assume(any(event for _, event in a + b))
    arms: list[effects.Lives] = [
        ([time for time, _ in arm], [event for _, event in arm]) for arm in (a, b)
    ]
    (t1, e1), (t2, e2) = arms
    peer = logrank_test(t1, t2, e1, e2).p_value
    found = effects.log_rank([arms])
    if found is None:
        assert not math.isfinite(peer) or peer == 1
    else:
        assert found == pytest.approx(peer, rel=1e-6)


def log_rank_by_hand(arms: list[effects.Lives]) -> float:
    """χ² of observed less expected collapses, with the covariance of the hypergeometric law."""
    k = len(arms)
    gap, covariance = np.zeros(k), np.zeros((k, k))
    moments = sorted({t for ts, es in arms for t, e in zip(ts, es, strict=True) if e})
    for moment in moments:
        risk = np.array([sum(t >= moment for t in ts) for ts, _ in arms], float)
        dead = np.array([sum(e and t == moment for t, e in zip(*arm, strict=True)) for arm in arms])
        n, d = risk.sum(), dead.sum()
        gap += dead - d * risk / n
        if n > 1:
            factor = d * (n - d) / (n - 1)
            covariance += factor * (np.diag(risk) / n - np.outer(risk, risk) / n**2)
    value = gap[:-1] @ np.linalg.pinv(covariance[:-1, :-1]) @ gap[:-1]
    return float(stats.chi2.sf(value, k - 1))


def made_up(rng: np.random.Generator, pace: float = 1.0, count: int = 40) -> effects.Lives:
    """Runs that collapse at this pace, some of them watched for a short time only."""
    time, end = np.ceil(rng.exponential(30 / pace, count)), rng.integers(5, 60, count)
    return np.minimum(time, end).tolist(), (time <= end).tolist()


def test_log_rank_of_three_arms_by_hand() -> None:
    rng = np.random.default_rng(1)
    arms = [made_up(rng, count=12) for _ in range(3)]
    assert effects.log_rank([arms]) == pytest.approx(log_rank_by_hand(arms), rel=1e-6)


def test_no_log_rank_without_collapses_or_arms() -> None:
    assert effects.log_rank([[([1, 2], [False, False]), ([3], [False])]]) is None
    assert effects.log_rank([[([1, 2], [True, False]), ([], [])]]) is None


def test_hazard_ratios_over_strata_are_those_of_lifelines() -> None:
    rng = np.random.default_rng(0)
    strata = [[made_up(rng, 1 + s), made_up(rng, 2.5 * (1 + s))] for s in range(3)]
    rows = [
        (s, 1 - level, time, event)
        for s, stratum in enumerate(strata)
        for level, life in enumerate(stratum)
        for time, event in zip(*life, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["stratum", "first", "time", "event"])
    peer = CoxPHFitter().fit(table, "time", "event", strata=["stratum"])
    found = effects.hazard_ratio(strata)
    assert found is not None
    assert found.value == pytest.approx(math.exp(peer.params_["first"]), rel=1e-5)
    low, high = np.exp(peer.confidence_intervals_.to_numpy()[0])
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.02)  # Wald's are near
    turned = effects.hazard_ratio([stratum[::-1] for stratum in strata])
    assert turned is not None
    assert turned.value == pytest.approx(1 / found.value)


def test_a_hazard_ratio_is_bounded_where_one_level_alone_collapses() -> None:
    some, none = ([10.0, 20, 30, 40], [True] * 4), ([40.0] * 6, [False] * 6)
    found = effects.hazard_ratio([[some, none]])
    assert found is not None
    assert found.value == found.high == math.inf
    assert 1 < found.low < 10
    turned = effects.hazard_ratio([[none, some]])
    assert turned is not None
    assert (turned.value, turned.low) == (0, 0)
    assert turned.high == pytest.approx(1 / found.low)
    assert effects.hazard_ratio([[none, none]]) is None
    assert effects.hazard_ratio([[some, ([], [])]]) is None


# --- factors ---------------------------------------------------------------------------------


def test_the_axes_of_a_study_are_its_factors() -> None:
    study = synthetic.study(
        arms={"plain": {}, "flips": {"train.augmentation.flips": True}},
        grid={"train.dropout": [0.1, 0.2, 0.5], "train.l2": [0.01]},
        paired=[{"train.iterations": [10, 20], "train.batch_size": [80, 40]}],
    )
    arm, dropout, paired = factors(study)
    assert (arm.names, arm.levels, arm.is_ordered) == (("arm",), ("plain", "flips"), True)
    assert (dropout.names, dropout.levels) == (("train.dropout",), (0.1, 0.2, 0.5))
    assert paired.names == ("train.iterations", "train.batch_size")
    assert paired.levels == ((10, 80), (20, 40))
    for place, point in enumerate(study.points):
        assert point.label.startswith(arm.levels[arm.level_of[place]])
        settings = point.settings.train
        assert settings.dropout == dropout.levels[dropout.level_of[place]]
        assert (settings.iterations, settings.batch_size) == paired.levels[paired.level_of[place]]
    assert factors(synthetic.study()) == []


def test_a_factor_is_judged_at_equal_values_of_the_others() -> None:
    grid = {"train.dropout": [0.1, 0.5], "train.l2": [0.1, 0.2, 0.3]}
    axes = factors(synthetic.study(grid=grid))
    hits = [1, 2, 3, 11, 12, 13]
    rates = [rate(k, 20) for k in hits]
    lives: list[effects.Lives] = [
        ([float(t) for t in range(20)], [t < k for t in range(20)]) for k in hits
    ]
    dropout, l2 = factor_effects(axes, rates, lives)
    assert [r.k for r in dropout.rates] == [6, 36]
    assert [r.k for r in l2.rates] == [12, 14, 16]
    assert dropout.ends is not None
    assert dropout.ends.difference is not None
    assert dropout.ends.difference.value == pytest.approx(0.5)
    assert dropout.p == effects.association([[1, 11], [2, 12], [3, 13]], [[20, 20]] * 3)
    assert dropout.p is not None
    assert dropout.adjusted == pytest.approx(2 * dropout.p)
    assert l2.p is not None
    assert l2.p > 0.3
    assert [c.level for c in l2.contrasts] == [1, 2]
    assert l2.contrasts[1].hazard == effects.hazard_ratio(
        [[lives[2], lives[0]], [lives[5], lives[3]]]
    )
