"""Directories of checkpoints for tests, and processes that may die in them."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpc.checkpoint import Checkpoint
from hpc.checkpoint_names import MANIFEST, saved
from hpc.checkpoint_writer import Checkpoints
from hpc.records import as_dict

IDENTITY = "0123456789abcdef" * 4


def state(step: int, size: int = 20) -> dict[str, np.ndarray]:
    """Arrays that tell the step they belong to."""
    weights = np.arange(size, dtype=np.float32) + step
    return {"model/w": weights, "adam/m": weights * 2, "count": np.asarray(step, np.int64)}


def meta(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 0.1 * step, "rate": 1e-5, "note": f"after {step}"}


def belongs(found: Checkpoint, size: int = 20) -> bool:
    """Whether a checkpoint is whole, and all its parts are of its own step."""
    wanted = state(found.step, size)
    return found.meta == meta(found.step) and all(
        np.array_equal(found.tensors[name], tensor) for name, tensor in wanted.items()
    )


class Directory:
    """A directory of checkpoints with the events it reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []

    def open(self, **changes: Any) -> Checkpoints:
        defaults: dict[str, Any] = {"keep": 3, "milestone": None, "ranks": 2, "patience": 0.0}
        defaults |= {
            "on_event": lambda event: self.events.append(as_dict(event)),
            "identity": IDENTITY,
        }
        return Checkpoints(self.path, **(defaults | changes))

    def write(self, *steps: int, **changes: Any) -> None:
        with self.open(**changes) as checkpoints:
            for step in steps:
                checkpoints.save(step, state(step), meta(step))

    def steps(self) -> list[int]:
        return [json.loads((p / MANIFEST).read_text())["step"] for p in self.kept()]

    @staticmethod
    def save_with_best(checkpoints: Checkpoints, step: int) -> None:
        """A checkpoint at a step that was the best until then."""
        checkpoints.save_best(step, state(step), meta(step))
        checkpoints.save(step, state(step), meta(step))

    def best_steps(self) -> list[int]:
        """Steps of the best models on disk; asserts that there is nothing but them."""
        names = sorted(p.name for p in (self.path / "best").iterdir())
        steps = [int(name[9:18]) for name in names if name.startswith("manifest-")]
        assert len(names) == 2 * len(steps) + 1
        return steps

    def kept(self) -> list[Path]:
        return [entry.path for entry in saved(self.path)]

    def latest(self) -> Checkpoint:
        with self.open() as checkpoints:
            found = checkpoints.latest()
        assert found is not None
        return found

    def reasons(self) -> list[str]:
        return [e["reason"] for e in self.events if e["event"] == "checkpoint_refused"]


def damage(path: Path, where: int, bit: int = 0) -> None:
    """Flip a bit of a file."""
    with path.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1 << bit]))


def fork(action: Callable[[], None]) -> int:
    """Run `action` in a child; exit status 1 if it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of others do not matter here
        pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return pid


def wait(pid: int) -> int:
    """Exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
