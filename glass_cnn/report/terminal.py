"""The estimates of a study as a compact table for a terminal."""

from __future__ import annotations

import re

import polars as pl
from rich.table import Table

from glass_cnn.analysis import statistics
from glass_cnn.analysis.arms import Arm, Estimates
from glass_cnn.analysis.table import Aggregation
from glass_cnn.report.words import interval, percent
from hpc.words import plural

MOST_DAMAGED = 20
"""Damaged runs that are named; all are in the tables."""


HEADINGS = ("runs", "learned", "collapsed", "interval", "perm/trans", "optimal", "final")


def arms_table(name: str, estimates: Estimates, width: int = 80) -> Table:
    """One line per arm, or more where its name is too long for a terminal of this width."""
    table = Table(title=name, title_justify="left", box=None, padding=(0, 1, 0, 0))
    rows = [_cells(arm) for arm in estimates.arms]
    columns = zip(HEADINGS, *(row[1:] for row in rows), strict=True)
    room = max(12, width - sum(max(map(len, column)) + 1 for column in columns) - 1)
    table.add_column("arm", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(folded(row[0], room), *row[1:])
    return table


def folded(name: str, room: int) -> str:
    """A name on several lines, each ending with one of its hyphens or underscores."""
    lines = [""]
    for part in re.findall(r"[^-_]*[-_]|[^-_]+", name):
        for piece in (part[i : i + room] for i in range(0, len(part), room)):
            if len(lines[-1]) + len(piece) > room:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


def _cells(arm: Arm) -> list[str]:
    rate, outcomes = arm.collapsed, arm.outcomes
    return [
        arm.label,
        f"{arm.complete}/{arm.wanted}",
        f"{arm.learned.k}/{arm.learned.n}",
        f"{rate.k}/{rate.n}",
        interval(rate),
        f"{outcomes.get('permanent_collapse', 0)}/{outcomes.get('transient_collapse', 0)}",
        percent(statistics.median(arm.optimal), 2),
        percent(statistics.median(arm.final), 2),
    ]


def counted(table: pl.DataFrame) -> str:
    """How many runs are counted, and what the others are; damaged ones by name."""
    states = dict(table["state"].value_counts(sort=True).iter_rows())
    complete = states.pop("complete", 0)
    others = ", ".join(f"{count} {state}" for state, count in states.items())
    told = f"{plural(complete, 'run')} counted" + (f"; not counted: {others}" if others else "")
    damaged = table.filter(pl.col("state") == "damaged").select("run", "reason").rows()
    lines = [f"damaged: {run}: {reason}" for run, reason in damaged[:MOST_DAMAGED]]
    more = len(damaged) - len(lines)
    return "\n".join([told, *lines, *([f"… and {more} more damaged ones"] if more else [])])


def summary(result: Aggregation) -> str:
    """What stands below the table of arms: how many runs are counted, and warnings."""
    return "\n".join([counted(result.table), *(f"warning: {told}" for told in result.warnings)])
