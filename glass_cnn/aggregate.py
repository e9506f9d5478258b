"""Run directories to one table: what became of each run, and why some are not counted.

Reading is incremental: what is known of a directory is kept with the size and time of change of
each of its files, and only directories where one of these differs are read again. It is safe
while runs are writing.
"""

from __future__ import annotations

import array
import functools
import json
import math
import multiprocessing
import operator
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from glass_cnn import records, statistics
from glass_cnn.settings import Analysis, RunSettings, build_run
from glass_cnn.study import Study, load_study
from hpc.config import UserError, digest, parse_yaml, to_tree
from hpc.rundir import HASH_LENGTH, RunDir, StudyDir, logs_root, make_directory, storage_errors

Marks = NDArray[np.int64]

NAME = re.compile(r"(?P<label>.+)-s(?P<seed>\d+)-(?P<hash>[0-9a-f]{8})")
FILES = ("config.yaml", "metrics.jsonl", "result.json", "provenance.jsonl", "events.jsonl")
PARALLEL_FROM = 2000
"""Directories from which on two processes are faster than one."""

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


@dataclass
class Row:
    """What is known of one directory by itself; the study it belongs to adds the rest."""

    run: str
    label: str | None = None
    seed: int | None = None
    state: str = "foreign"
    """complete, unfinished, damaged or foreign; see `STATES` for what the study adds"""
    reason: str | None = None
    """why it is not counted"""
    point: str | None = None
    """digest of the settings but for the seed"""
    analysis: str | None = None
    """digest of the thresholds"""
    outcome: str = "incomplete"
    outcome_so_far: str | None = None
    evaluations: int = 0
    iteration: int | None = None
    step: int | None = None
    learned_iteration: int | None = None
    learned_step: int | None = None
    onset_after_step: int | None = None
    """step of the last good evaluation before the first collapse"""
    onset_before_step: int | None = None
    """step of the first evaluation at chance"""
    onset_iteration: int | None = None
    watched_steps: int | None = None
    """steps from learning to the collapse, or to the end of a run that did not collapse"""
    watched_samples: int | None = None
    collapses: int = 0
    relearned: bool = False
    chance_at_end: bool = False
    optimal_iteration: int | None = None
    optimal_validation_accuracy: float | None = None
    optimal_test_accuracy: float | None = None
    final_validation_accuracy: float | None = None
    final_test_accuracy: float | None = None
    final_train_accuracy: float | None = None
    final_train_loss: float | None = None
    final_validation_loss: float | None = None
    final_predicted_glass_fraction: float | None = None
    validation_examples: int | None = None
    torn_lines: int = 0
    rollbacks: int = 0
    checkpoints_refused: int = 0
    starts: int = 0
    restarts: int | None = None
    wall_seconds: float | None = None
    started: str | None = None
    last_started: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    hosts: str | None = None
    ranks: int | None = None
    versions: str | None = None
    lineage_run: str | None = None
    lineage_step: int | None = None
    lineage_which: str | None = None
    weights_sha256: str | None = None
    well_named: bool = False
    """the directory's name carries the digest of the settings in it"""
    diagnostics: dict[str, float] = field(default_factory=dict)


_TYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "bool": pl.Boolean}
SCHEMA = {
    name: _TYPES[str(kind.type).split(" ")[0]]
    for name, kind in Row.__dataclass_fields__.items()
    if name != "diagnostics"
}


# --- one directory ---------------------------------------------------------------------------


def read_run(path: Path, analysis: Analysis | None = None) -> Row:
    """What one directory holds; `analysis` in place of the thresholds in its own settings.

    Never raises for what is in the directory: a damaged or foreign one says so.
    """
    name = NAME.fullmatch(path.name)
    if name is None:
        return Row(path.name, reason="is not named <label>-s<seed>-<hash> as runs are")
    row = Row(path.name, label=name["label"], seed=int(name["seed"]))
    run = RunDir(path)
    try:
        _read_config(row, run, analysis)
    except FileNotFoundError:
        known = any((path / file).exists() for file in FILES)
        row.state = "damaged" if known else "foreign"
        row.reason = "config.yaml is missing" if known else "holds no run"
    except (UserError, OSError, ValueError) as error:
        row.state, row.reason = "damaged", " ".join(str(error).split())[:300]
    if row.state in ("damaged", "foreign"):
        row.outcome = "incomplete"
    return row


def _read_config(row: Row, run: RunDir, analysis: Analysis | None) -> None:
    settings, point, seed = _settings(run.config.read_text(encoding="utf-8"))
    if seed != row.seed:
        raise ValueError(f"the name says seed {row.seed}, config.yaml says {seed}")
    analysis = analysis or settings.analysis
    row.point, row.analysis = point, thresholds(analysis)
    row.well_named = run.name.endswith(digest({"point": point, "seed": seed})[:HASH_LENGTH])
    result = records.read_result(run.result)
    metrics = records.read_metrics(run.metrics)
    row.state = "complete" if result else "unfinished"
    _read_provenance(row, run)
    _read_course(row, metrics, analysis, settings, result is not None)
    if result is None:
        row.reason = f"at iteration {row.iteration or 0} of {settings.train.iterations}"
    else:
        _read_result(row, result)


_SEED_LINE = re.compile(r"^seed: *(\d+) *$", re.MULTILINE)


def _settings(text: str) -> tuple[RunSettings, str, int]:
    """Settings, digest of the point, and seed of a run's config.yaml.

    Runs of one arm differ in the line of the seed alone; the rest is parsed once.
    """
    lines = _SEED_LINE.findall(text)
    if len(lines) != 1:
        return _parsed(text)
    settings, point, _ = _parsed(_SEED_LINE.sub("seed: 0", text))
    return settings, point, int(lines[0])


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[RunSettings, str, int]:
    settings = build_run(parse_yaml(text, "config.yaml"), "config.yaml")
    return settings, settings.point_digest(), settings.seed


@functools.lru_cache(maxsize=4096)
def thresholds(analysis: Analysis) -> str:
    """Short digest of the thresholds."""
    return digest(to_tree(analysis))[:8]


def _read_course(
    row: Row, metrics: records.Metrics, analysis: Analysis, settings: RunSettings, complete: bool
) -> None:
    """Outcome and times, and the last evaluation."""
    row.evaluations, row.torn_lines = len(metrics), metrics.torn
    row.diagnostics = metrics.diagnostics
    if not len(metrics):
        return
    course = statistics.classify(metrics.evaluations(), analysis)
    row.outcome_so_far = course.outcome
    row.outcome = course.outcome if complete else "incomplete"
    step, iteration = metrics.step, metrics.iteration
    row.step, row.iteration = int(step[-1]), int(iteration[-1])
    row.collapses, row.relearned = course.collapses, course.relearned
    row.chance_at_end = course.chance_at_end
    if course.learned is not None:
        row.learned_step = int(step[course.learned])
        row.learned_iteration = int(iteration[course.learned])
        if course.end is not None:
            row.watched_steps = max(0, int(step[course.end]) - row.learned_step)
            row.watched_samples = row.watched_steps * settings.train.batch_size
    if course.first_bad is not None and course.last_good is not None:
        row.onset_after_step = int(step[course.last_good])
        row.onset_before_step = int(step[course.first_bad])
        row.onset_iteration = int(iteration[course.first_bad])
    _read_last(row, metrics)


def _read_last(row: Row, metrics: records.Metrics) -> None:
    for name in (
        "train_accuracy",
        "train_loss",
        "validation_accuracy",
        "validation_loss",
        "predicted_glass_fraction",
    ):
        setattr(row, f"final_{name}", _finite(metrics.series[name][-1]))
    row.validation_examples = int(metrics.examples[-1])
    accuracy = metrics.series["validation_accuracy"]
    if np.isfinite(accuracy).any():
        best = int(np.nanargmax(accuracy))
        row.optimal_iteration = int(metrics.iteration[best])
        row.optimal_validation_accuracy = float(accuracy[best])


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _read_result(row: Row, result: records.Result) -> None:
    if result.seed != row.seed:
        raise ValueError(f"the name says seed {row.seed}, result.json says {result.seed}")
    if row.step is None or row.step < result.steps:
        raise ValueError(
            f"result.json says {result.steps} steps, metrics.jsonl ends at {row.step or 0}"
        )
    row.optimal_iteration = result.optimal.iteration
    row.optimal_validation_accuracy = result.optimal.validation_accuracy
    row.optimal_test_accuracy = result.optimal.test_accuracy
    row.final_validation_accuracy = result.final.validation_accuracy
    row.final_test_accuracy = result.final.test_accuracy
    row.weights_sha256 = result.weights_sha256
    row.restarts, row.wall_seconds = result.restarts, result.wall_seconds


def _read_provenance(row: Row, run: RunDir) -> None:
    starts = records.read_starts(run.provenance)
    events = records.count_events(run.events)
    row.rollbacks = events.get("rollback", 0)
    row.checkpoints_refused = events.get("checkpoint_refused", 0)
    row.starts = len(starts)
    if not starts:
        return
    last = starts[-1]
    row.started, row.last_started = str(starts[0].time), str(last.time)
    row.commit, row.dirty, row.ranks = last.commit, last.dirty, last.ranks
    row.hosts = " ".join(dict.fromkeys(host for start in starts for host in start.hosts))
    row.versions = json.dumps(last.versions, sort_keys=True)
    if lineage := next((start.lineage for start in starts if start.lineage), None):
        row.lineage_run, row.lineage_step = lineage.run, lineage.step
        row.lineage_which = lineage.which


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
    analyses = {point.label: point.settings.analysis for point in study.points}
    table = _with_study(scan(directory, analyses), study)
    settings, swept = _settings_table(study)
    table = table.join(settings, on="label", how="left").sort("order", "seed", "run")
    head = ["study", "run", "label", "seed", "state", "counted", "reason", "outcome", "collapsed"]
    named = [name for name in SCHEMA if name not in head]
    columns = dict.fromkeys([*head, *settings.columns, *named, *table.columns])
    left_out = ("order", "expected", "well_named", "analysis")
    return Aggregation(study, directory, table.select(*columns).drop(left_out), swept)


def write(result: Aggregation) -> None:
    """Write summary.parquet and summary.csv where they differ; raises StorageError."""
    write_table(result.table, result.directory.summary, result.directory.summary_csv)


def write_table(table: pl.DataFrame, parquet: Path, csv: Path) -> None:
    """Write a table as Parquet and as CSV unless they hold it already; raises StorageError."""
    make_directory(parquet.parent)
    with storage_errors(parquet):
        if csv.exists() and _holds(parquet, table):
            return
        for path, save in ((parquet, table.write_parquet), (csv, table.write_csv)):
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            save(aside)
            aside.replace(path)


def _holds(parquet: Path, table: pl.DataFrame) -> bool:
    try:
        return pl.read_parquet(parquet).equals(table)
    except (OSError, pl.exceptions.PolarsError):
        return False


def combine(results: Sequence[Aggregation]) -> pl.DataFrame:
    """One table of several studies; a run that a former study holds already is not counted."""
    table = pl.concat([r.table for r in results], how="diagonal_relaxed")
    again = pl.col("counted") & ~pl.struct("point", "seed", "counted").is_first_distinct()
    reason = "the same run stands in a study named before"
    return _set_aside(table, again, "duplicate", pl.lit(reason))


# --- what the study adds ---------------------------------------------------------------------

STATES = ("complete", "unfinished", "missing", "superseded", "duplicate", "damaged", "foreign")
"""The study adds: missing (no directory yet), superseded (settings or a seed that the study no
longer has), duplicate (a copy of another directory)."""


def _with_study(rows: pl.DataFrame, study: Study) -> pl.DataFrame:
    """Tell which runs are the study's own, which are copies, and which are missing."""
    points = pl.DataFrame(
        [(p.label, p.digest, i) for i, p in enumerate(study.points)],
        schema={"label": pl.String, "expected": pl.String, "order": pl.Int64},
        orient="row",
    )
    seeds = pl.Series("seed", study.section.seed_list, dtype=pl.Int64)
    table = rows.join(points, on="label", how="left")
    table = _without_others(table, seeds)
    table = _without_copies(table)
    table = pl.concat([table, _missing(table, points, seeds)], how="diagonal")
    return table.with_columns(
        study=pl.lit(study.name),
        counted=pl.col("state") == "complete",
        collapsed=pl.col("outcome").is_in(list(statistics.COLLAPSED)),
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


def _without_copies(table: pl.DataFrame) -> pl.DataFrame:
    """Of directories that hold the same run, keep the well named one, else the complete one."""
    better = [~USABLE, ~pl.col("well_named"), pl.col("state") != "complete", pl.col("run")]
    table = table.sort(better, maintain_order=True)
    first = pl.col("run").first().over("label", "seed")
    copy = USABLE & (first != pl.col("run"))
    return _set_aside(table, copy, "duplicate", pl.format("holds the same run as {}", first))


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


def scan(directory: StudyDir, analyses: Mapping[str, Analysis]) -> pl.DataFrame:
    """One row per entry of the study's runs/; `analyses` holds the thresholds of each label."""
    try:
        names = sorted(e.name for e in os.scandir(directory.runs) if not e.name.startswith("."))
    except FileNotFoundError:
        names = []
    now = time.time_ns()
    marks = np.concatenate([_NO_MARKS, *_spread(functools.partial(_marks, directory.runs), names)])
    cache = directory.path / ".aggregate.parquet"
    known, fresh = _known(cache, names, marks, analyses)
    read = [name for name, ok in zip(names, fresh, strict=True) if not ok]
    if not read and len(known) == len(names):
        return known.drop(MARKS)
    rows = _frame(_spread(functools.partial(_read_chunk, directory.runs, analyses), read))
    marks[marks.max(axis=1) > now - JUST_CHANGED] = -2  # may change again within a clock tick
    table = pl.concat([known.drop(MARKS), rows], how="diagonal").sort("run")
    _keep(cache, table.hstack(pl.DataFrame(marks, schema=MARKS)))
    return table


JUST_CHANGED = 2_000_000_000
"""Files younger than this (ns) when they were read are read again the next time."""

MARKS = [f"{file}.{what}" for file in FILES for what in ("size", "modified", "changed")]
_NO_MARKS = np.empty((0, len(MARKS)), np.int64)

T = TypeVar("T")


def _spread(work: Callable[[list[str]], T], names: list[str]) -> list[T]:
    """`work` over chunks of names, on two processes where that is faster."""
    if len(names) < PARALLEL_FROM:
        return [work(names)]
    chunks = [names[i : i + 500] for i in range(0, len(names), 500)]
    with warnings.catch_warnings():
        # Children read files and return plain tuples: no threads, no Polars, safe to fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            return list(pool.map(work, chunks))


def _marks(runs: Path, names: list[str]) -> Marks:
    """Size and times of change of each file of each directory; -1 where there is none."""
    found = array.array("q")
    base = os.open(runs, os.O_RDONLY) if names else -1
    for name in names:
        for file in FILES:
            try:
                status = os.stat(f"{name}/{file}", dir_fd=base)
                found.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            except OSError:
                found.extend((-1, -1, -1))
    if names:
        os.close(base)
    return np.frombuffer(found, np.int64).reshape(len(names), len(MARKS))


def _read_chunk(
    runs: Path, analyses: Mapping[str, Analysis], names: list[str]
) -> list[tuple[tuple[Any, ...], dict[str, float]]]:
    rows = []
    for name in names:
        match = NAME.fullmatch(name)
        row = read_run(runs / name, analyses.get(match["label"]) if match else None)
        rows.append((_values(row), row.diagnostics))
    return rows


_values = operator.attrgetter(*SCHEMA)


def _frame(chunks: Iterable[list[tuple[tuple[Any, ...], dict[str, float]]]]) -> pl.DataFrame:
    rows = [row for chunk in chunks for row in chunk]
    columns = zip(*(values for values, _ in rows), strict=True) if rows else [[]] * len(SCHEMA)
    series = [
        pl.Series(name, column, dtype)
        for (name, dtype), column in zip(SCHEMA.items(), columns, strict=True)
    ]
    measured = [diagnostics for _, diagnostics in rows]
    names = sorted({name for diagnostics in measured for name in diagnostics})
    series += [
        pl.Series(f"diagnostics.{name}", [d.get(name) for d in measured], pl.Float64)
        for name in names
    ]
    return pl.DataFrame(series)


def _known(
    cache: Path, names: list[str], marks: Marks, analyses: Mapping[str, Analysis]
) -> tuple[pl.DataFrame, list[bool]]:
    """Rows of the cache that still hold, and for each name whether one does."""
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
    wanted = {label: thresholds(analysis) for label, analysis in analyses.items()}
    now = pl.col("label").replace_strict(wanted, default=None, return_dtype=pl.String)
    judged = old.select((now == pl.col("analysis")).fill_null(True)).to_series().to_numpy()
    same &= judged[where]
    return old[where[same]], same.tolist()


def _code() -> str:
    """Checksum of the code that makes the rows: another version reads everything anew."""
    files = (__file__, records.__file__, statistics.__file__)
    return str(zlib.crc32(b"".join(Path(file).read_bytes() for file in files)))


def _keep(cache: Path, table: pl.DataFrame) -> None:
    make_directory(cache.parent)
    with storage_errors(cache):
        aside = cache.with_name(f"{cache.name}.{os.getpid()}")
        table.write_parquet(aside, metadata={"code": _code()})
        aside.replace(cache)
