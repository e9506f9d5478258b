"""How much of a spread is the seed's and how much rounding's: by hand, and against variances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import ArrayLike

from glass_cnn.analysis.spread import of_outcomes, of_values, spread


def normal(seeds: int, copies: int, between: float, within: float, start: int = 0) -> np.ndarray:
    """Made-up results [seeds, copies] with these standard deviations."""
    rng = np.random.default_rng(start)
    of_seed = rng.normal(0, between, (seeds, 1))
    return of_seed + rng.normal(0, within, (seeds, copies))


def squares(values: ArrayLike) -> np.ndarray:
    """Half the squared difference of any two."""
    difference: np.ndarray = np.subtract.outer(values, values) ** 2 / 2
    return difference


def test_crossed_copies_give_the_components_of_a_one_way_analysis_of_variance() -> None:
    values = normal(seeds=7, copies=5, between=2, within=1)
    seeds = np.repeat(range(7), 5)
    found = of_values(seeds.tolist(), values.ravel().tolist(), 0.95)
    mean_square_within = values.var(axis=1, ddof=1).mean()
    mean_square_between = 5 * values.mean(axis=1).var(ddof=1)
    seed = (mean_square_between - mean_square_within) / 5
    assert found.within == pytest.approx(mean_square_within)
    assert found.total == pytest.approx(seed + mean_square_within)
    assert found.share == pytest.approx(mean_square_within / (seed + mean_square_within))
    assert (found.runs, found.seeds, found.copied) == (35, 7, 7)
    assert found.low < found.share < found.high


def test_copies_of_one_seed_beside_others_by_hand() -> None:
    """Copies of seed 0 at 1, 1 and 3; seeds 1 and 2 at 5 and 9."""
    found = of_values([0, 0, 0, 1, 2], [1, 1, 3, 5, 9], 0.95)
    assert found.within == pytest.approx((0 + 2 + 2) / 3)
    to_first, to_second = np.mean([8, 8, 2]), np.mean([32, 32, 18])
    assert found.total == pytest.approx((to_first + to_second + 8) / 3)
    assert found.copied == 1


def test_outcomes_differ_or_do_not() -> None:
    ends = ["survived", "permanent_collapse", "survived", "never_learned"]
    found = of_outcomes([0, 0, 1, 2], ends, 0.95)
    assert found.within == 1
    assert found.total == pytest.approx((0.5 + 1 + 1) / 3)
    assert found.share == 1, "more than all of it is all of it"


def test_copies_that_never_differ_have_no_interval() -> None:
    """A bootstrap of them would end at 0 to 0, whatever the number of copies."""
    found = of_outcomes([0] * 8 + [1, 2], ["survived"] * 9 + ["never_learned"], 0.95)
    assert (found.within, found.share) == (0, 0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(("between", "within"), [(0.0, 1.0), (1.0, 0.0), (2.0, 1.0)])
def test_estimates_are_right_in_the_mean(between: float, within: float) -> None:
    seeds = [0] * 12 + list(range(1, 12))
    found = []
    for start in range(200):
        values = normal(12, 12, between, within, start)
        difference = squares([*values[0], *values[1:, 0]])
        found.append(spread(seeds, difference, 0.95, resamples=2)[3:5])
    mean = np.mean(found, axis=0)
    assert mean[0] == pytest.approx(within**2, abs=0.15)
    assert mean[1] == pytest.approx(within**2 + between**2, abs=0.6)


def test_intervals_cover_about_as_often_as_they_say() -> None:
    seeds = np.repeat(range(24), 4).tolist()
    hits = 0
    for start in range(60):
        values = normal(24, 4, 1.0, 1.0, start)
        found = spread(seeds, squares(values.ravel()), 0.95, resamples=300)
        hits += found.low <= 0.5 <= found.high
    assert 50 <= hits <= 60


@pytest.mark.parametrize("seeds", [[0, 1, 2], [0, 0, 0]])
def test_without_copies_or_other_seeds_nothing_is_known(seeds: list[int]) -> None:
    found = of_values(seeds, [1.0, 2.0, 4.0], 0.95)
    assert math.isnan(found.share)
    assert found.runs == 3


def test_runs_that_all_end_alike_have_no_share() -> None:
    found = of_outcomes([0, 0, 1, 2], ["survived"] * 4, 0.95)
    assert (found.within, found.total) == (0, 0)
    assert math.isnan(found.share)
    assert math.isnan(found.low)


def test_what_is_no_number_is_left_out() -> None:
    found = of_values([0, 0, 0, 1, 2], [1.0, 3.0, None, 5.0, float("nan")], 0.95)
    assert (found.runs, found.seeds, found.within) == (3, 2, 2)


def test_the_same_runs_give_the_same_interval() -> None:
    difference = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0)))
    first, again = (spread([0, 0, 0, 1, 1, 1, 2, 2, 2], difference, 0.9) for _ in range(2))
    assert first == again
