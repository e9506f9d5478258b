"""Trajectory files that MDAnalysis reads: LAMMPS data and DCD, GROMACS, AMBER, PDB and others.

An optional part of the environment: who reads such a file is told how to install it. Numbers are
taken as the file writes them, lengths in σ (of a GROMACS file, 1 nm is σ).

A file of coordinates alone (`7.dcd`) says nothing of its particles; that stands in a file of the
same name beside it (`7.data`, `7.gro`), which then is no configuration of its own.
"""

from __future__ import annotations

import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.data.text_formats import RawFrame, tilted
from hpc.errors import ConfigError, DataError

WHOLE = (
    ".arc", ".data", ".dms", ".ent", ".gro", ".mmtf", ".mol2", ".pdb", ".pdbqt", ".pqr",
    ".txyz", ".xpdb",
)  # fmt: skip
"""endings of files that say what their particles are, and where"""
PARTICLES = (".data", ".gro", ".pdb", ".psf", ".tpr", ".prmtop", ".parm7", ".dms")
"""endings of files that say what the particles of one beside them are, the first that is there"""
COORDINATES = (".dcd", ".h5md", ".mdcrd", ".nc", ".ncdf", ".tng", ".trc", ".trr", ".trz", ".xtc")
"""endings of files of coordinates alone"""
ENDINGS = (*WHOLE, *COORDINATES)
INSTALL = ".venv/bin/python -m pip install --require-hashes -r requirements/extras/mdanalysis.txt"
STYLES = {
    "atomic": "id type x y z",
    "charge": "id type charge x y z",
    "bond": "id resid type x y z",
    "angle": "id resid type x y z",
    "molecular": "id resid type x y z",
    "full": "id resid type charge x y z",
}
"""columns of LAMMPS' section Atoms by the atom style that stands behind its title"""


def describes_another(path: Path) -> bool:
    """Whether a file says what the particles of coordinates of the same name beside it are."""
    return path.suffix.lower() in PARTICLES and any(
        path.with_suffix(ending).exists() for ending in COORDINATES
    )


def read(path: Path) -> Iterator[RawFrame]:
    """The frames of a file; raises ConfigError where MDAnalysis is not installed, DataError."""
    universe = _library(path).Universe
    particles = _particles(path)
    options: dict[str, Any] = {"convert_units": False, "to_guess": ()}
    if particles.suffix.lower() == ".data":
        options |= _atom_style(particles)
    # Indices of frames are written beside what is read: of links, in a place that goes away.
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        links = [Path(scratch) / each.name for each in dict.fromkeys((particles, path))]
        for link in links:
            link.symlink_to(path.with_name(link.name).resolve())
        try:
            with _thrown_away_unheard():
                whole = universe(*map(str, links), **options)
            for step in whole.trajectory:
                yield _frame(path, whole.atoms, step)
        except (DataError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # its readers raise nearly everything
            said = " ".join(str(error).replace(f"{scratch}/", "").split())
            raise DataError(f"{path}: cannot be read by MDAnalysis: {said:.300}") from None


@contextmanager
def _thrown_away_unheard() -> Iterator[None]:
    """A reader that failed half made goes here, without a word of its own on the error stream.

    It cannot close what it has not opened, and Python prints so when it is thrown away.
    """
    said, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they alone still hold it
        raise
    finally:
        sys.unraisablehook = said


def _library(path: Path) -> Any:
    try:
        import MDAnalysis
    except ImportError:
        raise ConfigError(
            f"{path}: files *{path.suffix.lower()} are read by MDAnalysis, which is an extra: "
            f"{INSTALL}; or write it as a LAMMPS dump, extended XYZ or GSD."
        ) from None
    return MDAnalysis


def _particles(path: Path) -> Path:
    """The file that says what the particles are."""
    if path.suffix.lower() not in COORDINATES:
        return path
    for ending in PARTICLES:
        if (beside := path.with_suffix(ending)).exists():
            return beside
    raise DataError(
        f"{path}: holds coordinates alone; put the file that says what its particles are beside it "
        f"under the same name: {path.stem} with one of the endings {', '.join(PARTICLES)}."
    )


def _atom_style(path: Path) -> dict[str, str]:
    """How LAMMPS' data file names the columns of its section Atoms: for MDAnalysis, in its words.

    Without a name, five columns (eight with images) are those of the style atomic; what the others
    are MDAnalysis tells by their number.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        title = next((line for line in lines if re.match(r"\s*Atoms\b", line)), "")
        first = next((line.split("#")[0].split() for line in lines if line.strip()), [])
    style = title.partition("#")[2].strip()
    if not style:
        return {"atom_style": STYLES["atomic"]} if len(first) in (5, 8) else {}
    if style not in STYLES:
        raise DataError(
            f"{path}: has the atom style {style!r:.40}; known are {', '.join(STYLES)}. LAMMPS "
            "writes a dump or DCD of any style."
        )
    return {"atom_style": STYLES[style]}


def _frame(path: Path, atoms: Any, step: Any) -> RawFrame:
    """One frame: places and box as the file has them, what particles are called, their types."""
    box = step.dimensions
    if box is None or not np.any(box[:3]):
        raise DataError(
            f"{path}, frame {step.frame}: says nothing of a box; only periodic boxes can be drawn."
        )
    if not np.allclose(box[3:], 90, atol=1e-3):
        raise tilted(path)
    called = [getattr(atoms, name, None) for name in ("names", "types")]
    species = tuple(np.asarray(column).astype(str) for column in called if column is not None)
    if not species:
        raise DataError(f"{path}: says nothing of what its particles are.")
    return RawFrame(np.array(step.positions, float), species, np.array(box[:3], float), True)
