"""Runs with saved models that nobody trained, for tests of what is done with models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.paths import RunDir
from glass_cnn.settings import RunSettings
from hpc.checkpoint_writer import Checkpoints
from hpc.config import to_yaml
from tests import tiny


def untrained(root: Path, **sections: Any) -> RunDir:
    """A run's directory under a logs directory: settings of tests.tiny, initial weights as both
    the optimal and the final model."""
    from glass_cnn.training.model import Network

    settings: RunSettings = tiny.settings(**sections)
    run = RunDir(root / "saved" / "runs" / f"base-s{settings.seed}-{settings.run_digest()[:8]}")
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(settings))
    network = Network(settings.recipe, settings.render.pixels, settings.seed)
    weights = {f"model/{name}": np.asarray(v) for name, v in network.parameters.items()}
    with Checkpoints(run.checkpoints, settings.run_digest(), 2, None, 1, print) as checkpoints:
        checkpoints.save_best(tiny.STEPS, weights, {})
        checkpoints.save(tiny.STEPS, weights, {})
    return run
