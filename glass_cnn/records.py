"""What a run left behind, read fast and checked: metrics, result, starts, events.

Readers may run while a run writes: a last line without its end is ignored. Lines that a crash
cut short are counted and left out; a line with a wrong type or a missing key is an error, for
then the file is not what it says it is.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from glass_cnn.outcomes import Evaluations
from glass_cnn.paths import RunDir
from hpc.errors import DataError
from hpc.records import Event

CHUNK = 4 << 20
"""Bytes of a record file that are parsed at a time, so that a huge one stays out of memory."""


S = TypeVar("S")


class Evaluation(msgspec.Struct, gc=False, kw_only=True):
    """One line of metrics.jsonl; accuracies are fractions of 1, null stands for not finite."""

    iteration: int
    """iterations done, from 1"""
    step: int
    """optimizer updates done"""
    epoch: float | None = None
    """times that the training images were gone through"""
    learning_rate: float | None
    """rate of the last update"""
    train_accuracy: float | None
    """share of this iteration's training examples classified correctly, with dropout"""
    train_loss: float | None
    """their mean cross-entropy, without L2"""
    l2_loss: float | None = None
    """l2 · Σ ½‖W‖² after the last update"""
    validation_accuracy: float | None
    validation_loss: float | None
    """mean cross-entropy, without L2"""
    predicted_glass_fraction: float | None
    """share of validation examples that are called glass"""
    validation_examples: int
    validation_glass: int
    """glasses among them"""
    finite: bool = True
    """whether both losses are finite"""
    seconds: float | None = None
    """wall time of all starts together, s"""
    diagnostics: dict[str, Any] | None = None
    """what was measured beside: numbers, or groups of numbers by tensor or layer"""


SERIES = (
    "learning_rate", "train_accuracy", "train_loss", "l2_loss", "validation_accuracy",
    "validation_loss", "predicted_glass_fraction",
)  # fmt: skip
"""Quantities of an evaluation that can be drawn against its step."""


class Tested(msgspec.Struct):
    """One evaluation of result.json, with the accuracy on the test set."""

    iteration: int
    validation_accuracy: float | None
    test_accuracy: float | None


class DataIdentity(msgspec.Struct, frozen=True):
    """A data set as it was when something was trained on it; see `glass_cnn.data_identity`."""

    name: str
    """of its directory"""
    fingerprint: str
    """of images, order, labels and groups; hexadecimal"""
    created: str | None = None
    """when it was stored, UTC, ISO 8601"""

    def __str__(self) -> str:
        return f"stored {self.created} (fingerprint {self.fingerprint[:12]})"


class Result(msgspec.Struct):
    """result.json of a complete run."""

    seed: int
    steps: int
    optimal: Tested
    final: Tested
    weights_sha256: str
    restarts: int
    wall_seconds: float
    examples: dict[str, int] = {}
    """number of examples in each part of the split"""
    rollbacks: list[int] = []
    """iterations at which the run went back"""
    data: DataIdentity | None = None
    """what it was trained on; runs of older versions do not say"""


class Lineage(msgspec.Struct):
    """The run whose weights another one started from."""

    run: str
    checkpoint: str | None = None
    step: int | None = None
    which: str | None = None
    optimizer_state: bool | None = None


class Numerics(msgspec.Struct, kw_only=True):
    """What a training's rounding depends on beside its settings; see `glass_cnn.numerics`.

    Lists hold one entry where all ranks are alike, else one a rank.
    """

    tensorflow: str
    """version"""
    onednn: bool
    """whether TensorFlow computes with oneDNN"""
    isa: list[str]
    """instruction sets of oneDNN's float32 kernels"""
    processors: list[str]
    gpus: list[str] = []
    threads: int
    """CPU threads of each rank"""
    ranks: int
    horovod: str | None = None
    """version; null on one rank, where it has no part"""
    mpi: str | None = None
    """library and version; null on one rank"""
    environment: dict[str, str] = {}
    """variables that choose other kernels or orders of sums, those that were set"""


class NumericsChange(msgspec.Struct):
    """A run that went on under other numerics: its bits are not those of an undisturbed one."""

    step: int
    what: str
    """what differs, in words"""


class Start(msgspec.Struct, kw_only=True):
    """One line of provenance.jsonl: a start of a run."""

    time: str | float | None = None
    commit: str | None = None
    dirty: bool | None = None
    """whether the code had changes of its own"""
    versions: dict[str, Any] = {}
    slurm: dict[str, Any] | None = None
    """what Slurm says of the job; empty outside Slurm"""
    hosts: list[str] = []
    ranks: int | None = None
    resumed_step: int | None = None
    """step that this start began at"""
    reason: str | None = None
    """new run, or what it goes on from"""
    numerics: Numerics | None = None
    """null in records of versions that did not know it"""
    numerics_changes: list[NumericsChange] = []
    """all that the state has come through, this start's among them"""
    lineage: Lineage | None = None
    data: DataIdentity | None = None
    """what it is trained on; runs of older versions do not say"""
    data_verified: float | None = None
    """seconds that comparing every byte of them with its checksum took; null: not done"""


_evaluations = msgspec.json.Decoder(Evaluation)
_starts = msgspec.json.Decoder(Start)
_events = msgspec.json.Decoder(Event)


class DiagnosticSummary(NamedTuple):
    """Last and largest finite value of every number that was measured; names have dots."""

    names: tuple[str, ...]
    last: NDArray[np.float64]
    largest: NDArray[np.float64]


NO_DIAGNOSTICS = DiagnosticSummary((), np.empty(0), np.empty(0))


@dataclass(frozen=True)
class Metrics:
    """All evaluations of a run: one array per quantity, and summaries of its diagnostics."""

    iteration: NDArray[np.int64]
    step: NDArray[np.int64]
    series: dict[str, NDArray[np.float64]]
    examples: NDArray[np.float64]
    glass: NDArray[np.float64]
    finite: NDArray[np.bool_]
    diagnostics: DiagnosticSummary
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


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl (a missing file is an empty one); raises DataError naming the line.

    Where a run went back (a restart or rollback), the later evaluations of a step count.
    """
    parts: list[_Part] = []
    torn = 0
    for chunk in _chunks(path):
        records, cut = _decode(chunk, path, _evaluations)
        torn += cut
        if records:
            parts.append(_part(records))
    return _joined(parts or [_part([])], torn)


def read_evaluations(path: Path) -> list[Evaluation]:
    """The evaluations of metrics.jsonl as they stand there; raises DataError for a wrong type."""
    return [each for chunk in _chunks(path) for each in _decode(chunk, path, _evaluations)[0]]


def _chunks(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, some megabytes at a time."""
    with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        rest = b""
        while block := file.read(CHUNK):
            lines, end, tail = (rest + block).rpartition(b"\n")
            rest = tail
            if end:
                yield lines


def _decode(lines: bytes, path: Path, decoder: msgspec.json.Decoder[S]) -> tuple[list[S], int]:
    """The records of whole lines, and how many lines are none."""
    with contextlib.suppress(msgspec.DecodeError):
        return decoder.decode_lines(lines), 0
    records, torn = [], 0
    for line in lines.split(b"\n"):
        try:
            records.append(decoder.decode(line))
        except msgspec.ValidationError as error:
            raise DataError(f"{path.name}: {error} in {line[:60]!r}") from None
        except msgspec.DecodeError:
            torn += bool(line.strip())
    return records, torn


COLUMNS = Evaluation.__struct_fields__[:-1]
"""All but the diagnostics, which differ from run to run."""


@dataclass(frozen=True)
class _Part:
    columns: dict[str, NDArray[np.float64]]
    diagnostics: list[DiagnosticSummary]


def _part(records: list[Evaluation]) -> _Part:
    rows = [msgspec.structs.astuple(record) for record in records]
    *columns, diagnostics = zip(*rows, strict=True) if rows else [()] * (len(COLUMNS) + 1)
    arrays = {name: np.array(column, float) for name, column in zip(COLUMNS, columns, strict=True)}
    return _Part(arrays, _of_shapes([record for record in diagnostics if record]))


def _joined(parts: list[_Part], torn: int) -> Metrics:
    columns = parts[0].columns
    if len(parts) > 1:
        columns = {name: np.concatenate([p.columns[name] for p in parts]) for name in COLUMNS}
    step = columns["step"]
    if (step[1:] <= step[:-1]).any():
        kept = _not_superseded(step)
        columns = {name: column[kept] for name, column in columns.items()}
    finite = np.isfinite(columns["train_loss"]) & np.isfinite(columns["validation_loss"])
    return Metrics(
        iteration=columns["iteration"].astype(np.int64),
        step=columns["step"].astype(np.int64),
        series={name: columns[name] for name in SERIES},
        examples=columns["validation_examples"],
        glass=columns["validation_glass"],
        finite=finite & (columns["finite"] == 1),
        diagnostics=_summary([shape for part in parts for shape in part.diagnostics]),
        torn=torn,
    )


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


def _not_superseded(step: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Records whose step is below that of every later record."""
    lowest_later = np.minimum.accumulate(step[::-1])[::-1]
    return np.append(step[:-1] < lowest_later[1:], True)


def _of_shapes(records: list[dict[str, Any]]) -> list[DiagnosticSummary]:
    """Summaries of diagnostics, which are read as the rows of one matrix for each shape."""
    shapes: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups = [value for value in record.values() if type(value) is dict]
        shapes.setdefault((*record, None, *chain.from_iterable(groups)), []).append(record)
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
    finite = np.isfinite(table)
    last = len(rows) - 1 - finite[::-1].argmax(axis=0)
    end = np.where(finite.any(axis=0), table[last, np.arange(len(names))], np.nan)
    return DiagnosticSummary(tuple(names), end, np.fmax.reduce(np.where(finite, table, np.nan)))


def _numbers(rows: list[list[Any]]) -> NDArray[np.float64]:
    """A matrix; not-a-number for what is none."""
    try:
        return np.array(rows, float)
    except (TypeError, ValueError):
        kinds = (int, float)
        return np.array([[v if isinstance(v, kinds) else None for v in r] for r in rows], float)


def read_result(path: Path) -> Result | None:
    """Read result.json; None if there is none; raises DataError if it is damaged."""
    return _read(path, Result)


def _read(path: Path, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: {error}") from None


def read_starts(path: Path) -> list[Start]:
    """Read provenance.jsonl, a start per line; raises DataError for a wrong type."""
    return [start for chunk in _chunks(path) for start in _decode(chunk, path, _starts)[0]]


def trained_on(run: RunDir) -> DataIdentity | None:
    """The data of a run, by its result, else by its last start; None where neither says."""
    with contextlib.suppress(DataError):
        result = read_result(run.result)
        if result is not None and result.data is not None:
            return result.data
        told = [start.data for start in read_starts(run.provenance) if start.data is not None]
        return told[-1] if told else None
    return None


def count_events(path: Path) -> dict[str, int]:
    """How often each kind of event stands in events.jsonl; raises DataError for a wrong type."""
    found = [event for chunk in _chunks(path) for event in _decode(chunk, path, _events)[0]]
    return dict(Counter(event.event for event in found))
