"""Trajectory files of other programs through MDAnalysis, a stand-in of it where it is missing."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glass_cnn.configuration import Configuration
from glass_cnn.data import mdanalysis
from glass_cnn.data.formats import kind_of, read_frames
from glass_cnn.data.listing import read_listing
from glass_cnn.mixture import TYPE_A, TYPE_B
from hpc.errors import ConfigError, DataError
from tests.own_data import BOX, particles


def data_text(seed: int, style: str = " # atomic", columns: str = "{id} {type} {x} {y} 0") -> str:
    """A configuration as LAMMPS writes a data file, particles in no order."""
    places, types = particles(seed)
    rows = [columns.format(id=i + 1, type=types[i], x=x, y=y) for i, (x, y) in enumerate(places)]
    rows = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    sides = [f"0 {side} {axis}lo {axis}hi" for side, axis in zip([*BOX, 1], "xyz", strict=True)]
    head = ["LAMMPS data file", "", f"{len(types)} atoms", "2 atom types", "", *sides, ""]
    return "\n".join([*head, "Masses", "", "1 1", "2 1", "", f"Atoms{style}", "", *rows, ""])


def gro_text(seed: int) -> str:
    """The same as GROMACS writes it, three decimals."""
    places, types = particles(seed)
    rows = [
        f"{1:5d}{'X':<5}{'AB'[t - 1]:>5}{i + 1:5d}{x:8.3f}{y:8.3f}{0:8.3f}"
        for i, ((x, y), t) in enumerate(zip(places, types, strict=True))
    ]
    sides = f"{BOX[0]:10.5f}{BOX[1]:10.5f}{1:10.5f}"
    return "\n".join(["made up", f"{len(types):5d}", *rows, sides, ""])


def check(found: Configuration, seed: int, accuracy: float = 1e-5) -> None:
    places, types = particles(seed)
    assert found.box == pytest.approx(BOX, rel=1e-6)
    assert found.positions == pytest.approx(places, abs=accuracy)
    assert found.species.tolist() == np.where(types == 1, TYPE_A, TYPE_B).tolist()


class Universe:
    """As much of MDAnalysis as is used, and what it was given."""

    given: tuple[Any, ...] = ()
    dimensions: Any = (*BOX, 1, 90, 90, 90)

    def __init__(self, *files: str, **options: Any) -> None:
        Universe.given = (*[Path(name).name for name in files], options)
        assert all(Path(name).exists() for name in files)
        (Path(files[0]).parent / ".offsets").touch()
        if "broken" in files[-1]:
            raise ValueError(f"{files[-1]} has\nno frames")
        places, types = particles(0)
        self.atoms = SimpleNamespace(types=types.astype(str))
        flat = np.column_stack([places, np.zeros(len(places))])
        frame = {"positions": flat, "dimensions": self.dimensions}
        self.trajectory = [SimpleNamespace(frame=i, **frame) for i in range(3)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[Universe]:
    monkeypatch.setitem(sys.modules, "MDAnalysis", SimpleNamespace(Universe=Universe))
    return Universe


def test_without_it_one_line_says_how_to_install_it(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "MDAnalysis", None)
    path = tmp_path / "7.gro"
    path.write_text(gro_text(0))
    with pytest.raises(ConfigError) as refused:
        read_frames(path)
    assert f"{path}: files *.gro are read by MDAnalysis" in str(refused.value)
    assert ".venv/bin/python -m pip install --require-hashes -r" in str(refused.value)
    pins = (root / mdanalysis.INSTALL.split()[-1]).read_text()
    assert "mdanalysis==" in pins.lower()
    assert "--hash=sha256:" in pins


def test_coordinates_are_read_with_what_their_particles_are(
    tmp_path: Path, stand_in: type[Universe]
) -> None:
    path = tmp_path / "7.dcd"
    path.write_bytes(b"\x54\0\0\0CORD")
    with pytest.raises(DataError, match="put the file that says what its particles are beside it"):
        read_frames(path)
    (tmp_path / "7.data").write_text(data_text(0))
    for frame in read_frames(path):
        check(frame, 0)
    *files, options = stand_in.given
    assert files == ["7.data", "7.dcd"]
    assert options == {
        "convert_units": False, "to_guess": (), "atom_style": "id type x y z",
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7.data", "7.dcd"], "nothing is written"


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (None, "frame 0: says nothing of a box"),
        ((*BOX, 1, 90, 90, 60), "the box is tilted"),
        ((0.5, 0.5, 1, 90, 90, 90), "frame 0: the box is 0.5 × 0.5"),
    ],
)
def test_its_boxes_are_checked_as_those_of_other_files(
    tmp_path: Path, stand_in: type[Universe], monkeypatch: pytest.MonkeyPatch,
    sides: Any, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(stand_in, "dimensions", sides)
    (tmp_path / "7.gro").touch()
    with pytest.raises(DataError, match=message):
        read_frames(tmp_path / "7.gro")


def test_what_it_cannot_read_is_one_message(tmp_path: Path, stand_in: type[Universe]) -> None:
    path = tmp_path / "broken.gro"
    path.touch()
    with pytest.raises(DataError) as refused:
        read_frames(path)
    expected = f"{path}: cannot be read by MDAnalysis: broken.gro has no frames"
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("style", "row", "expected"),
    [
        ("", "1 1 0.5 0.5 0", "id type x y z"),
        ("", "1 1 0.5 0.5 0 0 0 0", "id type x y z"),
        (" # charge", "1 1 0.0 0.5 0.5 0", "id type charge x y z"),
        ("", "1 1 1 0.5 0.5 0", None),
    ],
)
def test_columns_of_a_lammps_data_file(
    tmp_path: Path, stand_in: type[Universe], style: str, row: str, expected: str | None
) -> None:
    path = tmp_path / "7.data"
    path.write_text(f"made up\n\nAtoms{style}\n\n{row}\n")
    read_frames(path)
    assert stand_in.given[-1].get("atom_style") == expected
    path.write_text("made up\n\nAtoms # ellipsoid\n\n1 1 1 1 0.5 0.5 0\n")
    with pytest.raises(DataError, match="has the atom style 'ellipsoid'; known are atomic"):
        read_frames(path)


def test_what_describes_coordinates_is_no_configuration_of_its_own(tmp_path: Path) -> None:
    for folder in ("liquid", "glass"):
        (tmp_path / folder).mkdir()
        for name in ("7.dcd", "7.data", "8.data"):
            (tmp_path / folder / name).write_text(data_text(0))
    listing = read_listing(tmp_path)
    assert [entry.path for entry in listing.entries] == [
        "glass/7.dcd", "glass/8.data", "liquid/7.dcd", "liquid/8.data",
    ]  # fmt: skip
    assert {entry.trajectory for entry in listing.entries} == {"7", "8"}
    assert not listing.pictures
    assert kind_of(tmp_path / "glass/7.dcd") == kind_of(tmp_path / "glass/8.data")


REAL = pytest.mark.requires("mdanalysis")


@REAL
@pytest.mark.parametrize(
    ("style", "columns"),
    [
        (" # atomic", "{id} {type} {x} {y} 0"),
        (" # full", "{id} 1 {type} 0.0 {x} {y} 0"),
        ("", "{id} {type} {x} {y} 0 0 0 0"),
    ],
)
def test_lammps_data_and_dcd_for_real(tmp_path: Path, style: str, columns: str) -> None:
    import MDAnalysis

    path = tmp_path / "7.data"
    path.write_text(data_text(0, style, columns))
    (found,) = read_frames(path)
    check(found, 0)
    count = len(found.positions)
    with MDAnalysis.coordinates.DCD.DCDWriter(
        str(tmp_path / "7.dcd"), count, convert_units=False
    ) as out:
        whole = MDAnalysis.Universe.empty(count, trajectory=True)
        for seed in (0, 0):
            places = particles(seed)[0]
            whole.atoms.positions = np.column_stack([places, np.zeros(count)])
            whole.dimensions = [*BOX, 1, 90, 90, 90]
            out.write(whole.atoms)
    frames = read_frames(tmp_path / "7.dcd")
    assert len(frames) == 2
    check(frames[1], 0)


@REAL
def test_gromacs_for_real(tmp_path: Path) -> None:
    import MDAnalysis

    path = tmp_path / "7.gro"
    path.write_text(gro_text(0))
    (found,) = read_frames(path)
    check(found, 0, 6e-4)
    whole = MDAnalysis.Universe(str(path), to_guess=())
    whole.atoms.write(str(tmp_path / "7.xtc"))
    check(read_frames(tmp_path / "7.xtc")[0], 0, 2e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7.gro", "7.xtc"], "nothing is written"


@REAL
def test_of_a_damaged_file_nobody_else_says_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its readers, failed half made, complain once more when they are thrown away."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: said.append(error.exc_value))
    (tmp_path / "7.gro").write_text(gro_text(0))
    for name in ("7.xtc", "7.trr", "7.dcd"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(DataError, match=rf"{name}: cannot be read by MDAnalysis"):
            read_frames(tmp_path / name)
    gc.collect()
    assert said == []
