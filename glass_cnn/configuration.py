"""A configuration: positions, species and box of all particles at one instant, and its order.

The one form in which rooms hand particles to each other. Whatever makes one has its shapes, types
and numbers checked, so that no later room computes a wrong number from them. Lengths are in σ_AA.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glass_cnn.mixture import SPECIES
from hpc.errors import DataError

DIMENSIONS = 2
NEIGHBOURS = 6
"""nearest neighbours over which the hexatic order is measured"""


@dataclass(frozen=True, eq=False)
class Configuration:
    """All particles at one instant in a periodic box at right angles; checked when it is made.

    Raises DataError, which says what was expected and what was found, but not where: whoever read
    the file adds its name.
    """

    positions: np.ndarray
    """float32 or float64 [N, 2], σ, from the box's lower left corner; need not be wrapped"""
    species: np.ndarray
    """uint8 [N], TYPE_A or TYPE_B"""
    box: np.ndarray
    """float64 [2], sides in x and y, σ"""

    def __post_init__(self) -> None:
        positions = _numbers("positions", self.positions)
        _check_shape("positions", positions, (None, DIMENSIONS))
        species = _numbers("species", self.species, whole=True)
        _check_shape("species", species, (len(positions),))
        box = _numbers("box", self.box).astype(np.float64)
        _check_shape("box", box, (DIMENSIONS,))
        _check_finite("positions", positions)
        if not (np.isfinite(box).all() and box.min() > 0):
            raise DataError(f"box: expected sides greater than 0, in σ; found {box.tolist()}.")
        if strange := sorted(set(np.unique(species).tolist()) - set(SPECIES)):
            known = " and ".join(f"{number} ({name})" for number, name in SPECIES.items())
            raise DataError(f"species: expected {known}; found {strange[:6]}.")
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "species", species.astype(np.uint8, copy=False))
        object.__setattr__(self, "box", box)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def density(self) -> float:
        """Particles per area, σ⁻²."""
        return float(len(self) / self.box.prod())

    def wrapped(self) -> NDArray[np.float32]:
        """Positions as float32 [N, 2] in [0, box), also after rounding."""
        wrapped = (self.positions % self.box).astype(np.float32)
        wrapped[wrapped >= self.box.astype(np.float32)] = 0
        return wrapped


def _numbers(name: str, values: ArrayLike, whole: bool = False) -> np.ndarray:
    """`values` as an array of numbers; whole ones become floats unless `whole` ones are needed."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        raise DataError(f"{name}: expected an array of numbers; found rows that differ.") from None
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        wanted = "whole numbers" if whole else "numbers"
        raise DataError(f"{name}: expected {wanted}; found {array.dtype}.")
    return array if whole or array.dtype.kind == "f" else array.astype(np.float64)


def _check_shape(name: str, array: np.ndarray, expected: tuple[int | None, ...]) -> None:
    """Raise DataError with both shapes unless they agree; None stands for any size but 0."""
    fits = array.ndim == len(expected) and all(
        n == e if e is not None else n > 0 for n, e in zip(array.shape, expected, strict=True)
    )
    if not fits:
        shape = ", ".join("N" if e is None else str(e) for e in expected)
        raise DataError(f"{name}: expected shape [{shape}]; found {list(array.shape)}.")


def _check_finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise DataError(
            f"{name}: expected finite numbers, in σ; particle {row} (from 0) is at "
            f"{array[row].tolist()}."
        )


def hexatic_order(configuration: Configuration) -> float:
    """Mean over particles of |ψ6| = |Σ exp(6iθ)| / 6 over the six nearest neighbours.

    Not over Voronoi neighbours: freud's Voronoi cells crash in a process that holds LAMMPS, which
    brings another voro++. Raises DataError for fewer particles than one and its neighbours.
    """
    if len(configuration) <= NEIGHBOURS:
        raise DataError(
            f"positions: expected at least {NEIGHBOURS + 1} particles, one and the {NEIGHBOURS} "
            f"neighbours over which its order is measured; found {len(configuration)}."
        )
    freud = _freud()
    periodic = freud.box.Box(*configuration.box, is2D=True)
    points = periodic.wrap(np.pad(configuration.positions, ((0, 0), (0, 1))))
    with freud.parallel.NumThreads(1):
        hexatic = freud.order.Hexatic(k=6)
        hexatic.compute((periodic, points), neighbors={"num_neighbors": NEIGHBOURS})
    return float(np.abs(hexatic.particle_order).mean())


@functools.cache
def _freud() -> Any:
    """freud, loaded when it is used, and without Matplotlib: that takes longer than all the rest.

    Every rank of a simulation would pay for plots that nobody makes. Who loads Matplotlib later
    gets it.
    """
    plots = "matplotlib" in sys.modules
    if not plots:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]  # as where it is not installed
    try:
        import freud
    finally:
        if not plots:
            del sys.modules["matplotlib"]
    return freud
