"""One run that is tortured: a tiny model on a small simulated data set, by the real command."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from glass_cnn.paths import RunDir
from glass_cnn.study import load_study
from hpc.files import read_json
from hpc.local import command
from hpc.records import read_records
from hpc.stages import Stage, Task
from tests.torture.faults import Clocks, Fault, SmallDisk, StartedRun

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
"""steps of an iteration"""
STUDY: dict[str, Any] = {
    "study": {"name": "torture", "seeds": 1},
    "simulation": {
        "trajectories": 20,
        "particles": 60,
        "equilibration_steps": 100,
        "cooling_steps": 400,
        "frames": 4,
    },
    "data": {"name": "torture"},
    # 3 validation trajectories of 2 × 7 windows: 42 images, of which 41 are counted, so that
    # no number of ranks divides them.
    "render": {"style": "disc", "pixels": 32, "window": 5.0, "windows_per_configuration": 7},
    "model": {"recipe": "modern"},
    "train": {
        "batch_size": 25,
        "batches_per_iteration": STEPS,
        "evaluation_examples": 41,
        "evaluation_batch": 4,
        "augmentation": {"rotations": True, "flips": True},
    },
    "checkpoint": {"every_iterations": 1, "keep": 3, "after_end": "all"},
    "launch": {"ranks": 1, "hang_seconds": 300},
}


class Case:
    """One run that is tortured."""

    def __init__(self, number: int, ranks: int, place: Path, rng: random.Random) -> None:
        self.number, self.ranks, self.place, self.rng = number, ranks, place, rng
        self.run, self.stage = prepare(place, ranks)
        self.disk: SmallDisk | None = None
        self.clocks: Clocks | None = None
        self.suffered: list[Fault] = []
        self.console = place / "console.log"

    def start(self, *settings: str, console: Path | None = None) -> StartedRun:
        """One start of the real command."""
        words = command(self.stage, self.stage.tasks[0])
        words += [word for each in settings for word in ("--set", each)]
        environment = self.clocks.environment if self.clocks else {}
        return StartedRun(words, "jobs.train", self.run, console or self.console, ROOT, environment)

    def said(self) -> int:
        return self.console.stat().st_size if self.console.exists() else 0

    def says(self, since: int) -> str:
        """Its output since a number of bytes."""
        return self.console.read_bytes()[since:].decode(errors="replace")


def prepare(place: Path, ranks: int) -> tuple[RunDir, Stage]:
    """The run under the logs directory `place`, and the stage that starts it."""
    config = place / "study.yaml"
    study = load_study(config)
    run = study.run_dir(place, study.runs[0])
    arguments = (str(config), "--logs", str(place))
    task = Task(run.name, "jobs.train", arguments, run.result, place / "console.log")
    return run, Stage("train", (task,), ranks, 1)


def outcome(run: RunDir) -> dict[str, Any]:
    """Everything of a run that must not depend on its faults."""
    result = read_json(run.result)
    for key in ("wall_seconds", "restarts", "usage"):
        result.pop(key)
    metrics = read_records(run.metrics)
    for record in metrics:
        record.pop("seconds")
    return {"result": result, "metrics": metrics}
