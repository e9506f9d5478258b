"""What a run left behind, read fast and checked: metrics, result, starts, events.

Readers may run while a run writes: a last line without its end is ignored. Lines that a crash
cut short are counted and left out; a line with a wrong type or a missing key is an error, for
then the file is not what it says it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from glass_cnn.statistics import Evaluations
from hpc.config import DataError
from hpc.rundir import read_records

CHUNK = 4 << 20
"""Bytes of a record file that are parsed at a time, so that a huge one stays out of memory."""


class Evaluation(msgspec.Struct, gc=False):
    """One line of metrics.jsonl; accuracies are fractions of 1, null stands for not finite."""

    iteration: int
    step: int
    learning_rate: float | None
    train_accuracy: float | None
    train_loss: float | None
    validation_accuracy: float | None
    validation_loss: float | None
    predicted_glass_fraction: float | None
    validation_examples: int
    validation_glass: int
    l2_loss: float | None = None
    finite: bool = True
    diagnostics: dict[str, Any] | None = None


SERIES = (
    "learning_rate",
    "train_accuracy",
    "train_loss",
    "validation_accuracy",
    "validation_loss",
    "predicted_glass_fraction",
    "l2_loss",
)
"""Quantities of an evaluation that can be drawn against its step."""


class Point(msgspec.Struct):
    """One evaluation of result.json."""

    iteration: int
    validation_accuracy: float | None
    test_accuracy: float | None


class Result(msgspec.Struct):
    """result.json of a complete run."""

    seed: int
    steps: int
    optimal: Point
    final: Point
    weights_sha256: str
    restarts: int
    wall_seconds: float
    examples: dict[str, int] = {}


class Lineage(msgspec.Struct):
    """The run whose weights another one started from."""

    run: str
    step: int | None = None
    which: str | None = None


class Start(msgspec.Struct):
    """One start of a run."""

    time: str | float | None = None
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, Any] = {}
    hosts: list[str] = []
    ranks: int | None = None
    slurm: dict[str, Any] | None = None
    resumed_step: int | None = None
    reason: str | None = None
    lineage: Lineage | None = None


@dataclass(frozen=True)
class Metrics:
    """All evaluations of a run: one array per quantity, and summaries of its diagnostics."""

    iteration: NDArray[np.int64]
    step: NDArray[np.int64]
    series: dict[str, NDArray[np.float64]]
    examples: NDArray[np.float64]
    glass: NDArray[np.float64]
    finite: NDArray[np.bool_]
    diagnostics: dict[str, float]
    """`<name>.last` and `<name>.max` of every number that was measured"""
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


def read_metrics(path: Path, series: Sequence[str] = SERIES) -> Metrics:
    """Read metrics.jsonl (a missing file is an empty one); raises DataError naming the line.

    Where a run went back (a restart or rollback), the later evaluations of a step count.
    """
    parts: list[_Part] = []
    torn = 0
    for chunk in _chunks(path):
        records, cut = _decode(chunk, path)
        torn += cut
        if records:
            parts.append(_part(records, series))
    return _joined(parts or [_part([], series)], torn)


def _chunks(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, some megabytes at a time."""
    with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        rest = b""
        while block := file.read(CHUNK):
            lines, end, tail = (rest + block).rpartition(b"\n")
            rest = tail
            if end:
                yield lines


_evaluations = msgspec.json.Decoder(Evaluation)


def _decode(lines: bytes, path: Path) -> tuple[list[Evaluation], int]:
    """The records of whole lines, and how many lines are none."""
    with contextlib.suppress(msgspec.DecodeError):
        return _evaluations.decode_lines(lines), 0
    records, torn = [], 0
    for line in lines.split(b"\n"):
        try:
            records.append(_evaluations.decode(line))
        except msgspec.ValidationError as error:
            raise DataError(f"{path.name}: {error} in {line[:60]!r}") from None
        except msgspec.DecodeError:
            torn += bool(line.strip())
    return records, torn


@dataclass(frozen=True)
class _Part:
    columns: dict[str, NDArray[Any]]
    diagnostics: dict[str, tuple[float, float]]


def _part(records: list[Evaluation], series: Sequence[str]) -> _Part:
    columns: dict[str, NDArray[Any]] = {
        "iteration": np.array([r.iteration for r in records], np.int64),
        "step": np.array([r.step for r in records], np.int64),
        "examples": np.array([r.validation_examples for r in records], float),
        "glass": np.array([r.validation_glass for r in records], float),
    }
    for name in series:
        columns[name] = np.array([getattr(r, name) for r in records], float)
    losses = [(r.finite, r.train_loss, r.validation_loss) for r in records]
    columns["finite"] = np.array(
        [ok and t is not None and v is not None for ok, t, v in losses], bool
    )
    return _Part(columns, _last_and_max([r.diagnostics for r in records if r.diagnostics]))


def _joined(parts: list[_Part], torn: int) -> Metrics:
    columns = {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns}
    if (np.diff(columns["step"]) <= 0).any():
        kept = _not_superseded(columns["step"])
        columns = {name: column[kept] for name, column in columns.items()}
    diagnostics: dict[str, float] = {}
    for part in parts:
        for name, (last, largest) in part.diagnostics.items():
            diagnostics[f"{name}.last"] = last
            diagnostics[f"{name}.max"] = max(largest, diagnostics.get(f"{name}.max", largest))
    own = {name: columns.pop(name) for name in ("iteration", "step", "examples", "glass", "finite")}
    return Metrics(series=columns, diagnostics=diagnostics, torn=torn, **own)


def _not_superseded(step: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Records whose step is below that of every later record."""
    lowest_later = np.minimum.accumulate(step[::-1])[::-1]
    return np.append(step[:-1] < lowest_later[1:], True)


def _last_and_max(records: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Last and largest finite value of each numeric leaf, named by its keys with dots."""
    shapes = {tuple(record): record for record in records}  # records of equal keys look alike
    paths = dict.fromkeys(path for record in shapes.values() for path in _leaves(record, ()))
    summary = {}
    for path in paths:
        values = [v for v in _values(records, path) if isinstance(v, int | float)]
        finite = [float(v) for v in values if math.isfinite(v)]
        if finite:
            summary[".".join(path)] = (finite[-1], max(finite))
    return summary


def _leaves(tree: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, key))
        elif value is None or isinstance(value, int | float):
            yield (*above, key)


def _values(records: list[dict[str, Any]], path: tuple[str, ...]) -> list[Any]:
    values: list[Any] = records
    for key in path:
        values = [v[key] for v in values if isinstance(v, dict) and key in v]
    return values


def read_result(path: Path) -> Result | None:
    """Read result.json; None if there is none; raises DataError if it is damaged."""
    return _read(path, Result)


S = TypeVar("S")


def _read(path: Path, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: {error}") from None


def read_starts(path: Path) -> list[Start]:
    """Read provenance.jsonl, a start per line; raises DataError for a wrong type."""
    try:
        return [msgspec.convert(record, Start) for record in read_records(path)]
    except msgspec.ValidationError as error:
        raise DataError(f"{path.name}: {error}") from None


def count_events(path: Path) -> dict[str, int]:
    """How often each kind of event stands in events.jsonl."""
    kinds = [str(record.get("event")) for record in read_records(path)]
    return {kind: kinds.count(kind) for kind in kinds}
