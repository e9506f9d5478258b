"""Which images of a data set are of trajectories that a run has not been trained on."""

from __future__ import annotations

import numpy as np

from glass_cnn.data.dataset import Dataset, Parts
from hpc.errors import DataError
from hpc.words import plural


def unseen(data: Dataset, own: Dataset, parts: Parts) -> tuple[np.ndarray, str]:
    """Indices of the images of `data` that a run may be tested on, and what was left out.

    Left out are trajectories of the training and validation parts of its own data `own`: the ones
    it learned from, the others its optimal model was chosen by. Simulated trajectories are told
    by their LAMMPS seeds, whatever they were cooled to; imported ones by their number in a source.
    Raises DataError where nothing is left.
    """
    known = _keys(own)[np.concatenate([parts.train, parts.validation])]
    keys = _keys(data)
    left = np.flatnonzero(~np.isin(keys, known))
    if not len(left):
        raise DataError(
            f"{data.path}: the run was trained, or its optimal model chosen, on all "
            f"{plural(len(np.unique(keys)), 'trajectory')} of it: nothing is left to test it on."
        )
    gone = len(np.unique(keys)) - len(np.unique(keys[left]))
    if not gone:
        return left, f"all {plural(len(np.unique(keys)), 'trajectory')} of it are new to the run"
    return left, f"left out: {plural(gone, 'trajectory')} of it that the run has learned from"


def _keys(data: Dataset) -> np.ndarray:
    """A text for each image that is the same for images of one trajectory, in any data set."""
    try:
        seeds = data.column("configurations/seeds")[data.column("images/configuration")]
    except DataError:  # imported
        source = data.record.get("source")
        return np.array([f"{source} {number}" for number in data.trajectories.tolist()])
    return np.array([" ".join(map(str, row)) for row in seeds.tolist()])
