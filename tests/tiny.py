"""A real data set that is made in a second, and logs directories that share it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from glass_cnn.data import simulate, store
from glass_cnn.paths import RunDir
from glass_cnn.settings import RunSettings, build_run
from hpc.config import overlay
from hpc.files import read_json
from hpc.records import read_records
from hpc.tensorfile import Snapshot, Tensors, lay_out
from hpc.world import world
from tests.torture.case import STUDY

merge = functools.partial(overlay, RunSettings)

DATA = {key: STUDY[key] for key in ("simulation", "render")} | {"data": {"name": "tiny"}}
"""the data of `make torture`, under another name"""
TRAIN: dict[str, Any] = {
    "model": STUDY["model"],
    "train": {
        **STUDY["train"],
        "iterations": 4,
        "batches_per_iteration": 3,
        "evaluation_batch": 10,
        "learning_rate": {
            "kind": "threshold",
            "initial": 1e-3,
            "levels": [{"above": 0.5, "rate": 5e-4}],
        },
    },
    "checkpoint": {"every_iterations": 2},
    "launch": {"ranks": 1},
}
STEPS = 12
"""steps of a whole run"""


def tree(name: str = "tiny", seeds: Any = 1, **sections: Any) -> dict[str, Any]:
    """A study on the tiny data; `sections` are laid over its settings."""
    return merge(merge(DATA, TRAIN), {"study": {"name": name, "seeds": seeds}, **sections})


def settings(**sections: Any) -> RunSettings:
    """Settings of its first run."""
    plain = merge(merge(DATA, TRAIN), sections)
    return build_run(plain, "tiny")


def write_study(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a study file."""
    path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


def make(root: Path) -> Path:
    """Simulate and render the data set under the logs directory `root`."""
    simulate.run(settings(), root, world())
    store.build(settings(), root, world())
    return root


def share(source: Path, root: Path) -> Path:
    """A new logs directory `root` with the data of another."""
    root.mkdir(parents=True)
    for name in ("datasets", "trajectories"):
        (root / name).symlink_to(source / name)
    return root


def only_run(root: Path, study: str = "tiny") -> RunDir:
    """The one run of a study."""
    (path,) = (root / study / "runs").iterdir()
    return RunDir(path)


def outcome(run: RunDir) -> dict[str, Any]:
    """What must be the same however often a run was interrupted: everything but times."""
    result = read_json(run.result)
    for key in ("wall_seconds", "restarts", "usage"):
        result.pop(key)
    result["data"].pop("created")
    metrics = read_records(run.metrics)
    for record in metrics:
        record.pop("seconds")
    return {"result": result, "metrics": metrics}


def fingerprint(directory: Path) -> dict[str, str]:
    """Digest of every file below a directory, with its time of change."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        + f" {path.stat().st_mtime_ns}"
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def starts(run: RunDir) -> list[int]:
    """Step that each start began at."""
    return [record["resumed_step"] for record in read_records(run.provenance)]


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    """A copy of each."""
    snapshot = Snapshot(lay_out(tensors))
    snapshot.fill(tensors)
    return {name: tensor.copy() for name, tensor in snapshot.tensors.items()}


def load_answer(path: Path) -> Any:
    """What a driver wrote on its first rank."""
    return json.loads(path.read_text())
