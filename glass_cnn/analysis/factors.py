"""What a grid is asked: how collapses depend on each of its axes, the others being equal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from glass_cnn.analysis import effects, statistics
from glass_cnn.analysis.effects import Effect, Lives
from glass_cnn.analysis.statistics import Rate
from glass_cnn.study import Study

ARMS = "arm"
"""name of the axis that named arms are"""


@dataclass(frozen=True)
class Factor:
    """One axis of a study's points."""

    names: tuple[str, ...]
    """settings that advance together along it; (ARMS,) for named arms"""
    levels: tuple[Any, ...]
    """value of the setting at each level, a tuple of several settings' values, or an arm's name"""
    level_of: tuple[int, ...]
    """level of each point of the study"""

    @property
    def is_ordered(self) -> bool:
        """Whether levels are numbers, or only two: then the ends are what one wants to know of."""
        numbers = (isinstance(x, int | float) and not isinstance(x, bool) for x in self.levels)
        return len(self.levels) == 2 or all(numbers)


def factors(study: Study) -> list[Factor]:
    """The axes of a study that have more than one level, in the order of its file."""
    section = study.section
    axes: list[tuple[tuple[str, ...], tuple[Any, ...]]] = []
    if section.arms:
        axes.append(((ARMS,), tuple(section.arms)))
    axes += [((name,), tuple(values)) for name, values in section.grid.items()]
    for group in section.paired:
        axes.append((tuple(group), tuple(zip(*group.values(), strict=True))))
    places = zip(*itertools.product(*(range(len(levels)) for _, levels in axes)), strict=True)
    return [
        Factor(names, levels, level_of)
        for (names, levels), level_of in zip(axes, places, strict=True)
        if len(levels) > 1
    ]


@dataclass(frozen=True)
class Contrast:
    """One level of a factor against the first, others being equal."""

    level: int
    difference: Effect | None
    """of the collapse rates, pooled over strata"""
    hazard: Effect | None
    """ratio of the hazards of collapse, stratified"""
    heterogeneity: float | None
    """p-value that the odds ratio is the same in all strata"""


@dataclass(frozen=True)
class FactorEffect:
    """How collapses depend on one factor."""

    factor: Factor
    rates: list[Rate]
    """collapsed of those that learned, on each level, all strata together"""
    p: float | None
    """Cochran–Mantel–Haenszel test; None where nothing can tell"""
    adjusted: float | None
    """the same, adjusted for the number of factors (Benjamini and Hochberg)"""
    log_rank: float | None
    """of the times to collapse, stratified"""
    contrasts: list[Contrast]
    """every level but the first, against it"""

    @property
    def ends(self) -> Contrast | None:
        """The last level against the first, where these are what one wants to know of."""
        return self.contrasts[-1] if self.factor.is_ordered else None


def factor_effects(
    found: Sequence[Factor],
    rates: Sequence[Rate],
    lives: Sequence[Lives],
    confidence: float = 0.95,
) -> list[FactorEffect]:
    """The effect of each factor, from the rate and the times to collapse of every point."""
    told = [_effect(factor, _strata(factor, found), rates, lives, confidence) for factor in found]
    tried = [each.p for each in told if each.p is not None]
    adjusted = iter(stats.false_discovery_control(tried) if tried else [])
    return [
        each if each.p is None else replace(each, adjusted=float(next(adjusted))) for each in told
    ]


def _strata(factor: Factor, found: Sequence[Factor]) -> NDArray[np.intp]:
    """Points [strata, levels]: a stratum is the points that differ in this factor alone."""
    others = [each.level_of for each in found if each is not factor]
    order = np.lexsort(np.array([factor.level_of, *others]))
    return order.reshape(-1, len(factor.levels))


def _effect(
    factor: Factor,
    strata: NDArray[np.intp],
    rates: Sequence[Rate],
    lives: Sequence[Lives],
    confidence: float,
) -> FactorEffect:
    hits, of = (np.array([getattr(one, name) for one in rates])[strata] for name in ("k", "n"))
    totals = zip(hits.sum(axis=0).tolist(), of.sum(axis=0).tolist(), strict=True)

    def contrast(level: int) -> Contrast:
        pair = [level, 0]
        paired = [[lives[point] for point in row[pair]] for row in strata]
        return Contrast(
            level=level,
            difference=effects.rate_difference(hits[:, pair], of[:, pair], confidence),
            hazard=effects.hazard_ratio(paired, confidence),
            heterogeneity=effects.heterogeneity(hits[:, pair], of[:, pair]),
        )

    return FactorEffect(
        factor=factor,
        rates=[statistics.rate(k, n, confidence) for k, n in totals],
        p=effects.association(hits, of),
        adjusted=None,
        log_rank=effects.log_rank([[lives[point] for point in row] for row in strata]),
        contrasts=[contrast(level) for level in range(1, len(factor.levels))],
    )
