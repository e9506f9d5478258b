"""A data set of 720 images that takes a second to make, for tests of making and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glass_cnn.data import simulate, store
from glass_cnn.settings import RunSettings, build_run
from hpc.world import world

TREE: dict[str, Any] = {
    "simulation": {
        "trajectories": 9,
        "particles": 60,
        "equilibration_steps": 100,
        "cooling_steps": 400,
        "frames": 4,
    },
    "data": {"name": "tiny"},
    "render": {"pixels": 24, "window": 5.0, "windows_per_configuration": 40},
    "launch": {"ranks": 1},
}


def with_changes(**sections: Any) -> RunSettings:
    """Its settings with other sections."""
    return build_run({**TREE, **sections}, "test")


SETTINGS = with_changes()


def make(root: Path) -> Path:
    """Simulate and render it under the logs directory `root`."""
    simulate.run(SETTINGS, root, world())
    store.build(SETTINGS, root, world())
    return root
