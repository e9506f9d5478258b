"""The best network of some arms: the run whose optimal model is right most often on validation."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from glass_cnn.analysis.statistics import Rate, rate
from glass_cnn.analysis.table import Aggregation
from glass_cnn.metrics import Metrics, read_metrics
from glass_cnn.paths import RunDir
from hpc.errors import DataError
from hpc.files import read_json

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Best:
    """The optimal model of the best run."""

    run: str
    runs: int
    """complete runs that it is the best of"""
    iteration: int
    validation: Ints
    """confusion matrix [true, predicted], 0 liquid and 1 glass"""
    test: Rate | None
    """images of the test part that it is right about; None where that was not recorded"""
    auc: tuple[float, float, float] | None
    """of the test part, with its interval; None unless the run was evaluated by `make evaluate`"""


def best(result: Aggregation, labels: Collection[str], confidence: float = 0.95) -> Best | None:
    """The best of the complete runs of these arms; None where there is none."""
    runs = result.counted.filter(
        pl.col("label").is_in(list(labels)) & pl.col("optimal_validation_accuracy").is_not_null()
    ).sort("optimal_validation_accuracy", descending=True, maintain_order=True)
    for row in runs.head(1).iter_rows(named=True):
        with contextlib.suppress(DataError, OSError):  # damaged since it was aggregated
            run = RunDir(result.directory.runs / row["run"])
            metrics = read_metrics(run.metrics)
            return Best(
                run=run.name,
                runs=len(runs),
                iteration=row["optimal_iteration"],
                validation=_confusion(metrics, row["optimal_iteration"]),
                test=_test(run, row["optimal_test_accuracy"], confidence),
                auc=_auc(run),
            )
    return None


def _confusion(metrics: Metrics, iteration: int) -> Ints:
    at = int(np.searchsorted(metrics.iteration, iteration))
    accuracy, called = (
        float(metrics.series[name][at])
        for name in ("validation_accuracy", "predicted_glass_fraction")
    )
    return confusion(accuracy, called, int(metrics.examples[at]), int(metrics.glass[at]))


def confusion(accuracy: float, glass_fraction: float, examples: int, glass: int) -> Ints:
    """The confusion matrix [true, predicted] that an accuracy and a share called glass tell.

    `glass` of the `examples` are glasses.
    """
    correct, called = round(accuracy * examples), round(glass_fraction * examples)
    found = (correct + called + glass - examples) // 2  # glasses that are called so
    return np.array([[examples - glass - (called - found), called - found], [glass - found, found]])


def _test(run: RunDir, accuracy: float | None, confidence: float) -> Rate | None:
    examples = read_json(run.result).get("examples", {}).get("test")
    if accuracy is None or not examples:
        return None
    return rate(round(accuracy * examples), examples, confidence)


def _auc(run: RunDir) -> tuple[float, float, float] | None:
    tree: Any = None
    with contextlib.suppress(DataError, KeyError, TypeError):
        tree = read_json(run.evaluation)["models"]["best"]["test"]
        return (tree["auc"], *tree["auc_interval"])
    return None
