"""The runs of a study with their states, as a table for a terminal of any width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.text import Text

from glass_cnn.report.words import percent
from hpc.words import duration

NAME = 16
"""columns that the name of a run has at least"""
FEWEST = 2
"""runs that are shown however small the terminal is"""
COLOURS = {
    "running": "green", "complete": "dim", "failed": "red", "damaged": "red", "stopped": "yellow",
}  # fmt: skip


@dataclass(frozen=True)
class RunLine:
    """One line of the table."""

    state: str
    detail: str
    """where it runs, or why not"""
    facts: dict[str, Any]
    """the run's row of the aggregation"""
    left: float | None = None
    """seconds to the end, if it is running"""


HEADINGS = ("run", "state", "iteration", "accuracy", "so far", "restarts", "ETA", "where or why")
LEFT = {"run", "state", "where or why"}
"""columns of words; those of numbers are aligned to the right"""


@dataclass(frozen=True)
class StudyPart:
    """What is told of one study above and below its runs; at most so many lines, or all."""

    above: Sequence[Text]
    runs: Sequence[RunLine]
    below: Sequence[Text]
    lines: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        room = None
        if self.lines is not None:
            told = (*self.above, *self.below)
            taken = sum(len(text.wrap(console, options.max_width)) for text in told)
            room = self.lines - taken - 3  # headings, how many more there are, an empty line
        yield from self.above
        yield RunTable(self.runs, room)
        yield from self.below
        yield ""


@dataclass(frozen=True)
class RunTable:
    """One line per run. Put together here: rich's own table takes 10 s for 3,000 runs.

    Columns are as wide as what is shown needs.
    Where it is too wide for the terminal, names are shortened in their middle and columns that
    say nothing are left out; why a run waits or failed then stands below it, whole. Of what does
    not fit into `room` lines it says how much that is.
    """

    runs: Sequence[RunLine]
    room: int | None = None
    """lines for runs; None for as many as they need"""

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield self.text(options.max_width)

    def text(self, width: int) -> Text:
        """The table, at most so wide where a word is not wider."""
        headings: Sequence[str] = HEADINGS
        shown = self.runs  # or no more than have room, and one by which that is seen
        if self.room is not None:
            shown = shown[: max(self.room, FEWEST) + 1]
        rows = [cells(run) for run in shown]
        if rows and sum(widths_of(headings, rows)) + 2 * (len(headings) - 1) > width:
            headings, rows = narrowed(rows, width)
        widths = widths_of(headings, rows)
        widths[-1] = min(widths[-1], len(headings[-1]))
        text = Text(no_wrap=True, overflow="ellipsis")
        head = line(headings, headings, widths)
        if len(head) > width:
            head = line(headings, [*headings[:-1], ""], widths)
        text.append(head, "bold")
        taken = 0
        for i, (run, row) in enumerate(zip(shown, rows, strict=True)):
            told = line(headings, row, widths)
            if len(told) > width and row[-1]:
                told = line(headings, [*row[:-1], ""], widths)
                told = "\n".join([told, *textwrap.wrap(row[-1], width - 4, **BELOW)])
            taken += told.count("\n") + 1
            if self.room is not None and taken > self.room and i >= FEWEST:
                text.append(f"\n… and {len(self.runs) - i} more; glass status --all shows them")
                break
            text.append("\n" + told, COLOURS.get(run.state))
        return text


BELOW: Any = {"initial_indent": "    ", "subsequent_indent": "    "}
"""how what does not fit stands under its line"""


def widths_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Width of each column."""
    return [max(map(len, column)) for column in zip(headings, *rows, strict=True)]


def narrowed(rows: list[list[str]], width: int) -> tuple[tuple[str, ...], list[list[str]]]:
    """Headings and rows without columns that are empty, names as long as there is room."""
    last = len(HEADINGS) - 1
    kept = [i for i in range(len(HEADINGS)) if i == last or any(row[i] for row in rows)]
    headings = tuple(HEADINGS[i] for i in kept)
    rows = [[row[i] for i in kept] for row in rows]
    others = sum(widths_of(headings, rows)[1:-1]) + 2 * (len(headings) - 2)
    room = max(NAME, width - others)
    return headings, [[shortened(row[0], room), *row[1:]] for row in rows]


def shortened(name: str, most: int) -> str:
    """A name without its middle, where it is too long; its seed stands at its end."""
    if len(name) <= most:
        return name
    end = min(14, most - 4)
    return f"{name[: most - end - 1]}…{name[-end:]}"


def line(headings: Sequence[str], words: Sequence[str], widths: Sequence[int]) -> str:
    """Words in columns."""
    columns = zip(headings, words, widths, strict=True)
    padded = (word.ljust(n) if name in LEFT else word.rjust(n) for name, word, n in columns)
    return "  ".join(padded).rstrip()


def cells(run: RunLine) -> list[str]:
    """The line of one run."""
    facts = run.facts
    total = facts.get("train.iterations")
    accuracy = facts["final_validation_accuracy"]
    outcome = facts["outcome_so_far"] or ""
    changed = facts["numerics_change"]
    damaged = facts["state"] == "damaged" and run.state != "damaged"
    notes = (
        run.detail,
        f"damaged: {facts['reason']}" if damaged else "",
        f"numerics changed {changed}" if changed else "",
    )
    return [
        facts["run"],
        run.state,
        f"{facts['iteration'] or 0}/{total}" if total else str(facts["iteration"] or ""),
        "" if accuracy is None else percent(accuracy, 2),
        outcome.replace("_", " "),
        str(max(0, (facts["starts"] or 0) - 1) or ""),
        "" if run.left is None else duration(run.left),
        "; ".join(filter(None, notes)),
    ]
