"""Configurations to files of the field, for OVITO and whatever else reads GSD or extended XYZ.

What they write, `formats.read_trajectory` reads back: the same places to float32, the same types,
box and temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from glass_cnn.configuration import Configuration
from glass_cnn.mixture import SIGMA, SPECIES
from hpc.files import storage_errors

Format = Literal["gsd", "xyz"]
FACTS = ("temperature", "energy_per_particle")
DEPTH = 1.0
"""depth of the box in files, σ: two dimensions have none"""


@dataclass(frozen=True)
class LabelledFrame:
    """A configuration and what is known of it; None stands for what is not."""

    configuration: Configuration
    trajectory: int
    temperature: float | None = None
    """ε/k_B"""
    energy: float | None = None
    """potential energy, ε per particle"""
    label: str | None = None
    """liquid or glass, where it is one of the two"""


def write_frames(path: Path, frames: Sequence[LabelledFrame], form: Format) -> None:
    """Write frames as one file, whole or not at all; raises StorageError."""
    aside = path.with_name(f".writing-{path.name}")
    try:
        with storage_errors(path):
            WRITERS[form](aside, frames)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _radii(configuration: Configuration) -> np.ndarray:
    """Half of σ of each particle with its like, float64 [N]."""
    radius = {kind: SIGMA[kind, kind] / 2 for kind in SPECIES}
    return np.array([radius[kind] for kind in configuration.species.tolist()])


def _facts(frame: LabelledFrame) -> dict[str, float]:
    """Numbers that go with a frame, those that are known."""
    values = zip(FACTS, (frame.temperature, frame.energy), strict=True)
    return {name: value for name, value in values if value is not None}


def _write_xyz(path: Path, frames: Sequence[LabelledFrame]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for frame in frames:
            at = frame.configuration
            x, y = at.box.tolist()
            facts = {**_facts(frame), "trajectory": frame.trajectory}
            told = "".join(f" {name}={value}" for name, value in facts.items())
            told += f" label={frame.label}" if frame.label else ""
            lattice = f'Lattice="{x} 0 0 0 {y} 0 0 0 {DEPTH}" pbc="T T F"'
            columns = "Properties=species:S:1:pos:R:3:radius:R:1"
            file.write(f"{len(at)}\n{lattice} {columns}{told}\n")
            places, names = at.wrapped().tolist(), [SPECIES[k] for k in at.species.tolist()]
            for name, (px, py), radius in zip(names, places, _radii(at).tolist(), strict=True):
                file.write(f"{name} {px:.9g} {py:.9g} 0 {radius:g}\n")


def _write_gsd(path: Path, frames: Sequence[LabelledFrame]) -> None:
    import gsd.hoomd

    with gsd.hoomd.open(str(path), "w") as file:
        for step, frame in enumerate(frames):
            at, one = frame.configuration, gsd.hoomd.Frame()
            one.configuration.step = step
            one.configuration.box = [*at.box, DEPTH, 0, 0, 0]
            one.configuration.dimensions = 2
            one.particles.N = len(at)
            one.particles.types = list(SPECIES.values())
            one.particles.typeid = [list(SPECIES).index(kind) for kind in at.species.tolist()]
            one.particles.diameter = 2 * _radii(at)
            places = at.wrapped() - at.box / 2  # in GSD a box reaches from −L/2 to L/2
            one.particles.position = np.column_stack([places, np.zeros(len(at))])
            # What a frame lacks it would inherit from the first one.
            unknown = dict.fromkeys(FACTS, math.nan)
            facts = {**unknown, **_facts(frame), "trajectory": frame.trajectory}
            one.log = {name: np.array([value]) for name, value in facts.items()}
            file.append(one)


WRITERS: dict[Format, Callable[[Path, Sequence[LabelledFrame]], None]] = {
    "gsd": _write_gsd,
    "xyz": _write_xyz,
}
