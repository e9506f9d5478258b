"""What chance, learned and collapsed mean, and what became of a run. Pure functions of numbers.

At an evaluation with accuracy a on N examples whose larger class has the share p, the network is
at *chance* if it puts (almost) everything in one class or if a is within a few binomial standard
deviations of p. It has *learned* after several evaluations in a row at a high accuracy. A
*collapse* is chance after having learned: permanent if the run ends there, transient otherwise.
The thresholds are `glass_cnn.settings.Analysis`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glass_cnn.settings import Analysis

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

OUTCOMES = (
    "survived",
    "transient_collapse",
    "permanent_collapse",
    "never_learned",
    "non_finite",
    "incomplete",
)
"""Every run has exactly one."""

COLLAPSED = ("transient_collapse", "permanent_collapse")
"""The outcomes that are collapses."""


# --- what became of one run ------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run in order; all arrays of one length."""

    step: NDArray[np.int64]
    """optimizer updates done"""
    accuracy: Floats
    """validation accuracy, a fraction of 1"""
    glass_fraction: Floats
    """share of validation examples that are called glass"""
    examples: Floats
    """validation examples counted"""
    glass: Floats
    """glasses among them"""
    finite: Flags
    """whether all losses are finite"""

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class Course:
    """What became of a run; positions are indices of evaluations."""

    outcome: str
    """one of OUTCOMES"""
    learned: int | None = None
    """evaluation that completed the criterion of learning"""
    last_good: int | None = None
    """last evaluation at the learned accuracy before the first collapse"""
    first_bad: int | None = None
    """first evaluation at chance after having learned"""
    collapses: int = 0
    """collapses, each but the first after learning again"""
    relearned: bool = False
    """learned again after a collapse"""
    chance_at_end: bool = False
    """the last evaluation is at chance"""
    end: int | None = None
    """evaluation until which the run was watched: the collapse, else the last finite one"""


def at_chance(
    accuracy: ArrayLike,
    glass_fraction: ArrayLike,
    examples: ArrayLike,
    glass: ArrayLike,
    analysis: Analysis,
) -> Flags:
    """Whether evaluations are at chance; arguments broadcast, accuracies are fractions of 1."""
    fraction, count = np.asarray(glass_fraction, float), np.asarray(examples, float)
    share = np.asarray(glass, float) / count
    majority = np.maximum(share, 1 - share)
    limit = majority + analysis.chance_sigmas * np.sqrt(majority * (1 - majority) / count)
    one_class = np.maximum(fraction, 1 - fraction) >= analysis.chance_fraction
    return np.asarray(one_class | (np.asarray(accuracy, float) <= limit))


def streaks(flags: Flags) -> NDArray[np.int64]:
    """For each position, how many flags in a row up to and with it are set."""
    position = np.arange(1, len(flags) + 1)
    return position - np.maximum.accumulate(np.where(flags, 0, position))


def classify(run: Evaluations, analysis: Analysis, complete: bool = True) -> Course:
    """Outcome of a run, with the evaluations at which it learned and collapsed.

    A collapse that is not permanent (not at chance for `collapse_evaluations` up to the end) is
    transient, also if the run ended before it had learned again (`relearned` tells). What comes
    after a loss that is not finite is neither learning nor collapse. With `complete` false the
    outcome is "incomplete" and the rest tells what was seen so far.
    """
    chance = at_chance(run.accuracy, run.glass_fraction, run.examples, run.glass, analysis)
    finite = np.logical_and.accumulate(run.finite)
    good = (run.accuracy >= analysis.learned_accuracy) & ~chance & finite
    course = _follow(chance & finite, streaks(good) >= analysis.learned_evaluations, good)
    outcome = _outcome(course, chance, analysis, bool(finite.all()))
    end = course["first_bad"] if course["first_bad"] is not None else int(finite.sum()) - 1
    return Course(
        outcome if complete else "incomplete",
        chance_at_end=bool(chance[-1:].any()),
        end=end if end >= 0 else None,
        **course,
    )


def _follow(chance: Flags, learned: Flags, good: Flags) -> dict[str, Any]:
    """Walk from learning to collapse to learning again …"""
    first = _next(learned, 0)
    bad = None if first is None else _next(chance, first)
    again = None if bad is None else _next(learned, bad)
    collapses, fallen = 0, bad
    while fallen is not None:
        collapses += 1
        risen = _next(learned, fallen)
        fallen = None if risen is None else _next(chance, risen)
    return {
        "learned": first,
        "last_good": None if bad is None else int(np.flatnonzero(good[:bad])[-1]),
        "first_bad": bad,
        "collapses": collapses,
        "relearned": again is not None,
    }


def _next(flags: Flags, start: int) -> int | None:
    """First position from `start` on whose flag is set."""
    (later,) = flags[start:].nonzero()
    return start + int(later[0]) if len(later) else None


def _outcome(course: Mapping[str, Any], chance: Flags, analysis: Analysis, finite: bool) -> str:
    if not finite:
        return "non_finite"
    if course["learned"] is None:
        return "never_learned"
    if course["first_bad"] is None:
        return "survived"
    at_end = streaks(chance)[-1] >= analysis.collapse_evaluations
    return "permanent_collapse" if at_end else "transient_collapse"
