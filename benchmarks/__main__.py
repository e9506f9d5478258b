"""Every benchmark, one after the other, and one table of what they measured.

    python -m benchmarks [--quick] [--only NAME ...] [--set-up] [--json FILE]

Each is a process of its own, and a command that can be started by itself. What they say goes to
standard error as it comes; the table, in Markdown, to standard output at the end. What cannot be
measured here is a line that says why. A benchmark that fails is such a line, too, and ends this
with exit code 1 after all others. Goals that are not reached do not.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.table import HANDED_TO, Row, markdown, told
from glass_cnn import numerics
from glass_cnn.paths import logs_root
from hpc.words import duration, plural

MOST_SECONDS = 1800.0
"""that one benchmark may take"""


@dataclass(frozen=True)
class Part:
    """One benchmark: what is behind `python` on its command line."""

    name: str
    words: str
    quick: str = ""
    """the same in a tenth of the time; empty where that would say nothing"""
    cores: int = 1
    """that it needs"""
    asked_for: bool = False
    """whether it runs only with --set-up"""


PARTS = (
    Part(
        "training-48",
        "-m benchmarks.training --pixels 48 --turns 5 --seconds 3",
        "-m benchmarks.training --pixels 48 --turns 3 --seconds 1",
    ),
    Part("training-250", "-m benchmarks.training --pixels 250 --turns 3 --seconds 4"),
    Part(
        "training-avx2",
        "-m benchmarks.training --pixels 48 250 --turns 3 --seconds 3 --max-cpu-isa avx2",
    ),
    Part(
        "scaling",
        "-m benchmarks.scaling --pixels 250 --turns 3 --seconds 4",
        "-m benchmarks.scaling --pixels 48 --turns 2 --seconds 1 --agree 3",
    ),
    Part("exchange", "-m benchmarks.exchange", cores=2),
    Part(
        "packing",
        "-m benchmarks.packing",
        "-m benchmarks.packing --pixels 48 --turns 2 --seconds 1",
        cores=2,
    ),
    Part(
        "convolutions",
        "-m benchmarks.convolutions",
        "-m benchmarks.convolutions --pixels 48 --turns 3",
    ),
    Part("update", "-m benchmarks.update", "-m benchmarks.update --pixels 64 --turns 3"),
    Part(
        "input",
        "-m benchmarks.input --turns 5 --seconds 3",
        "-m benchmarks.input --turns 2 --seconds 1 --images 600",
    ),
    Part(
        "study",
        "-m benchmarks.study --iterations 200 --seconds 5",
        "-m benchmarks.study --iterations 20 --seconds 2",
        cores=2,
    ),
    Part(
        "simulation", "-m benchmarks.simulation --rounds 5", "-m benchmarks.simulation --rounds 1"
    ),
    Part(
        "farm",
        "-m benchmarks.simulation --farm --trajectories 120 --rounds 3",
        "-m benchmarks.simulation --farm --trajectories 24 --rounds 1",
        cores=2,
    ),
    Part("rendering", "-m benchmarks.rendering", "-m benchmarks.rendering"),
    Part("launching", "-m benchmarks.launching --rounds 8", "-m benchmarks.launching --rounds 3"),
    Part(
        "checkpoint",
        "-m benchmarks.checkpoint --megabytes 863 --rounds 3",
        "-m benchmarks.checkpoint --megabytes 100 --rounds 2",
    ),
    Part(
        "saving",
        "-m benchmarks.checkpoint --train --pixels 250 --pairs 4",
        "-m benchmarks.checkpoint --train --pixels 48 --pairs 4",
        cores=2,
    ),
    Part(
        "aggregation",
        "-m benchmarks.aggregation --runs 100000",
        "-m benchmarks.aggregation --runs 10000",
    ),
    Part(
        "status",
        "-m benchmarks.aggregation --runs 1000",
        "-m benchmarks.aggregation --runs 1000",
    ),
    Part(
        "submission",
        "-m benchmarks.submission --runs 1000 10000 100000",
        "-m benchmarks.submission --runs 1000 10000",
    ),
    Part("start", "-m benchmarks.start --rounds 5", "-m benchmarks.start --rounds 2"),
    Part("numerics", "-m benchmarks.numerics --pixels 48 --rounds 3"),
    Part("interruptions", "-m benchmarks.interruptions --count 6"),
    Part("set-up", "-m benchmarks.set_up", "-m benchmarks.set_up", asked_for=True),
)


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Run them and print the table; returns the exit code."""
    names = [part.name for part in parts]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="five minutes instead of forty")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=names, help=", ".join(names))
    parser.add_argument("--set-up", action="store_true", help="also set-up and quickstart, anew")
    parser.add_argument("--json", type=Path, help="where (default: benchmarks.json in logs)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.only if name not in names]:
        parser.error(f"--only {unknown[0]}: no such benchmark; there are {', '.join(names)}")
    place: Path = args.json or logs_root() / "benchmarks.json"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.open("a").close()
    except OSError as error:
        parser.error(f"--json {place}: cannot be written: {error.strerror}")
    about = machine()
    rows: list[Row] = []
    failed: list[str] = []
    began = time.monotonic()
    for number, part in enumerate(chosen := [part for part in parts if part.name in args.only], 1):
        words = shlex.split(part.quick if args.quick else part.words)
        if why := left_out(part, words, args.set_up):
            rows.append(Row(part.name, why=f"left out: {why}"))
            continue
        command = shlex.join(["python", *words])
        passed = duration(time.monotonic() - began)
        say(f"\n== {number} of {len(chosen)}, after {passed}: {part.name}: {command}")
        found, trouble = run(words)
        if trouble:
            failed.append(part.name)
            found.append(Row(part.name, why=f"failed: {trouble}"))
        rows += [replace(row, command=command) for row in found]
    about["seconds"] = round(time.monotonic() - began)
    place.write_text(json.dumps(about | {"rows": [as_tree(r) for r in rows]}, indent=1) + "\n")
    print(f"{heading(about)}\n\n{markdown(rows)}\n\n{verdict(rows)}")
    say(f"the same as JSON: {place}")
    if failed:
        say(f"failed: {', '.join(failed)}; the lines above say why")
    return 1 if failed else 0


def left_out(part: Part, words: Sequence[str], set_up: bool) -> str:
    """Why a part is not even started; empty where it is."""
    if part.asked_for and not set_up:
        return "--set-up asks for it"
    if not words:
        return "not in the quick form"
    there = len(os.sched_getaffinity(0))
    if there < part.cores:
        return f"needs {plural(part.cores, 'core')}, and this process has {there}"
    return ""


def run(words: Sequence[str]) -> tuple[list[Row], str]:
    """The rows of one benchmark, and what went wrong; empty where nothing did."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Path(folder) / "rows"
        place.touch()
        # This environment's mpiexec and lmp, also where its shell script was not sourced.
        path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = os.environ | {"PATH": path, HANDED_TO: str(place), "PYTHONUNBUFFERED": "1"}
        last = ""
        with started(words, environment) as (process, late):
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip("\n"))
                last = line.strip() or last
            code = process.wait()
        rows = told(place)
    if late.is_set():
        return rows, f"took longer than {MOST_SECONDS:.0f} s"
    if code:
        return rows, f"exit code {code}: {last}"
    return rows, "" if rows else "measured nothing"


@contextmanager
def started(
    words: Sequence[str], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], threading.Event]]:
    """A benchmark at work, and whether it took too long; all that it started is ended with it."""
    process = subprocess.Popen(
        [sys.executable, *words], env=environment, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    late = threading.Event()

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def give_up() -> None:
        late.set()
        end()

    clock = threading.Timer(MOST_SECONDS, give_up)
    clock.start()
    try:
        yield process, late
    finally:
        clock.cancel()
        end()
        process.wait()


def say(line: str) -> None:
    """To people who watch."""
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What it was measured on, and how busy that was before."""
    return {
        "processor": numerics.processor(),
        "instruction_set": numerics.instruction_set(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def heading(about: dict[str, Any]) -> str:
    """The same in a sentence."""
    return (
        f"{about['processor']}, {about['instruction_set']}, {plural(about['cores'], 'core')}; load "
        f"{about['load']} before; {duration(about['seconds'])} from {about['time']}"
    )


def as_tree(row: Row) -> dict[str, Any]:
    """A row as JSON, with its verdict."""
    return asdict(row) | {"reached": row.reached}


def verdict(rows: Sequence[Row]) -> str:
    """How many goals were reached, and which were not."""
    judged = [row for row in rows if row.reached is not None]
    missed = [row.measure for row in judged if not row.reached]
    without = [row.measure for row in rows if row.value is None]
    lines = [f"{len(judged) - len(missed)} of {plural(len(judged), 'goal')} reached."]
    if missed:
        lines.append(f"Not reached: {'; '.join(missed)}.")
    if without:
        lines.append(f"Not measured: {'; '.join(without)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    # Who ends this ends the benchmark that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
