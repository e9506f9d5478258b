"""A study's runs as one table: what became of each, and why some are not counted."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from glass_cnn import data_identity, outcomes, records
from glass_cnn.analysis import accounting
from glass_cnn.analysis.rows import SCHEMA
from glass_cnn.analysis.scan import RunListing, code, look, scan
from glass_cnn.paths import StudyDir, logs_root
from glass_cnn.study import Study, load_study
from glass_cnn.study_file import OWN
from hpc.config import to_tree
from hpc.files import make_directory, storage_errors
from hpc.slurm import SlurmError

Stored = Mapping[str, records.DataIdentity | None]
"""label of a point -> the data that lie there now; None where that is not known"""

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

SHOWN = 5
"""Names, or groups of them, in a warning."""


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

    @property
    def warnings(self) -> list[str]:
        """What cannot be of the runs together, though each by itself is in order."""
        told = [
            f"{_names(runs)} have the same {' and '.join(what)} though their seeds differ: they "
            "are one run, not several; see whether the seed was used, and count one of them"
            for runs, what in twins(self.table).items()
        ]
        told += [self._idle(labels) for labels in idle(self.table)]
        more = [f"{len(told) - SHOWN} more groups of such runs"] if len(told) > SHOWN else []
        return told[:SHOWN] + more

    def _idle(self, labels: Sequence[str]) -> str:
        """That what these points differ in did nothing."""
        there = self.table.filter(pl.col("label").is_in(labels))
        differ = [name for name in self.swept if there[name].n_unique() > 1]
        return (
            f"{_names(labels)} have the same weights, seed by seed: what differs between them "
            f"({_names(differ) or 'a setting'}) changed nothing in these runs, and comparing them "
            "says nothing"
        )


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
    known = accounting.read(directory.accounting)
    key = _key(study, state, data, known)
    table = _kept(directory, key)
    if table is None:
        analyses = {point.label: point.settings.analysis for point in study.points}
        found = accounting.counted(scan(directory, state, analyses), known)
        table = _with_study(found, study, data)
        table = _arranged(table.join(settings, on="label", how="left"), settings.columns)
    return Aggregation(study, directory, table, swept, key)


def accounted(result: Aggregation) -> Aggregation:
    """The same with what Slurm's accounting says of its jobs by now.

    A note where that does not answer; nothing where there is none. Raises StorageError.
    """
    try:
        if accounting.renew(result.directory.accounting, result.table):
            return aggregate(result.study, result.directory)
    except SlurmError as error:
        said = " ".join(str(error).split())
        print(f"note: Slurm's accounting cannot be asked what runs took: {said}", file=sys.stderr)
    return result


def _arranged(table: pl.DataFrame, settings: Sequence[str]) -> pl.DataFrame:
    """Runs in the order of the study; the columns that people look for first."""
    head = [
        "study",
        "run",
        "label",
        "seed",
        "copy",
        "state",
        "counted",
        "reason",
        "outcome",
        "collapsed",
    ]
    named = [name for name in SCHEMA if name not in head]
    columns = dict.fromkeys([*head, *settings, *named, *table.columns])
    table = table.sort("order", "seed", "copy", "run").select(*columns)
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


def twins(table: pl.DataFrame) -> dict[tuple[str, ...], list[str]]:
    """Runs of different seeds that are one -> what of them is the same: weights, curve."""
    found: dict[tuple[str, ...], list[str]] = {}
    for column, what in (("weights_sha256", "weights"), ("curve", "curve")):
        groups = (
            table.filter(USABLE & pl.col(column).is_not_null())
            .group_by(column)
            .agg(pl.col("run").sort_by("seed", "run"), seeds=pl.col("seed").n_unique())
            .filter(pl.col("seeds") > 1)
            .sort(pl.col("run").list.first())
        )
        for runs in groups["run"].to_list():
            found.setdefault(tuple(runs), []).append(what)
    return found


def idle(table: pl.DataFrame) -> list[list[str]]:
    """Labels of points that ended with the same weights at all of their seeds, in groups."""
    replicate = pl.format("{} {} {}", "seed", "copy", "weights_sha256")
    return (
        table.filter(USABLE & pl.col("weights_sha256").is_not_null())
        .group_by("label", maintain_order=True)
        .agg(replicate.sort().str.join("\n").alias("ends"))
        .group_by("ends", maintain_order=True)
        .agg("label")
        .filter(pl.col("label").list.len() > 1)["label"]
        .to_list()
    )


def _names(runs: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
    return ", ".join(runs[:SHOWN]) + more


def combine(results: Sequence[Aggregation]) -> pl.DataFrame:
    """One table of several studies; a run that a former study holds already is not counted."""
    table = pl.concat([r.table for r in results], how="diagonal_relaxed")
    run = pl.struct("point", "seed", "copy", "rounding_step", "counted")
    again = pl.col("counted") & ~run.is_first_distinct()
    reason = "the same run stands in a study named before"
    return _set_aside(table, again, "duplicate", pl.lit(reason))


def _key(study: Study, state: RunListing, data: Stored, known: accounting.Known) -> str | None:
    """Checksum of the study, its data, its jobs, its directories and the code that reads them."""
    if (state.marks == -2).any():
        return None
    told = json.dumps([study.tree, state.names, code(), data, known], default=str).encode()
    return hashlib.sha256(told + state.marks.tobytes()).hexdigest()


# --- what the study adds ---------------------------------------------------------------------

ADDED = {
    "study": "name of the study",
    "counted": "whether the run is one of those that statistics are made of",
    "collapsed": "whether its outcome is a collapse",
}
"""columns beside those of `rows.Row`, the settings and the diagnostics"""

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
    replicates = _replicates(study)
    # What has not begun is the study's to tell: by its points and seeds, not by what lies there.
    table = found.filter(pl.col("state") != "missing").join(points, on="label", how="left")
    table = _without_others(table, replicates)
    table = _without_other_data(table, data)
    table = _without_copies(table)
    table = _without_other_meanings(table)
    table = pl.concat([table, _missing(table, points, replicates)], how="diagonal")
    return table.with_columns(
        study=pl.lit(study.name),
        counted=pl.col("state") == "complete",
        collapsed=pl.col("outcome").is_in(list(outcomes.COLLAPSED)),
    )


USABLE = pl.col("state").is_in(["complete", "unfinished"])


def _replicates(study: Study) -> pl.DataFrame:
    """The seeds of a study and their copies, a row each."""
    rows = [
        (seed, rounding.number, rounding.step) if rounding else (seed, 0, None)
        for seed, rounding in study.section.replicates
    ]
    return pl.DataFrame(rows, dict.fromkeys(REPLICATE, pl.Int64), orient="row")


REPLICATE = ("seed", "copy", "rounding_step")


def _without_others(table: pl.DataFrame, replicates: pl.DataFrame) -> pl.DataFrame:
    """Set aside runs of an earlier form of the study."""
    settings = (pl.col("point") != pl.col("expected")).fill_null(True)
    asked = replicates.with_columns(asked=pl.lit(True))
    table = table.join(asked, on=REPLICATE, how="left", nulls_equal=True, maintain_order="left")
    other = pl.col("asked").is_null()
    seed = ~pl.col("seed").is_in(replicates["seed"].implode())
    reason = (
        pl.when(pl.col("expected").is_null())
        .then(pl.lit("its label is none of the study's"))
        .when(settings)
        .then(pl.lit("its settings are not those that the study has now"))
        .when(seed)
        .then(pl.lit("its seed is none of the study's"))
        .otherwise(pl.lit("its copy is none of the study's"))
    )
    return _set_aside(table, USABLE & (settings | other), "superseded", reason).drop("asked")


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
    first = pl.col("run").first().over("label", "seed", "copy")
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


def _missing(table: pl.DataFrame, points: pl.DataFrame, replicates: pl.DataFrame) -> pl.DataFrame:
    """Runs of the study that have no directory."""
    wanted = points.select("label", "order").join(replicates, how="cross")
    there = table.filter(pl.col("state").is_in(["complete", "unfinished", "damaged"]))
    return wanted.join(there, on=["label", "seed", "copy"], how="anti").with_columns(
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
    names = list(dict.fromkeys(name for flat in flats for name in flat if name not in OWN))
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
