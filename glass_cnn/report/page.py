"""The table of a study to pages that people read: report.html and results_log.md with figures."""

from __future__ import annotations

import base64
import datetime
import functools
import gzip
import itertools
import json
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
import polars as pl
from markupsafe import Markup

from glass_cnn.analysis import statistics
from glass_cnn.analysis.arms import Arm, Estimates
from glass_cnn.analysis.table import Aggregation
from glass_cnn.metrics import Metrics
from glass_cnn.paths import DatasetDir, RunDir, StudyDir
from glass_cnn.report import (
    answers,
    curves,
    dataset_section,
    figures,
    pagedata,
    palette,
    tables,
    words,
)
from glass_cnn.report.dataset_section import Data
from glass_cnn.report.pagedata import Drawn, Row
from hpc.files import make_directory, write_atomic
from hpc.words import plural

MOST_ROWS = 2_000
"""Rows of each table on the page."""
MOST_POINTS = 600
"""Evaluations in the figure of one run; longer runs are thinned, keeping their extremes."""


def write_report(
    result: Aggregation,
    estimates: Estimates,
    data: Sequence[Data] = (),
    without_data: Sequence[str] = (),
) -> list[Path]:
    """Write report.html, results_log.md and figures; returns the pages. Raises StorageError.

    `data` are the study's data sets, `without_data` says why others cannot be shown.
    """
    drawn = pagedata.choose(result, estimates.arms)
    most = min(MOST_POINTS, pagedata.points_of(drawn))
    drawings = [curves.run_figure(run.metrics, run.row, most) for run in drawn]
    context = _common(result, estimates, drawn)
    others = pagedata.others(result, estimates.arms, drawn)
    page = _page(result, estimates, drawn, others, context)
    page |= {"datasets": [dataset_section.section(each) for each in data]}
    page |= {"without_data": without_data}
    if data or without_data:
        page["sections"] = [("dataset", "The data"), *page["sections"]]
    page["gallery"] = _gallery(result.directory, estimates.arms, drawn, drawings)
    text = _environment().get_template("report.html.j2").render(page)
    write_atomic(result.directory.report, text)
    _write_figures(result, estimates, drawn, drawings)
    log = {**context, **_log_entries(result, estimates, drawn)}
    text = _environment().get_template("results_log.md.j2").render(log)
    write_atomic(result.directory.results_log, re.sub(r"\n{3,}", "\n\n", text))
    return [result.directory.report, result.directory.results_log]


def write_studies(root: Path, found: Sequence[tuple[Aggregation, Estimates]]) -> Path:
    """Write one page about several studies, under the directory of all outputs; returns it.

    It leads to the report of each. Raises StorageError.
    """
    place = StudyDir(root).report
    studies = [
        {
            **_common(result, estimates, ()),
            **_arms(result, estimates),
            "address": urllib.parse.quote(os.path.relpath(result.directory.report, root)),
        }
        for result, estimates in found
    ]
    css = _colors() + _asset("report.css") + _asset("print.css")
    template = _environment().get_template("studies.html.j2")
    write_atomic(place, template.render(studies=studies, css=css, made=studies[0]["made"]))
    return place


def write_data_report(place: DatasetDir, data: Data) -> Path:
    """Write the page of a data set alone; returns it. Raises StorageError."""
    css = _colors() + _asset("report.css") + _asset("print.css")
    template = _environment().get_template("data_report.html.j2")
    text = template.render(data=dataset_section.section(data), css=css)
    write_atomic(place.report, text)
    return place.report


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
        "percent": words.percent,
        "interval": words.interval,
        "level": words.level,
        "number": words.number,
        "p": words.p_value,
        "p_is": words.p_is,
        "points": words.points,
        "median": statistics.median,
        "median_time": lambda curve: words.median_time(statistics.median_time(curve)),
        "ratio": words.ratio,
        "factor_name": words.factor_name,
        "md": words.markdown,
        "network_auc": dataset_section.auc_of,
    }
    return environment


TEMPLATES = Path(__file__).parent / "templates"


def _common(result: Aggregation, estimates: Estimates, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """What both pages say."""
    aside, public = result.table.filter(~pl.col("counted")), tables.public(result)
    name = pl.coalesce("run", pl.format("{}, seed {}", "label", "seed"))
    return {
        "name": result.study.name,
        "description": result.study.section.description,
        "made": f"Written {datetime.datetime.now().astimezone():%d %B %Y, %H:%M %Z}.",
        "complete": estimates.complete,
        "wanted": estimates.wanted,
        "seeds": words.describe_seeds(result.study.section),
        "estimates": estimates,
        "answers": [*(("Warning:", told) for told in result.warnings), *answers.answers(estimates)],
        "confidence": words.level(estimates.arms[0].analysis.confidence),
        "any_learned": any(arm.times for arm in estimates.arms),
        "not_counted": [
            (run, state, public(reason))
            for run, state, reason in aside.select(name, "state", "reason").head(MOST_ROWS).rows()
        ],
        "public": public,
        "not_counted_total": len(aside),
        "drawn": len(drawn),
        "copies": bool(result.study.section.copied_seeds),
    }


SECTIONS = {
    "grid": "Grid",
    "answers": "Answers",
    "curves": "Training curves",
    "survival": "Time to collapse",
    "profiles": "Performance profiles",
    "tests": "Between arms",
    "runs": "All runs",
    "gallery": "Run by run",
    "lineage": "Restarts",
    "methods": "Methods and thresholds",
    "provenance": "Provenance",
    "not-counted": "Not counted",
}


def _page(
    result: Aggregation,
    estimates: Estimates,
    drawn: Sequence[Drawn],
    others: Sequence[dict[str, Any]],
    common: dict[str, Any],
) -> dict[str, Any]:
    arms = estimates.arms
    heatmaps = pagedata.heatmaps(result, arms)
    rows = result.table.filter(pl.col("state").is_in(["complete", "unfinished"]))
    lineage = tables.lineage(result)
    return {
        **common,
        "sections": [
            (k, v) for k, v in SECTIONS.items() if k != "grid" or heatmaps or estimates.factors
        ],
        **_arms(result, estimates),
        "drawn_note": _drawn_note(result, drawn, others),
        "with_curves": {
            **{run.row["run"]: words.OUTCOME_WORDS[run.row["outcome"]] for run in drawn},
            **{run["name"]: run["outcome"] for run in others},
        },
        "heatmaps": heatmaps,
        "level_name": words.level_name,
        "columns": tables.columns(result),
        "rows": [
            tables.table_row(row, result) for row in rows.head(MOST_ROWS).iter_rows(named=True)
        ],
        "rows_left_out": max(0, len(rows) - MOST_ROWS),
        "lineage": lineage[: pagedata.MOST_CURVES],
        "lineage_left_out": max(0, len(lineage) - pagedata.MOST_CURVES),
        "thresholds": tables.thresholds(arms),
        "risk": pagedata.at_risk(arms),
        "seeds_show": answers.seeds_show(estimates),
        "provenance": tables.provenance(result),
        "study_yaml": _study_yaml(result),
        "css": _colors() + _asset("report.css") + _asset("print.css"),
        "scripts": [_asset("charts.js") + _asset("estimates.js"), _asset("tables.js")],
        "plotly": _plotly(),
        "data": _embedded(pagedata.figure_data(estimates, drawn, heatmaps, others)),
        "others": _packed(_json(others)),
    }


def _arms(result: Aggregation, estimates: Estimates) -> dict[str, Any]:
    """What the table of arms shows."""
    arms = estimates.arms
    codes = pagedata.codes(estimates)
    return {
        "shown_arms": arms[: pagedata.MOST_ARMS],
        "tones": {
            arm.label: f"var(--{palette.arm(color)})"
            for arm, (color, _) in zip(arms, codes, strict=True)
        },
        "changes": {a.label: _changes(a) if result.study.section.arms else "" for a in arms},
    }


def _gallery(
    place: StudyDir, arms: Sequence[Arm], drawn: Sequence[Drawn], drawings: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "run": run.row["run"],
            "caption": _caption(run, arms),
            "drawing": Markup(drawing),
            "files": _files(place, RunDir(place.runs / run.row["run"])),
        }
        for run, drawing in zip(drawn, drawings, strict=True)
    ]


def _files(place: StudyDir, run: RunDir) -> list[tuple[str, str]]:
    """What there is of a run beside the page: title and address, relative to the page."""
    files = (
        ("what its model sees", run.pictures),
        ("evaluations", run.metrics),
        ("settings", run.config),
        ("log", run.log),
    )
    return [
        (title, urllib.parse.quote(str(path.relative_to(place.path))))
        for title, path in files
        if path.exists()
    ]


def _study_yaml(result: Aggregation) -> str:
    """The resolved study, without places of this machine: pages are sent around."""
    needed = result.study.needed
    text = result.study.to_yaml(Path(needed.name) if needed else None)
    return text.replace(f"{result.directory.path.parent}/", "")


def _colors() -> Markup:
    """The palette as variables of the style sheet, and the rules for drawings of curves."""
    return Markup(palette.variables() + curves.style("var(--{})".format))


@functools.lru_cache(maxsize=1)
def _plotly() -> Markup:
    """Plotly's script, compressed: what PyPI ships is the whole of it, 4.8 MB."""
    return _packed(plotly.offline.get_plotlyjs())


def _packed(text: str) -> Markup:
    """Text that the page's script unpacks when it is needed."""
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())


def _asset(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _json(tree: Any) -> str:
    return json.dumps(tree, separators=(",", ":"), allow_nan=False)


def _embedded(tree: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    return Markup(_json(tree).replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _changes(arm: Arm) -> str:
    changes = arm.point.changes.items()
    return ", ".join(f"{words.setting(key)} {words.plain(value)}" for key, value in changes)


def _caption(run: Drawn, arms: Sequence[Arm]) -> str:
    return words.caption(run.row, arms[run.arm].point.settings)


def _drawn_note(
    result: Aggregation, drawn: Sequence[Drawn], others: Sequence[dict[str, Any]]
) -> str:
    known = result.table.filter(pl.col("state").is_in(["complete", "unfinished"])).height
    note = plural(len(drawn), "run")
    if unfinished := sum(run.row["state"] != "complete" for run in drawn):
        note += f", {unfinished} of them unfinished"
    if len(drawn) < known:
        note += f", of {known}: the first seeds of every arm"
        if beside := sum(not run.by_seed for run in drawn):
            copies = "are copies or " if any(run.row["copy"] for run in drawn) else ""
            note += f", and {plural(beside, 'other')} that {copies}collapsed"
    if others:
        note += f". The curves of {len(others)} more are shown when one is chosen by its name"
    if more := known - len(drawn) - len(others):
        note += f". {plural(more, 'run')} have no curves on this page"
    longest = max((len(run.metrics) for run in drawn), default=0)
    if longest > pagedata.points_of(drawn):
        note += ". Long runs are thinned; their lowest and highest points are kept"
    lengths = {point.settings.train.batches_per_iteration for point in result.study.points}
    return f"{note}. An iteration is {' or '.join(map(str, sorted(lengths)))} steps."


# --- static figures and the results log ------------------------------------------------------


def _write_figures(
    result: Aggregation, estimates: Estimates, drawn: Sequence[Drawn], drawings: Sequence[str]
) -> None:
    """Write the files of figures/ whose content is not what it was; raises StorageError."""
    files = {
        f"{run.row['run']}.svg": curves.as_file(drawing, 640)
        for run, drawing in zip(drawn, drawings, strict=True)
    }
    if drawn:
        files["study-runs.svg"] = curves.as_file(
            curves.study_figure(_blocks(estimates, drawn)), 960
        )
    if estimates.complete and len(estimates.arms) <= pagedata.MOST_ARMS:
        files["study-rates.svg"] = figures.as_svg(figures.rates_figure(estimates))
        files["study-survival.svg"] = figures.as_svg(
            figures.survival_figure(estimates.arms, pagedata.codes(estimates))
        )
    folder = make_directory(result.directory.figures)
    for name, text in files.items():
        if _content(folder / name) != text:
            write_atomic(folder / name, text)


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _blocks(estimates: Estimates, drawn: Sequence[Drawn]) -> list[curves.Block]:
    groups: dict[int, list[tuple[Row, Metrics]]] = {}
    for run in drawn:
        groups.setdefault(run.arm, []).append((run.row, run.metrics))
    return [curves.Block(estimates.arms[arm].label, groups[arm]) for arm in sorted(groups)]


def _log_entries(
    result: Aggregation, estimates: Estimates, drawn: Sequence[Drawn]
) -> dict[str, Any]:
    """Numbered entries of the drawn runs by the day on which they started."""
    ordered = sorted(drawn, key=lambda run: (str(run.row["started"]), run.arm, run.row["seed"]))
    entries = [
        {
            "number": i,
            "day": _day(run.row["started"]),
            "run": run.row["run"],
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
            moment = datetime.datetime.fromtimestamp(float(str(started)), datetime.UTC)
        except (ValueError, OverflowError):
            return "Without a date"
    return f"{moment.day} {moment:%B %Y}"
