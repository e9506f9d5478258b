"""Random streams: every purpose has a key of its own, and none ever changes."""

from __future__ import annotations

import itertools

import numpy as np

from glass_cnn.settings import MAX_SEED
from glass_cnn.streams import (
    Stream,
    TrainingStream,
    lammps_seeds,
    permutation,
    philox,
    training_key,
)


def test_no_two_purposes_share_a_key() -> None:
    """Of any seeds, for NumPy's; of any one seed, which is the run's, for TensorFlow's."""
    seeds = (0, 1, 2, 2**16, MAX_SEED - 1, MAX_SEED)
    keys = [
        tuple(philox(stream, seed, index).state["state"]["key"].tolist())
        for stream, seed, index in itertools.product(Stream, seeds, (0, 1, 2, 10**6))
    ]
    assert len(set(keys)) == len(keys) == len(Stream) * len(seeds) * 4
    assert all(seed < 1 << 32 for seed in seeds)  # and so below the number of the purpose
    for seed in seeds:
        first = [training_key(stream, seed) for stream in TrainingStream]
        assert len(set(first)) == len(first)


def test_streams_never_change() -> None:
    """Runs and data sets of another version must be the same ones under this."""
    assert {stream.name: stream.value for stream in Stream} == {
        "WINDOWS": 1,
        "SPLIT": 2,
        "EXAMPLES": 3,
        "LABELS": 4,
        "ORDER": 5,
        "AUGMENTATION": 6,
        "ROUNDING": 7,
        "BATCHES": 8,
    }
    assert [training_key(stream, 5) for stream in TrainingStream] == [5, 0x44524F55]
    assert permutation(philox(Stream.SPLIT, 7, 2), 8).tolist() == [5, 3, 1, 6, 4, 7, 2, 0]
    assert lammps_seeds(1, 0).tolist() == [343309921, 13915385, 104176966]


def test_seeds_of_lammps_never_meet() -> None:
    seeds = [tuple(lammps_seeds(s, i).tolist()) for s in range(40) for i in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert min(map(min, seeds)) >= 1
    assert max(map(max, seeds)) <= 900_000_000  # LAMMPS' largest
    assert lammps_seeds(2**31 - 1, 10**6).dtype == np.int32
