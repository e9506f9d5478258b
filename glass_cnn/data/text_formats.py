"""Trajectory files of lines become raw frames: LAMMPS dumps and extended XYZ, packed or not.

Blank lines between frames are skipped, and every other line is read or an error that names it:
what stands there and what was expected. Nothing is assumed of the configurations here;
`glass_cnn.data.formats` checks them.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np

from hpc.errors import DataError

GZIP = b"\x1f\x8b"
LONGEST_LINE = 1 << 20
"""characters; what has no line ends is no text, and would fill the memory"""
COORDINATES = {"": False, "s": True, "u": False, "su": True}
"""ending of a LAMMPS column x, xs, xu, xsu; whether it is in units of the box"""
WRAPPED = ("", "s")
"""endings of coordinates that LAMMPS keeps in the box"""
LENGTHS = {
    "real": "Å",
    "metal": "Å",
    "si": "m",
    "cgs": "cm",
    "electron": "Bohr",
    "micro": "µm",
    "nano": "nm",
}
"""lengths by the name of LAMMPS' units; those of lj are σ"""
PAIR = re.compile(r"""([\w-]+)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\[[^=]*\]|\S+)""")
"""one key=value of the second line of an extended XYZ frame"""
HEADER = 'Lattice="Lx 0 0 0 Ly 0 0 0 1" Properties=species:S:1:pos:R:3'


@dataclass(frozen=True)
class RawFrame:
    """One frame as a file gives it."""

    places: np.ndarray
    """float64 [N, 3] (z is 0 where it is not given), from a corner of the box"""
    species: tuple[np.ndarray, ...]
    """text [N]: the columns that may say what a particle is, the best first"""
    box: np.ndarray
    """float64 [3]: sides in x, y and z; z is 0 where it is not given"""
    has_z: bool
    """whether the file gives z"""
    ids: np.ndarray | None = None
    """int64 [N]"""
    outside: np.ndarray | None = None
    """float64 [N, 2]: distance out of the box of coordinates that must lie in it"""
    temperature: float | None = None
    """ε/k_B, where the file says it"""

    def in_order(self, ids: np.ndarray) -> RawFrame:
        """The particles in the order of their ids."""
        order = np.argsort(ids, kind="stable")
        outside = None if self.outside is None else self.outside[order]
        species = tuple(column[order] for column in self.species)
        return RawFrame(self.places[order], species, self.box, self.has_z, ids[order], outside)


def open_packed(path: Path) -> BinaryIO:
    """A file's bytes, unpacked where its content is gzip's; raises OSError."""
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return cast(BinaryIO, gzip.open(path, "rb") if packed else path.open("rb"))


class Lines:
    """The lines of a text file, counted; any line ends, with or without byte order mark."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        """of the line read last, from 1"""
        self._file = io.TextIOWrapper(open_packed(path), "utf-8-sig", errors="replace")

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self) -> str | None:
        """The next line, without its end; None after the last."""
        try:
            line = self._file.readline(LONGEST_LINE)
        except EOFError:
            raise DataError(
                f"{self.path}: is cut: its packed data end after line {self.number}."
            ) from None
        except (zlib.error, gzip.BadGzipFile):
            raise DataError(
                f"{self.path}: is damaged: it cannot be unpacked after line {self.number}."
            ) from None
        self.number += bool(line)
        if len(line) == LONGEST_LINE:
            raise self.wrong("lines of text", line)
        return line.rstrip("\n") if line else None

    def filled(self) -> str | None:
        """The next line that is not blank; None when there is no more."""
        while (line := self.read()) is not None and not line.strip():
            pass
        return line

    def needed(self, expected: str) -> str:
        """The next line of a frame; raises DataError where the file ends before it."""
        line = self.read()
        if line is None:
            raise DataError(
                f"{self.path}: ends in the middle of a frame, after line {self.number}: "
                f"{expected} should follow."
            )
        return line

    def rows(self, count: int, columns: Sequence[str], what: str) -> Rows:
        """The next `count` lines, as words under these columns."""
        first, width, names = self.number + 1, len(columns), " ".join(columns)
        words = []
        for n in range(1, count + 1):
            line = self.needed(f"{what} {n} of {count}, with the columns {names},")
            row = line.split()
            if len(row) != width:
                raise self.wrong(f"{what} {n} of {count}, with the {width} columns {names}", line)
            words.append(row)
        return Rows(self.path, first, tuple(columns), words)

    def count(self, line: str, what: str) -> int:
        """The whole number that a line holds."""
        if not re.fullmatch(r"\s*[0-9]{1,18}\s*", line):
            raise self.wrong(what, line)
        return int(line)

    def wrong(self, expected: str, found: str) -> DataError:
        """The error for the line read last."""
        return DataError(
            f"{self.path}, line {self.number}: found {found.strip()!r:.60} where {expected} "
            "should stand."
        )


@dataclass(frozen=True)
class Rows:
    """Some lines of a file as words in columns."""

    path: Path
    first: int
    """number of the first line"""
    columns: tuple[str, ...]
    words: list[list[str]]

    def text(self, column: int) -> np.ndarray:
        """A column as text [N]."""
        return np.array([row[column] for row in self.words], dtype=str)

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        """Columns as finite numbers, float64 [N, columns]; raises DataError with the line."""
        found = np.empty((len(self.words), len(columns)))
        for k, column in enumerate(columns):
            try:
                found[:, k] = [row[column] for row in self.words]
            except ValueError:
                raise self._not_a(column, "a number", float) from None
        if not np.isfinite(found).all():
            n, k = np.argwhere(~np.isfinite(found))[0]
            raise self._wrong(n, columns[k], "a finite number")
        return found

    def whole(self, column: int) -> np.ndarray:
        """A column as whole numbers, int64 [N]; raises DataError with the line."""
        try:
            return np.array([int(row[column]) for row in self.words], dtype=np.int64)
        except (ValueError, OverflowError):
            raise self._not_a(column, "a whole number", np.int64) from None

    def _not_a(self, column: int, expected: str, kind: type) -> DataError:
        """The error for the first word of a column that is not of a kind."""
        for n, row in enumerate(self.words):
            try:
                kind(row[column])
            except (ValueError, OverflowError):
                return self._wrong(n, column, expected)
        raise AssertionError("all are of this kind")

    def _wrong(self, row: int, column: int, expected: str) -> DataError:
        return DataError(
            f"{self.path}, line {self.first + row}: the column {self.columns[column]} holds "
            f"{self.words[row][column]!r:.40} where {expected} is needed."
        )


# --- LAMMPS dumps -------------------------------------------------------------------------------


def read_lammps(path: Path) -> Iterator[RawFrame]:
    """The frames of a LAMMPS dump of atoms."""
    with Lines(path) as lines:
        while (line := lines.filled()) is not None:
            yield _lammps_frame(lines, line)


def _lammps_frame(lines: Lines, line: str) -> RawFrame:
    """The frame that begins with `line`."""
    start, count, box = lines.number, None, None
    seen: set[str] = set()
    while True:
        if not line.startswith("ITEM: "):
            raise lines.wrong("'ITEM: …'", line)
        item = line[len("ITEM: ") :].strip()
        name = next((n for n in ("ATOMS", "BOX BOUNDS") if item.startswith(n)), item)
        if name in seen:
            raise lines.wrong(f"'ITEM: ATOMS' of the frame that begins in line {start}", line)
        seen.add(name)
        if name == "ATOMS":
            return _lammps_atoms(lines, item.split()[1:], count, box)
        if name == "BOX BOUNDS":
            box = _lammps_box(lines, item.split()[2:])
        elif name == "NUMBER OF ATOMS":
            count = lines.count(lines.needed("the number of atoms"), "the number of atoms")
        else:
            value = lines.needed(f"the value of {item}").strip()
            if value.startswith("ITEM:"):
                raise lines.wrong(f"the value of {item}", value)
            if name == "UNITS":
                _check_units(lines, value)
        following = lines.filled()
        line = lines.needed("'ITEM: ATOMS'") if following is None else following


def _check_units(lines: Lines, units: str) -> None:
    if units != "lj":
        length = LENGTHS.get(units, "other units")
        raise DataError(
            f"{lines.path}, line {lines.number}: the lengths are in {length} (units {units}), and "
            "images are drawn in σ: divide x, y and the box by σ of two A particles, and write "
            "'lj' there."
        )


def _lammps_box(lines: Lines, flags: list[str]) -> np.ndarray:
    """Lower corner and sides, float64 [2, 3], of a box at right angles, periodic in x and y."""
    given = [lines.needed(f"the bounds of the box in {axis}").split() for axis in "xyz"]
    if "abc" in flags:
        raise tilted(lines.path)
    first = lines.number - 2
    bounds = []
    for n, words in enumerate(given):
        where = f"{lines.path}, line {first + n}"
        if len(words) not in (2, 3):
            raise DataError(
                f"{where}: found {' '.join(words)!r:.60} where 'low high' should stand."
            )
        try:
            bounds.append([float(word) for word in words])
        except ValueError:
            raise DataError(f"{where}: {' '.join(words)!r:.60} are no bounds of a box.") from None
        if not np.isfinite(bounds[-1]).all() or bounds[-1][0] > bounds[-1][1]:
            raise DataError(
                f"{where}: {' '.join(words)!r:.60} are no bounds of a box: the lower one comes "
                "first, and both are finite."
            )
    if any(any(bound[2:]) for bound in bounds):
        raise tilted(lines.path)
    if len(flags) >= 3 and any("p" not in flag for flag in flags[-3:-1]):
        raise not_periodic(lines.path)
    low, high = np.array([bound[:2] for bound in bounds]).T
    return np.array([low, high - low])


def _lammps_atoms(
    lines: Lines, columns: list[str], count: int | None, box: np.ndarray | None
) -> RawFrame:
    """The atoms under the header that was read last."""
    path, header = lines.path, lines.number
    if count is None or box is None:
        missing = "NUMBER OF ATOMS" if count is None else "BOX BOUNDS"
        raise DataError(f"{path}, line {header}: this frame has no {missing} before its ATOMS.")
    _check_columns(f"{path}, line {header}", columns)
    ending = next((e for e in COORDINATES if {"x" + e, "y" + e} <= set(columns)), None)
    kinds = [columns.index(name) for name in ("type", "element") if name in columns]
    if ending is None or not kinds:
        raise DataError(
            f"{path}, line {header}: the columns are {' '.join(columns)}; it needs type (or "
            "element), and x y or xs ys, xu yu, xsu ysu."
        )
    rows = lines.rows(count, columns, "atom")
    axes = [axis + ending for axis in "xyz" if axis + ending in columns]
    places = np.zeros((count, 3))
    places[:, : len(axes)] = rows.numbers([columns.index(name) for name in axes])
    low, sides = box
    scaled = COORDINATES[ending]
    places[:, : len(axes)] = (places * sides if scaled else places - low)[:, : len(axes)]
    outside = np.maximum(-places, places - sides)[:, :2] if ending in WRAPPED else None
    species = tuple(rows.text(column) for column in kinds)
    frame = RawFrame(places, species, sides, len(axes) == 3, None, outside)
    return frame.in_order(rows.whole(columns.index("id"))) if "id" in columns else frame


def _check_columns(where: str, columns: Sequence[str]) -> None:
    doubled = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if doubled:
        raise DataError(f"{where}: the column {doubled[0]} stands there twice.")


def tilted(path: Path) -> DataError:
    """The error for a box that is not at right angles."""
    return DataError(f"{path}: the box is tilted; only boxes at right angles can be drawn.")


def not_periodic(path: Path) -> DataError:
    """The error for a box with walls."""
    return DataError(f"{path}: the box is not periodic in x and y; only such can be drawn.")


# --- Extended XYZ -------------------------------------------------------------------------------


def read_xyz(path: Path) -> Iterator[RawFrame]:
    """The frames of an extended XYZ file."""
    with Lines(path) as lines:
        while (line := lines.filled()) is not None:
            yield _xyz_frame(lines, lines.count(line, "the number of particles of a frame"))


def _xyz_frame(lines: Lines, count: int) -> RawFrame:
    """The frame whose number of particles was read last."""
    path, header = lines.path, lines.needed(f"a line with {HEADER}")
    where = f"{path}, line {lines.number}"
    given = {key.lower(): value.strip("\"'{}") for key, value in PAIR.findall(header)}
    box = _xyz_box(path, where, given)
    layout = _xyz_layout(where, given.get("properties", "species:S:1:pos:R:3"))
    columns = [name for name, width in layout.items() for _ in range(width)]
    start = {name: columns.index(name) for name in layout}
    kinds = [start[name] for name in ("species", "type", "element") if layout.get(name) == 1]
    if layout.get("pos") not in (2, 3) or not kinds:
        raise DataError(
            f"{where}: names no species, or no pos of 2 or 3 numbers; it must say {HEADER}."
        )
    rows = lines.rows(count, columns, "particle")
    places = np.zeros((count, 3))
    axes = range(start["pos"], start["pos"] + layout["pos"])
    places[:, : layout["pos"]] = rows.numbers(axes)
    ids = rows.whole(start["id"]) if layout.get("id") == 1 else None
    species = tuple(rows.text(column) for column in kinds)
    temperature = _xyz_temperature(where, given)
    return RawFrame(places, species, box, layout["pos"] == 3, ids, None, temperature)


def _xyz_temperature(where: str, given: dict[str, str]) -> float | None:
    """What the second line says as `temperature=…`."""
    if "temperature" not in given:
        return None
    try:
        return float(given["temperature"])
    except ValueError:
        raise DataError(
            f"{where}: temperature is {given['temperature']!r:.40}, where a number is needed."
        ) from None


def _xyz_box(path: Path, where: str, given: dict[str, str]) -> np.ndarray:
    """Sides of the box, float64 [3], at right angles and periodic in x and y."""
    if "lattice" not in given:
        raise DataError(f"{where}: has no Lattice; the periodic box must be known: {HEADER}.")
    words = re.sub(r"[\[\],]", " ", given["lattice"]).split()
    try:
        cell = np.array(words, dtype=float)
    except ValueError:
        cell = np.array([])
    if len(cell) != 9 or not np.isfinite(cell).all():
        raise DataError(
            f"{where}: Lattice is {given['lattice']!r:.60}, where 9 numbers are needed."
        )
    cell = cell.reshape(3, 3)
    if np.abs(cell - np.diag(np.diag(cell))).max() > 1e-6 * np.abs(cell).max():
        raise tilted(path)
    periodic = re.sub(r"[\[\],]", " ", given.get("pbc", "T T T")).split()
    if not {word.lower() for word in periodic[:2]} <= {"t", "true", "1"}:
        raise not_periodic(path)
    return np.diag(cell)


def _xyz_layout(where: str, properties: str) -> dict[str, int]:
    """Name and number of columns of each property."""
    words = properties.split(":")
    names, kinds, widths = words[::3], words[1::3], words[2::3]
    sound = len(words) % 3 == 0 and all(re.fullmatch("[1-9][0-9]?", width) for width in widths)
    if not sound or not {kind.upper() for kind in kinds} <= set("SIRL"):
        raise DataError(
            f"{where}: Properties={properties!r:.80} must be name:kind:columns in turn."
        )
    _check_columns(where, names)
    return dict(zip(map(str.lower, names), map(int, widths), strict=True))
