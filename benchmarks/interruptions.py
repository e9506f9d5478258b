"""What an interruption costs a real training on a real Slurm of three nodes.

python -m benchmarks.interruptions [--count 20] [--seed 1]

One run of two ranks on two nodes is interrupted at random moments, in random ways: the signal that
comes before a time limit, a preemption by a job of a higher partition, kill -9 of a rank. Then the
same run goes through undisturbed, and both must end with the same weights. The cluster is started
for this in a place of its own, and stopped again; a requeued job waits 6 s there (2 min by default
elsewhere), which is part of "requeue".

durable: from the signal's sending (for a preemption, from the other job's submission, so Slurm's
own delay is in it) to the newest checkpoint being complete on disk;
requeue: from the decision to requeue to the ranks' start; start: from there to the record that the
run goes on, just before its first step; lost: steps that had been made and were made again; cost:
what is held and makes no progress, from the sending to the decision, the start, and the time of the
lost steps.

From that follows the share of useful time where one interruption comes in each hour that a job
holds its nodes: 1 - cost / 3600 s. It is also computed from what the run itself has written down,
over all its starts: what its jobs held, less what its iterations took where no start lies between.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.table import Row, measured, tell
from glass_cnn.paths import RunDir
from glass_cnn.study import load_study
from hpc import slurm
from hpc.checkpoint_names import newest_step
from hpc.files import read_json
from hpc.records import read_records

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
study: {{name: interrupted, seeds: 1}}
simulation: {{trajectories: 20, particles: 100, equilibration_steps: 200, cooling_steps: 400}}
data: {{name: interrupted}}
render: {{style: disc, pixels: 32}}
model: {{recipe: modern}}
train:
  batch_size: 16
  iterations: {iterations}
  batches_per_iteration: {steps}
  diagnostics_every: 0
checkpoint: {{every_iterations: 10}}
launch: {{ranks: 2, site: dev, slurm: {{max_requeues: 1000, launcher_options: [--wait=5]}}}}
"""
STEPS = 10
"""of an iteration"""
KINDS = ("signal", "preemption", "kill -9")
WEIGHTS = (12, 5, 3)
PATIENCE = 900.0
HOUR = 3600.0
USEFUL = 97.0
"""percent of useful time that are aimed at, with one interruption an hour"""


def main() -> None:
    """Interrupt, measure, compare, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interruptions", description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=700, help="length of the run")
    args = parser.parse_args()
    if shutil.which("sbatch") is None or shutil.which("slurmctld") is None:
        tell(
            Row("interruptions on Slurm", why="left out: no Slurm here; make slurm-up installs it")
        )
        return
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)):
        config = Path(folder) / "study.yaml"
        config.write_text(CONFIG.format(iterations=args.iterations, steps=STEPS))
        run = start(config, Path(folder) / "interrupted")
        found = [interrupt(run, rng) for _ in range(args.count)]
        until(run.result.exists)
        report(found, times(run))
        compare(run, undisturbed(config, Path(folder)))


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A development cluster of its own."""
    script = ["bash", str(ROOT / "slurm" / "cluster.sh")]
    subprocess.run([*script, "up", str(folder / "slurm")], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str((folder / "slurm").resolve() / "slurm.conf")
    try:
        yield
    finally:
        subprocess.run([*script, "down", str(folder / "slurm")], check=True)


def start(config: Path, logs: Path) -> RunDir:
    """Submit the study and wait for the first iterations."""
    words = ["--launcher", "slurm", "--logs", str(logs)]
    subprocess.run([sys.executable, "-m", "jobs.submit", str(config), *words], cwd=ROOT, check=True)
    study = load_study(config)
    run = study.run_dir(logs, study.runs[0])
    until(lambda: len(read_records(run.metrics)) > 1)
    return run


def until(done: Callable[[], object]) -> float:
    """Wait for something; returns the time at which it was there."""
    end = time.time() + PATIENCE
    while not done():
        if time.time() > end:
            raise TimeoutError(f"nothing happened in {PATIENCE:.0f} s")
        time.sleep(0.02)
    return time.time()


Measured = dict[str, float | str]


def interrupt(run: RunDir, rng: random.Random) -> Measured:
    """One interruption at a random moment; back when the run goes on."""
    kind = rng.choices(KINDS, WEIGHTS)[0]
    starts, jobs = len(read_records(run.provenance)), count(run, "job_start")
    saved = newest_step(run.checkpoints)
    until(lambda: newest_step(run.checkpoints) > saved)  # two starts without progress end a job
    time.sleep(rng.uniform(0, 3))
    asked = time.time()
    {"signal": send_signal, "preemption": preempt, "kill -9": kill_rank}[kind](run)
    decided = until(lambda: count(run, "requeue") == jobs)
    reached = last_step(run)
    durable = newest(run).stat().st_mtime
    ranks = until(lambda: count(run, "job_start") > jobs)
    goes_on = until(lambda: len(read_records(run.provenance)) > starts)
    resumed = read_records(run.provenance)[-1]["resumed_step"]
    stop = read_records(run.events)
    step = next(r["step"] for r in reversed(stop) if r["event"] == "requeue")
    measured: Measured = {"kind": kind, "requeue": ranks - decided, "start": goes_on - ranks}
    measured["stop"] = decided - asked
    measured["lost"] = max(reached, step) - resumed
    if kind != "kill -9":
        measured["durable"] = durable - asked
    print(
        *(
            f"{k} {v if isinstance(v, str | int) else format(v, '.2f')}"
            for k, v in measured.items()
        ),
        flush=True,
    )
    return measured


def count(run: RunDir, event: str) -> int:
    """Records of one kind in the run's events."""
    return sum(record["event"] == event for record in read_records(run.events))


def newest(run: RunDir) -> Path:
    """The newest checkpoint's directory, renamed into place when it was complete."""
    return max(run.checkpoints.glob("step-*"), key=lambda path: path.name) / "manifest.json"


def last_step(run: RunDir) -> int:
    """The last step that the run has recorded."""
    return max((record["step"] for record in read_records(run.metrics)), default=0)


def send_signal(run: RunDir) -> None:
    """What Slurm does before a time limit."""
    slurm.call("scancel", "--batch", "--signal=USR2", job(run))


def job(run: RunDir) -> str:
    """The run's job, as it was recorded at its last start."""
    return next(r["job"] for r in reversed(read_records(run.events)) if r["event"] == "job_start")


def preempt(run: RunDir) -> None:  # noqa: ARG001
    """A job that needs all nodes for a moment."""
    words = ["--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    slurm.call("sbatch", *words)


def kill_rank(run: RunDir) -> None:
    """End rank 1 without a word."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:3] != ["-m", "jobs.train"] or run.name not in words:
            continue
        if process.environ().get("SLURM_PROCID") == "1":
            process.send_signal(signal.SIGKILL)


def undisturbed(config: Path, folder: Path) -> RunDir:
    """The same run from beginning to end, on the same data."""
    for name in ("datasets", "trajectories"):
        shutil.copytree(folder / "interrupted" / name, folder / "plain" / name)
    run = start(config, folder / "plain")
    until(run.result.exists)
    return run


@dataclass(frozen=True)
class Times:
    """What a run took, by its records."""

    held: float
    """seconds that its jobs held their nodes"""
    useful: float
    """seconds that its iterations took"""
    jobs: int
    """allocations that it had"""
    iteration: float
    """seconds of an iteration, median"""

    @property
    def cost(self) -> float:
        """Seconds that were held and made no progress, for each allocation."""
        return (self.held - self.useful) / self.jobs


def times(run: RunDir) -> Times:
    """What a complete run took. Of an iteration that a start lies in, the median counts."""
    events = [
        (event["event"], datetime.fromisoformat(event["time"]).timestamp())
        for event in read_records(run.events)
        if event["event"] in ("job_start", "requeue", "no_requeue")
    ]
    events.append(("end", run.result.stat().st_mtime))
    held = [
        end - at for (event, at), (_, end) in itertools.pairwise(events) if event == "job_start"
    ]
    starts = [start["resumed_step"] for start in read_records(run.provenance)]
    whole, cut, step, seconds = [], 0, 0, 0.0
    for record in read_records(run.metrics):
        if any(step <= resumed < record["step"] for resumed in starts):
            cut += 1
        else:
            whole.append(record["seconds"] - seconds)
        step, seconds = record["step"], record["seconds"]
    iteration = statistics.median(whole)
    return Times(sum(held), sum(whole) + cut * iteration, len(held), iteration)


def report(found: list[Measured], took: Times) -> None:
    """Median and largest of what was measured, by kind, and the share of useful time."""
    for row in found:
        again = float(row["lost"]) * took.iteration / STEPS
        row["cost"] = float(row["stop"]) + float(row["start"]) + again
    heads = ("durable", "requeue", "start", "cost")
    print(f"\n{'':12}{'n':>4}{''.join(f'{head:>16}' for head in heads)}{'steps lost':>14}")
    for kind in KINDS:
        rows = [row for row in found if row["kind"] == kind]
        if rows:
            cells = [spread(rows, key) for key in heads]
            lost = [int(row["lost"]) for row in rows]
            text = "".join(f"{cell:>16}" for cell in cells)
            print(f"{kind:12}{len(rows):4}{text}{statistics.median(lost):7.0f} / {max(lost):4}")
    print("median / largest, seconds")
    print(
        f"held {took.held:.0f} s by {took.jobs} allocations, {took.useful:.0f} s of it useful: "
        f"{took.cost:.1f} s lost for each"
    )
    for key, what in (("durable", "asked to stop, until the checkpoint is durable"),
                      ("start", "ranks' start to the first step")):  # fmt: skip
        if values := [float(row[key]) for row in found if key in row]:
            tell(measured(f"interrupted on Slurm: {what}", values, "s"))
    warned = [float(row["lost"]) for row in found if row["kind"] != "kill -9"]
    if warned:
        tell(measured("interrupted on Slurm with notice: steps lost", [max(warned)], at_most=0))
    hourly = "useful time with one interruption an hour"
    for kind in KINDS:
        if costs := [float(row["cost"]) for row in found if row["kind"] == kind]:
            shares = [useful_share(cost) for cost in costs]
            tell(measured(f"{hourly}, {kind}", shares, "%", at_least=USEFUL))
    by_records = [useful_share(took.cost)]
    tell(measured(f"{hourly}, by the run's records", by_records, "%", at_least=USEFUL))


def useful_share(cost: float) -> float:
    """Percent of the time held that makes progress, where each hour has one interruption."""
    return 100 * (1 - cost / HOUR)


def spread(rows: list[Measured], key: str) -> str:
    """Median and largest of one measurement."""
    values = [float(row[key]) for row in rows if key in row]
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else "–"


def compare(run: RunDir, plain: RunDir) -> None:
    """Whether both ended with the same bits."""
    ours, theirs = (read_json(r.result)["weights_sha256"] for r in (run, plain))
    iterations = [record["iteration"] for record in read_records(run.metrics)]
    once = iterations == list(range(1, len(iterations) + 1))
    starts = len(read_records(run.provenance))
    same = "the same weights, bit for bit" if ours == theirs else "DIFFERENT WEIGHTS"
    print(f"{starts} starts against 1: {same}; each evaluation once: {'yes' if once else 'NO'}")
    if ours != theirs or not once:
        sys.exit(1)


if __name__ == "__main__":
    main()
