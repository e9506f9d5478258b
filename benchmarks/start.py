"""Processor seconds of a run's start, by what it has reached.

    python -m benchmarks.start [--rounds 5]

A run of two steps on images of 48 px, on one thread, again and again; the clock is that of its
process, and stops where the run says what it is about to do (`hpc.moments`). Beside it loading
TensorFlow alone, as the program does and as a plain import does. Bytecode and data lie in the
system's page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.table import measured, ratios, tell

CONFIG = """
study: {name: start, seeds: 1}
simulation: {trajectories: 20, particles: 60, equilibration_steps: 100, cooling_steps: 400}
data: {name: start}
render: {style: disc, pixels: 48, window: 5.0, windows_per_configuration: 4}
model: {recipe: modern}
train: {iterations: 1, batches_per_iteration: 2}
launch: {ranks: 1}
"""
OURS = "from glass_cnn.tensorflow import tf"
PLAIN = "__import__('tensorflow')"


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", type=Path, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        raise SystemExit(watched(*args.one))
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="start-") as place:
        folder = Path(place)
        config = folder / "study.yaml"
        config.write_text(CONFIG)
        words = ["-m", "jobs.dataset", str(config), "--logs", str(folder / "logs")]
        processor_seconds(words)
        for number in range(args.rounds):
            for what, seconds in one(config, folder, number).items():
                taken.setdefault(what, []).append(seconds)
            for what, code in (("ours", OURS), ("plain", PLAIN)):
                taken.setdefault(what, []).append(processor_seconds(["-c", code]))
    tell(
        measured("a run's start to its first step, processor time", taken["first"], "s"),
        measured("its first step, compiled", taken["second"], "s"),
        measured("a whole run of two steps and one evaluation", taken["whole"], "s"),
        measured("TensorFlow loaded as the program does", taken["ours"], "s"),
        measured("the same / by a plain import", ratios(taken["ours"], taken["plain"])),
    )


def one(config: Path, folder: Path, number: int) -> dict[str, float]:
    """Processor seconds of one run, until its first step, for that, and in all."""
    logs, said = folder / f"logs-{number}", folder / f"said-{number}"
    logs.mkdir()
    (logs / "datasets").symlink_to(folder / "logs" / "datasets")
    words = ["-m", "benchmarks.start", "--one", str(config), str(logs), str(said)]
    whole = processor_seconds(words)
    first, second = json.loads(said.read_text())
    return {"first": first, "second": second - first, "whole": whole}


def processor_seconds(words: list[str]) -> float:
    """Of a Python and all that it has waited for."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words], env=os.environ | threads, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def watched(config: Path, logs: Path, said: Path) -> int:
    """Train in this process, and write down what it had taken before each of its two steps."""
    from hpc import moments
    from hpc.commandline import run_main
    from jobs import train

    clock: list[float] = []

    def look(moment: str, _: Any) -> None:
        if moment == "step":
            clock.append(time.process_time())

    moments.watchers.append(look)
    sys.argv[1:] = [str(config), "--logs", str(logs)]
    code = run_main(train.main)
    said.write_text(json.dumps(clock))
    return code


if __name__ == "__main__":
    main()
