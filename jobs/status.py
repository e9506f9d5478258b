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
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from glass_cnn.analysis.table import aggregate, find_study
from glass_cnn.paths import RunDir, StudyDir, logs_root
from glass_cnn.report.run_table import RunLine, StudyPart
from glass_cnn.study import Study
from hpc import slurm
from hpc.commandline import Parser, run_main
from hpc.errors import (
    EXIT_CONFIG,
    EXIT_DATA,
    EXIT_INTERNAL,
    ConfigError,
    DataError,
    UserError,
)
from hpc.records import read_events
from hpc.starts import BACK
from hpc.words import duration, plural

EVERY = 5.0
"""seconds between two looks of `make watch`"""
ALIVE = 30.0
"""a run whose rank 0 has written its heartbeat within so many seconds is running"""
WIDTH = 1000
"""columns of a table that goes into a file or a pipe: nothing is cut there"""
MOST_ARMS = 12
"""lines of arms; of more there are none"""
ORDER = ("running", "ending", "failed", "damaged", "requeued", "pending", "stopped", "complete")
"""states in the order they are shown; others come last"""


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
    lines = None if args.all or not console.is_terminal else console.height - 1  # for the prompt
    if not args.watch:
        console.print(page(args.config, root, lines))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=True) as live:
        while True:
            live.update(page(args.config, root, lines, tries=1, together=True), refresh=True)
            time.sleep(EVERY)


Rows = list[slurm.Queued] | None
"""what is in Slurm's queue; None where it does not answer"""


def page(
    config: str | None, root: Path, lines: int | None, tries: int = 0, together: bool = False
) -> Group:
    """What is shown; of each study at most so many lines, or of all `together`; None for all.

    Slurm is asked at most `tries` times.
    """
    rows, trouble = in_queue(tries)
    if config:
        return Group(*trouble, study_part(*find_study(config, root=root), rows, lines))
    found = names(root)
    if together and lines is not None:
        lines //= len(found)
    return Group(*trouble, *(part_or_error(name, root, rows, lines) for name in found))


def in_queue(tries: int) -> tuple[Rows, list[Text]]:
    """Slurm's queue, empty where there is no Slurm; and what is wrong where it does not answer."""
    try:
        return (slurm.queue(tries) if slurm.answers(tries) else []), []
    except slurm.SlurmError as error:
        said = " ".join(str(error).split())
        return None, [Text(f"Slurm cannot be asked, this is what is on disk: {said}", "yellow")]


def part_or_error(name: str, root: Path, rows: Rows, lines: int | None) -> StudyPart | Group:
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


def study_part(study: Study, place: StudyDir, rows: Rows, lines: int | None) -> StudyPart:
    """Headline and table of one study, in so many lines if FEWEST runs have room there."""
    found = states(study, place, rows)
    runs = sorted(found, key=lambda run: place_of(run.state))  # else as in the study
    counts = Counter(run.state for run in runs)
    words = [f"{counts[state]} {state}" for state in sorted(counts, key=place_of)]
    head = Text.assemble((study.name, "bold"), f"  {plural(len(runs), 'run')}: {', '.join(words)}")
    if (eta := study_left(runs)) is not None:
        head.append(f"; about {duration(eta)} left at this pace")
    arms = arm_lines(study, runs)
    others = waiting(place, rows or [])
    below = [Text(MEND)] if counts["damaged"] else []
    return StudyPart([head, *map(Text, others), *map(Text, arms)], runs, below, lines)


MEND = (
    "damaged: make submit mends a result.json; where that is not enough, remove the "
    "directory of such a run, and make submit trains it again"
)


def study_left(runs: Sequence[RunLine]) -> float | None:
    """Seconds until all runs that run, or will, are through, if as many go on side by side.

    None while none runs long enough to tell.
    """
    paced = [run for run in runs if run.left is not None]
    if not paced:
        return None
    each = sum(duration_of(run.facts) for run in paced) / len(paced)
    coming = sum(run.state in ("pending", "requeued", "waiting") for run in runs)
    return (sum(run.left or 0 for run in paced) + coming * each) / len(paced)


def duration_of(facts: dict[str, Any]) -> float:
    """Seconds that a whole run takes at its present pace."""
    return float(facts["seconds_per_iteration"] * facts["train.iterations"])


def arm_lines(study: Study, runs: Sequence[RunLine]) -> list[str]:
    """One line an arm: how many of its runs are in which state, and how many collapsed.

    None for a single arm, and for too many.
    """
    labels = [point.label for point in study.points]
    if not 1 < len(labels) <= MOST_ARMS:
        return []
    lines = []
    for label in labels:
        mine = [run for run in runs if run.facts["label"] == label]
        counts = Counter(run.state for run in mine)
        words = [f"{counts[state]} {state}" for state in sorted(counts, key=place_of)]
        collapsed = sum(bool(run.facts["collapsed"]) for run in mine)
        fate = f"; {collapsed} collapsed" if counts["complete"] else ""
        lines.append(f"  {label}: {', '.join(words)}{fate}")
    return lines


def place_of(state: str) -> int:
    """Where runs of this state stand among the others."""
    return ORDER.index(state) if state in ORDER else len(ORDER)


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


FACTS = (
    "run",
    "label",
    "seed",
    "copy",
    "state",
    "reason",
    "starts",
    "iteration",
    "train.iterations",
    "seconds_per_iteration",
    "final_validation_accuracy",
    "outcome_so_far",
    "collapsed",
    "numerics_change",
)
"""columns of the aggregation that are looked at here"""


Key = tuple[str, int, int]
"""label, seed and copy of a run"""


def states(study: Study, place: StudyDir, rows: Rows) -> Iterator[RunLine]:
    """Every run of a study with its state."""
    queued = {done: row for done, (_, row) in slurm.active_in(place.path, rows or []).items()}
    table = aggregate(study, place).table
    # A name takes a digest of all settings: of a hundred thousand runs that is a second.
    unnamed = table.filter(table["run"].is_null()).select("label", "seed", "copy")
    named = names_of(study, set(unnamed.iter_rows())) if len(unnamed) else {}
    for facts in table.select(name for name in FACTS if name in table.columns).iter_rows(
        named=True
    ):
        if facts["state"] == "complete":  # of a hundred thousand most are
            yield RunLine("complete", "", facts)
            continue
        facts["run"] = facts["run"] or named.get(
            (facts["label"], facts["seed"], facts["copy"]), "?"
        )
        run = RunDir(place.runs / facts["run"])
        state, detail = state_of(run, facts, queued.get(str(run.result)), rows is None)
        left = time_left(facts) if state == "running" else None
        yield RunLine(state, detail, facts, left)


def names_of(study: Study, wanted: Collection[Key]) -> dict[Key, str]:
    """Names of the runs of these labels, seeds and copies."""
    keys = (((run.point.label, run.seed, run.copy), run) for run in study.runs)
    return {key: run.name for key, run in keys if key in wanted}


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
        if row.state == "RUNNING" and not has_begun(run, row.target, facts["starts"]):
            return "waiting", f"for its turn, {said(row)}"
        known = {"RUNNING": "running", "COMPLETING": "ending", "PENDING": "pending"}
        return "requeued" if again else known.get(row.state, row.state.lower()), said(row)
    if alive(run):
        return "running", "on this machine"
    if unknown and facts["state"] in ("missing", "unfinished"):
        return "unknown", "Slurm does not answer"
    if facts["state"] == "missing":
        return ended(run) if run.events.exists() else ("waiting", "not submitted")
    return ended(run) if facts["state"] == "unfinished" else (facts["state"], facts["reason"] or "")


def has_begun(run: RunDir, job: str, starts: int | None) -> bool:
    """Whether a job that runs has started a run: of those that share it some wait for their turn.

    `starts` are those that the run itself has written down, by whatever job.
    """
    with contextlib.suppress(DataError):  # told where the run is read as a whole
        mine = [event.event for event in read_events(run.events) if event.job == job]
        return mine[-1] not in BACK if mine else bool(starts)
    return True


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


if __name__ == "__main__":
    sys.exit(run_main(main))
