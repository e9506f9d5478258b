"""Run directories to rows, reading only what changed since the last time.

What is known of a directory is kept with the size and time of change of each of its files, and
only directories where one of these differs are read again. It is safe while runs are writing.
"""

from __future__ import annotations

import array
import contextlib
import functools
import multiprocessing
import operator
import os
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from glass_cnn import metrics, outcomes, records, train_settings
from glass_cnn import settings as run_settings
from glass_cnn.analysis import rows
from glass_cnn.analysis.rows import FILES, SCHEMA, read_run, thresholds
from glass_cnn.paths import RUN_NAME, StudyDir
from glass_cnn.settings import Analysis
from hpc import config
from hpc.errors import DataError, StorageError
from hpc.files import make_directory, storage_errors

Marks = NDArray[np.int64]

PARALLEL_FROM = 2000
"""Directories from which on several processes are faster than one."""
PROCESSES = 8
"""At most; it may be a login node's cores that they take."""


@dataclass(frozen=True)
class RunListing:
    """The entries of a study's runs/ and the marks of their files."""

    names: list[str]
    marks: Marks
    """-2 in rows of files that may change again within a tick of the file system's clock"""


def look(directory: StudyDir) -> RunListing:
    """The present state of a study's directories, without reading a file; raises DataError."""
    try:
        names = sorted(name for name in os.listdir(directory.runs) if not name.startswith("."))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise DataError(f"{directory.runs}: cannot be read: {error.strerror}.") from None
    now = time.time_ns()
    marks = np.concatenate([_NO_MARKS, *_spread(functools.partial(_marks, directory.runs), names)])
    marks[marks.max(axis=1, initial=0) > now - JUST_CHANGED] = -2
    return RunListing(names, marks)


def scan(directory: StudyDir, state: RunListing, analyses: Mapping[str, Analysis]) -> pl.DataFrame:
    """One row per entry of the study's runs/; `analyses` holds the thresholds of each label."""
    cache = directory.path / ".aggregate.parquet"
    known, fresh = _known(cache, state, analyses)
    read = [name for name, ok in zip(state.names, fresh, strict=True) if not ok]
    if not read and len(known) == len(state.names):
        return known.drop(MARKS)
    new = _frame(_spread(functools.partial(_read_chunk, directory.runs, analyses), read))
    table = pl.concat([known.drop(MARKS), new], how="diagonal").sort("run")
    _keep(cache, table.hstack(pl.DataFrame(state.marks, schema=MARKS)))
    return table


JUST_CHANGED = 2_000_000_000
"""Files younger than this (ns) when they were read are read again the next time."""

MARKS = [f"{file}.{what}" for file in FILES for what in ("size", "changed")]
_NO_MARKS = np.empty((0, len(MARKS)), np.int64)

T = TypeVar("T")


def _spread(work: Callable[[list[str]], T], names: list[str]) -> list[T]:
    """`work` over chunks of names, on several processes where that is faster."""
    if len(names) < PARALLEL_FROM:
        return [work(names)]
    chunks = [names[i : i + 500] for i in range(0, len(names), 500)]
    with warnings.catch_warnings():
        # Children read files and return plain tuples: no threads, no Polars, safe to fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        processes = min(len(os.sched_getaffinity(0)), PROCESSES)
        forked = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, mp_context=forked) as pool:
            return list(pool.map(work, chunks))


def _marks(runs: Path, names: list[str]) -> Marks:
    """Size and time of change of each file of each directory; -1 where there is none."""
    found = array.array("q")
    base = os.open(runs, os.O_RDONLY) if names else -1
    for name in names:
        for file in FILES:
            try:
                status = os.stat(f"{name}/{file}", dir_fd=base)
                found.extend((status.st_size, status.st_ctime_ns))
            except OSError:
                found.extend((-1, -1))
    if names:
        os.close(base)
    return np.frombuffer(found, np.int64).reshape(len(names), len(MARKS))


@dataclass
class _Chunk:
    """Rows of some directories as plain values, which are cheap to send between processes."""

    columns: list[tuple[Any, ...]]
    """one of each name in SCHEMA"""
    diagnostics: dict[tuple[str, ...], tuple[list[str], NDArray[np.float64]]]
    """names -> runs that measured them, and their last and largest values"""


def _read_chunk(runs: Path, analyses: Mapping[str, Analysis], names: list[str]) -> _Chunk:
    values: list[tuple[Any, ...]] = []
    diagnostics: dict[tuple[str, ...], tuple[list[str], list[NDArray[np.float64]]]] = {}
    for name in names:
        match = RUN_NAME.fullmatch(name)
        row = read_run(runs / name, analyses.get(match["label"]) if match else None)
        values.append(_values(row))
        measured, last, largest = row.diagnostics
        if measured:
            alike = diagnostics.setdefault(measured, ([], []))
            alike[0].append(name)
            alike[1].append(np.concatenate([last, largest]))
    columns = list(zip(*values, strict=True)) if values else [()] * len(SCHEMA)
    return _Chunk(
        columns, {key: (runs, np.array(rows)) for key, (runs, rows) in diagnostics.items()}
    )


_values = operator.attrgetter(*SCHEMA)


def _frame(chunks: list[_Chunk]) -> pl.DataFrame:
    parts = zip(*(chunk.columns for chunk in chunks), strict=True)
    table = pl.DataFrame(
        [
            pl.Series(name, [*chain.from_iterable(column)], dtype)
            for (name, dtype), column in zip(SCHEMA.items(), parts, strict=True)
        ]
    )
    measured = [
        _measured(names, chunks) for names in sorted({n for c in chunks for n in c.diagnostics})
    ]
    if not measured:
        return table
    return table.join(pl.concat(measured, how="diagonal"), on="run", how="left")


def _measured(names: tuple[str, ...], chunks: list[_Chunk]) -> pl.DataFrame:
    """Diagnostics of all runs that measured the same."""
    alike = [chunk.diagnostics[names] for chunk in chunks if names in chunk.diagnostics]
    matrix = np.concatenate([rows for _, rows in alike])
    columns = [f"diagnostics.{name}.{what}" for what in ("last", "max") for name in names]
    runs = pl.Series("run", [run for runs, _ in alike for run in runs])
    return pl.DataFrame([runs]).hstack(pl.from_numpy(matrix, columns).fill_nan(None))


def _known(
    cache: Path, state: RunListing, analyses: Mapping[str, Analysis]
) -> tuple[pl.DataFrame, list[bool]]:
    """Rows of the cache that still hold, and for each name whether one does."""
    names, marks = state.names, state.marks
    nothing = pl.DataFrame(schema={**SCHEMA, **dict.fromkeys(MARKS, pl.Int64)})
    try:
        if pl.read_parquet_metadata(cache).get("code") != code():
            return nothing, [False] * len(names)
        old = pl.read_parquet(cache)
    except (OSError, pl.exceptions.PolarsError):
        return nothing, [False] * len(names)
    if old.is_empty():
        return nothing, [False] * len(names)
    place = {name: i for i, name in enumerate(old["run"].to_list())}
    where = np.array([place.get(name, -1) for name in names], np.int64)
    same = (where >= 0) & (old.select(MARKS).to_numpy()[where] == marks).all(axis=1)
    same &= (marks != -2).all(axis=1)
    wanted = {label: thresholds(analysis) for label, analysis in analyses.items()}
    now = pl.col("label").replace_strict(wanted, default=None, return_dtype=pl.String)
    judged = old.select((now == pl.col("analysis")).fill_null(True)).to_series().to_numpy()
    same &= judged[where]
    return old[where[same]], same.tolist()


def code() -> str:
    """Checksum of the code that makes the rows: another version reads everything anew."""
    names = (config, run_settings, train_settings)
    modules = (metrics, outcomes, records, rows, *names)
    files = (module.__file__ or "" for module in modules)
    return str(zlib.crc32(b"".join(Path(file).read_bytes() for file in files)))


def _keep(cache: Path, table: pl.DataFrame) -> None:
    """Write the cache; where that is not allowed, another's runs can still be looked at."""
    with contextlib.suppress(StorageError), storage_errors(cache):
        make_directory(cache.parent)
        aside = cache.with_name(f"{cache.name}.{os.getpid()}")
        table.write_parquet(aside, metadata={"code": code()})
        aside.replace(cache)
