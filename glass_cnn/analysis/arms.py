"""The estimates of a study: for each arm by itself, and between arms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from glass_cnn.analysis import effects, spread, statistics
from glass_cnn.analysis.effects import Effect, Lives
from glass_cnn.analysis.factors import FactorEffect, factor_effects, factors
from glass_cnn.analysis.spread import Spread
from glass_cnn.analysis.statistics import Comparison, Paired, Profile, Rate, Survival
from glass_cnn.analysis.table import Aggregation
from glass_cnn.settings import Analysis
from glass_cnn.study import Point

PAIRWISE_UP_TO = 12
"""Arms up to which every pair is compared; more, and all of a grid, are compared by factors."""

MOST_SPREAD = 2000
"""Runs of an arm whose spread is looked at, every one against every other; of more the first."""

TAU = tuple(i / 200 for i in range(80, 201))
"""Accuracies at which performance profiles are evaluated: 0.400 to 1.000."""


@dataclass(frozen=True)
class Arm:
    """One point of the study over its seeds. Only complete runs count.

    Copies are no other seeds: they are in `copies` and `spreads`, and in no rate.
    """

    point: Point
    wanted: int
    """runs that the study asks for"""
    states: dict[str, int]
    """state -> number of directories"""
    outcomes: dict[str, int]
    """outcome -> number of complete runs"""
    learned: Rate
    """runs that learned, of the complete ones"""
    collapsed: Rate
    """runs that collapsed, of those that learned"""
    times: list[float]
    """steps from learning to the collapse or the end, of runs that learned"""
    events: list[bool]
    """whether it was a collapse"""
    survival: Survival
    ends: dict[int, tuple[bool | None, float | None]]
    """seed -> collapsed (None: never learned), final test accuracy"""
    final: list[float | None]
    """final validation accuracies"""
    optimal: list[float | None]
    """optimal validation accuracies"""
    survivors: list[float | None]
    """final validation accuracies of the runs that survived"""
    rollbacks: int
    copies: Copies | None
    """None where the study asks for none"""

    @property
    def label(self) -> str:
        """Name of the point."""
        return self.point.label

    @property
    def complete(self) -> int:
        """Complete runs."""
        return self.learned.n

    @property
    def analysis(self) -> Analysis:
        """Thresholds of its outcomes."""
        return self.point.settings.analysis

    @property
    def lives(self) -> Lives:
        """Times and events."""
        return self.times, self.events

    @property
    def censored(self) -> tuple[list[float], list[float]]:
        """Times at which runs ended uncollapsed, and the survival estimate then."""
        times = [t for t, event in zip(self.times, self.events, strict=True) if not event]
        return times, [statistics.survival_at(self.survival, t) for t in times]

    def profile(self, which: str) -> Profile:
        """Performance profile of the `final` or `optimal` validation accuracies."""
        values = [float("nan") if v is None else v for v in getattr(self, which)]
        return statistics.profile(values, TAU, self.analysis.confidence)


class Pace(NamedTuple):
    """Which of two arms collapses sooner."""

    a: str
    b: str
    log_rank: float
    """p-value that both collapse as soon"""
    hazard: Effect | None
    """ratio of the hazards of collapse, a over b"""


@dataclass(frozen=True)
class Copies:
    """The copies of an arm's runs, and what they say of rounding. Only complete runs count."""

    wanted: int
    """copies that the study asks for, without the runs of the seeds themselves"""
    complete: int
    courses: int
    """different curves among seeds that have copies, with those of the seeds themselves"""
    curves: int
    """all of these curves"""
    outcome: Spread
    accuracy: Spread
    """of the final validation accuracy"""


@dataclass(frozen=True)
class Estimates:
    """Everything that is said of a study."""

    arms: list[Arm]
    comparisons: list[Comparison]
    """pairs of arms, where these are few"""
    pairs: list[Paired]
    log_rank: float | None
    """all arms together"""
    paces: list[Pace]
    """pairs of arms, where these are few"""
    factors: list[FactorEffect]
    """of a study with several axes, or of one with many arms"""

    @property
    def complete(self) -> int:
        """Complete runs of all arms, copies among them."""
        return sum(arm.complete + (arm.copies.complete if arm.copies else 0) for arm in self.arms)

    @property
    def wanted(self) -> int:
        """Runs that the study asks for, copies among them."""
        return sum(arm.wanted + (arm.copies.wanted if arm.copies else 0) for arm in self.arms)


def estimate(result: Aggregation) -> Estimates:
    """All estimates of a study from its table."""
    groups = result.table.filter(pl.col("label").is_not_null()).partition_by("label", as_dict=True)
    nothing = result.table.clear()
    section = result.study.section
    wanted = len(section.seed_list)
    copies = len(section.replicates) - wanted
    arms = [_arm(p, groups.get((p.label,), nothing), wanted, copies) for p in result.study.points]
    confidence = arms[0].analysis.confidence
    few = arms if len(arms) <= PAIRWISE_UP_TO else []
    axes = factors(result.study)
    asked = axes if len(axes) > 1 or not few else []
    return Estimates(
        arms=arms,
        comparisons=statistics.compare_arms({a.label: a.collapsed for a in few}, confidence),
        pairs=_pairs(few),
        log_rank=effects.log_rank([[arm.lives for arm in arms]]),
        paces=_paces(few),
        factors=factor_effects(
            asked, [a.collapsed for a in arms], [a.lives for a in arms], confidence
        ),
    )


def _arm(point: Point, table: pl.DataFrame, wanted: int, copies: int) -> Arm:
    counted = table.filter(pl.col("counted"))
    runs = counted.filter(pl.col("copy") == 0)
    learned = runs.filter(pl.col("learned_step").is_not_null())
    confidence = point.settings.analysis.confidence
    times = learned["watched_steps"].cast(pl.Float64).to_list()
    events = learned["collapsed"].to_list()
    survived = runs.filter(pl.col("outcome") == "survived")
    return Arm(
        point=point,
        wanted=wanted,
        states=dict(table["state"].value_counts().iter_rows()),
        outcomes=dict(runs["outcome"].value_counts().iter_rows()),
        learned=statistics.rate(len(learned), len(runs), confidence),
        collapsed=statistics.rate(sum(events), len(learned), confidence),
        times=times,
        events=events,
        survival=statistics.survival(times, events, confidence),
        ends=_ends(runs),
        final=runs["final_validation_accuracy"].to_list(),
        optimal=runs["optimal_validation_accuracy"].to_list(),
        survivors=survived["final_validation_accuracy"].to_list(),
        rollbacks=int(runs["rollbacks"].sum()),
        copies=_copies(counted, copies, confidence) if copies else None,
    )


def _copies(runs: pl.DataFrame, wanted: int, confidence: float) -> Copies:
    curves = runs.filter((pl.len() > 1).over("seed"))["curve"]
    seen = runs.sort("seed", "copy").head(MOST_SPREAD)
    seeds = seen["seed"].to_list()
    final = seen["final_validation_accuracy"].to_list()
    return Copies(
        wanted=wanted,
        complete=runs.filter(pl.col("copy") > 0).height,
        courses=curves.n_unique(),
        curves=len(curves),
        outcome=spread.of_outcomes(seeds, seen["outcome"].to_list(), confidence),
        accuracy=spread.of_values(seeds, final, confidence),
    )


def _ends(runs: pl.DataFrame) -> dict[int, tuple[bool | None, float | None]]:
    columns = runs.select("seed", "collapsed", "learned_step", "final_test_accuracy")
    return {
        seed: (None if learned is None else collapsed, accuracy)
        for seed, collapsed, learned, accuracy in columns.iter_rows()
    }


def _pairs(arms: Sequence[Arm]) -> list[Paired]:
    pairs = (
        statistics.paired(a.label, b.label, a.ends, b.ends)
        for a, b in itertools.combinations(arms, 2)
    )
    return [pair for pair in pairs if pair]


def _paces(arms: Sequence[Arm]) -> list[Pace]:
    paces = []
    for a, b in itertools.combinations(arms, 2):
        p = effects.log_rank([[a.lives, b.lives]])
        if p is not None:
            hazard = effects.hazard_ratio([[a.lives, b.lives]], a.analysis.confidence)
            paces.append(Pace(a.label, b.label, p, hazard))
    return paces
