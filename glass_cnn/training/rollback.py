"""When a run goes back: the decision of `train.rollback`, from the evaluations so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glass_cnn.outcomes import Evaluations, at_chance, classify, streaks
from glass_cnn.settings import Analysis, Rollback


def onset(
    records: Sequence[Mapping[str, Any]], rollback: Rollback, analysis: Analysis
) -> int | None:
    """Iteration at which a collapse began, once it is one; None as long as there is none.

    A collapse is a loss that is not finite, or chance in `rollback.chance_evaluations`
    evaluations in a row after the run had learned, both as `analysis` defines them.

    Args:
        records: the run's evaluations in order, as in metrics.jsonl.
    """
    if not records:
        return None
    finite = np.array([record["finite"] for record in records])
    if not finite.all():
        return int(records[int(np.argmin(finite))]["iteration"])
    columns = {
        "accuracy": "validation_accuracy",
        "glass_fraction": "predicted_glass_fraction",
        "examples": "validation_examples",
        "glass": "validation_glass",
    }
    run = Evaluations(
        step=np.array([record["step"] for record in records]),
        finite=finite,
        **{key: np.array([r[name] for r in records], float) for key, name in columns.items()},
    )
    course = classify(run, analysis)
    if course.first_bad is None:
        return None
    chance = at_chance(run.accuracy, run.glass_fraction, run.examples, run.glass, analysis)
    lasted = int(streaks(chance)[-1])
    if lasted < rollback.chance_evaluations:
        return None
    return int(records[len(records) - lasted]["iteration"])
