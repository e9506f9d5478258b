"""What files of the field are, and their frames as checked configurations.

A file's content says what it is, and its ending where the content does not. Configurations must be
two-dimensional, in a periodic box at right angles, of at most two types, called A and B or 1 and 2
or as a table of names says. Lengths are taken to be in σ. Whatever is wrong with a file is a
DataError that names it.
"""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.configuration import NEIGHBOURS, Configuration
from glass_cnn.data import mdanalysis
from glass_cnn.data.text_formats import RawFrame, open_packed, read_lammps, read_xyz, tilted
from glass_cnn.mixture import TYPE_A, TYPE_B
from hpc.errors import DataError
from hpc.words import plural

IMAGE, LAMMPS, XYZ, GSD = "picture", "LAMMPS dump", "extended XYZ", "GSD"
OTHER = "file for MDAnalysis"
ENDINGS = {
    ".png": IMAGE,
    ".jpg": IMAGE,
    ".jpeg": IMAGE,
    ".tif": IMAGE,
    ".tiff": IMAGE,
    ".dump": LAMMPS,
    ".lammpstrj": LAMMPS,
    ".xyz": XYZ,
    ".extxyz": XYZ,
    ".gsd": GSD,
    **dict.fromkeys(mdanalysis.ENDINGS, OTHER),
}
MAGIC = {
    b"\x89PNG\r\n\x1a\n": IMAGE,
    b"\xff\xd8\xff": IMAGE,
    b"II*\0": IMAGE,
    b"MM\0*": IMAGE,
    b"\xdf\x65\xdf\x65\xdf\x65\xdf\x65": GSD,
}
"""first bytes of files that are no text"""
KNOWN = (
    "PNG, JPEG or TIFF pictures, LAMMPS dumps (.dump, .lammpstrj), extended XYZ (.xyz, .extxyz), "
    "GSD (.gsd); dumps and XYZ also packed by gzip; and what MDAnalysis reads ("
    f"{', '.join(mdanalysis.ENDINGS)})"
)

FLAT = 0.1
"""largest spread of z of a two-dimensional configuration, σ"""
DEEP = 0.5
"""depth of a box over its width from which particles without z may lie on top of each other"""
SMALLEST_BOX = 2.0
"""shortest side of a box that can be drawn, σ"""
FEWEST = NEIGHBOURS + 1
"""particles of a configuration: one and the neighbours over which its order is measured"""


def kind_of(path: Path) -> str | None:
    """What a file is: IMAGE, LAMMPS, XYZ, GSD, OTHER; None for anything else. Raises DataError."""
    try:
        with open_packed(path) as file:
            head = file.read(4096)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        head = b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"ITEM:"):
        return LAMMPS
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending in ENDINGS:
        return ENDINGS[ending]
    return XYZ if text and text.splitlines()[0].strip().isdigit() else None


@dataclass(frozen=True)
class Frame:
    """One frame of a trajectory file."""

    configuration: Configuration
    temperature: float | None
    """ε/k_B; None where the file does not say it"""


def read_trajectory(path: Path, names: Mapping[str, str] | None = None) -> list[Frame]:
    """All frames of a trajectory file; raises DataError, ConfigError for want of MDAnalysis.

    `names` says which particles are A and which are B by what the file calls them.
    """
    readers: dict[str | None, Callable[[Path], Iterator[RawFrame]]]
    readers = {LAMMPS: read_lammps, XYZ: read_xyz, GSD: _read_gsd, OTHER: mdanalysis.read}
    if (kind := kind_of(path)) not in readers:
        raise DataError(f"{path}: is no trajectory file: known are {KNOWN}.")
    try:
        frames = [
            Frame(_checked(f"{path}, frame {index}", raw, names or {}), raw.temperature)
            for index, raw in enumerate(readers[kind](path))
        ]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    if not frames:
        raise DataError(f"{path}: holds no frames.")
    return frames


def read_frames(path: Path, names: Mapping[str, str] | None = None) -> list[Configuration]:
    """The configurations of `read_trajectory`."""
    return [frame.configuration for frame in read_trajectory(path, names)]


def _read_gsd(path: Path) -> Iterator[RawFrame]:
    import gsd.hoomd

    try:
        with gsd.hoomd.open(str(path), "r") as trajectory:
            for index in range(len(trajectory)):
                yield _gsd_frame(path, index, trajectory[index])
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception:  # readers of damaged files raise nearly everything
        raise DataError(
            f"{path}: cannot be read as a GSD file: it is cut, damaged or packed, or none."
        ) from None


def _gsd_frame(path: Path, index: int, snapshot: Any) -> RawFrame:
    """Frame `index` of a GSD file, whose places are from the centre of the box."""
    where = f"{path}, frame {index}"
    particles, box = snapshot.particles, np.asarray(snapshot.configuration.box, float)
    if box[3:].any():
        raise tilted(path)
    names, number = list(particles.types or []), np.asarray(particles.typeid, int)
    last = number.max(initial=0)
    if names in ([], ["A"]):
        names = ["A", "B"]  # what its format takes for given
    if last >= len(names):
        raise DataError(
            f"{where}: has particles of type number {last}, and names of {len(names)} types: "
            f"{', '.join(names)}."
        )
    places = np.asarray(particles.position, float)
    outside = np.abs(places[:, :2]) - box[:2] / 2
    places[:, :2] += box[:2] / 2  # from its corner, as in all other files: the same picture
    species = (np.array(names)[number],)
    temperature = _gsd_temperature(snapshot.log)
    return RawFrame(places, species, box[:3], True, None, outside, temperature)


def _gsd_temperature(log: Mapping[str, Any]) -> float | None:
    """The temperature that a frame's log holds, by whatever computed it; the set one first."""
    names = sorted((name for name in log if name.endswith("temperature")), key=len)
    value = np.asarray(log[names[0]], float).ravel() if names else np.empty(0)
    return float(value[0]) if len(value) == 1 and np.isfinite(value[0]) else None


# --- What a configuration must be ---------------------------------------------------------------


def _checked(where: str, raw: RawFrame, names: Mapping[str, str]) -> Configuration:
    """Check and wrap one configuration."""
    places, box = raw.places, raw.box[:2]
    if len(places) < FEWEST:
        raise DataError(f"{where}: has {len(places)} particles; {FEWEST} are the fewest.")
    strange = np.flatnonzero(~np.isfinite(places).all(axis=1))
    finite_box = np.isfinite(box).all()
    if len(strange) or not finite_box:
        # The box first: places that are told in parts of it, or from its centre, go with it.
        which = f"particle {_name(raw, strange[0])} of it" if finite_box else "its box"
        raise DataError(f"{where}: {which} has numbers that are not finite.")
    if box.min() < SMALLEST_BOX:
        raise DataError(
            f"{where}: the box is {box[0]:.4g} × {box[1]:.4g}; it must be at least "
            f"{SMALLEST_BOX:g} σ wide. Are lengths in σ?"
        )
    _check_ids(where, raw)
    _check_flat(where, raw)
    _check_inside(where, raw)
    found = Configuration(places[:, :2], _types(where, raw.species, names), box)
    wrapped = found.wrapped()
    _check_apart(where, raw, wrapped)
    return dataclasses.replace(found, positions=wrapped)


def _name(raw: RawFrame, index: int) -> str:
    """How to speak of a particle."""
    return f"number {index + 1}" if raw.ids is None else f"with id {raw.ids[index]}"


def _check_ids(where: str, raw: RawFrame) -> None:
    """Refuse ids that stand there twice or are missing: they must run from 1 (or 0) without gap."""
    if raw.ids is None:
        return
    found, counts = np.unique(raw.ids, return_counts=True)
    if counts.max() > 1:
        doubled = found[counts > 1]
        raise DataError(
            f"{where}: the id {doubled[0]} stands there {counts[counts > 1][0]} times; each "
            f"particle has one of its own. {plural(len(doubled), 'id')} of {len(found)} more than "
            "once: write the frame again."
        )
    first = 0 if found[0] == 0 else 1
    missing = np.setdiff1d(np.arange(first, first + len(found)), found)
    if len(missing):
        raise DataError(
            f"{where}: there is no particle with id {missing[0]}: {len(found)} particles have ids "
            f"from {found[0]} to {found[-1]}. If none was lost, number them anew (LAMMPS: "
            "reset_atoms id) or leave the ids out."
        )


def _check_flat(where: str, raw: RawFrame) -> None:
    spread = np.ptp(raw.places[:, 2])
    if spread > FLAT:
        raise DataError(
            f"{where}: z spreads over {spread:.3g} σ; only two-dimensional configurations can be "
            "drawn."
        )
    if not raw.has_z and raw.box[2] > DEEP * raw.box[:2].min():
        raise DataError(
            f"{where}: the box is {raw.box[2]:.4g} σ deep and the file has no z, so that nothing "
            "says whether the configuration is two-dimensional; write z as well."
        )


def _check_inside(where: str, raw: RawFrame) -> None:
    """Refuse coordinates far out of the box where the format keeps them in it."""
    if raw.outside is None:
        return
    far = np.argwhere(raw.outside > raw.box[:2] / 2)
    if len(far):
        index, axis = far[0]
        raise DataError(
            f"{where}: particle {_name(raw, index)} lies {raw.outside[index, axis]:.4g} σ out of "
            f"the box in {'xy'[axis]}. Unwrapped coordinates are written as xu yu in a LAMMPS "
            "dump; otherwise the box is not that of these particles."
        )


def _check_apart(where: str, raw: RawFrame, wrapped: np.ndarray) -> None:
    found, first, counts = np.unique(wrapped, axis=0, return_index=True, return_counts=True)
    if len(found) < len(wrapped):
        index = first[counts > 1][0]
        raise DataError(
            f"{where}: has two particles at the same place: {_name(raw, index)} has a double."
        )


def _types(where: str, species: tuple[np.ndarray, ...], names: Mapping[str, str]) -> np.ndarray:
    """uint8 [N]: the type of each particle, from the first column that tells it."""
    tables = [{"A": "A", "B": "B", "a": "A", "b": "B"}, {"1": "A", "2": "B"}]
    for column in species:
        given = set(np.unique(column).tolist())
        for table in (names, *tables):
            if given <= table.keys():
                is_a = np.isin(column, [name for name in given if table[name] == "A"])
                return np.where(is_a, TYPE_A, TYPE_B).astype(np.uint8)
    raise DataError(f"{where}: has particles of type {_naming(species[-1], names)}.")


def _naming(column: np.ndarray, names: Mapping[str, str]) -> str:
    """The types of a frame, and what to do about them."""
    found = np.unique(column).tolist()
    text = ", ".join(found[:6])
    if names:
        return f"{text}, and data.types tells of {', '.join(names)} only"
    if len(found) > 2:
        return f"{text}; there are two at most, A and B"
    line = ", ".join(f"{name}: {kind}" for name, kind in zip(found, "AB", strict=False))
    return (
        f"{text}; write data: {{types: {{{line}}}}} in the study file (A is the larger one), or "
        "call them A and B, or 1 and 2"
    )
