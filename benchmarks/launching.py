"""What starting many short runs costs: runs a second on a node, the launcher's share of a core.

    python -m benchmarks.launching [--at-once 32] [--rounds 8]

The runs do nothing for one second each (`sleep 1`), so that what is measured is the launcher alone:
of a packed batch job (`hpc.packed`, which keeps a record of each start), and of `make submit` on
this machine with bars on a terminal, whose runs also write a record each second. Beside them
`xargs -P`, which starts the same commands and keeps no records. Processor time is that of the
launcher's own process, user and system, the starting of processes included: it hardly depends on
what else the machine does; rates do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.table import measured, tell
from hpc import packed
from hpc.batch import plan
from hpc.local import Local
from hpc.site import Site
from hpc.stages import Meter, Stage, Task

SLEEP = ("/bin/sh", "-c", "exec sleep 1")
"""in place of the Python of the runs; what follows it on the command line is not looked at"""
RECORDS = ("/bin/sh", "-c", 'for i in 1 2 3 4 5; do sleep 1; echo "{\\"loss\\":$i}" >>"$2"; done')
LONG = 5
"""seconds that those take"""


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launching", description=__doc__)
    parser.add_argument("--at-once", type=int, default=32, help="runs at a time")
    parser.add_argument("--rounds", type=int, default=8, help="runs of each place")
    args = parser.parse_args()
    runs = args.at_once * args.rounds
    print("| launcher | runs | of seconds | at a time | started/s | share of a core | ms a run |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="launching-") as folder:
        place = Path(folder)
        ours, share = row(
            "packed job", runs, 1, args.at_once, lambda: in_job(place, runs, args.at_once)
        )
        peer, _ = row("xargs -P", runs, 1, args.at_once, lambda: by_xargs(runs, args.at_once))
        row("make submit", args.at_once, LONG, args.at_once, lambda: here(place, args.at_once))
    what = f"packed job, {args.at_once} runs of 1 s at a time"
    tell(
        measured(f"{what}: started", [ours], "a second", at_least=20),
        measured(f"{what}: started / by xargs -P", [ours / peer]),
        measured(f"{what}: the launcher's share of their cores", [share], "%", at_most=1),
    )


def row(
    name: str, runs: int, seconds: int, at_once: int, work: Callable[[], float]
) -> tuple[float, float]:
    """Measure one launcher; `work` returns the processor seconds that it has taken.

    Returns runs started a second, and its share of the cores that the runs have, in percent.
    """
    began = time.monotonic()
    taken = work()
    wall = time.monotonic() - began
    print(
        f"| {name} | {runs} | {seconds} | {at_once} | {runs / wall:.1f} | {taken / wall:.2%} | "
        f"{1000 * taken / runs:.2f} |",
        flush=True,
    )
    return runs / wall, 100 * taken / wall / at_once


def used() -> float:
    """Processor seconds of this process so far, without its children's."""
    taken = resource.getrusage(resource.RUSAGE_SELF)
    return taken.ru_utime + taken.ru_stime


def in_job(place: Path, runs: int, at_once: int) -> float:
    """As a batch job that all of them share would."""
    stage = Stage("train", tasks(place / "job", runs), 1, 1, main=True, tasks_per_job=runs)
    (jobs,) = plan([stage], place / "job", Site(ranks_per_node=at_once, bind="none"), 2)
    jobs[0].file.write_text(jobs[0].text)
    words = ["--job", "1", "--job-file", str(jobs[0].file), "--index", "0", "--", *SLEEP]
    with silence(place / "job.out"):
        before = used()
        assert packed.main(words) == 0
        return used() - before


def here(place: Path, at_once: int) -> float:
    """As `make submit` does, on a terminal."""
    found = tasks(place / "here", at_once)
    stage = Stage("train", found, 1, 1)
    os.environ["FORCE_COLOR"] = "1"
    with silence(place / "here.out"):
        before = used()
        assert Local(at_once, program=RECORDS).launch([stage]) == 0
        return used() - before


def tasks(place: Path, count: int) -> tuple[Task, ...]:
    """Runs, each with a directory of its own."""
    found = []
    for number in range(count):
        run = place / f"run-{number}"
        run.mkdir(parents=True)
        meter = Meter(run / "metrics.jsonl", LONG, {"loss": "loss {:.3f}"})
        words = (str(meter.records),)
        found.append(Task(run.name, "sleep", words, run / "done", run / "log", meter=meter))
    return tuple(found)


def by_xargs(runs: int, at_once: int) -> float:
    """As people do without any of this."""
    told = subprocess.Popen(
        ["xargs", "-P", str(at_once), "-n", "1", *SLEEP], stdin=subprocess.PIPE, text=True
    )
    assert told.stdin is not None
    told.stdin.write("\n".join(map(str, range(runs))))
    told.stdin.close()
    ticks = 0
    stat = Path(f"/proc/{told.pid}/stat")
    while told.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            ticks = max(ticks, int(fields[11]) + int(fields[12]))
        time.sleep(0.2)
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def silence(path: Path) -> Iterator[None]:
    """Standard output into a file, as a batch job's is."""
    with path.open("w") as file, contextlib.redirect_stdout(file):
        yield


if __name__ == "__main__":
    main()
