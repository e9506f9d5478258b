"""The register of random streams: everything that is drawn for a data set or a run, and its key.

Each is a pure function of a seed and of what is counted (the trajectory, the epoch, the step …),
so it is the same on any number of ranks and after any restart. No two purposes share a key:

- `Stream`: NumPy's Philox (Salmon et al. 2011), whose numbers NumPy promises never to change, with
  the key (seed + purpose · 2³², index). Seeds have 31 bits, so the purposes stay apart.
- `lammps_seeds`: a hash (NumPy's SeedSequence) of the simulation's seed and the trajectory.
- `TrainingStream`: TensorFlow's stateless Philox with the key (seed XOR purpose, number): number is
  the layer of the initial weights, the step of the dropout masks. One run's never meet, because
  its first words differ.

What statistics resample when results are analysed is no part of any result of a run; each has a
generator there, with a fixed seed.
"""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What random numbers of a data set and its batches are for; `index` and `counter` count what
    the comment says."""

    WINDOWS = 1  # render.seed: places of the windows, two words an image
    SPLIT = 2  # split.seed: trajectories of each kind over the parts; index: the kind
    EXAMPLES = 3  # split.seed: order of the images within a part; index: the part
    LABELS = 4  # split.seed: where labels go when they are permuted
    ORDER = 5  # seed: order of the samples; index: the epoch
    AUGMENTATION = 6  # seed: symmetries; counter: the sample
    ROUNDING = 7  # seed: the weight that a copy moves; index: the copy
    BATCHES = 8  # seed: samples of batches that are drawn one by one; index: the shuffle


class TrainingStream(enum.IntEnum):
    """What random numbers of the network are for; all come from the run's seed."""

    WEIGHTS = 0
    DROPOUT = 0x44524F50  # "DROP"


def philox(stream: Stream, seed: int, index: int = 0, counter: int = 0) -> np.random.Philox:
    """Bit generator number `index` of a stream, its `counter` at a block of four 64-bit words."""
    return np.random.Philox(
        key=np.array([seed + (int(stream) << 32), index], dtype=np.uint64),
        counter=np.array([counter, 0, 0, 0], dtype=np.uint64),
    )


def permutation(bits: np.random.Philox, count: int) -> np.ndarray:
    """Random permutation of 0 … count - 1, int64."""
    return np.argsort(bits.random_raw(count), kind="stable")


def training_key(stream: TrainingStream, seed: int) -> int:
    """First word of the key of a stream of TensorFlow's; the second is the layer or the step."""
    return seed ^ stream


def lammps_seeds(seed: int, trajectory: int) -> np.ndarray:
    """LAMMPS' seeds of places, types and velocities, int32 [3], each in 1 … 9·10⁸.

    A hash of the pair, so that trajectories of neighbouring seeds have nothing in common: its 89
    bits leave no chance of a collision.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(trajectory,))
    words = sequence.generate_state(3, np.uint64)
    return (1 + words % np.uint64(900_000_000)).astype(np.int32)
