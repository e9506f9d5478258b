"""How good a classifier's answers are: counts, loss, ranking, calibration. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from glass_cnn.analysis.statistics import Rate, rate

RESAMPLES = 999
BINS = 10

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Bin(NamedTuple):
    """Examples whose predicted probability of glass lies in one tenth of 0 … 1."""

    examples: int
    predicted: float
    """their mean predicted probability"""
    observed: float
    """share of them that is glass"""


@dataclass(frozen=True)
class Quality:
    """One model on one part of a data set."""

    examples: int
    accuracy: Rate
    """with its Wilson interval, which takes images for independent"""
    loss: float
    """mean cross-entropy"""
    confusion: Ints
    """[true, predicted], 0 liquid and 1 glass"""
    auc: float
    """chance that a glass gets a higher score than a liquid; nan where a class is missing"""
    auc_low: float
    auc_high: float
    """interval by resampling trajectories, whose images are not independent"""
    brier: float
    """mean squared error of the predicted probability"""
    calibration_error: float
    """mean |predicted − observed| over the bins, weighted by their examples"""
    bins: tuple[Bin, ...]
    """those that have examples, rising"""

    def tree(self) -> dict[str, Any]:
        """As JSON values; keys as in result.json where they are the same."""
        return {
            "examples": self.examples,
            "correct": self.accuracy.k,
            "accuracy": self.accuracy.value,
            "accuracy_interval": [self.accuracy.low, self.accuracy.high],
            "loss": self.loss,
            "confusion": self.confusion.tolist(),
            "auc": self.auc,
            "auc_interval": [self.auc_low, self.auc_high],
            "brier": self.brier,
            "calibration_error": self.calibration_error,
            "calibration": [b._asdict() for b in self.bins],
        }


def evaluate(
    logits: np.ndarray, labels: np.ndarray, trajectories: np.ndarray, confidence: float = 0.95
) -> Quality:
    """Measure logits [n, 2] against labels [n]; `trajectories` [n] says what belongs together."""
    labels = labels.astype(np.int64)
    gap = logits[:, 1].astype(np.float64) - logits[:, 0].astype(np.float64)
    guesses = (logits[:, 1] > logits[:, 0]).astype(np.int64)
    glass = 1 / (1 + np.exp(-np.clip(gap, -700, 700)))
    confusion = np.bincount(2 * labels + guesses, minlength=4).reshape(2, 2)
    bins = calibration(glass, labels)
    off = sum(b.examples * abs(b.predicted - b.observed) for b in bins)
    low, high = auc_interval(gap, labels, trajectories, confidence)
    return Quality(
        examples=len(labels),
        accuracy=rate(int(np.trace(confusion)), len(labels), confidence),
        loss=float(np.logaddexp(0, np.where(labels == 1, -gap, gap)).mean()),
        confusion=confusion,
        auc=auc(gap, labels),
        auc_low=low,
        auc_high=high,
        brier=float(((glass - labels) ** 2).mean()),
        calibration_error=off / len(labels),
        bins=bins,
    )


def auc(scores: Floats, labels: Ints, weights: Floats | None = None) -> float:
    """Area under the ROC curve; nan unless both classes have weight."""
    present = labels if weights is None else labels[weights > 0]
    if len(np.unique(present)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, scores, sample_weight=weights))


def auc_interval(
    scores: Floats, labels: Ints, trajectories: np.ndarray, confidence: float, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the AUC from RESAMPLES seeded bootstrap samples of trajectories.

    All images of a trajectory are drawn together (Field and Welsh, J. R. Stat. Soc. B 69, 369
    (2007)); images of one trajectory are alike, and an interval that ignores this is too narrow.
    """
    groups, group_of = np.unique(trajectories, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=RESAMPLES)
    found = np.concatenate(
        [_weighted_aucs(scores, labels, part[:, group_of]) for part in np.array_split(drawn, 20)]
    )
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _weighted_aucs(scores: Floats, labels: Ints, weights: Ints) -> Floats:
    """The AUC under each row of whole weights [rows, n]: of many rows at once, as `auc` of one."""
    order = np.argsort(scores, kind="stable")
    rising, weights = scores[order], weights[:, order]
    glass = weights * labels[order]
    liquid = np.pad((weights - glass).cumsum(axis=1), ((0, 0), (1, 0)))  # of those before each
    below, up_to = (liquid[:, np.searchsorted(rising, rising, side)] for side in ("left", "right"))
    pairs = glass.sum(axis=1) * liquid[:, -1]
    with np.errstate(invalid="ignore"):  # 0/0 where a class is missing
        return (glass * (below + up_to)).sum(axis=1) / (2 * pairs)


def calibration(glass: Floats, labels: Ints) -> tuple[Bin, ...]:
    """Predicted probability of glass against its observed share, in BINS equal steps."""
    place = np.minimum((glass * BINS).astype(np.int64), BINS - 1)
    return tuple(
        Bin(int(mine.sum()), float(glass[mine].mean()), float(labels[mine].mean()))
        for mine in (place == k for k in range(BINS))
        if mine.any()
    )
