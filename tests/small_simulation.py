"""Simulations of a dozen milliseconds for each trajectory, and how they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.data.trajectories import COLUMNS, Trajectory
from glass_cnn.settings import RunSettings, build_run
from hpc.config import to_yaml

SMALL: dict[str, Any] = {
    "particles": 64,
    "equilibration_steps": 200,
    "cooling_steps": 400,
    "frames": 10,
}
# A tenth of a second each: long enough to be interrupted.
LONGER: dict[str, Any] = {"trajectories": 40, "particles": 100, "equilibration_steps": 8000}


def run_settings(form: str = "inherent", **simulation: Any) -> RunSettings:
    """Settings of a small simulation."""
    tree = {"simulation": {**SMALL, "trajectories": 7, **simulation}, "data": {"form": form}}
    return build_run(tree, "test")


def study_file(path: Path, settings: RunSettings) -> Path:
    """A study of one point with these settings."""
    tree: dict[str, Any] = {"study": {"name": "small", "seeds": 1}}
    tree["simulation"] = settings.simulation.model_dump()
    tree["data"] = {"form": settings.data.form}
    path.write_text(to_yaml(tree))
    return path


def same(a: Trajectory, b: Trajectory) -> bool:
    """Whether two trajectories agree in every bit."""
    pairs = ((getattr(a, name), getattr(b, name)) for name in COLUMNS)
    return all(np.array_equal(x, y) for x, y in pairs)


def all_same(a: list[Trajectory], b: list[Trajectory]) -> bool:
    """Whether two lists of them do."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
