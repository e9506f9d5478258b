"""What the interactive figures of a report show: chosen runs, thinned curves, estimates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from glass_cnn.analysis.arms import TAU, Arm, Estimates
from glass_cnn.analysis.statistics import Rate
from glass_cnn.analysis.table import Aggregation
from glass_cnn.metrics import Metrics, read_metrics
from glass_cnn.paths import RunDir
from glass_cnn.records import SERIES
from glass_cnn.report import curves, palette, words
from glass_cnn.report.words import OUTCOME_WORDS, interval, percent, plain, setting
from hpc.errors import DataError

MOST_CURVES = 300
"""Runs whose curves are drawn; of more, the first seeds of every arm, and all that collapsed."""
MOST_COLLAPSED = 1_000
"""Runs that collapsed whose curves are drawn beside those."""
MOST_POINTS = 60_000
"""Evaluations drawn altogether; longer runs are thinned, keeping their extremes."""
MOST_OTHERS = 4_000
"""Runs beside the drawn ones whose curves are shown when they are looked up by name."""
MOST_OTHER_POINTS = 120_000
"""Evaluations of those altogether."""
FEWEST_POINTS = 40
"""Evaluations of one run that are kept in any case."""
MOST_PANELS = 24
"""Panels of survival curves of a grid."""
MOST_ARMS = 60
"""Arms in the table of answers."""

QUANTITIES = {name: title for name, title in SERIES.items() if name != "l2_loss"}
"""Quantities that the curves can show -> what they are called."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """One run that is drawn."""

    row: Row
    arm: int
    metrics: Metrics
    by_seed: bool
    """chosen by its seed alone, not for its outcome, and no copy: what may stand for all seeds"""


def choose(result: Aggregation, arms: Sequence[Arm]) -> list[Drawn]:
    """The runs to draw: all; of many, the first seeds of every arm and all that collapsed."""
    runs = _with_curves(result, arms)
    quota = max(1, MOST_CURVES // max(1, len(arms)))
    first = pl.int_range(pl.len()).over("label") < quota
    runs = runs.with_columns(first=first & (first.cum_sum() <= MOST_CURVES))
    runs = runs.with_columns(by_seed=pl.col("first") & (pl.col("copy") == 0))
    others = pl.col("collapsed").fill_null(False) & ~pl.col("first")
    runs = runs.filter(pl.col("first") | (others & (others.cum_sum() <= MOST_COLLAPSED)))
    return list(_read(result, arms, runs))


def others(
    result: Aggregation, arms: Sequence[Arm], drawn: Sequence[Drawn]
) -> list[dict[str, Any]]:
    """Curves of the runs that are not drawn, for the page's script; the first MOST_OTHERS."""
    there = [run.row["run"] for run in drawn]
    runs = _with_curves(result, arms).filter(~pl.col("run").is_in(there)).head(MOST_OTHERS)
    runs = runs.with_columns(by_seed=pl.lit(False))
    most = max(FEWEST_POINTS, MOST_OTHER_POINTS // max(1, len(runs)))
    return [_curve(run, most, arms) for run in _read(result, arms, runs)]


def _with_curves(result: Aggregation, arms: Sequence[Arm]) -> pl.DataFrame:
    """Rows of the arms' runs that have been evaluated."""
    known = pl.col("state").is_in(["complete", "unfinished"]) & (pl.col("evaluations") > 0)
    return result.table.filter(known & pl.col("label").is_in([arm.label for arm in arms]))


def _read(result: Aggregation, arms: Sequence[Arm], runs: pl.DataFrame) -> Iterator[Drawn]:
    places = {arm.label: i for i, arm in enumerate(arms)}
    for row in runs.iter_rows(named=True):
        try:
            metrics = read_metrics(RunDir(result.directory.runs / row["run"]).metrics)
        except (DataError, OSError):  # damaged since it was aggregated
            continue
        if len(metrics):
            yield Drawn(row, places[row["label"]], metrics, row["by_seed"])


def points_of(drawn: Sequence[Drawn]) -> int:
    """Evaluations of one run that are drawn; longer runs are thinned."""
    return max(FEWEST_POINTS, MOST_POINTS // max(1, len(drawn)))


def _curve(run: Drawn, most: int, arms: Sequence[Arm]) -> dict[str, Any]:
    kept = curves.sample(run.metrics, most)
    return {
        "name": run.row["run"],
        "arm": run.arm,
        "seed": run.row["seed"],
        "batch": arms[run.arm].point.settings.train.batch_size,
        "epochs": run.metrics.epochs_each,
        "outcome": OUTCOME_WORDS[run.row["outcome"]],
        "onset": run.row["onset_iteration"],
        "iteration": run.metrics.iteration[kept].tolist(),
        "step": run.metrics.step[kept].tolist(),
        "series": {name: _short(run.metrics.series[name][kept]) for name in QUANTITIES},
    }


def _short(values: Any) -> list[float | None]:
    """Numbers to five digits, null for what is not finite."""
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in np.asarray(values).tolist()]


def quantile_band(
    runs: Sequence[Metrics], name: str, at: NDArray[np.int64], levels: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Quantiles over runs of one quantity at given iterations; runs count up to their end."""
    values = np.full((len(runs), len(at)), np.nan)
    for row, metrics in zip(values, runs, strict=True):
        place = np.searchsorted(metrics.iteration, at, side="right") - 1
        inside = (place >= 0) & (at <= (metrics.iteration[-1] if len(metrics) else -1))
        row[inside] = metrics.series[name][place[inside]]
    some = np.isfinite(values).any(axis=0)
    bands = [np.full(len(at), np.nan) for _ in levels]
    if some.any():
        quantiles = np.nanquantile(values[:, some], levels, axis=0)
        for band, row in zip(bands, quantiles, strict=True):
            band[some] = row
    return bands


def _band(arm: int, runs: Sequence[Metrics], per: int, batch: int) -> dict[str, Any]:
    """Median and 10 to 90 % quantiles over the seeds of one arm."""
    last = max(int(metrics.iteration[-1]) for metrics in runs)
    first = min(int(metrics.iteration[0]) for metrics in runs)
    at = np.unique(np.linspace(first, last, 200).round().astype(np.int64))
    return {
        "arm": arm,
        "runs": len(runs),
        "epochs": runs[0].epochs_each,
        "iteration": at.tolist(),
        "samples": (at * per * batch).tolist(),
        "series": {
            name: [_short(q) for q in quantile_band(runs, name, at, (0.1, 0.5, 0.9))]
            for name in QUANTITIES
        },
    }


def _bands(drawn: Sequence[Drawn], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    groups: dict[int, list[Metrics]] = {}
    for run in (run for run in drawn if run.by_seed):
        groups.setdefault(run.arm, []).append(run.metrics)
    bands = []
    for index, runs in groups.items():
        train = arms[index].point.settings.train
        bands.append(_band(index, runs, train.batches_per_iteration, train.batch_size))
    return bands


def _survival(index: int, arm: Arm) -> dict[str, Any]:
    curve = arm.survival
    censored, censored_at = arm.censored
    return {
        "arm": index,
        "time": curve.time.tolist(),
        "survival": _short(curve.survival),
        "low": _short(curve.low),
        "high": _short(curve.high),
        "risk": curve.at_risk.tolist(),
        "censored": censored,
        "censored_at": censored_at,
    }


def at_risk(arms: Sequence[Arm]) -> tuple[list[float], list[tuple[str, list[int]]]] | None:
    """Times since learning, steps, and how many runs of each arm were watched for at least so long.

    None where no run has learned; the first MOST_ARMS arms.
    """
    learned = [arm for arm in arms[:MOST_ARMS] if arm.times]
    longest = max((max(arm.times) for arm in learned), default=0)
    if longest <= 0:
        return None
    times = curves.ticks(0, longest)
    counts = [(a.label, [sum(t >= time for t in a.times) for time in times]) for a in learned]
    return times, counts


def _profile(index: int, arm: Arm) -> dict[str, Any]:
    final, optimal = arm.profile("final"), arm.profile("optimal")
    return {
        "arm": index,
        "final": _short(final.share),
        "low": _short(final.low),
        "high": _short(final.high),
        "optimal": _short(optimal.share),
    }


def codes(estimates: Estimates) -> list[tuple[int, int]]:
    """Numbers of each arm's colour and dash: of a grid the levels of its first and second factor.

    Elsewhere each arm has its own.
    """
    arms = range(len(estimates.arms))
    if len(estimates.factors) < 2:
        return [(i, i) for i in arms]
    first, second = (effect.factor.level_of for effect in estimates.factors[:2])
    return list(zip(first, second, strict=True))


def _panels(estimates: Estimates) -> dict[str, Any] | None:
    """Of a grid: a panel for each choice of all factors but the first, and what lines in it are."""
    if len(estimates.factors) < 2:
        return None
    first, *others = (effect.factor for effect in estimates.factors)
    choices = list(zip(*(factor.level_of for factor in others), strict=True))
    panels = sorted(set(choices))
    if len(panels) > MOST_PANELS:
        return None
    names = [
        ", ".join(f"{words.factor_name(f)} {words.level_name(f, i)}" for f, i in pairs)
        for pairs in (list(zip(others, choice, strict=True)) for choice in panels)
    ]
    return {
        "titles": names,
        "of": [panels.index(choice) for choice in choices],
        "factor": words.factor_name(first),
        "lines": [words.level_name(first, level) for level in first.level_of],
    }


def heatmaps(result: Aggregation, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """One map of collapse rates over the two longest axes of the grid for each choice of others."""
    grid = result.study.section.grid
    if len(grid) < 2:
        return []
    y_name, x_name = sorted(sorted(grid, key=lambda k: -len(grid[k]))[:2], key=list(grid).index)
    highest = max((arm.collapsed.value for arm in arms if arm.collapsed.n), default=0.0)
    groups: dict[str, dict[tuple[str, str], Arm]] = {}
    for arm in arms:
        changes = dict(arm.point.changes)
        cell = (plain(changes.pop(y_name)), plain(changes.pop(x_name)))
        title = ", ".join(f"{setting(key)} {plain(value)}" for key, value in changes.items())
        groups.setdefault(title, {})[cell] = arm
    xs, ys = ([plain(v) for v in grid[name]] for name in (x_name, y_name))
    return [
        {
            "title": title,
            "x_name": setting(x_name),
            "y_name": setting(y_name),
            "x": xs,
            "y": ys,
            "z": [[_value(cells[y, x].collapsed) for x in xs] for y in ys],
            "text": [[_cell(cells[y, x].collapsed) for x in xs] for y in ys],
            "short": [[_short_cell(cells[y, x].collapsed) for x in xs] for y in ys],
            "highest": max(0.05, highest),
        }
        for title, cells in groups.items()
    ]


def _value(rate: Rate) -> float | None:
    return rate.value if rate.n else None


def _cell(rate: Rate) -> str:
    if not rate.n:
        return ""
    return f"{rate.k}/{rate.n}<br>{interval(rate)}"


def _short_cell(rate: Rate) -> str:
    return percent(rate.value, 0) if rate.n else ""


def figure_data(
    estimates: Estimates,
    drawn: Sequence[Drawn],
    heatmaps: Sequence[dict[str, Any]],
    found: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Everything that the page's script draws, as a tree for JSON; `found`: see `others`."""
    arms = estimates.arms
    most = points_of(drawn)
    return {
        "quantities": QUANTITIES,
        "arms": [
            {"label": arm.label, "color": palette.arm(color), "dash": palette.dash(dash)}
            for arm, (color, dash) in zip(arms, codes(estimates), strict=True)
        ],
        "with_curves": sorted({run.arm for run in drawn} | {run["arm"] for run in found}),
        "panels": _panels(estimates),
        "runs": [_curve(run, most, arms) for run in drawn],
        "bands": _bands(drawn, arms),
        "survival": [_survival(i, arm) for i, arm in enumerate(arms[:MOST_ARMS]) if arm.times],
        "tau": TAU,
        "profiles": [_profile(i, arm) for i, arm in enumerate(arms[:MOST_ARMS]) if arm.complete],
        "heatmaps": list(heatmaps),
    }
