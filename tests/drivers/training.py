"""Carry out a plan of training starts on n ranks, with faults at exact moments.

The plan (argv[1], JSON) is a list of items:
    {"train": [arguments of jobs.train], "fault": {...} or null}
    {"shell": [command]}                                   run by rank 0 between starts
A fault is {"rank": 1, "before": "step" | "evaluate" | "restore" | …, "call": 3, "do": "SIGTERM"}:
before that rank's call number 3 (from 1) of that method of Job, Engine or Recorder it does this to
itself; rank -1 is every rank, and "do" is a signal's name, "raise", or "flip" (a bit of a weight;
before methods of Job). Into the directory argv[2] go
codes.json, the exit codes of each start, rank by rank, and what each rank said at each start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc.commandline import run_main
from hpc.world import world
from jobs import train

Fault = dict[str, Any]


@contextmanager
def injected(fault: Fault | None) -> Iterator[None]:
    """Let the fault happen at its moment."""
    if fault is None or fault["rank"] not in (-1, world().rank):
        yield
        return
    from glass_cnn.training.engine import Engine
    from glass_cnn.training.loop import Job
    from glass_cnn.training.recorder import Recorder

    # An evaluation goes through the engine many times.
    owners: dict[str, Any] = {"evaluate": Engine, "finished": Recorder}
    owner = owners.get(fault["before"], Job)
    original = getattr(owner, fault["before"])
    setattr(owner, fault["before"], _counting(original, fault))
    try:
        yield
    finally:
        setattr(owner, fault["before"], original)


def _counting(original: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    calls = 0

    def method(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault["call"]:
            if fault["do"] == "raise":
                raise RuntimeError("injected")
            if fault["do"] == "flip":
                flip_a_bit(args[0].engine)
            else:
                os.kill(os.getpid(), getattr(signal, fault["do"]))
        return original(*args, **named)

    return method


def flip_a_bit(engine: Any) -> None:
    """The lowest bit of one weight, as bad memory does."""
    name, values = next(iter(engine.snapshot("model/").items()))
    flipped = values.copy()
    flipped.view("uint32").ravel()[0] ^= 1
    engine.assign({name: flipped})


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
            code = run_main(train.main, item["train"])
        codes.append(ranks.comm.allgather(code))
        if ranks.is_root:
            (out / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
