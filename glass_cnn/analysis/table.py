"""Run directories to one table: what became of each run, and why some are not counted.

Reading is incremental: what is known of a directory is kept with the size and time of change of
each of its files, and only directories where one of these differs are read again. It is safe
while runs are writing.
"""

from __future__ import annotations

import array
import contextlib
import functools
import hashlib
import json
import multiprocessing
import operator
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from glass_cnn import data_identity, metrics, outcomes, records, train_settings
from glass_cnn import settings as run_settings
from glass_cnn.analysis import rows, statistics
from glass_cnn.analysis.rows import FILES, SCHEMA, read_run, thresholds
from glass_cnn.paths import RUN_NAME, StudyDir, logs_root
from glass_cnn.settings import Analysis
from glass_cnn.study import Study, load_study
from hpc import config
from hpc.config import to_tree
from hpc.errors import DataError, StorageError
from hpc.files import make_directory, storage_errors

Marks = NDArray[np.int64]
Stored = Mapping[str, records.DataIdentity | None]
"""label of a point -> the data that lie there now; None where that is not known"""

PARALLEL_FROM = 2000
"""Directories from which on several processes are faster than one."""
PROCESSES = 8
"""At most; it may be a login node's cores that they take."""

MAIN_SETTINGS = (
    "data.name",
    "model.recipe",
    "render.pixels",
    "train.batch_size",
    "train.iterations",
    "train.learning_rate.kind",
    "train.learning_rate.initial",
    "train.dropout",
    "train.l2",
)
"""Settings that are columns of every table; others are where they differ within the study."""


# --- all directories of a study --------------------------------------------------------------


@dataclass(frozen=True)
class Aggregation:
    """A study and the table of its runs."""

    study: Study
    directory: StudyDir
    table: pl.DataFrame
    """one row per directory, and one per run of the study that has none yet"""
    swept: tuple[str, ...]
    """settings that differ between the points of the study"""
    key: str | None
    """identity of all that the table is made of; None while files are changing"""

    @property
    def counted(self) -> pl.DataFrame:
        """The complete runs that statistics are made of."""
        return self.table.filter(pl.col("counted"))


def find_study(
    config: str | Path, sets: Iterable[str] = (), root: Path | None = None
) -> tuple[Study, StudyDir]:
    """A study and where its runs are, from a study file, directory or name; raises ConfigError.

    A directory that is named holds the runs itself, wherever it stands.
    """
    root = logs_root(root)
    study = load_study(config, sets, root)
    at = Path(config)
    return study, StudyDir(at.absolute()) if at.is_dir() else study.directory(root)


def aggregate(study: Study, directory: StudyDir) -> Aggregation:
    """Read all run directories of a study; raises StorageError if the cache cannot be written."""
    state = look(directory)
    settings, swept = _settings_table(study)
    root = directory.path.parent
    data = {point.label: data_identity.of_settings(point.settings, root) for point in study.points}
    key = _key(study, state, data)
    table = _kept(directory, key)
    if table is None:
        analyses = {point.label: point.settings.analysis for point in study.points}
        table = _with_study(scan(directory, state, analyses), study, data)
        table = _arranged(table.join(settings, on="label", how="left"), settings.columns)
    return Aggregation(study, directory, table, swept, key)


def _arranged(table: pl.DataFrame, settings: Sequence[str]) -> pl.DataFrame:
    """Runs in the order of the study; the columns that people look for first."""
    head = ["study", "run", "label", "seed", "state", "counted", "reason", "outcome", "collapsed"]
    named = [name for name in SCHEMA if name not in head]
    columns = dict.fromkeys([*head, *settings, *named, *table.columns])
    table = table.sort("order", "seed", "run").select(*columns)
    return table.drop("order", "expected", "well_named", "analysis")


def write(result: Aggregation) -> None:
    """Write summary.parquet and summary.csv unless they hold it; raises StorageError."""
    place = result.directory
    if _kept(place, result.key, header_only=True) is None:
        write_table(result.table, place.summary, place.summary_csv, result.key)


def write_table(table: pl.DataFrame, parquet: Path, csv: Path, key: str | None = None) -> None:
    """Write a table as CSV and as Parquet, each whole or not at all; raises StorageError."""
    make_directory(parquet.parent)
    with storage_errors(parquet):
        for path in (csv, parquet):
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            if path == csv:
                table.write_csv(aside)
            else:
                table.write_parquet(aside, metadata={"key": key or ""})
            aside.replace(path)


def _kept(place: StudyDir, key: str | None, header_only: bool = False) -> pl.DataFrame | None:
    """The summary, if it was made of exactly this state of the study and its directories."""
    if key is None or not place.summary_csv.exists():
        return None
    try:
        if pl.read_parquet_metadata(place.summary).get("key") != key:
            return None
        return pl.DataFrame() if header_only else pl.read_parquet(place.summary)
    except (OSError, pl.exceptions.PolarsError):
        return None


def combine(results: Sequence[Aggregation]) -> pl.DataFrame:
    """One table of several studies; a run that a former study holds already is not counted."""
    table = pl.concat([r.table for r in results], how="diagonal_relaxed")
    again = pl.col("counted") & ~pl.struct("point", "seed", "counted").is_first_distinct()
    reason = "the same run stands in a study named before"
    return _set_aside(table, again, "duplicate", pl.lit(reason))


# --- what the study adds ---------------------------------------------------------------------

STATES = ("complete", "unfinished", "missing", "superseded", "duplicate", "damaged", "foreign")
"""The study adds: missing (no directory yet), superseded (settings or a seed that the study no
longer has, other data than there are now, or settings that meant something else), duplicate (a copy
of another directory)."""


def _with_study(found: pl.DataFrame, study: Study, data: Stored) -> pl.DataFrame:
    """Tell which runs are the study's own, which are copies, and which are missing."""
    points = pl.DataFrame(
        [(p.label, p.digest, i) for i, p in enumerate(study.points)],
        schema={"label": pl.String, "expected": pl.String, "order": pl.Int64},
        orient="row",
    )
    seeds = pl.Series("seed", study.section.seed_list, dtype=pl.Int64)
    # What has not begun is the study's to tell: by its points and seeds, not by what lies there.
    table = found.filter(pl.col("state") != "missing").join(points, on="label", how="left")
    table = _without_others(table, seeds)
    table = _without_other_data(table, data)
    table = _without_copies(table)
    table = _without_other_meanings(table)
    table = pl.concat([table, _missing(table, points, seeds)], how="diagonal")
    return table.with_columns(
        study=pl.lit(study.name),
        counted=pl.col("state") == "complete",
        collapsed=pl.col("outcome").is_in(list(outcomes.COLLAPSED)),
    )


USABLE = pl.col("state").is_in(["complete", "unfinished"])


def _without_others(table: pl.DataFrame, seeds: pl.Series) -> pl.DataFrame:
    """Set aside runs of an earlier form of the study."""
    settings = (pl.col("point") != pl.col("expected")).fill_null(True)
    seed = ~pl.col("seed").is_in(seeds.implode())
    reason = (
        pl.when(pl.col("expected").is_null())
        .then(pl.lit("its label is none of the study's"))
        .when(settings)
        .then(pl.lit("its settings are not those that the study has now"))
        .otherwise(pl.lit("its seed is none of the study's"))
    )
    return _set_aside(table, USABLE & (settings | seed), "superseded", reason)


def _without_other_data(table: pl.DataFrame, data: Stored) -> pl.DataFrame:
    """Set aside runs that were trained on other data than lie under that name now.

    Where none lie there any more, those that were stored last count.
    """
    named = ["data_name", "data_fingerprint", "data_stored"]
    known = table.filter(USABLE & pl.col("data_fingerprint").is_not_null()).select(named)
    last = {row[0]: row[1:] for row in known.sort("data_stored", nulls_last=False).iter_rows()}
    now = last | {one.name: (one.fingerprint, one.created) for one in data.values() if one}
    columns = [
        pl.col("data_name").replace_strict(
            {name: one[k] for name, one in now.items()}, default=None, return_dtype=pl.String
        )
        for k in (0, 1)
    ]
    other = USABLE & (pl.col("data_fingerprint") != columns[0]).fill_null(False)
    reason = pl.format(
        "was trained on the data stored {}; those under that name were stored {}",
        pl.col("data_stored").fill_null("at another time"),
        columns[1].fill_null("at another time"),
    )
    return _set_aside(table, other, "superseded", reason)


def _without_copies(table: pl.DataFrame) -> pl.DataFrame:
    """Of directories that hold the same run, keep the well named one, else the complete one."""
    better = [~USABLE, ~pl.col("well_named"), pl.col("state") != "complete", pl.col("run")]
    table = table.sort(better, maintain_order=True)
    first = pl.col("run").first().over("label", "seed")
    copy = USABLE & (first != pl.col("run"))
    return _set_aside(table, copy, "duplicate", pl.format("holds the same run as {}", first))


def _without_other_meanings(table: pl.DataFrame) -> pl.DataFrame:
    """Set aside runs whose settings are the study's by their values, and by their names are not.

    So are those of a version in which a setting meant something else; see `hpc.config.Identity`.
    """
    reason = "its name is not that of its settings: they meant something else, or were changed"
    return _set_aside(table, USABLE & ~pl.col("well_named"), "superseded", pl.lit(reason))


def _set_aside(table: pl.DataFrame, which: pl.Expr, state: str, reason: pl.Expr) -> pl.DataFrame:
    """Give some rows another state, not counted; with the reason."""
    changes = {"state": pl.lit(state), "reason": reason, "outcome": pl.lit("incomplete")}
    changes |= {name: pl.lit(False) for name in ("counted", "collapsed") if name in table.columns}
    return table.with_columns(
        pl.when(which).then(value).otherwise(pl.col(name)).alias(name)
        for name, value in changes.items()
    )


def _missing(table: pl.DataFrame, points: pl.DataFrame, seeds: pl.Series) -> pl.DataFrame:
    """Runs of the study that have no directory."""
    wanted = points.select("label", "order").join(seeds.to_frame(), how="cross")
    there = table.filter(pl.col("state").is_in(["complete", "unfinished", "damaged"]))
    return wanted.join(there, on=["label", "seed"], how="anti").with_columns(
        state=pl.lit("missing"), reason=pl.lit("not started yet"), outcome=pl.lit("incomplete")
    )


def flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} as {'a.b': 1}; lists become JSON text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{above}{key}.")
        else:
            flat[above + key] = json.dumps(value) if isinstance(value, list | dict) else value
    return flat


def _settings_table(study: Study) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The main and the swept settings of each point, and the names of the swept ones."""
    flats = [flatten(to_tree(point.settings)) for point in study.points]
    names = list(dict.fromkeys(name for flat in flats for name in flat if name != "seed"))
    swept = tuple(name for name in names if len({json.dumps(f.get(name)) for f in flats}) > 1)
    columns = [name for name in names if name in MAIN_SETTINGS or name in swept]
    table = {name: _column([flat.get(name) for flat in flats]) for name in columns}
    return pl.DataFrame({"label": [point.label for point in study.points], **table}), swept


def _column(values: list[Any]) -> pl.Series:
    """Values of one setting; as text where numbers and words mix."""
    kinds = {type(value) for value in values} - {type(None)}
    if len(kinds - {int, float}) == 0 or len(kinds) == 1:
        return pl.Series(values, strict=False)
    return pl.Series([None if v is None else str(v) for v in values], dtype=pl.String)


# --- reading what changed --------------------------------------------------------------------


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


def _key(study: Study, state: RunListing, data: Stored) -> str | None:
    """Checksum of the study, its data, its directories and the code that reads them."""
    if (state.marks == -2).any():
        return None
    told = json.dumps([study.tree, state.names, _code(), data], default=str).encode()
    return hashlib.sha256(told + state.marks.tobytes()).hexdigest()


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

    values: list[tuple[Any, ...]]
    diagnostics: dict[tuple[str, ...], tuple[list[str], list[NDArray[np.float64]]]]
    """names -> runs that measured them, and their last and largest values"""


def _read_chunk(runs: Path, analyses: Mapping[str, Analysis], names: list[str]) -> _Chunk:
    chunk = _Chunk([], {})
    for name in names:
        match = RUN_NAME.fullmatch(name)
        row = read_run(runs / name, analyses.get(match["label"]) if match else None)
        chunk.values.append(_values(row))
        measured, last, largest = row.diagnostics
        if measured:
            alike = chunk.diagnostics.setdefault(measured, ([], []))
            alike[0].append(name)
            alike[1].append(np.concatenate([last, largest]))
    return chunk


_values = operator.attrgetter(*SCHEMA)


def _frame(chunks: list[_Chunk]) -> pl.DataFrame:
    values = [row for chunk in chunks for row in chunk.values]
    columns = zip(*values, strict=True) if values else [[]] * len(SCHEMA)
    table = pl.DataFrame(
        [
            pl.Series(name, column, dtype)
            for (name, dtype), column in zip(SCHEMA.items(), columns, strict=True)
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
    matrix = np.array([row for _, rows in alike for row in rows])
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
        if pl.read_parquet_metadata(cache).get("code") != _code():
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


def _code() -> str:
    """Checksum of the code that makes the rows: another version reads everything anew."""
    names = (config, run_settings, train_settings)
    modules = (metrics, outcomes, records, rows, statistics, *names)
    files = (module.__file__ or "" for module in modules)
    return str(zlib.crc32(b"".join(Path(file).read_bytes() for file in files)))


def _keep(cache: Path, table: pl.DataFrame) -> None:
    """Write the cache; where that is not allowed, another's runs can still be looked at."""
    with contextlib.suppress(StorageError), storage_errors(cache):
        make_directory(cache.parent)
        aside = cache.with_name(f"{cache.name}.{os.getpid()}")
        table.write_parquet(aside, metadata={"code": _code()})
        aside.replace(cache)
