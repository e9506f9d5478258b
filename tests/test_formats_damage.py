"""Trajectory files that cannot be what they claim: each is refused by name, line and remedy."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gsd.hoomd
import pytest

from glass_cnn.data.formats import read_frames
from hpc.errors import DataError
from tests.own_data import dump_text, write_gsd, xyz_text

LINES = dump_text(1).splitlines(keepends=True)
XYZ_LINES = xyz_text(1).splitlines(keepends=True)
LATTICE = 'Lattice="6.0 0 0 0 6.0 0 0 0 1" Properties=species:S:1:pos:R:3'
WORDS_OF_LIBRARIES = re.compile(
    r"Traceback|Error\b|invalid literal|could not convert|not enough values|Errno|codec|"
    r"Corrupt GSD|gsd\.fl|Unable to|UnidentifiedImage|BytesIO|broken PNG|image file is"
)


def refused(path: Path) -> str:
    """The message; it names the file and speaks no library's words."""
    with pytest.raises(DataError) as error:
        read_frames(path)
    message = str(error.value)
    assert str(path) in message
    assert not WORDS_OF_LIBRARIES.search(message), message
    return message


def row(text: str, number: int, new: str) -> str:
    """A text with another line `number` (from 1)."""
    lines = text.splitlines(keepends=True)
    lines[number - 1] = new + "\n"
    return "".join(lines)


def xyz_of(head: str) -> str:
    return xyz_text(1, head=head)


def properties(text: str) -> str:
    return xyz_of(LATTICE.replace("species:S:1:pos:R:3", text))


DUMPS = [
    (dump_text(1)[:-40], r"line 39: found '20 2' where atom 30 of 30, with the 5 columns id type"),
    ("".join(LINES[:-1]), r"after line 38: atom 30 of 30, with the columns id type x y z, should"),
    (row(dump_text(1), 12, "4 1 2.5 2.5"), r"line 12: found '4 1 2\.5 2\.5' where atom 3 of 30"),
    (row(dump_text(1), 12, "4 1 2 2 0 0"), r"line 12: found '4 1 2 2 0 0' where atom 3 of 30"),
    (row(dump_text(1), 12, ""), r"line 12: found '' where atom 3 of 30"),
    (row(dump_text(1), 12, "4 1 2.5 x 0"), r"line 12: the column y holds 'x' where a number"),
    (row(dump_text(1), 12, "4 1 1D0 2 0"), r"line 12: the column x holds '1D0'"),
    (row(dump_text(1), 12, "4 1 2 nan 0"), r"line 12: the column y holds 'nan' .* finite number"),
    (row(dump_text(1), 12, "4 1 2 1e999 0"), r"line 12: the column y holds '1e999'"),
    (row(dump_text(1), 12, "4.5 1 2 2 0"), r"line 12: the column id holds '4\.5' where a whole"),
    (row(dump_text(1), 12, f"{10**30} 1 2 2 0"), r"line 12: the column id holds '1000"),
    (row(dump_text(1), 9, "ITEM: ATOMS id type x y z vx"), r"line 10: found"),
    (row(dump_text(1), 9, "ITEM: ATOMS id type x y x"), r"line 9: the column x stands there twice"),
    (dump_text(1, "id type x yu"), r"line 9: the columns are id type x yu; it needs type"),
    (dump_text(1, "id x y"), "it needs type"),
    (
        dump_text(1, "type x y z").replace("\n30\n", "\n29\n"),
        r"line 39: found '2 5\.08.*' where 'ITEM: …'",
    ),
    (dump_text(1).replace("\n30\n", "\n29\n"), "no particle with id 20: 29 particles have ids"),
    (dump_text(1).replace("\n30\n", "\n31\n"), r"after line 39: atom 31 of 31"),
    (dump_text(1).replace("\n30\n", "\n31\n") + dump_text(2), r"line 40: found 'ITEM: TIMESTEP'"),
    (dump_text(1).replace("\n30\n", "\n-1\n"), r"line 4: found '-1' where the number of atoms"),
    (dump_text(1).replace("\n30\n", "\nmany\n"), r"line 4: found 'many' where the number"),
    (dump_text(1).replace("\n30\n", f"\n{10**17}\n"), r"after line 39: atom 31 of 1000"),
    ("".join(LINES[:9]).replace("\n30\n", "\n0\n"), "frame 0: has 0 particles; 7 are the fewest"),
    ("".join(LINES[:15]).replace("\n30\n", "\n6\n"), "6 particles; 7 are the fewest"),
    ("".join(LINES[:2] + LINES[4:]), r"line 7: this frame has no NUMBER OF ATOMS before its ATOMS"),
    ("".join(LINES[:4] + LINES[8:]), r"line 5: this frame has no BOX BOUNDS"),
    (dump_text(1) + "".join(LINES[8:]), r"line 40: this frame has no NUMBER OF ATOMS"),
    ("".join(LINES[:8]) + dump_text(2), r"line 9: found 'ITEM: TIMESTEP' where 'ITEM: ATOMS' of"),
    ("ITEM: TIMESTEP\n" + "".join(LINES[2:]), r"line 2: found 'ITEM: NUMBER .* the value of TIME"),
    ("nonsense\n" * 5, r"line 1: found 'nonsense' where 'ITEM: …' should stand"),
    (dump_text(1) + "nonsense", r"line 40: found 'nonsense'"),
    ("", "holds no frames"),
    ("\n\n", "holds no frames"),
    ("ITEM: TIMESTEP" + "x" * (1 << 20), r"line 1: found 'ITEM: .* where lines of text should"),
    (
        dump_text(1).replace(" 2 ", " 3 "),
        r"frame 0: has particles of type 1, 3; write data: {types: {1: A, 3: B}} in",
    ),
    (dump_text(1, z=0.2), "frame 0: z spreads over 5.8 σ"),
]
DOUBLED = row(dump_text(1), 12, LINES[10].strip().replace(LINES[10].split()[0], "7", 1))
BOXES = [
    (dump_text(1, bounds="xy xz yz pp pp pp", tilt="0.5"), "box is tilted"),
    (dump_text(1, bounds="abc origin pp pp pp"), "box is tilted"),
    (dump_text(1, bounds="ff pp pp"), "not periodic in x and y"),
    (dump_text(1, bounds="pp fs pp"), "not periodic in x and y"),
    (row(dump_text(1), 6, "6.0 0.0"), r"line 6: '6\.0 0\.0' are no bounds of a box: the lower"),
    (row(dump_text(1), 7, "0 nan"), r"line 7: '0 nan' are no bounds"),
    (row(dump_text(1), 7, "0 wide"), r"line 7: '0 wide' are no bounds"),
    (row(dump_text(1), 7, "6.0"), r"line 7: found '6\.0' where 'low high' should stand"),
    (row(dump_text(1), 6, "0 0"), r"the box is 0 × 6; it must be at least 2 σ wide"),
    ("".join(LINES[:7]), r"after line 7: the bounds of the box in z should follow"),
]
UNITS = [
    (f"ITEM: UNITS\n{name}\n" + dump_text(1), rf"line 2: the lengths are in {length} .units {name}")
    for name, length in {
        "metal": "Å",
        "real": "Å",
        "si": "m",
        "cgs": "cm",
        "electron": "Bohr",
        "micro": "µm",
        "nano": "nm",
        "furlong": "other units",
    }.items()
]
IDS = [
    (DOUBLED, r"frame 0: the id 7 stands there 2 times"),
    (row(dump_text(1), 12, "31 1 2.5 2.5 0"), r"there is no particle with id \d+: 30 particles"),
    (row(dump_text(1), 12, "-4 1 2.5 2.5 0"), r"there is no particle with id \d+"),
    (re.sub(r"^(\d+) ", r"10\1 ", dump_text(1), flags=re.M), r"no particle with id 1: 30 particl"),
    (dump_text(1) + DOUBLED, r"frame 1: the id 7 stands"),
]
OUTSIDE = [
    (
        row(dump_text(1), 12, f"{LINES[11].split()[0]} 1 9.5 2.5 0"),
        r"lies 3\.5 σ out of the box in x",
    ),
    (
        row(dump_text(1), 12, f"{LINES[11].split()[0]} 1 2.5 -60 0"),
        r"lies 60 σ out of the box in y",
    ),
    (dump_text(1).replace("0.0 6.0 ", "50.0 56.0 "), r"out of the box in .*written as xu yu"),
    (
        row(row(dump_text(1), 12, "50 1 2 2 0"), 13, "51 1 2 2 0").replace(" id ", " "),
        "found|columns",
    ),
    (
        dump_text(1, "type x y").replace("-0.5 0.5", "-3 3"),
        "the box is 6 σ deep and the file has no z",
    ),
]
XYZS = [
    (
        xyz_text(1, ("Ni", "P")),
        r"frame 0: has particles of type Ni, P; write .*Ni: A, P: B.*, or call them A and B",
    ),
    (
        xyz_of("a comment"),
        r"line 2: has no Lattice; .* must be known: Lattice=.*Properties=species",
    ),
    (row(xyz_text(1), 2, ""), r"line 2: has no Lattice"),
    (xyz_of("Properties=species:S:1:pos:R:3"), "has no Lattice"),
    (xyz_of(LATTICE + ' pbc="F F F"'), "not periodic"),
    (xyz_of(LATTICE + ' pbc="T F T"'), "not periodic"),
    (
        xyz_of(LATTICE.replace("0 0 0 1", "0 0 1")),
        r"line 2: Lattice is .*where 9 numbers are needed",
    ),
    (xyz_of(LATTICE.replace('1"', 'nan"')), r"line 2: Lattice is .*where 9 numbers are needed"),
    (xyz_of(LATTICE.replace('1"', "1")), r"line 2: Lattice is '6\.0', where 9 numbers are needed"),
    (xyz_of(LATTICE.replace('"6.0 0 0 0', '"6.0 0 0 1')), "box is tilted"),
    (xyz_of(LATTICE.replace('"6.0 0 0 0', '"-6.0 0 0 0')), r"the box is -6 × 6"),
    (xyz_of(LATTICE.replace("6.0", "0.6")), "Are lengths in σ"),
    (xyz_of(LATTICE.replace("6.0", "0")), "the box is 0 × 0"),
    (properties("species:S:1:pos:R"), r"line 2: Properties='species:S:1:pos:R' must be name:kind"),
    (properties("species:S:1:pos:R:0"), "must be name:kind:columns"),
    (properties("species:S:1:pos:X:3"), "must be name:kind:columns"),
    (properties("pos:R:3:charge:R:1"), r"line 2: names no species, or no pos of 2 or 3 numbers"),
    (properties("species:S:1:pos:R:1"), "names no species, or no pos"),
    (properties("species:S:1:pos:R:3:pos:R:3"), r"line 2: the column pos stands there twice"),
    (properties("id:I:1:species:S:1:pos:R:3"), r"line 3: found '.*' where particle 1 of 30, with"),
    (xyz_text(1) + xyz_text(2)[:300], r"line \d+: found|after line \d+: particle \d+ of 30"),
    (
        "".join(XYZ_LINES[:-1]),
        r"after line 31: particle 30 of 30, with the columns species pos pos",
    ),
    (xyz_text(1)[:-30], r"line 3[12]: found|after line 31"),
    (row(xyz_text(1), 12, ""), r"line 12: found '' where particle 10 of 30"),
    (row(xyz_text(1), 12, "A 1 2"), r"line 12: found 'A 1 2' where particle 10 of 30"),
    (row(xyz_text(1), 12, "A 1 2 0 5"), r"line 12: found 'A 1 2 0 5'"),
    (row(xyz_text(1), 12, "A 1 2,5 0"), r"line 12: the column pos holds '2,5' where a number"),
    (row(xyz_text(1), 12, "A 1 inf 0"), r"line 12: the column pos holds 'inf' where a finite"),
    (xyz_text(1) + "A 1 1 0\n", r"line 33: found 'A 1 1 0' where the number of particles"),
    (xyz_text(1) + "\n\nthe end\n", r"line 35: found 'the end' where the number of particles"),
    (xyz_text(1).replace("30\n", "29\n", 1), r"line 32: found '[AB] .* where the number of part"),
    (xyz_text(1).replace("30\n", "30.0\n", 1), r"line 1: found '30\.0' where the number"),
    (xyz_text(1).replace("30\n", "-30\n", 1), r"line 1: found '-30' where the number"),
    ("not a number\n", r"line 1: found 'not a number' where the number of particles of a frame"),
    ("30\n", r"after line 1: a line with Lattice="),
    ("\n \n", "holds no frames"),
    (xyz_text(1, z=1.0), "z spreads over"),
    (re.sub(r"(\nA .*)\nA .*", r"\1\1", xyz_text(1), count=1), "two particles at the same place"),
]


@pytest.mark.parametrize(("text", "message"), [*DUMPS, *BOXES, *UNITS, *IDS, *OUTSIDE])
def test_bad_dumps(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.dump").write_text(text)
    assert re.search(message, refused(tmp_path / "a.dump"))


@pytest.mark.parametrize(("text", "message"), XYZS)
def test_bad_xyz(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xyz").write_text(text)
    assert re.search(message, refused(tmp_path / "a.xyz"))


@pytest.mark.parametrize(("name", "lines"), [("a.dump", LINES), ("a.xyz", XYZ_LINES)])
def test_files_cut_after_any_line_are_refused(tmp_path: Path, name: str, lines: list[str]) -> None:
    path = tmp_path / name
    for kept in range(1, len(lines)):
        path.write_text("".join(lines) + "".join(lines[:kept]))
        assert "ends in the middle of a frame" in refused(path)


@pytest.mark.parametrize("text", [dump_text(1), xyz_text(1)])
def test_rows_cut_between_two_columns_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / ("a.dump" if text.startswith("ITEM") else "a.xyz")
    path.write_text(text.rstrip("\n").rsplit(" ", 1)[0])
    assert "where" in refused(path)
    assert f"line {len(text.splitlines())}: found" in refused(path)


@pytest.mark.parametrize("text", [dump_text(1), xyz_text(1)])
def test_packed_files_that_are_cut_or_damaged_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / ("a.dump.gz" if text.startswith("ITEM") else "a.xyz.gz")
    packed = gzip.compress(text.encode())
    for end in (len(packed) // 2, len(packed) - 8, len(packed) - 1):
        path.write_bytes(packed[:end])
        assert "is cut: its packed data end after line" in refused(path)
    path.write_bytes(packed + b"more")
    assert "cannot be unpacked" in refused(path)
    path.write_bytes(packed[:60] + bytes(8) + packed[68:])
    assert re.search("cannot be unpacked|found|should follow|is cut", refused(path))
    path.write_bytes(packed[:3])
    refused(path)


def test_ids_of_extended_xyz_are_checked_too(tmp_path: Path) -> None:
    head = LATTICE.replace("species", "id:I:1:species")
    rows = [f"{n} {line}" for n, line in enumerate(XYZ_LINES[2:], 1)]
    path = tmp_path / "a.xyz"
    path.write_text("".join(["30\n", head, "\n", *rows]))
    assert len(read_frames(path)) == 1
    path.write_text("".join(["30\n", head, "\n", *rows[:-1], rows[-1].replace("30", "4", 1)]))
    assert "frame 0: the id 4 stands there 2 times" in refused(path)


def test_files_that_are_away_or_closed(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "a.dump")
    (tmp_path / "a.gsd").mkdir()
    assert "Is a directory" in refused(tmp_path / "a.gsd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: setattr(frame.particles, "N", 0), "frame 1: has 0 particles"),
        (
            lambda frame: frame.particles.position.__setitem__(3, frame.particles.position[2]),
            "number 3 has a",
        ),
        (lambda frame: frame.particles.typeid.__setitem__(0, 2), "type number 2, and names of 2"),
        (lambda frame: setattr(frame.particles, "types", ["large", "small"]), "type large, small"),
        (lambda frame: setattr(frame.configuration, "box", [6, 6, 1, 0.1, 0, 0]), "is tilted"),
        (lambda frame: setattr(frame.configuration, "box", [0] * 6), "box is 0 × 0"),
        (
            lambda frame: setattr(frame.configuration, "box", [float("nan")] * 3 + [0] * 3),
            "its box",
        ),
        (
            lambda frame: frame.particles.position.__setitem__((4, 1), float("nan")),
            "number 5 of it",
        ),
        (lambda frame: frame.particles.position.__setitem__((4, 1), 7.0), "number 5 lies 4 σ out"),
        (lambda frame: frame.particles.position.__setitem__((4, 2), 0.3), "z spreads over 0.3 σ"),
    ],
)
def test_bad_gsd(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    write_gsd(tmp_path / "good.gsd", [1])
    with gsd.hoomd.open(str(tmp_path / "good.gsd"), "r") as file:
        good, frame = file[0], file[0]
        change(frame)
    if frame.particles.N == 0:
        frame.particles = gsd.hoomd.ParticleData()
    with gsd.hoomd.open(str(tmp_path / "bad.gsd"), "w") as file:
        file.append(good)
        file.append(frame)
    assert re.search(message, refused(tmp_path / "bad.gsd"))


def test_gsd_that_is_cut_packed_or_none(tmp_path: Path) -> None:
    write_gsd(tmp_path / "good.gsd", [1, 2, 3])
    content = (tmp_path / "good.gsd").read_bytes()
    wrong = {
        "cut.gsd": content[:-700],
        "short.gsd": content[:100],
        "packed.gsd": gzip.compress(content),
    }
    for name, damaged in {**wrong, "none.gsd": b"no gsd", "empty.gsd": b""}.items():
        (tmp_path / name).write_bytes(damaged)
        assert "cannot be read as a GSD file" in refused(tmp_path / name)
