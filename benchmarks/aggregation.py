"""Seconds to aggregate a large synthetic study, cold, warm, after some runs went on; to look at it.

python -m benchmarks.aggregation [--runs 100000] [--evaluations 20] [--folder DIR] [--keep]

Cold is without the project's cache, right after the files were written (so they are in the
system's page cache); the peer, measured on a part of the same runs, is the plain way: read every
file with PyYAML and the json module. Goals: 30 s cold and 1 s again for 100,000 runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from msgspec.structs import replace

from benchmarks.table import measured, tell
from glass_cnn.analysis.table import aggregate, write
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.study import Study
from hpc.config import to_yaml
from hpc.records import as_line
from hpc.words import plural
from tests import synthetic

ARMS = 20
VARIANTS = 50
GOALS: dict[int, tuple[float | None, float | None, float | None]] = {
    1_000: (None, None, 0.5),
    100_000: (30, 1, 2),
}
"""runs -> seconds at most: cold, again, make status"""


COURSES = [
    synthetic.MadeUpCourse(learned=8),
    synthetic.MadeUpCourse(learned=8, collapsed=14, recovered=16),
    synthetic.MadeUpCourse(learned=8, collapsed=14),
    synthetic.MadeUpCourse(learned=None),
]


def make(study: Study, place: StudyDir, evaluations: int) -> None:
    """Write all run directories; curves repeat after some variants, all but the last line."""
    rng = np.random.default_rng(0)
    settings = study.points[0].settings
    curves = [
        synthetic.evaluations(COURSES[i % len(COURSES)], evaluations, i, settings)
        for i in range(VARIANTS)
    ]
    heads = ["".join(map(as_line, records[:-1])) for records in curves]
    start = as_line(synthetic.START)
    configs = {p.label: to_yaml(p.settings).split("seed: 0\n", 1) for p in study.points}
    for run in study.runs:
        target = RunDir(place.runs / run.name)
        target.path.mkdir()
        records = curves[run.seed % VARIANTS]
        last = replace(records[-1], diagnostics=synthetic.diagnostics(rng, 0.2, False))
        target.config.write_text(f"seed: {run.seed}\n".join(configs[run.point.label]))
        target.metrics.write_text(heads[run.seed % VARIANTS] + as_line(last))
        target.provenance.write_text(start)
        target.result.write_text(as_line(synthetic.result(run, records)))


def timed(what: str, study: Study, place: StudyDir) -> float:
    """Aggregate, write the table, print how long it took; returns the seconds."""
    began, busy = time.perf_counter(), processor_seconds()
    result = aggregate(study, place)
    write(result)
    wall, busy = time.perf_counter() - began, processor_seconds() - busy
    assert len(result.counted) == len(study.runs), "damaged runs take less time"
    print(f"{wall:>8.2f} s {what} ({busy:.2f} s of processor; {len(result.counted)} counted)")
    return wall


def look_at(study: Study, place: StudyDir) -> float:
    """Seconds of `make status` on a terminal, from its start to its end."""
    words = [sys.executable, "-m", "jobs", "status", study.name, "--logs", str(place.path.parent)]
    terminal = os.environ | {"FORCE_COLOR": "1", "LINES": "40", "COLUMNS": "120"}
    began = time.perf_counter()
    subprocess.run(words, env=terminal, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def plainly(place: StudyDir, at_most: int) -> float:
    """Seconds a run of reading every file the plain way."""
    folders = [RunDir(path) for path in sorted(place.runs.iterdir())[:at_most]]
    began = time.perf_counter()
    for run in folders:
        yaml.safe_load(run.config.read_text())
        json.loads(run.result.read_text())
        for path in (run.metrics, run.provenance):
            [json.loads(line) for line in path.read_text().splitlines()]
    return (time.perf_counter() - began) / len(folders)


def append_to_some(place: StudyDir, count: int) -> None:
    """Let some runs go on: one line more."""
    for path in sorted(place.runs.iterdir())[:count]:
        line = RunDir(path).metrics.read_text().splitlines()[-1]
        with RunDir(path).metrics.open("a") as file:
            file.write(line + "\n")


def main() -> None:
    """Generate, time, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregation", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the files, and use them again")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="aggregation-"))
    arms = {f"arm{i}": {"train.batch_size": 10 + i} for i in range(ARMS)}
    train = {"iterations": args.evaluations}
    study = synthetic.study("large", args.runs // ARMS, arms=arms, train=train)
    place = synthetic.directory(study, folder)
    try:
        if not any(place.runs.iterdir()):
            began = time.perf_counter()
            make(study, place, args.evaluations)
            print(f"{len(study.runs)} runs written in {time.perf_counter() - began:.1f} s")
        for kept in (place.path / ".aggregate.parquet", place.summary, place.summary_csv):
            kept.unlink(missing_ok=True)
        measure(study, place)
    finally:
        if not args.keep:
            shutil.rmtree(folder)


def measure(study: Study, place: StudyDir) -> None:
    """Print the times."""
    size = sum(f.stat().st_size for run in place.runs.iterdir() for f in run.iterdir())
    print(f"{len(study.runs)} runs, {size / 1e9:.2f} GB, {ARMS} arms")
    time.sleep(2.5)  # files younger than 2 s are read again the next time, by design
    cold = timed("cold", study, place)
    again = [timed("again", study, place) for _ in range(3)]
    looks = [look_at(study, place) for _ in range(3)]
    print(f"{min(looks):>8.2f} s make status, nothing changed (fastest of {len(looks)})")
    append_to_some(place, 100)
    later = timed("after 100 runs changed", study, place)
    plain = plainly(place, 300) * len(study.runs)
    print(f"{plain:>8.0f} s plain PyYAML and json, one process (from 300 runs)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{peak:>8.2f} GB peak memory")
    runs = plural(len(study.runs), "run")
    goals = GOALS.get(len(study.runs), (None, None, None))
    tell(
        measured(f"{runs} to a table, nothing known", [cold], "s", at_most=goals[0]),
        measured(f"{runs}: plain PyYAML and json / that", [plain / cold]),
        measured(f"{runs} again", again, "s", at_most=goals[1]),
        measured(f"{runs} after 100 went on", [later], "s"),
        measured(f"{runs}: make status, nothing changed", looks, "s", at_most=goals[2]),
    )


if __name__ == "__main__":
    main()
