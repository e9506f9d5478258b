"""metrics.jsonl as columns, read fast and checked: what tables and figures are made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from glass_cnn.outcomes import Evaluations, Floats
from glass_cnn.records import SERIES, Evaluation, evaluation_chunks, line_of
from hpc.errors import DataError
from hpc.words import plural

SHOWN = 5
"""Holes in a record that are told one by one."""


class DiagnosticSummary(NamedTuple):
    """Last and largest finite value of every number that was measured; names have dots."""

    names: tuple[str, ...]
    last: Floats
    largest: Floats


NO_DIAGNOSTICS = DiagnosticSummary((), np.empty(0), np.empty(0))


@dataclass(frozen=True)
class Metrics:
    """All evaluations of a run: one array per quantity, and summaries of its diagnostics."""

    iteration: NDArray[np.int64]
    step: NDArray[np.int64]
    epoch: Floats
    """times that the training images were gone through; not-a-number where it was not recorded"""
    series: dict[str, Floats]
    examples: Floats
    glass: Floats
    finite: NDArray[np.bool_]
    diagnostics: DiagnosticSummary
    dead: dict[str, Floats]
    """of each layer in DEAD_LAYERS the share of units, or channels, that are 0 for every image of a
    probe; not-a-number where it was not measured"""
    seconds: Floats
    """wall time of all starts together, s; not-a-number where it was not recorded"""
    torn: int
    """lines that a crash cut short"""

    def __len__(self) -> int:
        return len(self.step)

    def evaluations(self) -> Evaluations:
        """What the outcome of the run is decided from."""
        return Evaluations(
            step=self.step,
            accuracy=self.series["validation_accuracy"],
            glass_fraction=self.series["predicted_glass_fraction"],
            examples=self.examples,
            glass=self.glass,
            finite=self.finite,
        )

    @property
    def epochs_each(self) -> float | None:
        """Epochs of one iteration; None where it was not recorded."""
        value = float(self.epoch[-1] / self.iteration[-1]) if len(self) else np.nan
        return value if np.isfinite(value) else None

    def missing(self) -> str:
        """Which iterations from 1 to the last have no evaluation, in words; "" if all have one."""
        if np.array_equal(self.iteration, np.arange(1, len(self) + 1)):
            return ""
        there = np.unique(self.iteration)
        before = np.concatenate([[0], there[:-1]])
        holes = there - before > 1
        if not holes.any():
            return "holds an iteration twice"
        ends = zip((before[holes] + 1).tolist(), (there[holes] - 1).tolist(), strict=True)
        told = [f"{a}" if a == b else f"{a}–{b}" for a, b in ends]
        more = ", …" if len(told) > SHOWN else ""
        cut = f"; {plural(self.torn, 'line')} cut short" if self.torn else ""
        one = len(told) == 1 and told[0].isdecimal()
        which = "evaluation of iteration" if one else "evaluations of iterations"
        return f"lacks the {which} {', '.join(told[:SHOWN])}{more}{cut}"


def read_metrics(path: Path, steps_each: int | None = None) -> Metrics:
    """Read metrics.jsonl; a missing file is an empty one.

    Where a run went back (a restart or rollback), the later evaluations of a step count.

    Args:
        steps_each: steps of an iteration, where that is known.

    Raises:
        DataError: naming the line with a wrong type or a value that cannot be.
    """
    parts: list[_Part] = []
    torn = 0
    for records, cut in evaluation_chunks(path):
        torn += cut
        if records:
            parts.append(_part(records))
    return _joined(parts or [_part([])], torn, path, steps_each)


COLUMNS = Evaluation.__struct_fields__[:-1]
"""All but the diagnostics, which differ from run to run."""


@dataclass(frozen=True)
class _Part:
    columns: dict[str, Floats]
    diagnostics: list[DiagnosticSummary]


DEAD_LAYERS = ("conv2", "dense")
"""whose dead units are kept of every evaluation's diagnostics, not of the last alone: a fall shows
in the dense layer, and lasts by the channels of the second convolution"""


def _part(records: list[Evaluation]) -> _Part:
    rows = [msgspec.structs.astuple(record) for record in records]
    *columns, diagnostics = zip(*rows, strict=True) if rows else [()] * (len(COLUMNS) + 1)
    arrays = {name: np.array(column, float) for name, column in zip(COLUMNS, columns, strict=True)}
    dead = [(record or {}).get("dead_fraction") for record in diagnostics]
    for layer in DEAD_LAYERS:
        arrays[f"dead.{layer}"] = np.array([_dead(found, layer) for found in dead], float)
    return _Part(arrays, _of_shapes([record for record in diagnostics if record]))


def _joined(parts: list[_Part], torn: int, path: Path, steps_each: int | None) -> Metrics:
    columns = parts[0].columns
    if len(parts) > 1:
        columns = {name: np.concatenate([p.columns[name] for p in parts]) for name in columns}
    _check(columns, path, steps_each)
    step = columns["step"]
    kept = np.arange(len(step))
    if (step[1:] <= step[:-1]).any():
        kept = np.flatnonzero(_not_superseded(step))
        columns = {name: column[kept] for name, column in columns.items()}
    seconds = columns["seconds"]
    if (back := seconds[1:] < seconds[:-1]).any():
        at = int(back.argmax()) + 1
        told = f"seconds is {seconds[at]:g}, before it {seconds[at - 1]:g}"
        raise DataError(f"{path.name} line {line_of(path, int(kept[at]))}: {told}")
    finite = np.isfinite(columns["train_loss"]) & np.isfinite(columns["validation_loss"])
    return Metrics(
        iteration=columns["iteration"].astype(np.int64),
        step=columns["step"].astype(np.int64),
        epoch=columns["epoch"],
        series={name: columns[name] for name in SERIES},
        examples=columns["validation_examples"],
        glass=columns["validation_glass"],
        finite=finite & (columns["finite"] == 1),
        diagnostics=_summary([shape for part in parts for shape in part.diagnostics]),
        dead={layer: columns[f"dead.{layer}"] for layer in DEAD_LAYERS},
        seconds=seconds,
        torn=torn,
    )


def _dead(found: Any, layer: str) -> float:
    value = found.get(layer) if isinstance(found, dict) else None
    return value if isinstance(value, (int, float)) else np.nan


def _check(columns: dict[str, Floats], path: Path, steps_each: int | None) -> None:
    """Raise DataError for the first evaluation whose numbers do not fit each other."""
    examples, glass = columns["validation_examples"], columns["validation_glass"]
    wrong = (glass > examples) | (examples != examples[:1]) | (glass != glass[:1])
    if steps_each is not None:
        wrong |= columns["step"] != steps_each * columns["iteration"]
    if not wrong.any():
        return
    at = int(wrong.argmax())
    step, iteration = (int(columns[name][at]) for name in ("step", "iteration"))
    count = f"{examples[at]:.0f} validation examples, {glass[at]:.0f} of them glass"
    if glass[at] > examples[at]:
        told = f"{count}: more than there are"
    elif steps_each is not None and step != steps_each * iteration:
        told = f"step is {step}: iteration {iteration} of {steps_each} steps each ends elsewhere"
    else:
        told = f"{count}: before it were {examples[0]:.0f} and {glass[0]:.0f}"
    raise DataError(f"{path.name} line {line_of(path, at)}: {told}")


def _summary(shapes: list[DiagnosticSummary]) -> DiagnosticSummary:
    """Of records of different shapes, one after the other."""
    if len(shapes) <= 1:
        return shapes[0] if shapes else NO_DIAGNOSTICS
    last: dict[str, float] = {}
    largest: dict[str, float] = {}
    for shape in shapes:
        for name, end, most in zip(*shape, strict=True):
            last[name] = last.get(name, end) if np.isnan(end) else end
            largest[name] = float(np.fmax(most, largest.get(name, most)))
    return DiagnosticSummary(tuple(last), np.array([*last.values()]), np.array([*largest.values()]))


def _not_superseded(step: Floats) -> NDArray[np.bool_]:
    """Records whose step is below that of every later record."""
    lowest_later = np.minimum.accumulate(step[::-1])[::-1]
    return np.append(step[:-1] < lowest_later[1:], True)


def _of_shapes(records: list[dict[str, Any]]) -> list[DiagnosticSummary]:
    """Summaries of diagnostics, which are read as the rows of one matrix for each shape."""
    shapes: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        inner = [tuple(value) if type(value) is dict else None for value in record.values()]
        shapes.setdefault((*record, *inner), []).append(record)
    return [_of_one_shape(alike) for alike in shapes.values()]


def _of_one_shape(records: list[dict[str, Any]]) -> DiagnosticSummary:
    groups = [key for key, value in records[0].items() if isinstance(value, dict)]
    single = [key for key in records[0] if key not in groups]
    names = [f"{group}.{key}" for group in groups for key in records[0][group]] + single
    rows = [
        [*chain.from_iterable([r[g].values() for g in groups]), *[r[key] for key in single]]
        for r in records
    ]
    table = _numbers(rows)
    table[~np.isfinite(table)] = np.nan
    last, largest = table[-1].copy(), np.fmax.reduce(table)
    for column in np.flatnonzero(np.isnan(last) & ~np.isnan(largest)):  # measured before the end
        values = table[:, column]
        last[column] = values[~np.isnan(values)][-1]
    return DiagnosticSummary(tuple(names), last, largest)


def _numbers(rows: list[list[Any]]) -> Floats:
    """A matrix; not-a-number for what is none."""
    try:
        return np.array(rows, float)
    except (TypeError, ValueError):
        kinds = (int, float)
        return np.array([[v if isinstance(v, kinds) else None for v in r] for r in rows], float)
