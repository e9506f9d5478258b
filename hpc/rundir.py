"""Names and files of studies and runs: the one place that knows where anything lies.

    <logs>/<study>/study.yaml                      resolved study
    <logs>/<study>/runs/<label>-s<seed>-<hash8>/   one run
    <logs>/datasets/<name>-<hash8>/                one data set
    <logs>/trajectories/<name>-<hash8>/            the coolings behind it

A file whose existence means "done" is written aside and renamed; records are appended a line
at a time, so that a reader never sees half a file and loses at most a line to a crash.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.config import ConfigError, DataError, UserError

HASH_LENGTH = 8


class StorageError(UserError):
    """Files cannot be written: no permission, no space (exit code 70)."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error of writing into one message naming path and remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "no space left; free some or move the output with LOGS=dir"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = "not writable; choose another place with LOGS=dir (or $GLASS_LOGS)"
        else:
            what = f"{error.strerror or error}; choose another place with LOGS=dir (or $GLASS_LOGS)"
        raise StorageError(f"{error.filename or path}: {what}.") from error


def logs_root(logs: str | Path | None = None) -> Path:
    """The directory of all outputs: `logs`, else $GLASS_LOGS, else ./logs.

    Raises ConfigError for a name that job scripts or file lists cannot carry.
    """
    root = Path(logs or os.environ.get("GLASS_LOGS") or "logs").expanduser().absolute()
    if not str(root).isprintable():
        raise ConfigError(
            f"LOGS={str(root)!r}: control characters and bytes that are no text are not allowed."
        )
    if root.exists() and not root.is_dir():
        raise ConfigError(f"LOGS={root}: is a file; name a directory.")
    return root


def make_directory(path: Path) -> Path:
    """Create a directory with its parents; raises StorageError."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `path` so that it holds its old or its whole new content; raises StorageError."""
    data = content.encode() if isinstance(content, str) else content
    with storage_errors(path):
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o666 & ~_umask())
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            raise
        fsync_directory(path.parent)


@functools.cache  # asking means changing it for a moment, for all threads
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, tree: Any) -> None:
    """`write_atomic` of indented JSON; not-a-number and infinities become null."""
    write_atomic(path, json.dumps(_finite(tree), indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises DataError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it and run again.") from None


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line and make it durable; raises StorageError.

    A line that a crash cut short is ended first, so that it spoils only itself.
    """
    line = json.dumps(_finite(record), separators=(",", ":")) + "\n"
    with storage_errors(path), open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        rest = line.encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)  # half a record would only take the last space
            raise


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole JSON objects of a record file, in order; lines cut short by a crash are left out.

    A file that does not exist holds no records.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Cut a record file down to the records that `keep` accepts; returns how many went."""
    records = read_records(path)
    kept = [record for record in records if keep(record)]
    text = "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in kept)
    if path.exists() and path.read_bytes() != text.encode():
        write_atomic(path, text)
    return len(records) - len(kept)


@dataclass(frozen=True)
class RunDir:
    """One run's directory."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        """Resolved settings of the run."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """One record per start."""
        return self.path / "provenance.jsonl"

    @property
    def metrics(self) -> Path:
        """One record per evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One record per thing out of the ordinary: rollback, refused checkpoint, requeue."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Restart files; `best/` holds the optimal model."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def heartbeats(self) -> Path:
        """One small file per rank: where it is, so that a rank that hangs can be named."""
        return self.path / "heartbeats"

    @property
    def log(self) -> Path:
        """What rank 0 said, appended over restarts."""
        return self.path / "run.log"

    @property
    def result(self) -> Path:
        """Written last: its existence means that the run is complete."""
        return self.path / "result.json"

    def is_done(self) -> bool:
        return self.result.exists()


@dataclass(frozen=True)
class StudyDir:
    """One study's directory."""

    path: Path

    @property
    def study(self) -> Path:
        """The resolved study."""
        return self.path / "study.yaml"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def jobs(self) -> Path:
        """What was submitted to Slurm: job ids, scripts, job logs."""
        return self.path / "jobs"

    @property
    def summary(self) -> Path:
        return self.path / "summary.parquet"

    @property
    def summary_csv(self) -> Path:
        return self.path / "summary.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def results_log(self) -> Path:
        return self.path / "results_log.md"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def run(self, label: str, seed: int, digest: str) -> RunDir:
        return RunDir(self.runs / run_name(label, seed, digest))


def run_name(label: str, seed: int, digest: str) -> str:
    """`<label>-s<seed>-<hash8>`: readable, and different for different settings."""
    return f"{label}-s{seed}-{digest[:HASH_LENGTH]}"


def study_dir(root: Path, study: str) -> StudyDir:
    """Where a study's files lie under the logs directory `root`."""
    return StudyDir(root / study)


def dataset_dir(root: Path, name: str, digest: str) -> Path:
    """Where a data set lies under the logs directory `root`."""
    return root / "datasets" / f"{name}-{digest[:HASH_LENGTH]}"


def trajectories_dir(root: Path, name: str, digest: str) -> Path:
    """Where simulated trajectories lie under the logs directory `root`."""
    return root / "trajectories" / f"{name}-{digest[:HASH_LENGTH]}"
