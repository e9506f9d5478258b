"""Curves made small enough to draw, captions in the style of the results log, static figures."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glass_cnn.analysis.arms import Arm, Estimates
from glass_cnn.metrics import Metrics
from hpc.files import make_directory, write_atomic

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which people with any colour vision tell apart; no yellow on white."""

DASHES = ("solid", "dash", "dot", "dashdot")
"""Of lines that may lie on one another; with the colours, 28 arms are told apart."""


def color(index: int) -> str:
    """Colour of arm number `index`."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> str:
    """Dash of arm number `index`."""
    return DASHES[index % len(DASHES)]


# --- curves ----------------------------------------------------------------------------------


def sample(metrics: Metrics, most: int) -> NDArray[np.intp]:
    """Indices of at most about `most` evaluations that show what all of them show.

    Of each stretch of evaluations, the first, the lowest and highest validation accuracy and the
    highest validation loss; with the very last. Short runs are kept whole.
    """
    count = len(metrics)
    if count <= most:
        return np.arange(count)
    kept = [count - 1]
    accuracy = np.nan_to_num(metrics.series["validation_accuracy"], nan=0.5)
    loss = np.nan_to_num(metrics.series["validation_loss"], nan=np.inf)
    for part in np.array_split(np.arange(count), max(1, most // 4)):
        kept += [part[0], part[accuracy[part].argmin()], part[accuracy[part].argmax()]]
        kept.append(part[loss[part].argmax()])
    return np.unique(kept)


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


# --- static figures --------------------------------------------------------------------------

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "glass-cnn",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


AXES = {"loss": "cross-entropy loss (nats)", "accuracy": "accuracy"}


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; equal figures give equal files. Raises StorageError."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    make_directory(path.parent)
    write_atomic(path, text.getvalue())


def run_figure(metrics: Metrics, row: dict[str, Any], most: int = 600) -> Figure:
    """Loss and accuracy of one run against iterations."""
    kept = sample(metrics, most)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.7))  # fixed margins: solving for them takes half the time
        figure.subplots_adjust(left=0.075, right=0.985, bottom=0.17, top=0.96, wspace=0.2)
        loss, accuracy = figure.subplots(1, 2)
        for axes, what in ((loss, "loss"), (accuracy, "accuracy")):
            for side, tone in (("train", PALETTE[5]), ("validation", PALETTE[0])):
                values = metrics.series[f"{side}_{what}"][kept]
                name = "training" if side == "train" else side
                axes.plot(metrics.iteration[kept], values, color=tone, lw=0.9, label=name)
            axes.set(xlabel="iteration", ylabel=AXES[what])
        accuracy.set_ylim(min(0.4, accuracy.get_ylim()[0]), 1.01)
        _mark_onset(loss, accuracy, row)
        loss.legend(loc="upper right")
    return figure


def _mark_onset(loss: Axes, accuracy: Axes, row: dict[str, Any]) -> None:
    if row["onset_iteration"] is not None:
        for axes in (loss, accuracy):
            axes.axvline(row["onset_iteration"], color=PALETTE[1], lw=0.8, ls=":")


def rates_figure(estimates: Estimates) -> Figure:
    """Collapse rate of each arm with its interval."""
    arms = estimates.arms
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(arms)), layout="constrained")
        axes = figure.subplots()
        for i, arm in enumerate(arms):
            rate = arm.collapsed
            if rate.n:
                axes.plot([100 * rate.low, 100 * rate.high], [i, i], color=color(i), lw=1.6)
                axes.plot([100 * rate.value], [i], "o", color=color(i), ms=5)
        names = [f"{a.label}  ({a.collapsed.k}/{a.collapsed.n})" for a in arms]
        axes.set_yticks(range(len(arms)), names)
        axes.set(ylim=(len(arms) - 0.5, -0.5), xlim=(-2, 102))
        axes.set(xlabel="runs that collapsed, of those that learned (%)")
    return figure


def survival_figure(arms: Sequence[Arm]) -> Figure:
    """Kaplan–Meier curves of all arms that have runs that learned."""
    with matplotlib.rc_context(STYLE):
        few = len(arms) <= len(PALETTE)
        figure = Figure(figsize=(7.2, 3.2 if few else 0.6 + 0.17 * len(arms)), layout="constrained")
        axes = figure.subplots()
        for i, arm in enumerate(arms):
            curve = arm.survival
            if not len(curve.time):
                continue
            style = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}[dash(i)]
            time, value, tone = curve.time, curve.survival, color(i)
            axes.step(time, value, where="post", color=tone, ls=style, label=arm.label)
            axes.fill_between(
                time, curve.low, curve.high, step="post", color=tone, alpha=0.12, lw=0
            )
            axes.plot(*arm.censored, "|", color=tone, ms=5, mew=0.8)
        axes.set(ylim=(0, 1.02), xlabel="steps since learned", ylabel="share not yet collapsed")
        if axes.lines and few:
            axes.legend(loc="best").set_in_layout(False)
        elif axes.lines:
            figure.legend(loc="outside right upper", fontsize=7)
    return figure


def draw_missing(
    folder: Path, runs: Sequence[tuple[dict[str, Any], Metrics]], stamps: dict[str, str]
) -> list[str]:
    """Draw the figure of each run whose stamp differs from that of its last drawing.

    Returns the names of the runs drawn. Raises StorageError.
    """
    ledger = folder / ".drawn.json"
    drawn = _ledger(ledger)
    fresh = []
    for row, metrics in runs:
        name = row["run"]
        if drawn.get(name) == stamps[name] and (folder / f"{name}.svg").exists():
            continue
        save_svg(run_figure(metrics, row), folder / f"{name}.svg")
        drawn[name] = stamps[name]
        fresh.append(name)
    if fresh:
        write_atomic(ledger, json.dumps(drawn))
    return fresh


def _ledger(path: Path) -> dict[str, str]:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
