"""Learning-rate schedules: pure functions of the step and the last validation accuracy."""

from __future__ import annotations

import math

from glass_cnn.train_settings import (
    Constant,
    Cosine,
    Exponential,
    LearningRate,
    Linear,
    Threshold,
    WarmupExponential,
)


def learning_rate(
    schedule: LearningRate, step: int, batches_per_iteration: int, accuracy: float | None
) -> float:
    """Learning rate of the update number `step` (0-based).

    Lengths of schedules are in iterations of `batches_per_iteration` steps, and rates change
    within an iteration, a little at each step. `accuracy` is the last validation accuracy before
    this step, a fraction of 1, or None before the first evaluation; only `threshold` looks at it.
    """
    time = step / batches_per_iteration
    match schedule:
        case Constant():
            return schedule.initial
        case Linear():
            share = min(time / schedule.schedule_length, 1.0)
            return schedule.initial + (schedule.final - schedule.initial) * share
        case Threshold():
            rate = schedule.initial
            for level in schedule.levels:
                if accuracy is not None and level.holds(accuracy):
                    rate = level.rate
            return rate
        case Exponential():
            return max(schedule.final, schedule.initial * _decay(schedule, time))
        case WarmupExponential():
            if time < schedule.warmup_iterations:
                # The first step already moves: rate 0 would waste it.
                return (
                    schedule.peak
                    * (step + 1)
                    / (schedule.warmup_iterations * batches_per_iteration)
                )
            since = time - schedule.warmup_iterations
            return max(
                schedule.final,
                schedule.peak * schedule.decay ** (since / schedule.decay_iterations),
            )
        case Cosine():
            if time < schedule.warmup_iterations:
                return (
                    schedule.initial
                    * (step + 1)
                    / (schedule.warmup_iterations * batches_per_iteration)
                )
            share = min((time - schedule.warmup_iterations) / schedule.schedule_length, 1.0)
            height = (1 + math.cos(math.pi * share)) / 2
            return schedule.final + (schedule.initial - schedule.final) * height
    raise AssertionError(f"unknown schedule {schedule!r}")


def _decay(schedule: Exponential, time: float) -> float:
    periods = time / schedule.decay_iterations
    return schedule.decay ** (math.floor(periods) if schedule.staircase else periods)
