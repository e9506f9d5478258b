"""Carry out a plan of training starts on n ranks, with faults at exact moments.

The plan (argv[1], JSON) is a list of items:
    {"train": [arguments of jobs.train], "fault": {...} or null}
    {"verify": [pattern of a run's directory, further arguments of jobs.verify]}
    {"shell": [command]}                                   run by rank 0 between starts
A fault is {"rank": 1, "before": "step" | "evaluate" | "restore" | …, "call": 3, "do": "SIGTERM"}:
when that rank reaches the moment of that name (`hpc.moments`) for the third time, it does this to
itself; rank -1 is every rank, and "do" is a signal's name, "raise", or "flip" (a bit of a weight;
before steps). Into the directory argv[2] go
codes.json, the exit codes of each start, rank by rank, and what each rank said at each start.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc import moments
from hpc.commandline import run_main
from hpc.world import world
from jobs import train, verify

Fault = dict[str, Any]


@contextmanager
def injected(fault: Fault | None) -> Iterator[None]:
    """Let the fault happen at its moment."""
    if fault is None or fault["rank"] not in (-1, world().rank):
        yield
        return
    calls = itertools.count(1)

    def watch(moment: str, what: Any) -> None:
        if moment == fault["before"] and next(calls) == fault["call"]:
            strike(fault["do"], what)

    moments.watchers.append(watch)
    try:
        yield
    finally:
        moments.watchers.remove(watch)


def strike(what: str, engine: Any) -> None:
    """Do what a fault does."""
    if what == "raise":
        raise RuntimeError("injected")
    if what == "flip":
        flip_a_bit(engine)
    else:
        os.kill(os.getpid(), getattr(signal, what))


def flip_a_bit(engine: Any) -> None:
    """The lowest bit of one weight that all ranks have, as bad memory does."""
    variable = next(iter(engine.state().values()))
    values = variable.numpy().copy()
    values.view("uint32").ravel()[0] ^= 1
    variable.assign(values)


@contextmanager
def heard(path: Path) -> Iterator[None]:
    """Collect in a file what this process says, C libraries included."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(kept, start=1):
            os.dup2(old, number)
            os.close(old)


def main(plan: Path, out: Path) -> None:
    ranks = world()
    codes: list[list[int]] = []
    for item in json.loads(plan.read_text()):
        if "shell" in item:
            if ranks.is_root and subprocess.run(item["shell"]).returncode:
                ranks.abort(1)
            ranks.barrier()
            continue
        said = out / f"start-{len(codes)}-rank-{ranks.rank}.txt"
        with injected(item.get("fault")), heard(said):
            if "verify" in item:
                pattern, *words = item["verify"]
                code = run_main(verify.main, [*glob.glob(pattern), *words])
            else:
                code = run_main(train.main, item["train"])
        codes.append(ranks.comm.allgather(code))
        if ranks.is_root:
            (out / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
