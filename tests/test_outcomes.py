"""What chance, learned and collapsed mean: by hand, on the log of 2017, and on made-up curves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn import outcomes
from glass_cnn.settings import Analysis

N, GLASS = 2960, 1457
ANALYSIS = Analysis()


def run(accuracies: Any, fractions: Any = 0.5, finite: Any = True) -> outcomes.Evaluations:
    accuracy = np.array(accuracies, float)
    count = len(accuracy)
    return outcomes.Evaluations(
        step=np.arange(1, count + 1) * 10,
        accuracy=accuracy,
        glass_fraction=np.broadcast_to(np.array(fractions, float), count),
        examples=np.full(count, float(N)),
        glass=np.full(count, float(GLASS)),
        finite=np.broadcast_to(np.array(finite, bool), count),
    )


@pytest.mark.parametrize("correct", [1457, 1503, 1481, 1479])
def test_the_final_accuracies_of_2017_are_a_collapse(correct: int) -> None:
    good, bad = [0.998] * 5, [correct / N] * 3
    fractions = [0.5] * 5 + [float(correct == 1457)] * 3
    assert outcomes.classify(run(good + bad, fractions), ANALYSIS).outcome == "permanent_collapse"


def test_the_two_constant_predictors_of_2017_add_up_to_all_examples() -> None:
    assert N == 1457 + 1503
    assert round(1457 / N, 5) == 0.49223
    assert round(1503 / N, 5) == 0.50777


@pytest.mark.parametrize(
    ("accuracy", "fraction", "chance"),
    [
        (0.5078, 0.5, True),  # the larger class
        (0.5353, 0.5, True),  # 1503/2960 + 3·√(p(1 − p)/2960) = 0.53534
        (0.5354, 0.5, False),
        (0.80, 0.989, False),
        (0.80, 0.990, True),  # one class
        (0.80, 0.010, True),
        (0.80, 0.011, False),
        (math.nan, math.nan, False),
    ],
)
def test_chance(accuracy: float, fraction: float, chance: bool) -> None:
    assert outcomes.at_chance(accuracy, fraction, N, GLASS, ANALYSIS) == chance


def test_streaks() -> None:
    flags = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1], bool)
    assert outcomes.streaks(flags).tolist() == [1, 2, 0, 1, 0, 0, 1, 2, 3]
    assert outcomes.streaks(np.array([], bool)).tolist() == []


UP, DOWN, MIDDLE = 0.99, 0.5, 0.8


@pytest.mark.parametrize(
    ("curve", "outcome"),
    [
        ([DOWN] * 9, "never_learned"),
        ([UP, UP, MIDDLE, UP, UP], "never_learned"),  # never three in a row
        ([DOWN, UP, UP, UP], "survived"),
        ([UP] * 3 + [MIDDLE] * 9, "survived"),  # worse, but not at chance
        ([UP] * 3 + [DOWN] * 3, "permanent_collapse"),
        ([UP] * 3 + [DOWN] * 2, "transient_collapse"),  # too short to be called permanent
        ([UP] * 3 + [DOWN] + [UP] * 3, "transient_collapse"),
        ([UP] * 3 + [DOWN] * 5 + [MIDDLE], "transient_collapse"),  # left, not learned again
        ([UP] * 3 + [DOWN] + [UP] * 3 + [DOWN] * 3, "permanent_collapse"),
        ([], "never_learned"),
        ([UP], "never_learned"),
    ],
)
def test_outcomes(curve: list[float], outcome: str) -> None:
    assert outcomes.classify(run(curve), ANALYSIS).outcome == outcome
    assert outcomes.classify(run(curve), ANALYSIS, complete=False).outcome == "incomplete"


def test_a_loss_that_is_not_finite_is_no_collapse() -> None:
    finite = [True] * 5 + [False] * 3
    course = outcomes.classify(run([UP] * 5 + [DOWN] * 3, finite=finite), ANALYSIS)
    assert course.outcome == "non_finite"


@pytest.mark.parametrize("after", [UP, DOWN, math.nan])
def test_a_run_whose_loss_is_not_finite_is_watched_until_then(after: float) -> None:
    # Weights that are not finite put every image into one class: chance, and no collapse.
    course = outcomes.classify(
        run([UP] * 5 + [after] * 3, finite=[True] * 5 + [False] * 3), ANALYSIS
    )
    assert (course.outcome, course.learned, course.end) == ("non_finite", 2, 4)
    assert (course.first_bad, course.collapses) == (None, 0)


def test_a_collapse_before_the_loss_was_not_finite_ends_the_watch() -> None:
    finite = [True] * 6 + [False] * 2
    course = outcomes.classify(run([UP] * 4 + [DOWN] * 4, finite=finite), ANALYSIS)
    assert (course.outcome, course.first_bad, course.end) == ("non_finite", 4, 4)


@pytest.mark.parametrize("finite", [False, [True] * 2 + [False] + [True] * 5])
def test_nothing_is_learned_without_a_finite_loss(finite: Any) -> None:
    course = outcomes.classify(run([UP] * 8, finite=finite), ANALYSIS)
    assert (course.outcome, course.learned) == ("non_finite", None)
    assert course.end == (1 if finite else None)


def test_one_class_for_all_is_no_learning_however_accurate() -> None:
    # 97 % of the examples are glass: to call all of them glass is right as often, and chance.
    count = 5
    evaluations = outcomes.Evaluations(
        step=np.arange(count),
        accuracy=np.full(count, 0.97),
        glass_fraction=np.ones(count),
        examples=np.full(count, 1000.0),
        glass=np.full(count, 970.0),
        finite=np.ones(count, bool),
    )
    assert outcomes.classify(evaluations, ANALYSIS).outcome == "never_learned"


def test_onset_is_bracketed_by_the_last_good_and_the_first_bad_evaluation() -> None:
    course = outcomes.classify(
        run([UP] * 4 + [MIDDLE] * 2 + [DOWN] * 4 + [UP] * 3 + [DOWN]), ANALYSIS
    )
    assert (course.learned, course.last_good, course.first_bad) == (2, 3, 6)
    assert (course.collapses, course.relearned, course.chance_at_end) == (2, True, True)
    assert course.end == 6


def test_thresholds_are_settings() -> None:
    curve = run([0.92] * 3 + [DOWN] * 2)
    assert outcomes.classify(curve, ANALYSIS).outcome == "never_learned"
    easier = Analysis(learned_accuracy=0.9, collapse_evaluations=2)
    assert outcomes.classify(curve, easier).outcome == "permanent_collapse"


@given(st.lists(st.sampled_from([UP, DOWN, MIDDLE]), max_size=40), st.booleans())
def test_every_run_has_one_outcome_that_fits_its_course(curve: list[float], finite: bool) -> None:
    course = outcomes.classify(run(curve, finite=finite), ANALYSIS)
    assert course.outcome in outcomes.OUTCOMES
    if not finite and curve:
        assert course.outcome == "non_finite"
        return
    assert (course.outcome in outcomes.COLLAPSED) == (course.first_bad is not None)
    assert (course.outcome == "never_learned") == (course.learned is None)
    if course.first_bad is not None:
        assert course.learned is not None
        assert course.last_good is not None
        assert course.learned <= course.last_good < course.first_bad
        assert curve[course.first_bad] == DOWN
        assert DOWN not in curve[course.learned : course.first_bad]
    if course.outcome == "permanent_collapse":
        assert curve[-3:] == [DOWN] * 3
