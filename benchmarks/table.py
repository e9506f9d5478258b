"""The one form of what benchmarks measure, and the table that it makes.

A benchmark tells its rows as it measures them: each is a line for people, and a line for
`python -m benchmarks` where that has started it.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HANDED_TO = "GLASS_BENCHMARK_ROWS"
"""names the file that rows are added to"""


@dataclass(frozen=True)
class Row:
    """One measure: its median and range, what was aimed at; or why it was not measured."""

    measure: str
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    turns: int = 1
    """how many values the median and the range are of"""
    at_least: float | None = None
    at_most: float | None = None
    why: str = ""
    """why there is no value"""
    command: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median is what was aimed at; None without a goal or a value."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        enough = self.at_least is None or self.value >= self.at_least
        return enough and (self.at_most is None or self.value <= self.at_most)

    @property
    def cells(self) -> tuple[str, str, str]:
        """Value, spread and goal in words."""
        goals = [("≥", self.at_least), ("≤", self.at_most)]
        goal = ", ".join(f"{sign} {number(at)}" for sign, at in goals if at is not None)
        if self.value is None:
            return f"– ({self.why})", "", goal
        verdict = {True: ": reached", False: ": **not reached**", None: ""}[self.reached]
        value = f"{number(self.value)} {self.unit}".strip()
        spread = ""
        if self.turns > 1 and self.low is not None and self.high is not None:
            spread = f"{number(self.low)}–{number(self.high)} of {self.turns}"
        return value, spread, goal + verdict


def measured(
    measure: str,
    values: Sequence[float],
    unit: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """The row of a measure that was taken one or several times."""
    return Row(
        measure, statistics.median(values), unit, min(values), max(values), len(values),
        at_least, at_most,
    )  # fmt: skip


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratios within a turn: the only figures that carry over to other machines."""
    return [a / b for a, b in zip(values, others, strict=True)]


def tell(*rows: Row) -> None:
    """Say what was measured, and hand it to who gathers it."""
    for row in rows:
        value, spread, goal = row.cells
        words = [f"{row.measure}: {value}", f"({spread})" if spread else "", goal and f"[{goal}]"]
        print("=>", " ".join(filter(None, words)), flush=True)
    if place := os.environ.get(HANDED_TO):
        with open(place, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def told(place: Path) -> list[Row]:
    """Rows that were handed over so far."""
    return [Row(**json.loads(line)) for line in place.read_text(encoding="utf-8").splitlines()]


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = ["| measure | value | spread | goal | command |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row.measure, *row.cells, f"`{row.command}`" if row.command else ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits of it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
