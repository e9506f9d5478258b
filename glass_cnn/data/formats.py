"""Files of the field become arrays: PNG images, LAMMPS dumps, extended XYZ and GSD trajectories.

Configurations must be two-dimensional, in a periodic box at right angles, of at most two types,
called A and B or 1 and 2. Lengths are taken to be in σ. Whatever is wrong with a file is a
DataError that names it.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from glass_cnn.data.render import Image
from glass_cnn.mixture import TYPE_A, TYPE_B
from hpc.errors import DataError

IMAGE_SUFFIX = ".png"
LAMMPS_SUFFIXES = (".dump", ".lammpstrj")
XYZ_SUFFIXES = (".xyz", ".extxyz")
GSD_SUFFIX = ".gsd"
SUFFIXES = (IMAGE_SUFFIX, *LAMMPS_SUFFIXES, *XYZ_SUFFIXES, GSD_SUFFIX)

FLAT = 0.1
"""largest spread of z of a two-dimensional configuration, σ"""
SMALLEST_BOX = 2.0
"""shortest side of a box that can be drawn, σ"""
CUT = "it ends in the middle of a frame"
FEWEST = 7
"""particles of a configuration: one and the six neighbours over which its order is measured"""
COORDINATES = {"": False, "s": True, "u": False, "su": True}
"""ending of a LAMMPS column x, xs, xu, xsu; whether it is in units of the box"""


@dataclass(frozen=True)
class Frame:
    """One configuration."""

    positions: np.ndarray
    """float32 [N, 2] in [0, box), σ"""
    types: np.ndarray
    """uint8 [N], 1 is A and 2 is B"""
    box: np.ndarray
    """float64 [2], σ"""


def suffix(path: Path) -> str:
    """The ending that says what a file is: .dump for a.dump.gz; of dump.100 as well."""
    name = path.name.lower().removesuffix(".gz")
    if name.startswith("dump."):
        return LAMMPS_SUFFIXES[0]
    return Path(name).suffix


def read_frames(path: Path) -> list[Frame]:
    """All frames of a trajectory file, the format told by its ending; raises DataError."""
    kind = suffix(path)
    try:
        if kind in LAMMPS_SUFFIXES:
            frames = list(_read_lammps(path))
        elif kind in XYZ_SUFFIXES:
            frames = list(_read_xyz(path))
        else:
            frames = list(_read_gsd(path))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except Exception as error:  # readers of damaged files raise nearly everything
        text = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a {kind} file: {text}.") from None
    if not frames:
        raise DataError(f"{path}: holds no frames.")
    return frames


def _open_text(path: Path) -> TextIO:
    open_it = gzip.open if path.suffix.lower() == ".gz" else open
    return cast(TextIO, open_it(path, "rt", encoding="utf-8-sig"))


# LAMMPS. ASE's reader refuses the dumps of two-dimensional systems that have no z column.


def _read_lammps(path: Path) -> Iterator[Frame]:
    with _open_text(path) as lines:
        count, bounds, whole = 0, [], True
        for line in lines:
            if line.startswith("ITEM: NUMBER OF ATOMS"):
                count = int(_rows(lines, 1)[0][0])
            elif line.startswith("ITEM: BOX BOUNDS"):
                flags, bounds = line.split()[3:], _rows(lines, 3)
            elif line.startswith("ITEM: ATOMS"):
                if not bounds:
                    raise ValueError("a frame has no BOX BOUNDS")
                columns, rows = line.split()[2:], _rows(lines, count)
                yield _lammps_frame(path, flags, bounds, columns, rows)
                whole = True
            elif line.startswith("ITEM: "):  # the first item of a frame, and those without use
                _rows(lines, 1)
                if whole:
                    count, bounds, whole = 0, [], False
            elif line.strip():
                raise ValueError(f"unexpected line {line.strip()!r:.60}")
        if not whole:
            raise ValueError(CUT)


def _rows(lines: TextIO, count: int) -> list[list[str]]:
    """The words of the next `count` lines; raises ValueError where the file ends before."""
    rows = list(itertools.islice(lines, count))
    if len(rows) != count or not all(row.endswith("\n") for row in rows):
        raise ValueError(CUT)
    return [row.split() for row in rows]


def _lammps_frame(
    path: Path,
    flags: list[str],
    bounds: list[list[str]],
    columns: list[str],
    rows: list[list[str]],
) -> Frame:
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(CUT)
    tilts = [float(b[2]) for b in bounds if len(b) > 2]
    if "abc" in flags or any(tilts):
        raise DataError(f"{path}: the box is tilted; only boxes at right angles can be drawn.")
    if len(flags) >= 3 and any("p" not in flag for flag in flags[-3:-1]):
        raise DataError(f"{path}: the box is not periodic in x and y.")
    low, high = np.array([[float(b[0]), float(b[1])] for b in bounds]).T
    table = dict(zip(columns, np.array(rows).reshape(-1, len(columns)).T, strict=True))
    if "id" in table:
        order = np.argsort(table["id"].astype(int))
        table = {name: values[order] for name, values in table.items()}
    species = table.get("type", table.get("element"))
    ending = next((e for e in COORDINATES if "x" + e in table and "y" + e in table), None)
    if ending is None or species is None:
        raise DataError(
            f"{path}: has the columns {' '.join(columns)}; it needs type (or element), and x y or "
            "xs ys, xu yu, xsu ysu."
        )
    flat = {"z" + ending: np.zeros(len(rows))} | table
    places = np.stack([flat[axis + ending].astype(float) for axis in "xyz"], axis=1)
    places = places * (high - low) if COORDINATES[ending] else places - low
    return _frame(path, places, species, (high - low)[:2])


def _read_xyz(path: Path) -> Iterator[Frame]:
    import ase.io

    with _open_text(path) as file:
        # ASE would take the species for chemical elements, and there is no element A.
        text = re.sub(r"(Properties=\"?|:)species:S:1", r"\1kind:S:1", file.read())
    try:
        found = ase.io.read(io.StringIO(text), index=":", format="extxyz")
    except KeyError as error:  # no such element
        raise DataError(
            f"{path}: has particles of type {error}, which is no element; the second line of a "
            'frame must say Lattice="…" Properties=species:S:1:pos:R:3.'
        ) from None
    for atoms in found:
        cell = np.asarray(atoms.cell)
        if not cell.any():
            raise DataError(f"{path}: has no Lattice; the periodic box must be known.")
        if np.abs(cell - np.diag(np.diag(cell))).max() > 1e-6 * cell.max():
            raise DataError(f"{path}: the box is tilted; only boxes at right angles can be drawn.")
        if not atoms.pbc[:2].all():
            raise DataError(f"{path}: the box is not periodic in x and y.")
        species = atoms.arrays.get("kind", atoms.arrays.get("type", atoms.numbers))
        yield _frame(path, atoms.positions, species, np.diag(cell)[:2])


def _read_gsd(path: Path) -> Iterator[Frame]:
    import gsd.hoomd

    with gsd.hoomd.open(str(path), "r") as trajectory:
        for snapshot in trajectory:
            box = np.asarray(snapshot.configuration.box, dtype=float)
            if box[3:].any():
                raise DataError(
                    f"{path}: the box is tilted; only boxes at right angles can be drawn."
                )
            particles = snapshot.particles
            names, last = list(particles.types or []), max(particles.typeid, default=0)
            if last > 1:
                raise DataError(f"{path}: has {last + 1} types; at most two fit.")
            if last >= len(names) or not {name.upper() for name in names} <= {"A", "B"}:
                names = ["A", "B"]  # other names: the first type is A, the second B
            species = np.array(names)[particles.typeid]
            yield _frame(path, particles.position, species, box[:2])


def _frame(path: Path, places: np.ndarray, species: np.ndarray, box: np.ndarray) -> Frame:
    """Check and wrap one configuration: `places` [N, 3] from any corner of the box."""
    if len(places) < FEWEST:
        raise DataError(f"{path}: a frame has {len(places)} particles; {FEWEST} are the fewest.")
    if not (np.isfinite(places).all() and np.isfinite(box).all()):
        raise DataError(f"{path}: holds positions that are not finite numbers.")
    if box.min() < SMALLEST_BOX:
        raise DataError(
            f"{path}: the box is {box[0]:.4g} × {box[1]:.4g}; it must be at least "
            f"{SMALLEST_BOX:g} σ wide. Are lengths in σ?"
        )
    if np.ptp(places[:, 2]) > FLAT:
        raise DataError(
            f"{path}: z spreads over {np.ptp(places[:, 2]):.3g} σ; only two-dimensional "
            "configurations can be drawn."
        )
    wrapped = (places[:, :2] % box).astype(np.float32)
    wrapped[wrapped >= box] = 0  # rounding up to the edge
    if len(np.unique(wrapped, axis=0)) < len(wrapped):
        raise DataError(f"{path}: has two particles at the same place.")
    return Frame(wrapped, _types(path, species), box)


def _types(path: Path, species: np.ndarray) -> np.ndarray:
    given = np.asarray(species).astype(str)
    names = np.char.upper(given)
    for first, second in (("A", "B"), ("1", "2")):
        if np.isin(names, (first, second)).all():
            return np.where(names == first, TYPE_A, TYPE_B).astype(np.uint8)
    found = ", ".join(np.unique(given)[:6])
    raise DataError(f"{path}: has particles of type {found}; call them A and B, or 1 and 2.")


# Images


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG from its header; raises DataError."""
    with _open_image(path) as image:
        return image.size


def read_image(path: Path, pixels: int) -> Image:
    """The centre of a PNG that is large enough, uint8 [pixels, pixels, 3].

    Alpha is dropped, as in 2017. Raises DataError for a file that is no image, is damaged, or
    neither RGB nor RGBA.
    """
    with _open_image(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise DataError(
                f"{path}: is of mode {image.mode}; RGB or RGBA with 8 bits each is needed. "
                "Convert it, for example with ImageMagick: convert a.png PNG32:b.png"
            )
        try:
            colours = np.asarray(image)[..., :3]
        except (OSError, SyntaxError, ValueError, zlib.error) as error:
            raise DataError(f"{path}: is a damaged PNG image: {error}.") from None
    height, width = colours.shape[:2]
    top, left = (height - pixels) // 2, (width - pixels) // 2
    return colours[top : top + pixels, left : left + pixels]


def _open_image(path: Path) -> Pillow.Image:
    try:
        return Pillow.open(path, formats=["PNG"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: is no PNG image.") from None
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a PNG image: {error}.") from None
