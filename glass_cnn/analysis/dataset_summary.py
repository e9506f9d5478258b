"""What a data set holds, in numbers: its parts, its physics, and what simple measures tell of it.

What takes long, simple measures and g(r), is measured in `glass_cnn.analysis.baselines`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from glass_cnn.configuration import Configuration
from glass_cnn.paths import DatasetDir
from glass_cnn.settings import CLASSES
from hpc.errors import DataError

ENERGY = "pair energy"
"""name of the measure that is, of a configuration as simulated, a thermometer"""
BRIGHTNESS = "mean brightness"
"""name of the one number that is measured on pictures: how little of them is covered"""
SAMPLES = 3
"""pictures of each class"""
MOST_POINTS = 300
"""configurations of each class whose energies are shown"""


class Part(msgspec.Struct, frozen=True):
    """How many images a part of the split has, and of how many trajectories."""

    name: str
    images: tuple[int, int]
    """liquids, glasses"""
    trajectories: int


class Baseline(msgspec.Struct, frozen=True):
    """How well one measure tells glasses from liquids."""

    name: str
    features: int
    examples: int
    correct: int
    """examples whose out-of-fold score is on the right side"""
    auc: float
    low: float
    high: float
    """interval by resampling trajectories"""


class Measures(msgspec.Struct, frozen=True):
    """What takes long to measure: kept beside the data set."""

    baselines: list[Baseline]
    without: str = ""
    """why there are no baselines"""
    distance: list[float] = []
    """of g(r), σ"""
    correlations: dict[str, list[list[float]]] = {}
    """class -> g(r) of AA, AB, BB, averaged over configurations; empty for pictures"""


class Physics(msgspec.Struct, frozen=True):
    """The configurations of one class; units are those of Lennard-Jones."""

    temperature: list[float]
    """set temperature of each, ε/k_B; empty where that is not known, as in imports"""
    energy: list[float]
    """potential energy of each, ε per particle; empty where that is not known"""
    psi6: list[float]
    """mean |ψ6| of each"""


class Measured(Protocol):
    """What is needed of an open data set here."""

    @property
    def place(self) -> DatasetDir:
        """Its directory."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def record(self) -> dict[str, Any]:
        """With `psi6`: None where there are no configurations."""

    @property
    def images(self) -> np.ndarray:
        """uint8 [images, pixels, pixels, 3]."""

    @property
    def labels(self) -> np.ndarray:
        """0 liquid, 1 glass [images]."""

    @property
    def trajectories(self) -> np.ndarray:
        """The trajectory of each image."""

    def column(self, name: str) -> np.ndarray:
        """A column of the data set's table."""

    def configurations(self, rows: np.ndarray) -> list[Configuration]:
        """Those of these rows."""


@dataclass(frozen=True)
class DatasetSummary:
    """One data set as a report shows it."""

    name: str
    settings: Mapping[str, Any]
    """its sections simulation, data and render"""
    imported: bool
    permuted: bool
    """whether its labels are shuffled over the images on purpose"""
    trajectories: int
    parts: list[Part]
    samples: list[list[np.ndarray]]
    """pictures of each class, uint8 [pixels, pixels, 3]"""
    physics: list[Physics]
    """of each class; empty for pictures"""
    measures: Measures


def summarize(
    dataset: Measured, measures: Measures, parts: Mapping[str, np.ndarray] | None = None
) -> DatasetSummary:
    """Everything about an open data set; `parts` are the images of each part of its split."""
    parts = parts or {"all": np.arange(len(dataset.labels))}
    data = dataset.record["settings"]["data"]
    stored = dataset.column("images/label")
    return DatasetSummary(
        name=dataset.path.name,
        settings=dataset.record["settings"],
        imported=data["source"] == "import",
        permuted=not np.array_equal(stored, dataset.labels),
        trajectories=len(np.unique(dataset.trajectories)),
        parts=[_part(dataset, name, rows) for name, rows in parts.items()],
        samples=_samples(dataset),
        physics=_physics(dataset),
        measures=measures,
    )


def _part(dataset: Measured, name: str, rows: np.ndarray) -> Part:
    liquid, glass = np.bincount(dataset.labels[rows], minlength=2).tolist()
    return Part(name, (liquid, glass), len(np.unique(dataset.trajectories[rows])))


def _samples(dataset: Measured) -> list[list[np.ndarray]]:
    """Pictures of each class from trajectories far apart, always the same."""
    found = []
    for label in range(len(CLASSES)):
        mine = np.flatnonzero(dataset.labels == label)
        chosen = mine[np.linspace(0, len(mine) - 1, min(SAMPLES, len(mine))).astype(int)]
        found.append([np.array(dataset.images[row]) for row in chosen])
    return found


def _physics(dataset: Measured) -> list[Physics]:
    if not dataset.record["psi6"]:
        return []
    labels = dataset.column("configurations/label")
    columns = {
        key: _column(dataset, f"configurations/{name}")
        for key, name in (
            ("temperature", "temperature"), ("energy", "potential_energy"), ("psi6", "psi6"),
        )
    }  # fmt: skip
    classes = []
    for label in range(len(CLASSES)):
        rows = np.flatnonzero(labels == label)[:MOST_POINTS]
        values = {k: [] if c is None else c[rows].tolist() for k, c in columns.items()}
        classes.append(Physics(**values))
    return classes


def _column(dataset: Measured, name: str) -> np.ndarray | None:
    """A column, or None where the data set has none of that name."""
    with contextlib.suppress(DataError):
        return dataset.column(name)
    return None
