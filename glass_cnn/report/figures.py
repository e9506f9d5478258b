"""Figures of a whole study: collapse rates, time to collapse, accuracy of all runs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
import polars as pl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from glass_cnn.analysis.arms import Arm, Estimates
from glass_cnn.outcomes import OUTCOMES
from glass_cnn.report import palette
from glass_cnn.report.words import OUTCOME_WORDS

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "glass-cnn",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": palette.LIGHT["grid"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def as_svg(figure: Figure) -> str:
    """A figure as SVG; equal figures give equal text."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return text.getvalue()


def _color(index: int) -> str:
    return palette.LIGHT[palette.arm(index)]


def rates_figure(estimates: Estimates) -> Figure:
    """Collapse rate of each arm with its interval."""
    arms = estimates.arms
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(arms)), layout="constrained")
        axes = figure.subplots()
        for i, arm in enumerate(arms):
            rate = arm.collapsed
            if rate.n:
                axes.plot([100 * rate.low, 100 * rate.high], [i, i], color=_color(i), lw=1.6)
                axes.plot([100 * rate.value], [i], "o", color=_color(i), ms=5)
        names = [f"{a.label}  ({a.collapsed.k}/{a.collapsed.n})" for a in arms]
        axes.set_yticks(range(len(arms)), names)
        axes.set(ylim=(len(arms) - 0.5, -0.5), xlim=(-2, 102))
        axes.set(xlabel="runs that collapsed, of those that learned (%)")
    return figure


def survival_figure(arms: Sequence[Arm], codes: Sequence[tuple[int, int]] = ()) -> Figure:
    """Kaplan–Meier curves of all arms that have runs that learned.

    `codes` are numbers of each arm's colour and dash; without them each arm has its own.
    """
    with matplotlib.rc_context(STYLE):
        few = len(arms) <= len(palette.ARMS)
        figure = Figure(figsize=(7.2, 3.2 if few else 0.6 + 0.17 * len(arms)), layout="constrained")
        axes = figure.subplots()
        for i, arm in enumerate(arms):
            curve = arm.survival
            if not len(curve.time):
                continue
            color, dash = codes[i] if codes else (i, i)
            style = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}[palette.dash(dash)]
            time, value, tone = curve.time, curve.survival, _color(color)
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


ACROSS = 3
"""panels beside each other"""


def accuracy_figure(curves: pl.DataFrame) -> Figure:
    """Validation accuracy of every run against its iteration, a panel an arm, coloured by outcome.

    `curves` has columns arm, run, outcome, iteration, validation_accuracy.
    """
    arms = curves.partition_by("arm", as_dict=True, maintain_order=True)
    across = max(1, min(ACROSS, len(arms)))
    down = max(1, -(-len(arms) // across))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.4 + 1.9 * down), layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
        for axes, found in itertools.zip_longest(panels, arms.items()):
            if found is None:
                axes.set_axis_off()
                continue
            (arm,), evaluations = found
            axes.set_title(arm, loc="left", fontsize=9)
            for (_, outcome), run in evaluations.group_by("run", "outcome", maintain_order=True):
                color = palette.LIGHT[str(outcome)]
                axes.plot(run["iteration"], run["validation_accuracy"], color=color, lw=0.7)
        there = set(curves["outcome"].to_list())
        keys = [
            Line2D([], [], color=palette.LIGHT[outcome], label=OUTCOME_WORDS[outcome])
            for outcome in OUTCOMES
            if outcome in there
        ]
        if keys:
            figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), fontsize=8)
        figure.supxlabel("iteration", fontsize=9)
        figure.supylabel("validation accuracy", fontsize=9)
    return figure


def cooling_figure(predictions: pl.DataFrame, transition: float) -> Figure:
    """Predicted probability of glass against temperature, a line a file.

    `predictions` has columns file, temperature, p_glass; where a temperature has several images,
    as those of several windows, their mean is drawn. `transition` is the assumed one, ε/k_B.
    """
    mean = pl.col("p_glass").mean()
    found = predictions.drop_nulls("temperature").group_by("file", "temperature").agg(mean)
    files = found.sort("file", "temperature").partition_by("file", as_dict=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.axvline(transition, color=palette.LIGHT["onset"], lw=0.8, ls=":")
        axes.axhline(0.5, color=palette.LIGHT["axis"], lw=0.6)
        for i, ((file,), one) in enumerate(files.items()):
            axes.plot(one["temperature"], one["p_glass"], "o-", label=file, color=_color(i), ms=3)
        axes.set(ylim=(-0.03, 1.03), xlabel="temperature (ε/k_B)", ylabel="predicted p(glass)")
        axes.set_title(f"assumed transition {transition:g}", loc="right", fontsize=8)
        if 1 < len(files) <= len(palette.ARMS):
            axes.legend(loc="best")
    return figure
