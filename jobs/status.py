"""A table of runs: state, iteration, accuracy, outcome so far, restarts, time left.

Read from the run directories and, where Slurm answers, from its queue; nothing is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from glass_cnn.analysis.table import aggregate, find_study
from glass_cnn.paths import RunDir, StudyDir, logs_root
from glass_cnn.report.words import percent
from glass_cnn.study import Study
from hpc import slurm
from hpc.commandline import Parser, run_main
from hpc.errors import EXIT_CONFIG, EXIT_DATA, EXIT_INTERNAL, ConfigError, UserError
from hpc.records import read_events
from hpc.words import duration, plural

EVERY = 5.0
"""seconds between two looks of `make watch`"""
ALIVE = 30.0
"""a run whose rank 0 has written its heartbeat within so many seconds is running"""
WIDTH = 1000
"""columns of a table that goes into a file or a pipe: nothing is cut there"""
ORDER = ("running", "ending", "requeued", "pending", "failed", "stopped", "damaged", "complete")
"""states in the order they are shown; others come last"""
COLOURS = {
    "running": "green", "complete": "dim", "failed": "red", "damaged": "red", "stopped": "yellow",
}  # fmt: skip


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("status", __doc__)
    parser.add_study(nargs="?", help="study file, or name or directory of a study (default: all)")
    parser.add_argument("--watch", action="store_true", help="look again every few seconds")
    parser.add_argument("--all", action="store_true", help="every run, however many there are")
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Show the table once, or again and again."""
    args = parse(argv)
    root = logs_root(args.logs)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    lines = None if args.all or not console.is_terminal else max(8, console.height - 6)
    if not args.watch:
        console.print(page(args.config, root, lines))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=True) as live:
        while True:
            live.update(page(args.config, root, lines, tries=1), refresh=True)
            time.sleep(EVERY)


Rows = list[slurm.Queued] | None
"""what is in Slurm's queue; None where it does not answer"""


def page(config: str | None, root: Path, lines: int | None, tries: int = 0) -> Group:
    """What is shown; at most so many lines, or all. Slurm is asked at most `tries` times."""
    rows, trouble = in_queue(tries)
    if config:
        return Group(*trouble, study_part(*find_study(config, root=root), rows, lines))
    return Group(*trouble, *(part_or_error(name, root, rows, lines) for name in names(root)))


def in_queue(tries: int) -> tuple[Rows, list[Text]]:
    """Slurm's queue, empty where there is no Slurm; and what is wrong where it does not answer."""
    try:
        return (slurm.queue(tries) if slurm.answers(tries) else []), []
    except slurm.SlurmError as error:
        said = " ".join(str(error).split())
        return None, [Text(f"Slurm cannot be asked, this is what is on disk: {said}", "yellow")]


def part_or_error(name: str, root: Path, rows: Rows, lines: int | None) -> Group:
    """One study of all, or what is wrong with it: the others are shown."""
    try:
        return study_part(*find_study(name, root=root), rows, lines)
    except UserError as error:
        return Group(Text(f"error: {error}", "red"), "")


def names(root: Path) -> list[str]:
    """Directories of all studies under the logs root; raises ConfigError."""
    found = sorted(str(path.parent) for path in root.glob("*/study.yaml"))
    if not found:
        raise ConfigError(f"{root}: holds no study yet; start one with make submit CONFIG=….")
    return found


def study_part(study: Study, place: StudyDir, rows: Rows, lines: int | None) -> Group:
    """Headline and table of one study."""
    runs = sorted(states(study, place, rows), key=lambda run: run.order)  # else as in the study
    counts = Counter(run.state for run in runs)
    order = {state: number for number, state in enumerate(ORDER)}
    words = [
        f"{n} {state}" for state, n in sorted(counts.items(), key=lambda x: order.get(x[0], 9))
    ]
    head = Text.assemble((study.name, "bold"), f"  {plural(len(runs), 'run')}: {', '.join(words)}")
    others = waiting(place, rows or [])
    shown = runs if lines is None else runs[:lines]
    left = len(runs) - len(shown)
    more = [f"… and {left} more; python -m jobs.status --all shows them"] if left else []
    if counts["damaged"]:
        more += [
            "damaged: make submit mends a result.json; where that is not enough, remove the "
            "directory of such a run, and make submit trains it again"
        ]
    return Group(head, *map(Text, others), table(shown), *more, "")


def waiting(place: StudyDir, rows: list[slurm.Queued]) -> list[str]:
    """Tasks in the queue that are no trainings, in words."""
    found = slurm.active_in(place.path, rows)
    return [
        f"{name}: {row.state.lower()}, {said(row)}"
        for done, (name, row) in found.items()
        if Path(done).name != RunDir(place.path).result.name
    ]


def said(row: slurm.Queued) -> str:
    """Where a job runs or why it waits, and its id."""
    return f"{row.reason if row.state == 'PENDING' else row.nodes}, job {row.target}"


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

    @property
    def order(self) -> int:
        """Running ones first."""
        return ORDER.index(self.state) if self.state in ORDER else len(ORDER)


def states(study: Study, place: StudyDir, rows: Rows) -> Iterator[RunLine]:
    """Every run of a study with its state."""
    queued = {done: row for done, (_, row) in slurm.active_in(place.path, rows or []).items()}
    named = {(run.point.label, run.seed, run.copy): run.name for run in study.runs}
    for facts in aggregate(study, place).table.iter_rows(named=True):
        facts["run"] = facts["run"] or named.get(
            (facts["label"], facts["seed"], facts["copy"]), "?"
        )
        run = RunDir(place.runs / facts["run"])
        state, detail = state_of(run, facts, queued.get(str(run.result)), rows is None)
        left = time_left(facts) if state == "running" else None
        yield RunLine(state, detail, facts, left)


def state_of(
    run: RunDir, facts: dict[str, Any], row: slurm.Queued | None, unknown: bool = False
) -> tuple[str, str]:
    """State and detail of one run, from its directory and its place in the queue.

    `unknown` says that it may be in a queue that cannot be looked at.
    """
    if facts["state"] == "complete":
        return "complete", ""
    if row is not None:
        again = row.state == "PENDING" and facts["starts"]
        known = {"RUNNING": "running", "COMPLETING": "ending", "PENDING": "pending"}
        return "requeued" if again else known.get(row.state, row.state.lower()), said(row)
    if alive(run):
        return "running", "on this machine"
    if unknown and facts["state"] in ("missing", "unfinished"):
        return "unknown", "Slurm does not answer"
    if facts["state"] == "missing":
        return ended(run) if run.events.exists() else ("waiting", "not submitted")
    return ended(run) if facts["state"] == "unfinished" else (facts["state"], facts["reason"] or "")


def alive(run: RunDir) -> bool:
    """Whether rank 0 gave a sign of life a moment ago."""
    with contextlib.suppress(OSError):
        return abs(time.time() - os.stat(run.heartbeats / "rank-0.json").st_mtime) < ALIVE
    return False


def ended(run: RunDir) -> tuple[str, str]:
    """How a run that is neither complete nor in the queue came to its end."""
    refused = [e for e in read_events(run.events) if e.event == "no_requeue"]
    if not refused:
        return "stopped", "make submit goes on with it"
    bad = refused[-1].status in (EXIT_DATA, EXIT_INTERNAL, EXIT_CONFIG)
    return "failed" if bad else "stopped", refused[-1].reason or ""


def time_left(facts: dict[str, Any]) -> float | None:
    """Seconds to the last iteration at the present pace; None before there is one."""
    pace, total = facts["seconds_per_iteration"], facts.get("train.iterations")
    return None if pace is None or not total else pace * (total - facts["iteration"])


HEADINGS = ("run", "state", "iteration", "accuracy", "so far", "restarts", "ETA", "where or why")
LEFT = {"run", "state", "where or why"}
"""columns of words; those of numbers are aligned to the right"""


def table(runs: list[RunLine]) -> Text:
    """One line per run. Put together here: rich's own table takes 10 s for 3,000 runs."""
    rows = [cells(run) for run in runs]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(line(HEADINGS, widths), "bold")
    for run, row in zip(runs, rows, strict=True):
        text.append("\n" + line(row, widths), COLOURS.get(run.state))
    return text


def line(words: Sequence[str], widths: list[int]) -> str:
    """Words in columns."""
    columns = zip(HEADINGS, words, widths, strict=True)
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


if __name__ == "__main__":
    sys.exit(run_main(main))
