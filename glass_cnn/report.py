"""The table of a study to pages that people read: report.html and results_log.md with figures."""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.offline
import polars as pl
from markupsafe import Markup

from glass_cnn import figures, statistics
from glass_cnn.aggregate import Aggregation
from glass_cnn.arms import TAU, Arm, Estimates
from glass_cnn.records import Metrics, read_metrics, read_starts
from glass_cnn.statistics import Rate
from hpc.config import DataError, to_tree
from hpc.rundir import RunDir, write_atomic

MOST_CURVES = 300
"""Runs whose curves are drawn; of more, the first seeds of every arm."""
MOST_POINTS = 60_000
"""Evaluations drawn altogether; longer runs are thinned, keeping their extremes."""
MOST_ROWS = 2_000
"""Rows of each table on the page."""
MOST_ARMS = 60
"""Arms in the table of answers."""
MOST_FIGURES = 120
"""Static figures of single runs."""

QUANTITIES = {
    "validation_accuracy": "Validation accuracy",
    "train_accuracy": "Training accuracy",
    "validation_loss": "Validation loss",
    "train_loss": "Training loss",
    "predicted_glass_fraction": "Predicted glass",
    "learning_rate": "Learning rate",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """One run that is drawn."""

    row: Row
    arm: int
    metrics: Metrics


def write_report(result: Aggregation, estimates: Estimates) -> list[Path]:
    """Write report.html, results_log.md and figures; returns the pages. Raises StorageError."""

    drawn = _choose(result, estimates.arms)
    context = _common(result, estimates, drawn)
    page = _page(result, estimates, drawn, context)
    write_atomic(
        result.directory.report, _environment().get_template("report.html.j2").render(page)
    )
    _draw(result, estimates, drawn[:MOST_FIGURES])
    log = {**context, **_log_entries(result, estimates, drawn)}
    text = _environment().get_template("results_log.md.j2").render(log)
    write_atomic(result.directory.results_log, re.sub(r"\n{3,}", "\n\n", text))
    return [result.directory.report, result.directory.results_log]


# --- what is drawn ---------------------------------------------------------------------------


def _choose(result: Aggregation, arms: Sequence[Arm]) -> list[Drawn]:
    """The runs to draw: all, or the first seeds of every arm."""
    places = {arm.label: i for i, arm in enumerate(arms)}
    known = pl.col("state").is_in(["complete", "unfinished"]) & (pl.col("evaluations") > 0)
    runs = result.table.filter(known & pl.col("label").is_in(list(places)))
    quota = max(1, MOST_CURVES // max(1, len(arms)))
    runs = runs.filter(pl.int_range(pl.len()).over("label") < quota).head(MOST_CURVES)
    drawn = []
    for row in runs.iter_rows(named=True):
        try:
            metrics = read_metrics(RunDir(result.directory.runs / row["run"]).metrics)
        except (DataError, OSError):  # damaged since it was aggregated
            continue
        if len(metrics):
            drawn.append(Drawn(row, places[row["label"]], metrics))
    return drawn


def _curve(run: Drawn, most: int, batch: int) -> dict[str, Any]:
    kept = figures.sample(run.metrics, most)
    return {
        "name": run.row["run"],
        "arm": run.arm,
        "seed": run.row["seed"],
        "batch": batch,
        "outcome": figures.OUTCOME_WORDS[run.row["outcome"]],
        "onset": run.row["onset_iteration"],
        "iteration": run.metrics.iteration[kept].tolist(),
        "step": run.metrics.step[kept].tolist(),
        "series": {name: _short(run.metrics.series[name][kept]) for name in QUANTITIES},
    }


def _short(values: Any) -> list[float | None]:
    """Numbers to five digits, null for what is not finite."""
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in np.asarray(values).tolist()]


def _band(arm: int, runs: Sequence[Metrics], per: int, batch: int) -> dict[str, Any]:
    """Median and 10 to 90 % quantiles over the seeds of one arm."""
    last = max(int(metrics.iteration[-1]) for metrics in runs)
    first = min(int(metrics.iteration[0]) for metrics in runs)
    at = np.unique(np.linspace(first, last, 200).round().astype(np.int64))
    return {
        "arm": arm,
        "runs": len(runs),
        "iteration": at.tolist(),
        "samples": (at * per * batch).tolist(),
        "series": {
            name: [_short(q) for q in figures.quantile_band(runs, name, at, (0.1, 0.5, 0.9))]
            for name in QUANTITIES
        },
    }


def _bands(drawn: Sequence[Drawn], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    groups: dict[int, list[Metrics]] = {}
    for run in drawn:
        groups.setdefault(run.arm, []).append(run.metrics)
    bands = []
    for index, runs in groups.items():
        train = arms[index].point.settings.train
        bands.append(_band(index, runs, train.batches_per_iteration, train.batch_size))
    return bands


def _survival(index: int, arm: Arm) -> dict[str, Any]:
    curve = arm.survival
    censored = [t for t, event in zip(arm.times, arm.events, strict=True) if not event]
    return {
        "arm": index,
        "time": [0, *curve.time.tolist()],
        "survival": [1, *_short(curve.survival)],
        "low": [_short(curve.low)[0] if curve.survival[0] == 1 else 1, *_short(curve.low)],
        "high": [1, *_short(curve.high)],
        "risk": [len(arm.times), *curve.at_risk.tolist()],
        "censored": censored,
        "censored_at": [statistics.survival_at(curve, t) for t in censored],
    }


def _profile(index: int, arm: Arm) -> dict[str, Any]:
    final, optimal = arm.profile("final"), arm.profile("optimal")
    return {
        "arm": index,
        "final": _short(final.share),
        "low": _short(final.low),
        "high": _short(final.high),
        "optimal": _short(optimal.share),
    }


def _heatmaps(result: Aggregation, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """One map of collapse rates over the two longest axes of the grid for each choice of others."""
    grid = result.study.section.grid
    if len(grid) < 2:
        return []
    y_name, x_name = sorted(sorted(grid, key=lambda k: -len(grid[k]))[:2], key=list(grid).index)
    groups: dict[str, dict[tuple[str, str], Arm]] = {}
    for arm in arms:
        changes = dict(arm.point.changes)
        cell = (_text(changes.pop(y_name)), _text(changes.pop(x_name)))
        title = ", ".join(f"{key} {_text(value)}" for key, value in changes.items())
        groups.setdefault(title, {})[cell] = arm
    xs, ys = ([_text(v) for v in grid[name]] for name in (x_name, y_name))
    return [
        {
            "title": title,
            "x_name": x_name,
            "y_name": y_name,
            "x": xs,
            "y": ys,
            "z": [[_value(cells[y, x].collapsed) for x in xs] for y in ys],
            "text": [[_cell(cells[y, x].collapsed) for x in xs] for y in ys],
        }
        for title, cells in groups.items()
    ]


def _value(rate: Rate) -> float | None:
    return rate.value if rate.n else None


def _cell(rate: Rate) -> str:
    if not rate.n:
        return ""
    return f"{rate.k}/{rate.n}<br>{100 * rate.low:.0f}–{100 * rate.high:.0f} %"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_text(v) for v in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return figures.number(value) if is_number else str(value)


# --- what is said ----------------------------------------------------------------------------


def answers(estimates: Estimates) -> list[tuple[str, str]]:
    """The headline: what each arm did, what differs, and what the seeds can show."""
    if not estimates.complete:
        return [("", f"No run is complete yet; the study asks for {estimates.wanted}.")]
    arms = [arm for arm in estimates.arms if arm.complete]
    shown = arms if len(arms) <= 8 else _extremes(arms)
    said = [(arm.label, _arm_answer(arm)) for arm in shown]
    if len(shown) < len(arms):
        said.append(("", f"These are the {len(shown)} extremes of {len(arms)} arms; all below."))
    said += _difference_answers(estimates)
    least = min(arm.learned.k for arm in arms)
    said.append(("", statistics.what_seeds_show(least, arms[0].analysis.confidence)))
    if estimates.complete < estimates.wanted:
        missing = estimates.wanted - estimates.complete
        said.append(("", f"{missing} of {estimates.wanted} runs are not complete."))
    return said


def _extremes(arms: Sequence[Arm]) -> list[Arm]:
    """The three arms that collapse most and the three that collapse least."""
    tried = sorted((a for a in arms if a.collapsed.n), key=lambda a: a.collapsed.value)
    return [*reversed(tried[-3:]), *reversed(tried[:3])] if len(tried) >= 6 else tried[::-1]


def _arm_answer(arm: Arm) -> str:
    rate, count = arm.collapsed, arm.outcomes
    if rate.n == 0:
        return f"never learned in any of its {_runs(arm.complete)}; nothing could collapse."
    of = f"{rate.n} {'run' if rate.n == 1 else 'runs'} that learned"
    level = figures.percent(arm.analysis.confidence, 0)
    interval = (
        f"({figures.percent(rate.value, 0)}, {level} interval "
        f"{100 * rate.low:.0f}–{100 * rate.high:.0f} %)"
    )
    text = f"collapsed in {rate.k} of the {of} {interval}"
    if rate.k:
        permanent, transient = (
            count.get("permanent_collapse", 0),
            count.get("transient_collapse", 0),
        )
        text += f": {permanent} for good, {transient} transiently"
    others = [
        (count.get("never_learned", 0), "never learned"),
        (count.get("non_finite", 0), "ended with a loss that is not finite"),
    ]
    text += "".join(f"; {n} {'run' if n == 1 else 'runs'} {what}" for n, what in others if n)
    if arm.rollbacks:
        text += f"; runs were rolled back {arm.rollbacks} times, which hides collapses"
    return text + "."


def _runs(count: int) -> str:
    return f"{count} complete {'run' if count == 1 else 'runs'}"


def _difference_answers(estimates: Estimates) -> list[tuple[str, str]]:
    tests = sorted(estimates.comparisons, key=lambda t: t.p)
    found = [t for t in tests if t.adjusted <= statistics.ALPHA]
    if not tests:
        return []
    if not found:
        return [
            (
                "",
                "No two arms differ significantly in how often they collapse (smallest adjusted "
                f"p = {p_value(min(t.adjusted for t in tests))}).",
            )
        ]
    said = []
    for test in found[:4]:
        more, less = (test.a, test.b) if test.difference > 0 else (test.b, test.a)
        low, high = sorted((abs(test.low), abs(test.high)))
        said.append(
            (
                more,
                f"collapses more often than {less}: by {100 * abs(test.difference):.0f} percentage "
                f"points ({100 * low:.0f}–{100 * high:.0f}; Fisher's exact test, adjusted "
                f"p = {p_value(test.adjusted)}).",
            )
        )
    if len(found) > 4:
        said.append(("", f"{len(found) - 4} further differences are significant; see below."))
    return said


def p_value(value: float | None) -> str:
    """A p-value with two digits that count."""
    if value is None or not math.isfinite(value):
        return "–"
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def points(value: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:+.1f}".replace("-", "−")


def _median_time(curve: statistics.Survival) -> str:
    value = statistics.median_time(curve)
    return f"{value:.0f}" if value is not None else "–"


def _markdown(text: Any) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text)).replace("\n", " ")


# --- pages -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: str(name).endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": figures.percent,
        "number": figures.number,
        "p": p_value,
        "points": points,
        "median": statistics.median,
        "median_time": _median_time,
        "md": _markdown,
    }
    return environment


TEMPLATES = Path(__file__).parent / "templates"


def _common(result: Aggregation, estimates: Estimates, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """What both pages say."""
    aside = result.table.filter(~pl.col("counted"))
    name = pl.coalesce("run", pl.format("{}, seed {}", "label", "seed"))
    return {
        "name": result.study.name,
        "description": result.study.section.description,
        "made": f"Written {datetime.datetime.now().astimezone():%d %B %Y, %H:%M %Z}.",
        "complete": estimates.complete,
        "wanted": estimates.wanted,
        "seeds": _seeds(result.study.section.seed_list),
        "estimates": estimates,
        "answers": answers(estimates),
        "confidence": estimates.arms[0].analysis.confidence,
        "any_learned": any(arm.times for arm in estimates.arms),
        "not_counted": aside.select(name, "state", "reason").head(MOST_ROWS).rows(),
        "not_counted_total": len(aside),
        "drawn": len(drawn),
    }


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))


SECTIONS = {
    "answers": "Answers",
    "curves": "Training curves",
    "survival": "Time to collapse",
    "profiles": "Performance profiles",
    "grid": "Grid",
    "tests": "Between arms",
    "runs": "All runs",
    "gallery": "Run by run",
    "lineage": "Restarts",
    "methods": "Methods and thresholds",
    "provenance": "Provenance",
    "not-counted": "Not counted",
}


def _page(
    result: Aggregation, estimates: Estimates, drawn: Sequence[Drawn], common: dict[str, Any]
) -> dict[str, Any]:
    arms = estimates.arms
    heatmaps = _heatmaps(result, arms)
    rows = result.table.filter(pl.col("run").is_not_null() & pl.col("label").is_not_null())
    lineage = _lineage(result)
    return {
        **common,
        "sections": [(k, v) for k, v in SECTIONS.items() if k != "grid" or heatmaps],
        "shown_arms": arms[:MOST_ARMS],
        "tones": {arm.label: figures.color(i) for i, arm in enumerate(arms)},
        "changes": {arm.label: _changes(arm) for arm in arms},
        "drawn_note": _drawn_note(result, drawn),
        "heatmaps": heatmaps,
        "columns": _columns(result),
        "rows": [_table_row(row, result) for row in rows.head(MOST_ROWS).iter_rows(named=True)],
        "rows_left_out": max(0, len(rows) - MOST_ROWS),
        "gallery": [{"run": d.row["run"], "caption": _caption(d, arms)} for d in drawn],
        "lineage": lineage[:MOST_CURVES],
        "lineage_left_out": max(0, len(lineage) - MOST_CURVES),
        "thresholds": _thresholds(arms),
        "seeds_show": statistics.what_seeds_show(
            min((a.learned.k for a in arms if a.complete), default=0), common["confidence"]
        ),
        "provenance": _provenance(result),
        "study_yaml": result.study.to_yaml(),
        "css": _asset("report.css"),
        "script": _asset("report.js"),
        "plotly": Markup(plotly.offline.get_plotlyjs()),
        "data": _embedded(_data(estimates, drawn, heatmaps)),
    }


def _asset(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _embedded(tree: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _data(
    estimates: Estimates, drawn: Sequence[Drawn], heatmaps: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    arms = estimates.arms
    most = max(40, MOST_POINTS // max(1, len(drawn)))
    batches = [arm.point.settings.train.batch_size for arm in arms]
    return {
        "quantities": QUANTITIES,
        "arms": [
            {"label": arm.label, "color": figures.color(i), "dash": figures.dash(i)}
            for i, arm in enumerate(arms)
        ],
        "runs": [_curve(run, most, batches[run.arm]) for run in drawn],
        "bands": _bands(drawn, arms),
        "survival": [_survival(i, arm) for i, arm in enumerate(arms[:MOST_ARMS]) if arm.times],
        "tau": TAU,
        "profiles": [_profile(i, arm) for i, arm in enumerate(arms[:MOST_ARMS]) if arm.complete],
        "heatmaps": list(heatmaps),
    }


def _changes(arm: Arm) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in arm.point.changes.items())


def _caption(run: Drawn, arms: Sequence[Arm]) -> str:
    return figures.caption(run.row, arms[run.arm].point.settings)


def _drawn_note(result: Aggregation, drawn: Sequence[Drawn]) -> str:
    known = result.table.filter(pl.col("state").is_in(["complete", "unfinished"])).height
    note = f"{len(drawn)} runs, unfinished ones included"
    if len(drawn) < known:
        note += f", of {known}: the first seeds of every arm"
    longest = max((len(run.metrics) for run in drawn), default=0)
    if longest > max(40, MOST_POINTS // max(1, len(drawn))):
        note += ". Long runs are thinned; their lowest and highest points are kept"
    return note + "."


def _columns(result: Aggregation) -> list[tuple[str, str]]:
    swept = [(name.removeprefix("train."), "n") for name in _swept_columns(result)]
    return [
        ("Run", ""),
        ("Seed", "n"),
        *swept,
        ("Outcome", ""),
        ("Learned at", "n"),
        ("Onset (steps)", "n"),
        ("Optimal", "n"),
        ("at", "n"),
        ("test", "n"),
        ("Final", "n"),
        ("test", "n"),
        ("Iterations", "n"),
        ("Restarts", "n"),
        ("Time", "n"),
    ]


def _swept_columns(result: Aggregation) -> list[str]:
    return list(result.swept[:4])


def _table_row(row: Row, result: Aggregation) -> dict[str, Any]:
    onset = row["onset_before_step"]
    bracket = f"{row['onset_after_step']}–{onset}" if onset is not None else "–"
    outcome = figures.OUTCOME_WORDS[row["outcome"]]
    if row["state"] != "complete":
        outcome = row["state"]
    cells = [
        (row["run"], None, ""),
        _cell_of(row["seed"]),
        *(_cell_of(row[name]) for name in _swept_columns(result)),
        (outcome, None, ""),
        _cell_of(row["learned_iteration"]),
        (bracket, "" if onset is None else onset, "n"),
        _percent_cell(row["optimal_validation_accuracy"]),
        _cell_of(row["optimal_iteration"]),
        _percent_cell(row["optimal_test_accuracy"]),
        _percent_cell(row["final_validation_accuracy"]),
        _percent_cell(row["final_test_accuracy"]),
        _cell_of(row["iteration"]),
        _cell_of(row["restarts"]),
        _time_cell(row["wall_seconds"]),
    ]
    return {"run": row["run"], "cells": cells}


def _cell_of(value: Any) -> tuple[str, Any, str]:
    return ("–", "", "n") if value is None else (_text(value), value, "n")


def _percent_cell(value: float | None) -> tuple[str, Any, str]:
    return figures.percent(value, 2), "" if value is None else value, "n"


def _time_cell(seconds: float | None) -> tuple[str, Any, str]:
    if seconds is None:
        return "–", "", "n"
    return str(datetime.timedelta(seconds=round(seconds))), seconds, "n"


def _lineage(result: Aggregation) -> list[dict[str, Any]]:
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
                "starts": read_starts(folder.provenance) if len(entries) < MOST_CURVES else [],
            }
        )
    return entries


def _thresholds(arms: Sequence[Arm]) -> list[tuple[str, Any]]:
    """Thresholds, with the arms they hold for where these differ."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(json.dumps(to_tree(arm.analysis)), []).append(arm)
    alone = len(groups) == 1
    return [
        ("" if alone else ", ".join(a.label for a in g), g[0].analysis) for g in groups.values()
    ]


def _provenance(result: Aggregation) -> list[tuple[str, str]]:
    runs = result.table.filter(pl.col("commit").is_not_null() | (pl.col("starts") > 0))
    commits = runs.group_by("commit", "dirty").len().sort("len", descending=True)
    told = [
        f"{(commit or 'unknown')[:12]}{' with uncommitted changes' if dirty else ''} ({count} runs)"
        for commit, dirty, count in commits.iter_rows()
    ]
    versions: dict[str, set[str]] = {}
    for text in runs["versions"].drop_nulls().unique():
        for key, value in json.loads(text).items():
            versions.setdefault(key, set()).add(str(value))
    hosts = sorted({h for text in runs["hosts"].drop_nulls() for h in text.split()})
    ranks = sorted({str(r) for r in runs["ranks"].drop_nulls()})
    return [
        ("Commit", "; ".join(told) or "–"),
        (
            "Versions",
            ", ".join(f"{k} {' / '.join(sorted(v))}" for k, v in sorted(versions.items())) or "–",
        ),
        ("Hosts", ", ".join(hosts) or "–"),
        ("MPI ranks", ", ".join(ranks) or "–"),
        ("Wall time", _time_cell(float(runs["wall_seconds"].fill_null(0).sum()))[0]),
        ("Study file", result.study.source),
    ]


# --- static figures and the results log ------------------------------------------------------


def _draw(result: Aggregation, estimates: Estimates, drawn: Sequence[Drawn]) -> None:
    folder = result.directory.figures
    if estimates.complete and len(estimates.arms) <= MOST_ARMS:
        figures.save_svg(figures.rates_figure(estimates), folder / "study-rates.svg")
        figures.save_svg(figures.survival_figure(estimates.arms), folder / "study-survival.svg")
    code = zlib.crc32(Path(figures.__file__).read_bytes())
    stamps = {}
    for run in drawn:
        status = RunDir(result.directory.runs / run.row["run"]).metrics.stat()
        onset = run.row["onset_iteration"]
        stamps[run.row["run"]] = f"{status.st_size} {status.st_mtime_ns} {onset} {code}"
    figures.draw_missing(folder, [(run.row, run.metrics) for run in drawn], stamps)


def _log_entries(
    result: Aggregation, estimates: Estimates, drawn: Sequence[Drawn]
) -> dict[str, Any]:
    """Numbered entries of the drawn runs by the day on which they started."""
    with_figure = {run.row["run"] for run in drawn[:MOST_FIGURES]}
    ordered = sorted(drawn, key=lambda run: (str(run.row["started"]), run.arm, run.row["seed"]))
    entries = [
        {
            "number": i,
            "day": _day(run.row["started"]),
            "run": run.row["run"],
            "figure": run.row["run"] in with_figure,
            "caption": _caption(run, estimates.arms),
        }
        for i, run in enumerate(ordered, start=1)
    ]
    days = [(day, list(group)) for day, group in itertools.groupby(entries, lambda e: e["day"])]
    known = result.table.filter(pl.col("state").is_in(["complete", "unfinished"])).height
    return {"days": days, "left_out": known - len(entries)}


def _day(started: str | None) -> str:
    """The day of a start, in words; its time stamp is ISO 8601 or seconds since 1970."""
    try:
        moment = datetime.datetime.fromisoformat(str(started).replace("Z", "+00:00"))
    except ValueError:
        try:
            moment = datetime.datetime.fromtimestamp(float(str(started)), datetime.timezone.utc)
        except ValueError:
            return "Without a date"
    return f"{moment.day} {moment:%B %Y}"
