"""Learning-rate schedules against their formulas, at corners and everywhere between."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from glass_cnn.train_settings import LearningRate
from glass_cnn.training.schedule import learning_rate

PER = 10
"""steps in an iteration"""


def rate(step: int, accuracy: float | None = None, per: int = PER, **schedule: Any) -> float:
    built: LearningRate = TypeAdapter(LearningRate).validate_python(schedule)
    return learning_rate(built, step, per, accuracy)


@given(step=st.integers(0, 10**9), accuracy=st.none() | st.floats(0, 1))
def test_constant(step: int, accuracy: float | None) -> None:
    assert rate(step, accuracy, initial=3e-4) == 3e-4


LINEAR: dict[str, Any] = {"kind": "linear", "initial": 1e-3, "final": 2e-4, "schedule_length": 20}


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 1e-3),
        (1, 1e-3 - 8e-4 / 200),
        (50, 8e-4),
        (100, 6e-4),
        (199, 2e-4 + 8e-4 / 200),
        (200, 2e-4),
        (201, 2e-4),
        (10**8, 2e-4),
    ],
)
def test_linear(step: int, value: float) -> None:
    assert rate(step, **LINEAR) == pytest.approx(value, rel=1e-12)


def test_linear_may_rise() -> None:
    assert rate(5, kind="linear", initial=1e-4, final=1e-3, schedule_length=1) == pytest.approx(
        5.5e-4
    )


THRESHOLD: dict[str, Any] = {
    "kind": "threshold",
    "initial": 1e-3,
    "levels": [{"above": 0.9, "rate": 1e-4}, {"above": 0.98, "rate": 1e-5}],
}


@pytest.mark.parametrize(
    ("accuracy", "value"),
    [
        (None, 1e-3),
        (0.0, 1e-3),
        (0.9, 1e-3),  # must be exceeded
        (math.nextafter(0.9, 1), 1e-4),
        (0.98, 1e-4),
        (math.nextafter(0.98, 1), 1e-5),
        (1.0, 1e-5),
    ],
)
def test_threshold_follows_accuracy_up_and_back(accuracy: float | None, value: float) -> None:
    assert rate(1234, accuracy, **THRESHOLD) == value


@pytest.mark.parametrize(
    ("accuracy", "value"),
    [(math.nextafter(0.9, 0), 1e-3), (0.9, 1e-4), (0.98, 1e-4), (0.99, 1e-5), (1.0, 1e-5)],
)
def test_a_level_at_least_so_high_is_reached_at_it(accuracy: float, value: float) -> None:
    levels = [{"at_least": 0.9, "rate": 1e-4}, {"above": 0.98, "rate": 1e-5}]
    assert rate(5, accuracy, **{**THRESHOLD, "levels": levels}) == value


EXPONENTIAL: dict[str, Any] = {
    "kind": "exponential",
    "initial": 1e-3,
    "decay": 0.5,
    "decay_iterations": 4,
}


@pytest.mark.parametrize(
    ("step", "smooth", "stairs"),
    [
        (0, 1e-3, 1e-3),
        (1, 1e-3 * 0.5**0.025, 1e-3),
        (39, 1e-3 * 0.5**0.975, 1e-3),
        (40, 5e-4, 5e-4),
        (79, 1e-3 * 0.5**1.975, 5e-4),
        (80, 2.5e-4, 2.5e-4),
        (400, 1e-3 * 0.5**10, 1e-3 * 0.5**10),
    ],
)
def test_exponential(step: int, smooth: float, stairs: float) -> None:
    assert rate(step, **EXPONENTIAL) == pytest.approx(smooth, rel=1e-12)
    assert rate(step, **EXPONENTIAL, staircase=True) == pytest.approx(stairs, rel=1e-12)
    assert rate(step, **EXPONENTIAL, final=3e-4) == pytest.approx(max(smooth, 3e-4), rel=1e-12)


WARMUP: dict[str, Any] = {
    "kind": "warmup_exponential",
    "peak": 1e-2,
    "warmup_iterations": 5,
    "decay": 0.9,
    "decay_iterations": 2,
    "final": 1e-4,
}


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 1e-2 / 50),  # the first step moves already
        (1, 2e-2 / 50),
        (49, 1e-2),
        (50, 1e-2),
        (60, 1e-2 * 0.9**0.5),
        (70, 9e-3),
        (90, 1e-2 * 0.9**2),
        (10**6, 1e-4),
    ],
)
def test_warm_up_and_decay(step: int, value: float) -> None:
    assert rate(step, **WARMUP) == pytest.approx(value, rel=1e-12)


COSINE: dict[str, Any] = {"kind": "cosine", "initial": 1e-3, "final": 1e-5, "schedule_length": 30}


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 1e-3),
        (75, 1e-5 + 0.99e-3 * (1 + math.sqrt(0.5)) / 2),
        (100, 1e-5 + 0.99e-3 * 0.75),
        (150, (1e-3 + 1e-5) / 2),
        (200, 1e-5 + 0.99e-3 * 0.25),
        (300, 1e-5),
        (301, 1e-5),
    ],
)
def test_cosine_with_and_without_warm_up(step: int, value: float) -> None:
    assert rate(step, **COSINE) == pytest.approx(value, rel=1e-12)
    assert rate(step + 40, **COSINE, warmup_iterations=4) == pytest.approx(value, rel=1e-12)


def test_cosine_warms_up_in_a_straight_line() -> None:
    rates = [rate(step, **COSINE, warmup_iterations=4) for step in range(41)]
    assert rates[0] == pytest.approx(1e-3 / 40)
    assert rates[19] == pytest.approx(5e-4)
    assert rates[39] == rates[40] == pytest.approx(1e-3)


ALL: list[dict[str, Any]] = [{"initial": 1e-3}, LINEAR, THRESHOLD, EXPONENTIAL, WARMUP, COSINE]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.get("kind", "constant"))
@given(step=st.integers(0, 10**7), per=st.integers(1, 100), accuracy=st.none() | st.floats(0, 1))
def test_a_rate_is_positive_bounded_and_a_pure_function(
    schedule: dict[str, Any], step: int, per: int, accuracy: float | None
) -> None:
    found = rate(step, accuracy, per, **schedule)
    top = schedule["peak"] if "peak" in schedule else schedule["initial"]
    assert 0 <= found <= top * (1 + 1e-12)
    assert found == rate(step, accuracy, per, **schedule)


@pytest.mark.parametrize("schedule", [LINEAR, EXPONENTIAL, WARMUP, COSINE], ids=lambda s: s["kind"])
def test_lengths_are_in_iterations_whatever_their_steps(schedule: dict[str, Any]) -> None:
    for iteration in (6, 11, 17, 40):
        one = rate(iteration * 3, per=3, **schedule)
        assert rate(iteration * 7, per=7, **schedule) == pytest.approx(one, rel=1e-12)
