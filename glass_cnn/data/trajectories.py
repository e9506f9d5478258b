"""The stored trajectories: their columns, the parts of an unfinished file, and the file itself.

Units are Lennard-Jones units of AA: lengths in σ, energies in ε, times in τ, k_B = 1.
"""

from __future__ import annotations

import io
import typing
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import h5py
import numpy as np

from glass_cnn.configuration import Configuration
from glass_cnn.paths import TrajectoriesDir, trajectories_dir
from glass_cnn.settings import RunSettings
from hpc.errors import DataError
from hpc.files import write_atomic
from hpc.words import command

FORMAT = "glass-cnn trajectories 1"
UNITS = "Lennard-Jones units of AA: lengths σ, energies ε, times τ, temperatures ε/k_B"
BATCH = 256  # trajectories in memory at a time while merging
CHUNK_BYTES = 256 * 1024  # read or written at a time


class Column(NamedTuple):
    """How a field of a trajectory is stored."""

    dtype: str
    axes: str
    """F(rames), N (particles), D(imensions), S(eeds)"""
    meaning: str


@dataclass(frozen=True)
class Trajectory:
    """One cooling: its kept frames, each with the energies and order measured there."""

    index: Annotated[int, Column("i4", "", "number of the trajectory, from 0")]
    seeds: Annotated[np.ndarray, Column("i4", "S", "LAMMPS seeds of places, types, velocities")]
    style: Annotated[str, Column("S8", "", "LAMMPS style that computed it, in double precision")]
    lammps_version: Annotated[int, Column("i4", "", "LAMMPS version, yyyymmdd")]
    box: Annotated[float, Column("f8", "", "side of the periodic square box, σ")]
    cooling_rate: Annotated[float, Column("f8", "", "fall of the set temperature, ε/k_B per τ")]
    types: Annotated[np.ndarray, Column("u1", "N", "type of each particle: 1 is A, 2 is B")]
    frames: Annotated[np.ndarray, Column("i4", "F", "index of each kept frame along the ramp")]
    temperature: Annotated[np.ndarray, Column("f8", "F", "set temperature, ε/k_B")]
    kinetic_temperature: Annotated[np.ndarray, Column("f8", "F", "measured temperature, ε/k_B")]
    potential_energy: Annotated[np.ndarray, Column("f8", "F", "potential energy, ε/particle")]
    inherent_energy: Annotated[np.ndarray, Column("f8", "F", "inherent structure, ε/particle")]
    inherent_force: Annotated[np.ndarray, Column("f8", "F", "largest force component in it, ε/σ")]
    psi6: Annotated[np.ndarray, Column("f8", "F", "mean |ψ6|, 6 nearest, as simulated")]
    inherent_psi6: Annotated[np.ndarray, Column("f8", "F", "mean |ψ6| of the inherent structure")]
    positions: Annotated[np.ndarray, Column("f4", "FND", "as simulated, in [0, box), σ")]
    inherent_positions: Annotated[
        np.ndarray | None, Column("f4", "FND", "inherent structure, in [0, box), σ")
    ]

    def configuration(self, row: int, inherent: bool = False) -> Configuration:
        """Kept frame number `row`, as simulated or its inherent structure.

        Raises DataError when that is none, or was not kept.
        """
        positions = self.inherent_positions if inherent else self.positions
        if positions is None:
            raise DataError(f"trajectory {self.index}: its inherent structures were not kept.")
        try:
            return Configuration(positions[row], self.types, np.array([self.box, self.box]))
        except DataError as error:
            raise DataError(f"trajectory {self.index}, kept frame {row}: {error}") from None


COLUMNS: dict[str, Column] = {
    name: hint.__metadata__[0]
    for name, hint in typing.get_type_hints(Trajectory, include_extras=True).items()
}
OPTIONAL = "inherent_positions"  # stored only where the settings ask for inherent structures

Columns = dict[str, np.ndarray]


def write_part(path: Path, trajectory: Trajectory) -> None:
    """Store one trajectory atomically as a NumPy archive, whose checksums tell damage.

    Raises StorageError.
    """
    values = {name: getattr(trajectory, name) for name in COLUMNS}
    columns = {n: np.asarray(v, COLUMNS[n].dtype) for n, v in values.items() if v is not None}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns)
    write_atomic(path, buffer.getvalue())


def read_part(path: Path, index: int) -> Columns:
    """The columns of one stored trajectory; raises DataError when the part is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        _check(columns, "")
        if columns["index"] != index:
            raise ValueError(f"it holds trajectory {columns['index']}")
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is damaged ({error}).") from None
    return columns


def merge(parts: Sequence[Path], path: Path, settings: str) -> None:
    """Store the trajectories 0, 1, 2, … of `parts` as one HDF5 file, atomically.

    `settings` is the YAML text that says what made them. The file is made in memory, so that a
    full disk is an error of one plain write. Raises DataError for a damaged part, StorageError.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update({"format": FORMAT, "units": UNITS, "settings": settings})
        for first in range(0, len(parts), BATCH):
            batch = [read_part(p, i) for i, p in enumerate(parts[first : first + BATCH], first)]
            for name in batch[0]:
                rows = np.stack([columns[name] for columns in batch])
                dataset = file[name] if first else _create(file, name, rows, len(parts))
                dataset[first : first + len(rows)] = rows
        file.flush()
        image = file.id.get_file_image()
    write_atomic(path, image)


def _create(file: h5py.File, name: str, rows: np.ndarray, count: int) -> h5py.Dataset:
    """An empty column. Not compressed, which saves a tenth of the random digits; with checksums."""
    shape, bytes_each = rows.shape[1:], max(1, rows[0].nbytes)
    chunk = max(1, min(count, CHUNK_BYTES // bytes_each))
    dataset = file.create_dataset(
        name, (count, *shape), rows.dtype, chunks=(chunk, *shape), fletcher32=True
    )
    dataset.attrs["meaning"] = COLUMNS[name].meaning
    return dataset


def directory(settings: RunSettings, root: Path) -> TrajectoriesDir:
    """Where the trajectories of these settings lie, whether they exist or not."""
    return trajectories_dir(root, settings.data.name, settings.simulation_digest())


def load(place: TrajectoriesDir) -> list[Trajectory]:
    """All trajectories of a directory, by index.

    Raises DataError when it is missing, damaged or something else.
    """
    path = place.file
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            if file.attrs.get("format") != FORMAT:
                raise DataError(f"{path}: is no file of trajectories ('{FORMAT}').")
            columns = {name: file[name][:] for name in COLUMNS if name in file}
        _check(columns, "T")
    except FileNotFoundError:
        raise DataError(
            f"{path}: there are no such trajectories. Simulate them: "
            f"make submit CONFIG=<study file>, or {command('simulate')} <study file>"
        ) from None
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: is damaged: {error}. Remove {place.path} and simulate again."
        ) from None
    return [_row(columns, i) for i in range(len(columns["index"]))]


def _check(columns: Columns, leading: str) -> None:
    """Raise ValueError unless all columns are there with types and sizes that fit each other."""
    sizes = {"D": 2, "S": 3}
    for name, column in COLUMNS.items():
        if name not in columns:
            if name != OPTIONAL:
                raise ValueError(f"{name} is missing")
            continue
        data, axes = columns[name], leading + column.axes
        fits = data.ndim == len(axes) and data.dtype == np.dtype(column.dtype)
        if not fits or any(
            sizes.setdefault(a, n) != n for a, n in zip(axes, data.shape, strict=True)
        ):
            raise ValueError(f"{name} holds {data.dtype} {list(data.shape)}")


def _row(columns: Columns, i: int) -> Trajectory:
    row: dict[str, Any] = {OPTIONAL: None}
    for name, data in columns.items():
        row[name] = data[i] if data[i].ndim else data[i].item()
    row["style"] = row["style"].decode()
    return Trajectory(**row)
