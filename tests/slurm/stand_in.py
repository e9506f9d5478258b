"""A run in small: MPI steps, evaluations, checkpoints, signals, exit codes.

It takes seconds where training takes minutes. Its "weights" are a hash chain over sums of all
ranks' shares of a global batch, so they are the same on any number of ranks if, and only if, no
step was lost, repeated or done differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.paths import RunDir
from hpc.errors import EXIT_AGAIN
from hpc.files import make_directory, read_json, write_json
from hpc.preempt import StopFlag
from hpc.records import append_record, keep_records

BATCH = 80
SLICES = 10
"""parts of an evaluation; a wish to stop is looked for between them"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--step-seconds", type=float, default=0.1)
    parser.add_argument("--steps-per-evaluation", type=int, default=10)
    parser.add_argument("--evaluation-seconds", type=float, default=0.1)
    parser.add_argument("--start-seconds", type=float, default=0.0)
    parser.add_argument("--checkpoint-every", type=int, default=5)
    parser.add_argument("--exit", type=int, help="exit at once with this code, on all ranks")
    parser.add_argument("--stuck", action="store_true", help="make no progress")
    return parser.parse_args(argv)


class AskedToStop(Exception):
    """A wish to stop that all ranks agree on."""


class StandIn:
    """One run on one rank."""

    def __init__(self, args: argparse.Namespace, stop: StopFlag) -> None:
        from hpc.world import world

        self.args, self.stop, self.world = args, stop, world()
        self.run = RunDir(args.run)
        self.state: dict[str, Any] = {"step": 0, "evaluated": 0, "digest": ""}

    def say(self, what: str) -> None:
        """Tell where the run is, for tests that interrupt it there."""
        if self.world.is_root:
            print(f"{what} at step {self.state['step']}", flush=True)

    def pause(self, duration: float) -> None:
        time.sleep(duration)
        if self.stop.agreed(self.world):
            raise AskedToStop

    def begin(self) -> None:
        self.say("starting up")
        for _ in range(SLICES):
            self.pause(self.args.start_seconds / SLICES)
        cards = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "LAUNCH_GPUS")]
        cards = self.world.comm.allgather(cards)
        saved = sorted(self.run.checkpoints.glob("step-*"))
        if saved:
            self.state = self.world.broadcast(read_json(saved[-1] / "state.json"))
        if self.world.is_root:
            make_directory(self.run.checkpoints)
            keep_records(self.run.metrics, lambda r: r["iteration"] <= self.state["evaluated"])
            start = {"time": time.time(), "resumed_step": self.state["step"]}
            append_record(self.run.provenance, start | {"ranks": self.world.size, "gpus": cards})

    def step(self) -> None:
        share = np.arange(BATCH)[self.world.share(BATCH)]
        batch_sum = self.world.sum(np.array([int((share * (self.state["step"] + 1)).sum())]))
        text = f"{self.state['digest']}{batch_sum[0]}"
        time.sleep(self.args.step_seconds)
        if not self.args.stuck:
            self.state["digest"] = hashlib.sha256(text.encode()).hexdigest()
            self.state["step"] += 1

    def evaluate(self) -> None:
        self.say("evaluating")
        for _ in range(SLICES):
            self.pause(self.args.evaluation_seconds / SLICES)
        self.state["evaluated"] += 1
        if self.world.is_root:
            record = {"iteration": self.state["evaluated"], "step": self.state["step"]}
            append_record(self.run.metrics, record | {"validation_accuracy": 0.5, "seconds": 1.0})

    def save(self) -> None:
        if self.world.is_root:
            aside = make_directory(self.run.checkpoints / f".tmp-{os.getpid()}")
            write_json(aside / "state.json", self.state)
            final = self.run.checkpoints / f"step-{self.state['step']:09d}"
            if final.exists():
                (final / "state.json").unlink()
                final.rmdir()
            aside.rename(final)
        self.world.barrier()

    def main(self) -> int:
        if self.args.exit is not None:
            return self.args.exit
        try:
            self.begin()
            while self.state["evaluated"] * self.args.steps_per_evaluation < self.args.steps:
                if (
                    self.state["step"]
                    < (self.state["evaluated"] + 1) * self.args.steps_per_evaluation
                ):
                    self.step()
                    if self.state["step"] % self.args.checkpoint_every == 0:
                        self.save()
                    self.pause(0)
                else:
                    self.evaluate()
        except AskedToStop:
            if self.run.provenance.exists():
                self.save()
            self.say("stopped")
            return EXIT_AGAIN
        if self.world.is_root:
            starts = len(self.run.provenance.read_text().splitlines())
            result = {
                "seed": 0,
                "steps": self.state["step"],
                "weights_sha256": self.state["digest"],
            }
            write_json(self.run.result, result | {"restarts": starts - 1})
        return 0


def collect(folder: Path) -> int:
    """The aggregation in small: the digests of all runs that are complete."""
    results = sorted((folder / "runs").glob("*/result.json"))
    digests = {path.parent.name: json.loads(path.read_text())["weights_sha256"] for path in results}
    write_json(folder / "report.html", digests)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "collect":
        sys.exit(collect(Path(sys.argv[2])))
    flag = StopFlag().install()
    sys.exit(StandIn(parse(sys.argv[1:]), flag).main())
