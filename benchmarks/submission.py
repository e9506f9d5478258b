"""Seconds to submit a large study to Slurm, and to submit it again while all of it waits.

    python -m benchmarks.submission [--runs 1000 10000 100000]

The whole of `make submit` from its start to its end, job files included; its runs share jobs as
they do by default. In Slurm's place answer the stand-ins of the tests, each a Python of its own, so
what a real Slurm takes to accept an array is not in it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import measured, tell
from hpc.words import plural
from tests.slurm.pretend import Pretend

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
study: {{name: many, seeds: {runs}}}
launch: {{ranks: 1, site: cpu}}
"""


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submission", description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    args = parser.parse_args(argv)
    for runs in args.runs:
        with tempfile.TemporaryDirectory(prefix="submission-") as folder:
            measure(Path(folder), runs)


def measure(folder: Path, runs: int) -> None:
    """Submit a study of so many runs, twice."""
    slurm = Pretend(folder / "slurm")
    config = folder / "study.yaml"
    config.write_text(CONFIG.format(runs=runs))
    first = submit(slurm, config, folder / "logs")
    calls = len(slurm.calls("sbatch"))
    again = submit(slurm, config, folder / "logs")
    assert len(slurm.calls("sbatch")) == calls, "what waits in the queue was submitted again"
    what = plural(runs, "run")
    tell(
        measured(f"{what} submitted, in {plural(calls, 'call')} of sbatch", [first], "s"),
        measured(f"{what} submitted again while they wait", [again], "s"),
    )


def submit(slurm: Pretend, config: Path, logs: Path) -> float:
    """Seconds of one submission."""
    words = [sys.executable, "-m", "jobs.submit", str(config), "--launcher", "slurm"]
    path = f"{slurm.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    began = time.perf_counter()
    subprocess.run(
        [*words, "--logs", str(logs)], cwd=ROOT, env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
