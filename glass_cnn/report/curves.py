"""Curves of runs as SVG: the one drawing that the page, the results log and figures/ show.

A drawing names its colours by classes. On a page the page's style sheet gives them; a file brings
its own (`as_file`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glass_cnn.metrics import Metrics
from glass_cnn.outcomes import OUTCOMES
from glass_cnn.report import palette
from glass_cnn.report.words import OUTCOME_WORDS

Row = Mapping[str, Any]
"""A run's row of the table."""

ACROSS = 12
"""Panels beside each other in the figure of a study."""
LOWEST = 0.4
"""Accuracy at which an axis begins, unless a curve goes lower."""


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


# --- pieces of a drawing ---------------------------------------------------------------------


class Frame(NamedTuple):
    """A panel's box on the drawing, in px, and the values at its edges."""

    left: float
    top: float
    width: float
    height: float
    end: float
    low: float
    high: float
    start: float = 0.0
    """value at the left edge"""

    @property
    def right(self) -> float:
        """Right edge, px."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Lower edge, px."""
        return self.top + self.height

    def x(self, value: ArrayLike) -> NDArray[np.float64]:
        """Horizontal places of values, px."""
        share = (np.asarray(value, float) - self.start) / (self.end - self.start)
        return self.left + self.width * share

    def y(self, value: ArrayLike) -> NDArray[np.float64]:
        """Vertical places of values, px, downwards."""
        share = (np.asarray(value, float) - self.low) / (self.high - self.low)
        return self.bottom - self.height * share


def curve(frame: Frame, x: ArrayLike, y: ArrayLike, kind: str) -> str:
    """A line through all finite points, of class `kind`, with gaps where y is not finite."""
    places = zip(frame.x(x).tolist(), frame.y(y).tolist(), strict=True)
    path, pen = [], ("M", "h0")  # which shows a point that stands alone
    for across, down in places:
        if math.isfinite(down):
            path.append(f"{pen[0]}{across:.1f} {down:.1f}{pen[1]}")
        pen = ("L", "") if math.isfinite(down) else ("M", "h0")
    return f'<path class="{kind}" d="{"".join(path)}"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "") -> str:
    """Words at a place; `anchor` is middle or end."""
    more = f' class="{kind}"' if kind else ""
    more += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of class `kind`."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def ticks(low: float, high: float) -> list[float]:
    """Some four to six round numbers between two others."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def axes(frame: Frame) -> str:
    """Grid lines with their numbers, and the line below."""
    parts = []
    for mark in ticks(frame.low, frame.high):
        y = float(frame.y(mark))
        parts.append(rule(frame.left, y, frame.right, y, "grid"))
        parts.append(text(frame.left - 4, y + 3, f"{mark:g}", "mark", "end"))
    for mark in ticks(frame.start, frame.end):
        parts.append(text(float(frame.x(mark)), frame.bottom + 12, f"{mark:g}", "mark", "middle"))
    parts.append(rule(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    return "".join(parts)


def drawing(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """A whole drawing for a page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def style(color: Callable[[str], str]) -> str:
    """Rules for the classes of drawings; `color` turns a key of the palette into a colour."""
    lines = {"training": 1.1, "validation": 1.1, **dict.fromkeys(OUTCOMES, 1)}
    lines |= {"liquid": 1.3, "glass": 1.3}
    fills = {"mark": "quiet", "training-text": "training-text", "validation-text": "validation"}
    rules = [
        f".drawing{{font:10px system-ui,'DejaVu Sans',sans-serif;fill:{color('ink')}}}",
        ".drawing path{fill:none;stroke-linecap:round;stroke-linejoin:round}",
        ".drawing .title{font-weight:600;font-size:11px}.drawing .fine{font-size:8px}",
        *(f".drawing .{k}{{fill:{color(v)}}}" for k, v in fills.items()),
        *(f".drawing .{k}{{stroke:{color(k)}}}" for k in ("grid", "axis", "onset")),
        ".drawing .onset{stroke-dasharray:2 2}",
        *(f".drawing .{k}{{stroke:{color(k)};stroke-width:{w}}}" for k, w in lines.items()),
        ".drawing .key{stroke-width:3}.drawing .dots{stroke-width:2.6;stroke-opacity:.45}",
    ]
    return "".join(rules)


def as_file(svg: str, width: float) -> str:
    """A drawing as a file of its own, `width` px wide, on white."""
    ground = f'<rect width="100%" height="100%" fill="{palette.LIGHT["paper"]}"/>'
    head, rest = svg.split(">", 1)
    colors = f"<style>{style(palette.LIGHT.__getitem__)}</style>"
    svg = f'{head} width="{width:g}">{colors}{ground}{rest}\n'.replace("><", ">\n<")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}'


# --- figures ---------------------------------------------------------------------------------


def run_figure(metrics: Metrics, row: Row, most: int = 600) -> str:
    """Loss and accuracy of one run against iterations, the onset of its collapse marked."""
    kept = sample(metrics, most)
    parts = [_panel(metrics, kept, row, "loss", 34), _panel(metrics, kept, row, "accuracy", 278)]
    return drawing(480, 164, f"Loss and accuracy of {row['run']}", parts)


def _panel(metrics: Metrics, kept: NDArray[np.intp], row: Row, what: str, left: float) -> str:
    curves = {side: metrics.series[f"{side}_{what}"][kept] for side in ("train", "validation")}
    finite = [v for values in curves.values() for v in values[np.isfinite(values)].tolist()]
    low, high = 0.0, max(finite, default=0.0) or 1.0
    if what == "accuracy":
        low, high = min([LOWEST, *finite]), 1.0
    frame = Frame(left, 20, 192, 112, float(metrics.iteration[-1]), low, high)
    parts = [axes(frame), text(left, 11, {"loss": "loss (nats)"}.get(what, what))]
    if row["onset_iteration"] is not None:
        place = float(frame.x(row["onset_iteration"]))
        parts.append(rule(place, frame.top, place, frame.bottom, "onset"))
    for side, name in (("train", "training"), ("validation", "validation")):
        parts.append(curve(frame, metrics.iteration[kept], curves[side], name))
    if what == "loss":
        parts.append(text(frame.right - 58, 11, "training", "training-text", "end"))
        parts.append(text(frame.right, 11, "validation", "validation-text", "end"))
    each = metrics.epochs_each
    epochs = "" if each is None else f" ({frame.end:g} are {each * frame.end:.3g} epochs)"
    parts.append(text((left + frame.right) / 2, 160, f"iteration{epochs}", "", "middle"))
    return "".join(parts)


class Block(NamedTuple):
    """The runs of one arm, in the order in which they are drawn."""

    label: str
    runs: Sequence[tuple[Row, Metrics]]


def study_figure(blocks: Sequence[Block], most: int = 300) -> str:
    """Small multiples: a panel for every run, a block for every arm, coloured by outcome.

    Each shows validation accuracy against steps; all have the same axes.
    """
    runs = [run for block in blocks for run in block.runs]
    end = max((float(metrics.step[-1]) for _, metrics in runs), default=1.0)
    lowest = (float(np.nanmin(m.series["validation_accuracy"])) for _, m in runs)
    low = min([LOWEST, *(value for value in lowest if math.isfinite(value))])
    parts, top = [_legend([row for row, _ in runs])], 40.0
    for block in blocks:
        parts.append(text(30, top, block.label, "title"))
        for index, (row, metrics) in enumerate(block.runs):
            down, across = divmod(index, ACROSS)
            frame = Frame(30 + 76 * across, top + 18 + 60 * down, 68, 42, end, low, 1.0)
            lowest_row = down == (len(block.runs) - 1) // ACROSS
            parts.append(_multiple(frame, row, metrics, most, across == 0, lowest_row))
        top += 26 + 60 * math.ceil(len(block.runs) / ACROSS) + 16
    words = (
        f"validation accuracy ({low:g} to 1) against steps (0 to {end:g}); a panel for each seed"
    )
    parts.append(text(30, top, words, "mark"))
    return drawing(30 + 76 * ACROSS, top + 10, "Validation accuracy of every run", parts)


def _multiple(frame: Frame, row: Row, metrics: Metrics, most: int, first: bool, last: bool) -> str:
    kept = sample(metrics, most)
    parts = [f"<g><title>{escape(row['run'])}: {OUTCOME_WORDS[row['outcome']]}</title>"]
    for mark in (0.5, 1.0):
        y = float(frame.y(mark))
        parts.append(rule(frame.left, y, frame.right, y, "grid"))
        if first:
            parts.append(text(frame.left - 3, y + 3, f"{mark:g}", "mark fine", "end"))
    parts.append(rule(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    which = f"seed {row['seed']}" + (f" copy {row['copy']}" if row["copy"] else "")
    parts.append(text(frame.left, frame.top - 3, which, "mark fine"))
    if first and last:
        parts.append(text(frame.right, frame.bottom + 9, f"{frame.end:g}", "mark fine", "end"))
        parts.append(text(frame.left, frame.bottom + 9, "0", "mark fine"))
    accuracy = metrics.series["validation_accuracy"][kept]
    parts.append(curve(frame, metrics.step[kept], accuracy, row["outcome"]))
    return "".join([*parts, "</g>"])


def _legend(rows: Sequence[Row]) -> str:
    """The outcomes that occur, each with its colour and how many runs it has."""
    parts, left = [], 30.0
    for outcome in OUTCOMES:
        count = sum(row["outcome"] == outcome for row in rows)
        if count:
            words = f"{OUTCOME_WORDS[outcome]} ({count})"
            parts.append(f'<path class="{outcome} key" d="M{left:g} 12h16"/>')
            parts.append(text(left + 21, 15.5, words))
            left += 34 + 6.2 * len(words)
    return "".join(parts)
