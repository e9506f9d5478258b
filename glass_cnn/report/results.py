"""One study, opened for code of one's own: its numbers as tables, its figures.

`glass_cnn.open_study` is the way in. Tables are Polars frames; what their columns mean is written
here, in `analysis.rows` and in `records`, and printed in docs/columns.md.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import polars as pl
from matplotlib.figure import Figure

from glass_cnn.analysis import arms, table
from glass_cnn.analysis.arms import Arm, Estimates
from glass_cnn.analysis.statistics import Comparison
from glass_cnn.analysis.table import Aggregation
from glass_cnn.metrics import read_metrics
from glass_cnn.outcomes import OUTCOMES
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.records import SERIES
from glass_cnn.report import figures, words
from glass_cnn.study import Study
from hpc.errors import ConfigError

CURVES: dict[str, tuple[Any, str]] = {
    "run": (pl.String, "directory of the run"),
    "arm": (pl.String, "point of the study; `label` in the table of runs"),
    "seed": (pl.Int64, "its seed"),
    "copy": (pl.Int64, "0 for the run of the seed itself"),
    "outcome": (pl.String, "what became of the run; incomplete before its end"),
    "iteration": (pl.Int64, "iterations done, from 1"),
    "step": (pl.Int64, "optimizer updates done"),
    **dict.fromkeys(SERIES, (pl.Float64, "")),
    "seconds": (pl.Float64, "wall time of all starts together, s"),
}
"""columns of the table of evaluations; what an empty meaning stands for says `Evaluation`"""


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def _rounding(what: str, value: str, arm: Arm) -> float | None:
    return getattr(getattr(arm.copies, what), value) if arm.copies else None


ESTIMATES: dict[str, tuple[Callable[[Arm], Any], str]] = {
    "arm": (lambda arm: arm.label, "point of the study; `label` in the table of runs"),
    "wanted": (lambda arm: arm.wanted, "runs that the study asks for"),
    "complete": (lambda arm: arm.complete, "complete runs, from which all else is estimated"),
    "learned": (lambda arm: arm.learned.k, "runs that learned"),
    "learned_rate": (lambda arm: arm.learned.value, "share of the complete runs that learned"),
    "learned_low": (lambda arm: arm.learned.low, "lower end of its interval"),
    "learned_high": (lambda arm: arm.learned.high, "upper end of its interval"),
    "collapsed": (lambda arm: arm.collapsed.k, "runs that learned and collapsed"),
    "collapse_rate": (lambda arm: arm.collapsed.value, "share of those that learned"),
    "collapse_low": (lambda arm: arm.collapsed.low, "lower end of its interval"),
    "collapse_high": (lambda arm: arm.collapsed.high, "upper end of its interval"),
    "confidence": (lambda arm: arm.analysis.confidence, "level of the intervals"),
    "median_optimal_validation_accuracy": (
        lambda arm: _median(arm.optimal),
        "median over complete runs of the best validation accuracy",
    ),
    "median_final_validation_accuracy": (
        lambda arm: _median(arm.final),
        "median over complete runs of the last one",
    ),
    "rollbacks": (lambda arm: arm.rollbacks, "times that complete runs went back"),
    "copies": (
        lambda arm: arm.copies.complete if arm.copies else 0,
        "complete copies, which count in what follows and in nothing else",
    ),
    **{
        f"rounding_{what}{end}": (
            functools.partial(_rounding, what, value),
            f"{told} {of} that is rounding's, the rest being the seed's",
        )
        for what, of in (("outcome", "outcomes"), ("accuracy", "final validation accuracies"))
        for end, value, told in (
            ("", "share", "share of the spread of"),
            ("_low", "low", "lower end of the interval of the share of the spread of"),
            ("_high", "high", "upper end of the interval of the share of the spread of"),
        )
    },
    **{
        f"runs_{outcome}": (
            functools.partial(lambda outcome, arm: arm.outcomes.get(outcome, 0), outcome),
            f"complete runs whose outcome is {outcome}",
        )
        for outcome in OUTCOMES
        if outcome != "incomplete"
    },
}
"""columns of the table of arms: how each is taken from an arm, and its meaning"""

COMPARISONS = {
    "a": "an arm",
    "b": "another one",
    "difference": "collapse rate of a less that of b",
    "low": "lower end of its interval (Newcombe)",
    "high": "upper end of its interval",
    "p": "Fisher's exact test, two-sided",
    "adjusted": "p adjusted for the number of tests (Benjamini–Hochberg)",
}
"""columns of the table of differences between arms"""

FACTORS: dict[str, tuple[Any, str]] = {
    "factor": (pl.String, "axis of the study, in words"),
    "level": (pl.String, "value on it, in words"),
    "learned": (pl.Int64, "runs on this level that learned, whatever the rest is"),
    "collapsed": (pl.Int64, "runs of those that collapsed"),
    "collapse_rate": (pl.Float64, "share of those that learned"),
    "difference": (pl.Float64, "collapse rate less that of the first level, the rest being equal"),
    "difference_low": (pl.Float64, "lower end of its interval"),
    "difference_high": (pl.Float64, "upper end of its interval"),
    "hazard_ratio": (pl.Float64, "hazard over that of the first level, the rest being equal"),
    "hazard_low": (pl.Float64, "lower end of its interval"),
    "hazard_high": (pl.Float64, "upper end of its interval"),
    "p": (pl.Float64, "of the factor: that rates are the same on all its levels"),
    "adjusted": (pl.Float64, "p adjusted for the number of factors (Benjamini–Hochberg)"),
    "log_rank": (pl.Float64, "of the factor: that runs collapse as soon on all its levels"),
}
"""columns of the table of factors"""

Which = Literal["rates", "survival", "curves"]


class StudyResults:
    """What is known of a study's runs now; open it again to see what came since.

    Reads run directories and writes nothing but the cache that makes the next look fast.
    """

    def __init__(self, study: Study, directory: StudyDir) -> None:
        self.study, self.directory = study, directory

    def __repr__(self) -> str:
        counted = self.runs["counted"].sum()
        return f"<study {self.study.name}: {counted} of {len(self.study.runs)} runs complete>"

    @functools.cached_property
    def _aggregation(self) -> Aggregation:
        return table.aggregate(self.study, self.directory)

    @functools.cached_property
    def _estimates(self) -> Estimates:
        return arms.estimate(self._aggregation)

    @property
    def runs(self) -> pl.DataFrame:
        """One row a run, as in summary.parquet; those with `counted` are in the estimates."""
        return self._aggregation.table

    @functools.cached_property
    def curves(self) -> pl.DataFrame:
        """One row an evaluation, of all runs of the study that have begun and are not damaged."""
        begun = self.runs.filter(table.USABLE)
        wanted = begun.select("run", "label", "seed", "copy", "outcome").iter_rows()
        parts = [self._curve(*row) for row in wanted]
        schema = {name: dtype for name, (dtype, _) in CURVES.items()}
        return pl.concat([pl.DataFrame(schema=schema), *parts])

    def _curve(self, run: str, label: str, seed: int, copy: int, outcome: str) -> pl.DataFrame:
        metrics = read_metrics(RunDir(self.directory.runs / run).metrics)
        columns = {"iteration": metrics.iteration, "step": metrics.step, **metrics.series}
        numbers = pl.DataFrame({**columns, "seconds": metrics.seconds}).fill_nan(None)
        same = {"run": run, "arm": label, "seed": seed, "copy": copy, "outcome": outcome}
        kinds = {name: dtype for name, (dtype, _) in CURVES.items()}
        told = [pl.lit(value, kinds[name]).alias(name) for name, value in same.items()]
        return numbers.select(*told, *numbers.columns)

    @functools.cached_property
    def estimates(self) -> pl.DataFrame:
        """One row an arm: how many runs learned and collapsed, with intervals."""
        found = self._estimates.arms
        columns = {name: [take(arm) for arm in found] for name, (take, _) in ESTIMATES.items()}
        return pl.DataFrame(columns).fill_nan(None)

    @functools.cached_property
    def comparisons(self) -> pl.DataFrame:
        """One row a pair of arms: by how much their collapse rates differ."""
        schema = dict.fromkeys(Comparison._fields, pl.Float64) | {"a": pl.String, "b": pl.String}
        return pl.DataFrame(self._estimates.comparisons, schema=schema, orient="row")

    @functools.cached_property
    def factors(self) -> pl.DataFrame:
        """One row a level of each axis of a grid: collapses, against the first level.

        Empty where arms are compared pair by pair.
        """
        rows = []
        for effect in self._estimates.factors:
            of = {each.level: each for each in effect.contrasts}
            for level, rate in enumerate(effect.rates):
                contrast = of.get(level)
                difference = (contrast and contrast.difference) or (None, None, None)
                hazard = (contrast and contrast.hazard) or (None, None, None)
                names = words.factor_name(effect.factor), words.level_name(effect.factor, level)
                counts = rate.n, rate.k, rate.value if rate.n else None
                tests = effect.p, effect.adjusted, effect.log_rank
                rows.append((*names, *counts, *difference, *hazard, *tests))
        schema = {name: dtype for name, (dtype, _) in FACTORS.items()}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def figure(self, which: Which) -> Figure:
        """A figure to show or save: `rates`, `survival` or `curves`; raises ConfigError."""
        if which == "rates":
            return figures.rates_figure(self._estimates)
        if which == "survival":
            return figures.survival_figure(self._estimates.arms)
        if which == "curves":
            return figures.accuracy_figure(self.curves)
        raise ConfigError(f"figure {which!r}: is none; there are rates, survival and curves.")


def open_study(study: str | Path, logs: str | Path | None = None) -> StudyResults:
    """Open a study's results.

    Args:
        study: its directory, its file, or its name in the logs directory.
        logs: the logs directory; without it $GLASS_LOGS, else ./logs.

    Raises:
        ConfigError: there is no such study, or its file is wrong.
    """
    return StudyResults(*table.find_study(study, (), None if logs is None else Path(logs)))
