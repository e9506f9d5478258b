"""A small study's throughput beside that of the engine alone, and where the rest goes.

    python -m benchmarks.study [--runs 4] [--iterations 200] [--seconds 5]

A study of the size of jobs/small (48 px, batch 80, 300 images evaluated after each ten steps, a run
a core) goes through `jobs.submit` on two cores. Its data are made before; counted is the wall time
of its training stage, from the launcher's first word of it to its first word of the next. Before
and after it two engines train for `--seconds`, one on each core at the same time, and then only
classify. A study that did nothing else than train would have their throughput; one that did
nothing else than train and evaluate, the second ratio of 1.

Where the rest goes, in shares of both cores' time: evaluations are the images that the runs
classified at the engines' own speed; start is from a process's first line to its first step, the
end is the test of the final and of the optimal weights with the last checkpoint; between the
processes there is the launcher, and Python that ends and begins; what is left of the iterations
are measurements, records and checkpoints.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.sides import Layout, Side
from benchmarks.table import measured, ratios, tell
from glass_cnn.paths import RunDir
from glass_cnn.records import Result, read_evaluations, result_of
from glass_cnn.study import Run, Study, load_study

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
extends: [{root}/jobs/common/full.yaml, {root}/jobs/common/small.yaml]
study: {{name: throughput, seeds: {runs}}}
simulation: {{trajectories: 60, equilibration_steps: 200, cooling_steps: 400}}
data: {{name: throughput}}
render: {{windows_per_configuration: 30}}
train: {{iterations: {iterations}}}
"""
CORES = 2
LONG = 200
"""iterations of the studies in jobs/small: of shorter ones a start is a larger share"""


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5, help="of each turn of the engines")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        config, logs = Path(folder) / "study.yaml", Path(folder) / "logs"
        config.write_text(CONFIG.format(root=ROOT, runs=args.runs, iterations=args.iterations))
        study = load_study(config)
        make_data(study, config, logs)
        before = engines(study, args.seconds)
        seconds = train(config, logs)
        after = engines(study, args.seconds)
        report(study, logs, seconds, [before, after])


Speeds = tuple[float, float]
"""images a second that both engines together train on, and that they classify"""


def engines(study: Study, seconds: float) -> Speeds:
    """Two engines at a time, each on a core of its own."""
    pixels = study.points[0].settings.render.pixels
    return together("ours", pixels, seconds), together("ours_evaluating", pixels, seconds)


def together(name: str, pixels: int, seconds: float) -> float:
    """Images a second of two sides at the same time."""
    with ExitStack() as stack:
        sides = [Side(name, pixels, Layout(name, 1, 1, 1, first)) for first in range(CORES)]
        for side in sides:
            stack.callback(side.close)
        for side in sides:
            side.begin(seconds)
        for side in sides:
            side.end()
        return sum(side.speeds[-1] for side in sides)


def make_data(study: Study, config: Path, logs: Path) -> None:
    """The data of the study, so that submitting it only trains."""
    words = [sys.executable, "-m", "jobs.dataset", str(config), "--logs", str(logs)]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(f"data: {len(study.runs)} runs will train on them", flush=True)


def train(config: Path, logs: Path) -> float:
    """Submit the study; returns the seconds of its training stage."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:CORES]))
    words = ["taskset", "-c", cores, sys.executable, "-u", "-m", "jobs.submit", str(config)]
    words += ["--launcher", "local", "--logs", str(logs)]
    heard: dict[str, float] = {}
    """first word of a line -> when it was first said"""
    with subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE) as submit:
        assert submit.stdout is not None
        for line in submit.stdout:
            stage = line.partition(":")[0]
            heard.setdefault(stage, time.monotonic())
            print(line, end="", flush=True)
    if submit.returncode:
        raise SystemExit(f"jobs.submit ended with exit code {submit.returncode}")
    return heard["aggregate"] - heard["train"]


def report(study: Study, logs: Path, seconds: float, engine: Sequence[Speeds]) -> None:
    """The ratio, and shares of both cores' time."""
    settings = study.points[0].settings
    train = settings.train
    places = [study.run_dir(logs, run) for run in study.runs]
    results = [complete(study, *pair) for pair in zip(study.runs, places, strict=True)]
    trained = len(results) * train.steps * train.batch_size
    speed = trained / seconds
    of_training, of_evaluating = ([pair[k] for pair in engine] for k in (0, 1))
    goal = 0.95 if train.iterations >= LONG else None
    tell(
        measured("small study on two cores: trained on", [speed], "img/s"),
        measured("small study / the engine alone", ratios([speed] * 2, of_training), at_least=goal),
    )
    # Seconds of one core, by what they went into.
    examples = results[0].examples["validation"]
    seen = len(results) * train.iterations * min(train.evaluation_examples or examples, examples)
    training = trained * CORES / statistics.mean(of_training)
    spent = {"evaluations": seen * CORES / statistics.mean(of_evaluating)}
    spent |= dict.fromkeys(("start", "end and test"), 0.0)
    inside = 0.0
    for place, result in zip(places, results, strict=True):
        assert result.usage is not None
        times = [each.seconds or 0.0 for each in read_evaluations(place.metrics)]
        pace = (times[-1] - times[0]) / (len(times) - 1)
        spent["start"] += result.usage.wall_seconds - result.wall_seconds + times[0] - pace
        spent["end and test"] += result.wall_seconds - times[-1]
        inside += result.usage.wall_seconds
    spent["measurements, records, checkpoints"] = inside - training - sum(spent.values())
    spent["between processes"] = CORES * seconds - inside
    same = (training + spent["evaluations"]) / (CORES * seconds)
    tell(measured("small study / engines that do its training and its evaluations", [same]))
    for what, each in spent.items():
        share = 100 * each / (CORES * seconds)
        tell(measured(f"small study: share of both cores' time: {what}", [share], "%"))


def complete(study: Study, run: Run, place: RunDir) -> Result:
    """What a run ended with."""
    found = result_of(place, run.seed, study.points[0].settings.train)
    assert found is not None, f"{place.path} has no result"
    return found


if __name__ == "__main__":
    main()
