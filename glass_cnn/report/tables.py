"""Tables of report.html as rows of cells: all runs, restarts, thresholds, provenance."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from glass_cnn.analysis import accounting
from glass_cnn.analysis.arms import Arm
from glass_cnn.analysis.table import Aggregation
from glass_cnn.paths import RunDir
from glass_cnn.records import read_starts
from glass_cnn.report import pagedata, words
from glass_cnn.report.pagedata import Row
from hpc.config import to_tree
from hpc.words import plural


def columns(result: Aggregation) -> list[tuple[str, str]]:
    """Headings of the table of runs, and n for those of numbers."""
    swept = [(words.setting(name), "n") for name in _swept_columns(result)]
    return [
        ("Run", ""),
        ("Seed", "n"),
        *([("Copy", "n")] if result.study.section.copied_seeds else []),
        *swept,
        ("Outcome", ""),
        ("Learned at iteration", "n"),
        ("Onset (steps)", "n"),
        ("Optimal validation %", "n"),
        ("at iteration", "n"),
        ("Optimal test %", "n"),
        ("Final validation %", "n"),
        ("Final test %", "n"),
        ("Iterations (epochs)", "n"),
        ("Restarts", "n"),
        ("Time (h:mm:ss)", "n"),
    ]


def _swept_columns(result: Aggregation) -> list[str]:
    """The axes of the grid, as far as there is room; arms are identified by name."""
    section = result.study.section
    axes = [*section.grid, *(name for group in section.paired for name in group)]
    return [name for name in axes if name in result.table.columns][:4]


def table_row(row: Row, result: Aggregation) -> dict[str, Any]:
    """One run: its name, and for each other column text, what it is sorted by, and n or not."""
    onset = row["onset_before_step"]
    bracket = f"{row['onset_after_step']}–{onset}" if onset is not None else "–"
    outcome = words.OUTCOME_WORDS[row["outcome"]]
    if row["state"] != "complete":
        outcome = row["state"]
    cells = [
        _cell_of(row["seed"]),
        *([_cell_of(row["copy"])] if result.study.section.copied_seeds else []),
        *(_cell_of(row[name]) for name in _swept_columns(result)),
        (outcome, None, ""),
        _cell_of(row["learned_iteration"]),
        (bracket, "" if onset is None else onset, "n"),
        _percent_cell(row["optimal_validation_accuracy"]),
        _cell_of(row["optimal_iteration"]),
        _percent_cell(row["optimal_test_accuracy"]),
        _percent_cell(row["final_validation_accuracy"]),
        _percent_cell(row["final_test_accuracy"]),
        _length_cell(row),
        _cell_of(row["restarts"]),
        _time_cell(row["wall_seconds"]),
    ]
    return {"run": row["run"], "cells": cells}


def _cell_of(value: Any) -> tuple[str, Any, str]:
    return ("–", "", "n") if value is None else (words.plain(value), value, "n")


def _length_cell(row: Row) -> tuple[str, Any, str]:
    """Iterations, and how many epochs they are."""
    text, key, kind = _cell_of(row["iteration"])
    epochs = "" if row["epoch"] is None else f" ({row['epoch']:.3g})"
    return text + epochs, key, kind


def _percent_cell(value: float | None) -> tuple[str, Any, str]:
    return words.percent(value, 2).removesuffix(" %"), "" if value is None else value, "n"


def _time_cell(seconds: float | None) -> tuple[str, Any, str]:
    if seconds is None:
        return "–", "", "n"
    return str(datetime.timedelta(seconds=round(seconds))), seconds, "n"


def public(result: Aggregation) -> Callable[[str | None], str]:
    """What takes places and names of hosts out of a reason: pages are sent around.

    Reasons are what programs said at the time, of which a run's records keep every word.
    """
    place = result.directory.path
    hosts = {h for text in result.table["hosts"].drop_nulls() for h in text.split()}
    hosts |= {host.partition(".")[0] for host in hosts}
    longest = sorted(map(re.escape, hosts), key=len, reverse=True)
    host = re.compile(rf"(?<![\w.-])(?:{'|'.join(longest)})(?![\w-])") if hosts else None

    def without(text: str | None) -> str:
        told = text or ""
        for folder in (place, place.resolve()):
            told = told.replace(f"{folder}/", "").replace(f"{folder.parent}/", "")
        return host.sub("a node", told) if host else told

    return without


def lineage(result: Aggregation) -> list[dict[str, Any]]:
    """Runs that started more than once, or from another run's weights."""
    again = (pl.col("starts") > 1) | pl.col("lineage_run").is_not_null()
    entries: list[dict[str, Any]] = []
    for row in result.table.filter(again & pl.col("run").is_not_null()).iter_rows(named=True):
        folder = RunDir(result.directory.runs / row["run"])
        entries.append(
            {
                "run": row["run"],
                "parent": row["lineage_run"] and Path(row["lineage_run"]).name,
                "parent_step": row["lineage_step"],
                "which": row["lineage_which"],
                "starts": read_starts(folder.provenance)
                if len(entries) < pagedata.MOST_CURVES
                else [],
            }
        )
    return entries


def thresholds(arms: Sequence[Arm]) -> list[tuple[str, Any]]:
    """Thresholds, with the arms they hold for where these differ."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(json.dumps(to_tree(arm.analysis)), []).append(arm)
    alone = len(groups) == 1
    return [
        ("" if alone else ", ".join(a.label for a in g), g[0].analysis) for g in groups.values()
    ]


def provenance(result: Aggregation) -> list[tuple[str, str]]:
    """What made the runs; no name of a host, no path."""
    runs = result.table.filter(pl.col("commit").is_not_null() | (pl.col("starts") > 0))
    commits = runs.group_by("commit", "dirty").len().sort("len", descending=True)
    shown = [
        f"{(commit or 'unknown')[:12]}{' with uncommitted changes' if dirty else ''} ({count})"
        for commit, dirty, count in commits.iter_rows()
    ]
    versions: dict[str, set[str]] = {}
    for text in runs["versions"].drop_nulls().unique():
        for key, value in json.loads(text).items():
            versions.setdefault(key, set()).add(str(value))
    hosts = sorted({h for text in runs["hosts"].drop_nulls() for h in text.split()})
    ranks = sorted({str(r) for r in runs["ranks"].drop_nulls()})
    return [
        ("Commit (runs)", "; ".join(shown) or "–"),
        (
            "Versions",
            ", ".join(f"{k} {' / '.join(sorted(v))}" for k, v in sorted(versions.items())) or "–",
        ),
        ("Hosts", f"{len(hosts)} (names in summary.csv)" if hosts else "–"),
        ("MPI ranks", ", ".join(ranks) or "–"),
        ("Exact runs", _exact(runs["numerics_changed"])),
        ("Wall time", _time_cell(float(runs["wall_seconds"].fill_null(0).sum()))[0]),
        *_taken(runs),
        ("Study file", Path(result.study.source).name),
    ]


def _taken(runs: pl.DataFrame) -> list[tuple[str, str]]:
    """What the runs took of the machine, those that say so."""
    hours, memory, share = (
        runs[name].drop_nulls() for name in ("core_hours", "peak_memory", "useful_share")
    )
    if hours.is_empty():
        return []
    told = "" if len(hours) == len(runs) else f" ({words.plain(len(hours))} of {len(runs)} runs)"
    by_slurm = int((runs["core_hours_by"] == accounting.SLURM).sum())
    if by_slurm:
        told += f"; of {plural(by_slurm, 'run')} by Slurm's accounting, killed attempts included"
    taken = [("Core-hours", f"{float(hours.sum()):.3g}{told}")]
    if not memory.is_empty():
        most = runs.sort("peak_memory", nulls_last=False).row(-1, named=True)
        task = " (of a task, by Slurm's accounting)" * (most["peak_memory_by"] == accounting.SLURM)
        gib = most["peak_memory"] / (1 << 30)
        taken.append(("Largest memory of a rank", f"{gib:.2f} GiB{task}"))
    if not share.is_empty():
        median = words.percent(float(share.median()), 0)  # type: ignore[arg-type]
        taken.append(("Use of the cores", f"{median} (median)"))
    return taken


def _exact(changes: pl.Series) -> str:
    """How many runs kept their numerics from beginning to end, in words."""
    same, unknown = int((changes == 0).sum()), changes.null_count()
    counts = {
        "under the same numerics from beginning to end": same,
        "went on under others (numerics_change in summary.csv)": len(changes) - same - unknown,
        "unknown (restarted by a version that did not record them)": unknown,
    }
    return "; ".join(f"{count} {what}" for what, count in counts.items() if count) or "–"
