"""Trajectory files of others: what is read of them, by whatever name they go."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from glass_cnn.configuration import Configuration
from glass_cnn.data.formats import GSD, IMAGE, LAMMPS, XYZ, kind_of, read_frames
from tests.own_data import BOX, dump_text, particles, picture, write_gsd, xyz_text

LINES = dump_text(1).splitlines(keepends=True)


def check_frame(frame: Configuration, seed: int) -> None:
    places, types = particles(seed)
    apart = (frame.positions - places + BOX / 2) % BOX - BOX / 2
    assert np.abs(apart).max() < 1e-5
    assert (frame.species == types).all()
    assert (frame.box == BOX).all()


def write(path: Path, text: str) -> Path:
    """A text file, packed if it is called .gz."""
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        "id type x y z",
        "id type x y",
        "id type xs ys zs",
        "id type xs ys",
        "id element xu yu zu",
        "id type mass xsu ysu",
        "mass id type x y",
    ],
)
@pytest.mark.parametrize("origin", [0.0, -3.0])
def test_lammps_dumps(tmp_path: Path, columns: str, origin: float) -> None:
    text = dump_text(1, columns, origin=origin) + dump_text(2, columns, origin=origin)
    first, second = read_frames(write(tmp_path / "a.dump.gz", text))
    check_frame(first, 1)
    check_frame(second, 2)
    plain = write(tmp_path / "dump.100", dump_text(3, columns, origin=origin))
    check_frame(read_frames(plain)[0], 3)


def with_second_line(head: str) -> str:
    return xyz_text(1, head=head)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("A.DUMP.GZ", dump_text(1)),
        ("dump.7.GZ", dump_text(1)),
        ("mark.dump", "\ufeff" + dump_text(1)),
        ("lines.dump", dump_text(1).replace("\n", "\r\n")),
        ("units.dump", "ITEM: UNITS\nlj\nITEM: TIME\n0.5\n" + dump_text(1)),
        ("numbers.dump", dump_text(1).replace(" 6.0 ", " 6.0e+00 ")),
        ("old.dump", dump_text(1, bounds="")),
        ("right.dump", dump_text(1, bounds="xy xz yz pp pp pp", tilt="0.0")),
        ("A.XYZ.Gz", xyz_text(1)),
        ("mark.xyz", "\ufeff" + xyz_text(1)),
        ("lines.xyz", xyz_text(1).replace("\n", "\r\n")),
        ("mac.xyz", xyz_text(1).replace("\n", "\r")),
        ("single.xyz", with_second_line("Lattice='6 0 0 0 6 0 0 0 1' pbc=\"T T F\"")),
        ("json.xyz", with_second_line("lattice=[[6, 0, 0], [0, 6, 0], [0, 0, 1]] pbc=[T, T, F]")),
        ("spaces.xyz", with_second_line('Lattice = " 6 0 0 0 6 0 0 0 1 " pbc={1 1 0} Time=3')),
        ("comment.xyz", with_second_line('Lattice="6 0 0 0 6 0 0 0 1" comment="a = b, \xe5"')),
        # What is not packed, whatever its name says.
        ("plain.xyz.copy", xyz_text(1)),
    ],
)
def test_other_programs_write_them_otherwise(tmp_path: Path, name: str, text: str) -> None:
    [frame] = read_frames(write(tmp_path / name, text))
    check_frame(frame, 1)


@pytest.mark.parametrize("text", [dump_text(1), xyz_text(1)])
def test_gzip_is_told_by_the_content(tmp_path: Path, text: str) -> None:
    ending = ".dump" if text.startswith("ITEM") else ".xyz"
    (tmp_path / f"a{ending}.gz").write_text(text)
    (tmp_path / f"b{ending}").write_bytes(gzip.compress(text.encode()))
    for name in (f"a{ending}.gz", f"b{ending}"):
        check_frame(read_frames(tmp_path / name)[0], 1)


def test_comments_may_be_in_any_alphabet(tmp_path: Path) -> None:
    head = 'Lattice="6 0 0 0 6 0 0 0 1" note="in \xc5"'
    (tmp_path / "a.xyz").write_bytes(xyz_text(1, head=head).encode("latin-1"))
    check_frame(read_frames(tmp_path / "a.xyz")[0], 1)


@pytest.mark.parametrize("text", [dump_text(1), xyz_text(1)])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n", "\r\n"])
def test_the_last_line_may_lack_its_end_and_blank_lines_may_follow(
    tmp_path: Path, text: str, end: str
) -> None:
    (tmp_path / "dump.1").write_text(text.removesuffix("\n") + end)
    [frame] = read_frames(tmp_path / "dump.1")
    check_frame(frame, 1)


@pytest.mark.parametrize("write_text", [dump_text, xyz_text])
@pytest.mark.parametrize("packed", [False, True])
def test_blank_lines_around_frames_are_skipped(
    tmp_path: Path, write_text: Any, packed: bool
) -> None:
    text = "\n" + "\n \t\n".join(write_text(seed) for seed in (1, 2, 3))
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    frames = read_frames(write(path, text))
    assert len(frames) == 3
    for seed, frame in zip((1, 2, 3), frames, strict=True):
        check_frame(frame, seed)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("dump.7.xyz", xyz_text(1).encode(), XYZ),
        ("dump.7.extxyz", xyz_text(1).encode(), XYZ),
        ("dump.7.dump", dump_text(1).encode(), LAMMPS),
        ("dump.7", dump_text(1).encode(), LAMMPS),
        ("dump.7", xyz_text(1).encode(), XYZ),
        ("dump.7.gz", gzip.compress(xyz_text(1).encode()), XYZ),
        ("run.out", dump_text(1).encode(), LAMMPS),
        ("a.xyz", dump_text(1).encode(), LAMMPS),
        ("dump.7.png", b"\x89PNG\r\n\x1a\n...", IMAGE),
        ("dump.7.jpeg", b"\xff\xd8\xff\xe0", IMAGE),
        ("dump.7.TIFF", b"II*\0....", IMAGE),
        ("dump.7.xyz", b"no xyz", XYZ),
        ("dump.7.xyz.gz", b"no xyz", XYZ),
        ("dump.lammpstrj.png", b"no picture", IMAGE),
        ("notes.txt", b"7 of 9", None),
        ("metadata.json", b"[]", None),
        ("dump.7", b"", None),
    ],
)
def test_the_content_tells_the_kind_and_else_the_ending(
    tmp_path: Path, name: str, content: bytes, kind: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    assert kind_of(tmp_path / name) == kind


def test_gsd_is_told_by_its_content(tmp_path: Path) -> None:
    write_gsd(tmp_path / "dump.gsd", [1])
    (tmp_path / "dump.gsd").rename(tmp_path / "dump.7")
    assert kind_of(tmp_path / "dump.7") == GSD
    check_frame(read_frames(tmp_path / "dump.7")[0], 1)


def test_what_rounds_up_to_the_edge_is_at_the_other(tmp_path: Path) -> None:
    """A little below 0 is a little below the box in double precision, and the box in single."""
    first = LINES[9].split()
    rows = [*LINES[:9], f"{first[0]} {first[1]} -1e-9 6.000000001 0\n", *LINES[10:]]
    (tmp_path / "a.dump").write_text("".join(rows))
    [frame] = read_frames(tmp_path / "a.dump")
    assert frame.positions[int(first[0]) - 1] == pytest.approx([0, 0], abs=1e-6)
    assert (frame.positions < BOX).all()


def xyz_columns(seed: int, properties: str, row: str) -> str:
    places, types = particles(seed)
    head = f'Lattice="6.0 0 0 0 6.0 0 0 0 1" Properties={properties} Time=3'
    rows = [
        row.format(i=i, x=x, y=y, t=t, name=" AB"[t])
        for i, ((x, y), t) in enumerate(zip(places, types, strict=True), 1)
    ]
    return "\n".join(["30", head, *rows, ""])


@pytest.mark.parametrize(
    ("properties", "row"),
    [
        ("id:I:1:pos:R:3:species:S:1", "{i} {x:e} {y:e} 0 {name}"),
        ("species:S:1:pos:R:2", "{name} {x} {y}"),
        ("species:I:1:pos:R:3", "{t} {x} {y} 0"),
        ("type:I:1:forces:R:3:pos:R:3", "{t} 0 0 1.5 {x} {y} 0"),
        ('"species:S:1:pos:R:3:fixed:L:1"', "{name} {x} {y} 0 T"),
    ],
)
def test_columns_of_extended_xyz(tmp_path: Path, properties: str, row: str) -> None:
    (tmp_path / "a.xyz").write_text(xyz_columns(1, properties, row))
    [frame] = read_frames(tmp_path / "a.xyz")
    check_frame(frame, 1)


@pytest.mark.parametrize("names", [("A", "B"), ("1", "2"), ("a", "b")])
def test_extended_xyz(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(xyz_text(1, names) + xyz_text(2, names))
    for seed, frame in zip((1, 2), read_frames(path), strict=True):
        check_frame(frame, seed)


def test_extended_xyz_of_ase_is_read_as_ase_reads_it(tmp_path: Path) -> None:
    """With what ASE adds: energies, forces, periodicity, arrays of its own."""
    from ase.calculators.singlepoint import SinglePointCalculator

    wanted = []
    for seed in range(3):
        places, types = particles(seed)
        atoms = ase.Atoms(np.where(types == 1, "Ar", "Ne"), np.pad(places, ((0, 0), (0, 1))))
        atoms.set_cell([*BOX, 1])
        atoms.set_pbc([True, True, False])
        atoms.set_array("species_of_model", types)
        atoms.info = {"note": "a b", "Time": 1.5, "list": [1, 2], "flag": True}
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((30, 3)))
        wanted.append(atoms)
    ase.io.write(tmp_path / "a.xyz", wanted, format="extxyz")
    read = ase.io.read(tmp_path / "a.xyz", index=":", format="extxyz")
    renamed = re.sub("^Ar", "A", re.sub("^Ne", "B", (tmp_path / "a.xyz").read_text(), flags=re.M),
                     flags=re.M)  # fmt: skip
    (tmp_path / "a.xyz").write_text(renamed)
    frames = read_frames(tmp_path / "a.xyz")
    for seed, (frame, atoms) in enumerate(zip(frames, read, strict=True)):
        check_frame(frame, seed)
        assert frame.positions == pytest.approx(atoms.positions[:, :2])


@pytest.mark.parametrize("names", [("A", "B"), ("a", "b"), ("1", "2")])
def test_gsd(tmp_path: Path, names: tuple[str, str]) -> None:
    write_gsd(tmp_path / "a.gsd", [1, 2], names)
    for seed, frame in zip((1, 2), read_frames(tmp_path / "a.gsd"), strict=True):
        check_frame(frame, seed)


def test_gsd_that_leaves_out_what_its_format_takes_for_given(tmp_path: Path) -> None:
    write_gsd(tmp_path / "a.gsd", [1], ("A",))
    check_frame(read_frames(tmp_path / "a.gsd")[0], 1)


def test_pictures_are_no_trajectory_files(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"\x89PNG\r\n\x1a\n" + picture(1).tobytes())
    with pytest.raises(Exception, match=r"a\.xyz: is no trajectory file: known are PNG"):
        read_frames(tmp_path / "a.xyz")
