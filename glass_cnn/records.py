"""What a run leaves behind: the form of each record, its bounds, and readers that check them.

Readers may run while a run writes: a last line without its end is ignored. Lines that a crash
cut short are counted and left out; a line with a wrong type, a missing key or a value that cannot
be is an error that names it, for then the file is not what it says it is.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from glass_cnn.paths import RunDir
from glass_cnn.train_settings import Train
from hpc.errors import DataError
from hpc.records import Event, keep_records, parsed, read_records

CHUNK = 4 << 20
"""Bytes of a record file that are parsed at a time, so that a huge one stays out of memory."""

S = TypeVar("S")
Count = Annotated[int, Meta(ge=0)]
FromOne = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Loss = Annotated[float, Meta(ge=-1e-6)]  # a loss of 0 may come out as a rounding below it


class Evaluation(msgspec.Struct, gc=False, kw_only=True):
    """One line of metrics.jsonl; accuracies are fractions of 1, null stands for not finite."""

    iteration: FromOne
    """iterations done, from 1"""
    step: FromOne
    """optimizer updates done"""
    epoch: NotNegative | None = None
    """times that the training images were gone through"""
    learning_rate: NotNegative | None
    """rate of the last update"""
    train_accuracy: Fraction | None
    """share of this iteration's training examples classified correctly, with dropout"""
    train_loss: Loss | None
    """their mean cross-entropy, without L2"""
    l2_loss: NotNegative | None = None
    """l2 · Σ ½‖W‖² after the last update"""
    validation_accuracy: Fraction | None
    """share of the validation examples classified correctly"""
    validation_loss: Loss | None
    """mean cross-entropy, without L2"""
    predicted_glass_fraction: Fraction | None
    """share of validation examples that are called glass"""
    validation_examples: FromOne
    validation_glass: Count
    """glasses among them"""
    finite: bool = True
    """whether both losses are finite"""
    seconds: NotNegative | None = None
    """wall time of all starts together, s"""
    diagnostics: dict[str, Any] | None = None
    """what was measured beside: numbers, or groups of numbers by tensor or layer"""


SERIES = {
    "validation_accuracy": "Validation accuracy",
    "train_accuracy": "Training accuracy",
    "validation_loss": "Validation loss",
    "train_loss": "Training loss",
    "l2_loss": "L2 loss",
    "predicted_glass_fraction": "Predicted glass",
    "learning_rate": "Learning rate",
}
"""Quantities of an evaluation that can be drawn against its step -> what people call them."""

DIAGNOSTICS = {
    "logit_gap_mean": "mean over validation examples of the glass logit less the liquid one",
    "logit_gap_std": "its standard deviation",
    "output_bias_gap": "the two output biases, glass less liquid",
    "weight_norm": "Euclidean norm, by tensor",
    "gradient_norm": "norm of the last step's gradient, by tensor",
    "gradient_norm_global": "of all tensors together",
    "dead_fraction": "share of units that are 0 for every image of a probe, by layer",
    "adam_rms": "root mean square of g²/v, by tensor",
    "adam_ratio_max": "largest |m|/(√v + ε), by tensor, corrected for bias",
    "update_ratio": "norm of the last update over that of the weights, by tensor",
    "curvature": "Adam's preconditioned curvature λ along the gradient",
    "curvature_ratio": "λ · rate / 2; stable below 1",
}
"""What may be measured beside an evaluation (its `diagnostics`) -> what it is."""


class Tested(msgspec.Struct):
    """One evaluation of result.json, with the accuracy on the test set."""

    iteration: FromOne
    validation_accuracy: Fraction | None
    test_accuracy: Fraction | None


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


class Usage(msgspec.Struct):
    """What the start that ended a run took of the machine, imports included."""

    cores: FromOne
    """CPU threads of all ranks together"""
    wall_seconds: NotNegative
    processor_seconds: NotNegative
    """processor time of all ranks together, s"""
    peak_memory: Count
    """the most memory that one rank held, bytes"""


class Result(msgspec.Struct):
    """result.json of a complete run."""

    seed: int
    steps: FromOne
    optimal: Tested
    final: Tested
    weights_sha256: str
    restarts: Count
    wall_seconds: NotNegative
    examples: dict[str, Count] = {}
    """number of examples in each part of the split"""
    rollbacks: list[int] = []
    """iterations at which the run went back"""
    data: DataIdentity | None = None
    """what it was trained on; runs of older versions do not say"""
    chain: str | None = None
    """head of the chain of digests of its states; see `glass_cnn.lineage`"""
    usage: Usage | None = None
    """what it took; runs of older versions do not say"""


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
    convolutions: list[str] = msgspec.field(default_factory=lambda: ["plain"])
    """`in pairs` where two neighbouring outputs are computed at once; older versions never did"""
    processors: list[str]
    gpus: list[str] = []
    """names and compute capabilities"""
    drivers: list[str] = []
    """versions of NVIDIA's driver; none without GPUs"""
    cuda: dict[str, str] = {}
    """versions of CUDA's libraries on GPUs; NCCL's where several ranks add through it"""
    threads: int
    """CPU threads of each rank"""
    ranks: int
    division: str = "data"
    """how a step is divided over them, data or rows; data on one rank"""
    horovod: str | None = None
    """version; null where it has no part: on one rank, or where ranks add through MPI itself"""
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
    chain: str | None = None
    """head of the chain of digests up to the step that this start began at"""
    data_verified: float | None = None
    """seconds that comparing every byte of them with its checksum took; null: not done"""


_evaluations = msgspec.json.Decoder(Evaluation)
_starts = msgspec.json.Decoder(Start)
_events = msgspec.json.Decoder(Event)


def read_evaluations(path: Path) -> list[Evaluation]:
    """The evaluations of metrics.jsonl as they stand there; raises DataError for a wrong line."""
    return [each for records, _ in evaluation_chunks(path) for each in records]


def evaluation_chunks(path: Path) -> Iterator[tuple[list[Evaluation], int]]:
    """The same, some megabytes at a time, each with the number of lines that are cut short."""
    return (_decode(chunk, path, _evaluations) for chunk in _chunks(path))


def covered(path: Path) -> int:
    """How many evaluations 1, 2, … n stand in metrics.jsonl without a hole.

    Where a run went back, what it left does not count; nor does a line that is no evaluation or
    holds a value that cannot be. A checkpoint of a later iteration counts on what is not there.
    """
    done: list[int] = []
    for record in filter(_is_evaluation, read_records(path)):
        while done and done[-1] >= record["iteration"]:
            done.pop()
        done.append(record["iteration"])
    return next((n for n, iteration in enumerate(done) if iteration != n + 1), len(done))


def keep_evaluations(path: Path, done: int) -> int:
    """Cut metrics.jsonl down to iterations up to `done`, and to lines that are evaluations.

    Returns how many records went. Raises StorageError.
    """
    return keep_records(path, lambda record: _is_evaluation(record) and record["iteration"] <= done)


def _is_evaluation(record: dict[str, Any]) -> bool:
    try:
        msgspec.convert(record, Evaluation)
    except msgspec.ValidationError:
        return False
    return True


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
            number = path.read_bytes().split(b"\n").index(line) + 1
            raise DataError(f"{path.name} line {number}: {_in_words(error, line)}") from None
        except msgspec.DecodeError:
            torn += bool(line.strip())
    return records, torn


def line_of(path: Path, number: int) -> int:
    """The line, from 1, in which the record `number`, from 0, of a file stands."""
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    return [at for at, line in lines if parsed(line)][number]


_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false",
    "object": "an object", "array": "a list",
}  # fmt: skip


def _in_words(error: msgspec.ValidationError, text: bytes) -> str:
    """What is wrong with a record, by the key, its value and what is allowed."""
    expected, _, place = str(error).partition(" - at ")
    expected = expected.partition(", got ")[0]
    told = re.sub(r"`([^`]*)`", lambda found: _kinds(found[1]), expected)
    key = place.strip("`").removeprefix("$").lstrip(".")
    value = json.loads(text)
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return f"{key} is {json.dumps(value)}: {told.lower()}" if key else told.lower()


def _kinds(names: str) -> str:
    return " or ".join(_KINDS.get(name, name) for name in names.split(" | "))


def read_result(path: Path) -> Result | None:
    """Read result.json; None if there is none; raises DataError if it is damaged."""
    try:
        text = path.read_bytes()
        return msgspec.json.decode(text, type=Result)
    except FileNotFoundError:
        return None
    except msgspec.ValidationError as error:
        raise DataError(f"{path.name}: {_in_words(error, text)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: {error}") from None


def own_result(run: RunDir, seed: int, train: Train) -> Result | None:
    """What the run of these settings ended with; None before its end.

    Raises DataError for a result that is damaged, of another run, or of a part of this one.
    """
    result = read_result(run.result)
    if result is None:
        return None
    name = run.result.name
    if result.seed != seed:
        raise DataError(f"{name} says seed {result.seed}, {run.config.name} {seed}")
    if (result.steps, result.final.iteration) != (train.steps, train.iterations):
        raise DataError(
            f"{name} says {result.steps} steps and {result.final.iteration} iterations, "
            f"{run.config.name} {train.steps} and {train.iterations}"
        )
    if result.optimal.iteration > result.final.iteration:
        raise DataError(f"{name}: the optimal iteration comes after the final one")
    return result


def result_of(run: RunDir, seed: int, train: Train) -> Result | None:
    """`own_result`; None also where that is damaged or not its own: the run is not complete."""
    with contextlib.suppress(DataError):
        return own_result(run, seed, train)
    return None


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


def all_events(path: Path) -> list[Event]:
    """Read events.jsonl, an event per line; raises DataError for a wrong type."""
    return [event for chunk in _chunks(path) for event in _decode(chunk, path, _events)[0]]
