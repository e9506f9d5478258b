"""Imports: images and trajectory files of others, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gsd.hoomd
import numpy as np
import pytest
from PIL import Image

from glass_cnn.configuration import Configuration
from glass_cnn.data import dataset as data
from glass_cnn.data.formats import read_frames
from glass_cnn.data.imports import import_data, read_listing
from glass_cnn.data.render import render
from glass_cnn.settings import RunSettings, build_run
from hpc.errors import ConfigError, DataError
from hpc.world import world

BOX = np.array([6.0, 6.0])
Entries = list[dict[str, Any]]


def with_changes(**sections: Any) -> RunSettings:
    tree = {"data": {"name": "mine", "source": "import"}, "render": {"pixels": 20}}
    return build_run({**tree, **sections}, "test")


SETTINGS = with_changes()
UNSET_SIZE = with_changes(render={})


def store(source: Path, logs: Path, settings: RunSettings = SETTINGS) -> data.Dataset:
    return data.load(import_data(source, settings, logs, world()))


def write_list(source: Path, entries: Any) -> Path:
    source.mkdir(exist_ok=True)
    (source / "metadata.json").write_text(json.dumps(entries))
    return source


def picture(seed: int, size: tuple[int, int] = (20, 20), channels: int = 4) -> np.ndarray:
    shape = (size[1], size[0], channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_images(source: Path, count: int = 12, **how: Any) -> tuple[Path, Entries]:
    """`count` images, liquids and glasses in turn, in the form of 2017."""
    (source / "images").mkdir(parents=True)
    entries = []
    for i in range(count):
        path = f"images/{i}.png"
        Image.fromarray(picture(i, **how)).save(source / path)
        entries.append({"path": path, "label": ("liquid", "glass")[i % 2]})
    return write_list(source, entries), entries


# Images


@pytest.mark.parametrize("channels", [3, 4])
def test_images_of_2017(tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = write_images(tmp_path / "in", channels=channels)
    stored = store(source, tmp_path)
    assert stored.images.shape == (12, 20, 20, 3)
    for i in range(12):
        assert (stored.images[i] == picture(i, channels=channels)[..., :3]).all()
    assert stored.labels.tolist() == [0, 1] * 6
    assert stored.trajectories.tolist() == list(range(12))
    assert stored.column("images/path")[3] == "images/3.png"
    assert stored.record["source"] == str(source)
    assert "12 of 12 entries name no trajectory" in capsys.readouterr().out
    stored.verify()


def test_trajectories_of_images(tmp_path: Path) -> None:
    source, entries = write_images(tmp_path / "in")
    named = [{**entry, "trajectory": i // 2 % 3} for i, entry in enumerate(entries[:-1])]
    write_list(source, [*named, entries[-1]])
    assert store(source, tmp_path).trajectories.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 3]


def test_larger_images_are_cropped_where_a_size_is_set(tmp_path: Path) -> None:
    source, entries = write_images(tmp_path / "in", size=(31, 24))
    Image.fromarray(picture(0)).save(source / entries[0]["path"])
    stored = store(source, tmp_path)
    assert (stored.images[0] == picture(0)[..., :3]).all()
    assert (stored.images[1] == picture(1, size=(31, 24))[2:22, 5:25, :3]).all()


def test_other_sizes_need_a_size(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in", size=(31, 24))
    with pytest.raises(DataError, match=r"12 of 31 × 24\. Set render\.pixels"):
        store(source, tmp_path, UNSET_SIZE)


def test_images_of_the_size_that_is_not_set(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in", count=2, size=(250, 250))
    assert store(source, tmp_path, UNSET_SIZE).images.shape == (2, 250, 250, 3)


def test_smaller_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = write_images(tmp_path / "in", size=(20, 19))
    with pytest.raises(DataError, match=r"0\.png: is 20 × 19 pixels.*never enlarged"):
        store(source, tmp_path)
    assert "is taken" not in capsys.readouterr().out


def test_window_means_nothing_for_images(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"render\.window has no meaning"):
        store(source, tmp_path, with_changes(render={"pixels": 20, "window": 5.0}))


def test_same_source_again_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_images(tmp_path / "in")
    stored = store(source, tmp_path)
    before = stored.place.record.stat().st_mtime_ns
    moved = source.rename(tmp_path / "moved")
    again = store(moved, tmp_path)
    assert "imported already" in capsys.readouterr().out
    assert again.place.record.stat().st_mtime_ns == before


def test_another_source_under_the_same_name_is_refused(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in")
    stored = store(source, tmp_path)
    other = Path(shutil.copytree(source, tmp_path / "other"))
    Image.fromarray(picture(99)).save(other / "images/3.png")
    with pytest.raises(DataError, match=r"another data\.name") as error:
        store(other, tmp_path)
    for name in (source, other, stored.path):
        assert str(name) in str(error.value)
    assert (data.load(stored.place).images == stored.images).all()


def test_settings_that_ask_for_a_simulation(tmp_path: Path) -> None:
    source, _ = write_images(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"data\.source is simulation"):
        store(source, tmp_path, with_changes(data={"name": "mine"}))


# What is wrong with a list

GOOD = {"path": "images/0.png", "label": "liquid"}
OTHER = {"path": "images/1.png", "label": "glass"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": 1}, "holds dict where a list"),
        ("text", "holds str where a list"),
        ([], "empty list"),
        ([3], "entry 1: 3 must be a mapping"),
        ([GOOD, {"path": "images/1.png"}], 'entry 2: .*"path" and "label"'),
        ([{**GOOD, "label": "gas"}], "label 'gas' is unknown; allowed: glass, liquid"),
        ([{**GOOD, "label": ["glass"]}], r"label \['glass'\] is unknown"),
        ([{**GOOD, "label": 1}], "label 1 is unknown"),
        ([{**GOOD, "path": "images/99.png"}], r"images/99\.png: no such file"),
        ([{**GOOD, "path": "images"}], "no known kind"),
        ([{**GOOD, "path": "../in/images/../../secret.png"}], "leads out of"),
        ([{**GOOD, "path": "/etc/passwd"}], "leads out of"),
        ([{**GOOD, "path": "outside.png"}], "leads out of"),
        ([{**GOOD, "path": 5}], "must be the name of a file"),
        ([{**GOOD, "path": ""}], "must be the name of a file"),
        ([{**GOOD, "path": float("nan")}], "must be the name of a file"),
        ([{**GOOD, "path": "a\0.png"}], "names no file"),
        ([{**GOOD, "path": "\ud800.png"}], "names no file"),
        ([{**GOOD, "path": "loop.png"}], "names no file|no such file"),
        ([{**GOOD, "path": "x" * 300 + ".png"}], "names no file|no such file"),
        ([{**GOOD, "path": "metadata.json"}], "no known kind; known endings: .png"),
        ([{**GOOD, "trajectory": [1]}], r"trajectory \[1\] must be"),
        ([{**GOOD, "frame": 1.5}], "frame 1.5 must be"),
        ([{**GOOD, "frame": True}], "frame True must be"),
        ([GOOD, OTHER, GOOD], r"images/0\.png is listed twice"),
        ([GOOD, OTHER, {**GOOD, "path": "./images/../images/0.png"}], "is listed twice"),
        ([GOOD, OTHER, {**GOOD, "path": "again.png"}], "is listed twice"),
        ([{**GOOD, "frame": 0}, OTHER, {**GOOD, "frame": 1}], "is listed twice"),
        ([GOOD], "all labelled liquid"),
        ([GOOD, OTHER, {**OTHER, "path": "a.xyz"}], "one or the other"),
    ],
)
def test_bad_lists(tmp_path: Path, entries: Any, message: str) -> None:
    source, _ = write_images(tmp_path / "in", count=4)
    (tmp_path / "secret.png").write_bytes(b"")
    (source / "outside.png").symlink_to(tmp_path / "secret.png")
    (source / "loop.png").symlink_to("loop.png")
    (source / "again.png").symlink_to("images/0.png")
    (source / "a.xyz").write_text("")
    write_list(source, entries)
    with pytest.raises(DataError, match=message):
        store(source, tmp_path)
    assert not [p for p in (tmp_path / "datasets").glob("*") if p.suffix != ".lock"]


def test_list_that_is_no_json(tmp_path: Path) -> None:
    source = write_list(tmp_path / "in", [])
    (source / "metadata.json").write_text('[{"path": ')
    with pytest.raises(DataError, match=r"metadata\.json: is no JSON: .*Mend it") as error:
        store(source, tmp_path)
    assert "remove" not in str(error.value)
    (source / "metadata.json").unlink()
    (source / "metadata.json").mkdir()
    with pytest.raises(DataError, match=r"metadata\.json: cannot be read: Is a directory"):
        store(source, tmp_path)


def test_list_with_a_byte_order_mark_and_names_of_all_kinds(tmp_path: Path) -> None:
    """As other systems' editors write it; endings in capitals, spaces, other alphabets."""
    source = tmp_path / "in"
    source.mkdir()
    names = ["ein Bild.PNG", "стекло 1.png"]
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed)).save(source / name, "PNG")
    labels = ("liquid", "glass")
    entries = [{"path": n, "label": k} for n, k in zip(names, labels, strict=True)]
    text = json.dumps(entries, ensure_ascii=False)
    (source / "metadata.json").write_text(text, encoding="utf-8-sig")
    stored = store(source, tmp_path)
    assert stored.column("images/path").tolist() == names
    assert all((stored.images[i] == picture(i)[..., :3]).all() for i in range(2))


def test_no_directory_and_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no directory"):
        store(tmp_path / "nowhere", tmp_path)
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"has neither metadata\.json nor"):
        store(tmp_path / "in", tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), r"5\.png: is no PNG image"),
        (lambda path: path.write_bytes(b""), r"5\.png: is no PNG image"),
        (cut, r"5\.png: is a damaged PNG image"),
        *(
            (
                lambda path, mode=mode: Image.new(mode, (20, 20)).save(path),
                rf"5\.png: is of mode {mode}; RGB or RGBA",
            )
            for mode in ("L", "LA", "P", "1", "I;16")
        ),
        (lambda path: Image.new("RGB", (20, 20)).save(path, "JPEG"), r"5\.png: is no PNG image"),
    ],
)
def test_bad_images(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    source, _ = write_images(tmp_path / "in")
    damage(source / "images/5.png")
    with pytest.raises(DataError, match=message):
        store(source, tmp_path)
    assert [p.suffix for p in (tmp_path / "datasets").iterdir()] in ([], [".lock"])


# Trajectory files


def particles(seed: int, count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    types = np.where(generator.permutation(count) < count // 3, 2, 1)
    return generator.uniform(0.01, 0.99, (count, 2)) * BOX, types


def dump_text(
    seed: int,
    columns: str = "id type x y z",
    bounds: str = "pp pp pp",
    origin: float = 0.0,
    tilt: str = "",
    z: float = 0.0,
) -> str:
    """A frame as LAMMPS writes it, particles in no order."""
    places, types = particles(seed)
    places = np.column_stack([places + origin, np.full(len(places), z) * np.arange(len(places))])
    scaled = (places - origin) / [*BOX, 1.0]
    value = {"id": np.arange(1, len(types) + 1), "type": types, "mass": np.ones(len(types))}
    value["element"] = np.where(types == 1, "A", "B")
    for axis, name in enumerate("xyz"):
        value |= {name: places[:, axis], name + "u": places[:, axis] + 6 * axis}
        value |= {name + "s": scaled[:, axis], name + "su": scaled[:, axis] + 2}
    rows = np.column_stack([value[name].astype(str) for name in columns.split()])
    shuffled = np.random.default_rng(1).permutation(len(rows))
    limits = [f"{origin} {origin + side} {tilt}" for side in BOX] + [f"-0.5 0.5 {tilt}"]
    return "\n".join(
        [
            "ITEM: TIMESTEP\n100\nITEM: NUMBER OF ATOMS",
            str(len(types)),
            f"ITEM: BOX BOUNDS {bounds}",
            *limits,
            f"ITEM: ATOMS {columns}",
            *(" ".join(row) for row in rows[shuffled]),
            "",
        ]
    )


def xyz_text(seed: int, names: tuple[str, str] = ("A", "B"), head: str = "", z: float = 0) -> str:
    places, types = particles(seed)
    lattice = f'Lattice="{BOX[0]} 0 0 0 {BOX[1]} 0 0 0 1" Properties=species:S:1:pos:R:3'
    rows = [
        f"{names[t - 1]} {x} {y} {z * i}"
        for i, ((x, y), t) in enumerate(zip(places, types, strict=True))
    ]
    return "\n".join([str(len(types)), head or lattice, *rows, ""])


def write_gsd(path: Path, seeds: list[int], names: tuple[str, ...] = ("A", "B")) -> None:
    with gsd.hoomd.open(str(path), "w") as file:
        for seed in seeds:
            places, types = particles(seed)
            frame = gsd.hoomd.Frame()
            frame.configuration.box = [*BOX, 1, 0, 0, 0]
            frame.configuration.dimensions = 2
            frame.particles.N = len(types)
            frame.particles.types = list(names)
            frame.particles.typeid = types - 1
            frame.particles.position = np.column_stack([places - BOX / 2, np.zeros(len(types))])
            file.append(frame)


def check_frame(frame: Any, seed: int, shift: tuple[float, float] = (0, 0)) -> None:
    places, types = particles(seed)
    apart = (frame.positions - places - shift + BOX / 2) % BOX - BOX / 2
    assert np.abs(apart).max() < 1e-5
    assert (frame.types == types).all()
    assert (frame.box == BOX).all()


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
    path = tmp_path / "a.dump.gz"
    with gzip.open(path, "wt") as file:
        file.write(dump_text(1, columns, origin=origin) + dump_text(2, columns, origin=origin))
    first, second = read_frames(path)
    check_frame(first, 1)
    check_frame(second, 2)
    plain = tmp_path / "dump.100"
    plain.write_text(dump_text(3, columns, origin=origin))
    check_frame(read_frames(plain)[0], 3)


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
    ],
)
def test_other_programs_write_them_otherwise(tmp_path: Path, name: str, text: str) -> None:
    packed = name.lower().endswith(".gz")
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    [frame] = read_frames(tmp_path / name)
    check_frame(frame, 1)


def test_what_rounds_up_to_the_edge_is_at_the_other(tmp_path: Path) -> None:
    """A little below 0 is a little below the box in double precision, and the box in single."""
    first = LINES[9].split()
    rows = [*LINES[:9], f"{first[0]} {first[1]} -1e-9 6.000000001 0\n", *LINES[10:]]
    (tmp_path / "a.dump").write_text("".join(rows))
    [frame] = read_frames(tmp_path / "a.dump")
    assert frame.positions[int(first[0]) - 1] == pytest.approx([0, 0], abs=1e-6)
    assert (frame.positions < BOX).all()


def test_columns_of_extended_xyz_in_another_order(tmp_path: Path) -> None:
    lattice = 'Lattice="6.0 0 0 0 6.0 0 0 0 1" Properties=id:I:1:pos:R:3:species:S:1 Time=3'
    places, types = particles(1)
    rows = [
        f"{i} {x:e} {y:e} 0 {' AB'[t]}"
        for i, ((x, y), t) in enumerate(zip(places, types, strict=True))
    ]
    (tmp_path / "a.xyz").write_text("\n".join(["30", lattice, *rows, ""]))
    [frame] = read_frames(tmp_path / "a.xyz")
    check_frame(frame, 1)


@pytest.mark.parametrize("names", [("A", "B"), ("1", "2"), ("a", "b")])
def test_extended_xyz(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(xyz_text(1, names) + xyz_text(2, names))
    for seed, frame in zip((1, 2), read_frames(path), strict=True):
        check_frame(frame, seed)


@pytest.mark.parametrize("names", [("A", "B"), ("large", "small")])
def test_gsd(tmp_path: Path, names: tuple[str, str]) -> None:
    write_gsd(tmp_path / "a.gsd", [1, 2], names)
    for seed, frame in zip((1, 2), read_frames(tmp_path / "a.gsd"), strict=True):
        check_frame(frame, seed, shift=(-3, -3))


LINES = dump_text(1).splitlines(keepends=True)
LATTICE = 'Lattice="6.0 0 0 0 6.0 0 0 0 1" Properties=species:S:1:pos:R:3'


def no_lattice() -> str:
    return xyz_text(1, head="Properties=species:S:1:pos:R:3")


def tilted() -> str:
    return xyz_text(1, head='Lattice="6 0 0 1 6 0 0 0 1" Properties=species:S:1:pos:R:3')


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.dump", dump_text(1)[:-40], "ends in the middle of a frame"),
        ("a.dump", dump_text(1, "id type x yu"), "it needs type"),
        ("a.dump", dump_text(1, "id x y"), "it needs type"),
        ("a.dump", dump_text(1, bounds="xy xz yz pp pp pp", tilt="0.5"), "box is tilted"),
        ("a.dump", dump_text(1, bounds="ff pp pp"), "not periodic"),
        ("a.dump", dump_text(1, z=0.2), "z spreads over"),
        ("a.dump", dump_text(1).replace(" 2 ", " 3 "), "type 1, 3; call them A and B"),
        ("a.dump", "", "holds no frames"),
        ("a.dump", "nonsense\n" * 5, "unexpected line 'nonsense'"),
        *(("a.dump", dump_text(1) + "".join(LINES[:k]), "middle of a frame") for k in range(1, 39)),
        ("a.dump", dump_text(1)[:-1], "ends in the middle of a frame"),
        ("a.dump", "".join(LINES[:2] + LINES[8:]), "no BOX BOUNDS"),
        ("a.dump", "".join(LINES[8:]), "no BOX BOUNDS"),
        ("a.dump", dump_text(1) + "".join(LINES[:4] + LINES[8:]), "no BOX BOUNDS"),
        ("a.dump", dump_text(1).replace("\n30\n", "\n29\n"), "unexpected line '20 2 5.08"),
        ("a.dump", dump_text(1).replace("\n30\n", "\n0\n"), "has 0 particles"),
        ("a.dump", "".join(LINES[:15]).replace("\n30\n", "\n6\n"), "6 particles; 7 are the fewest"),
        ("a.dump", "".join(LINES[:9]).replace("\n30\n", "\n0\n"), "has 0 particles"),
        ("a.dump", "".join(LINES[:9]).replace("\n30\n", "\n-1\n"), "cannot be read"),
        ("a.dump", dump_text(1, bounds="abc origin pp pp pp"), "box is tilted"),
        ("a.dump.gz", "not compressed", "cannot be read"),
        ("a.xyz", xyz_text(1, ("Ni", "P")), "type Ni, P; call them A and B"),
        ("a.xyz", xyz_text(1, head="a comment"), "'A', which is no element; .*Properties"),
        ("a.xyz", xyz_text(1, head=LATTICE + ' pbc="F F F"'), "not periodic"),
        ("a.xyz", xyz_text(1) + xyz_text(2)[:300], "cannot be read"),
        ("a.xyz", re.sub(r"(\nA .*)\nA .*", r"\1\1", xyz_text(1), count=1), "the same place"),
        ("a.xyz", no_lattice(), "has no Lattice"),
        ("a.xyz", tilted(), "box is tilted"),
        ("a.xyz", xyz_text(1, z=1.0), "z spreads over"),
        ("a.xyz", xyz_text(1)[:-30], "cannot be read"),
        ("a.xyz", "not a number\n", "cannot be read"),
        ("a.xyz", xyz_text(1).replace("6.0 0 0 0 6.0", "0.6 0 0 0 0.6"), "Are lengths in σ"),
        ("a.xyz", xyz_text(1).replace("\nA ", "\nA nan ", 1), "cannot be read|not finite"),
        ("a.gsd", "no gsd", "cannot be read"),
    ],
)
def test_bad_trajectory_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_frames(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: setattr(frame.particles, "N", 0), "has 0 particles"),
        (lambda frame: setattr(frame.particles, "position", None), "at the same place"),
        (lambda frame: frame.particles.typeid.__setitem__(0, 2), "has 3 types; at most two"),
        (lambda frame: setattr(frame.configuration, "box", [6, 6, 1, 0.1, 0, 0]), "is tilted"),
        (lambda frame: setattr(frame.configuration, "box", [0] * 6), "box is 0 × 0"),
    ],
)
def test_bad_gsd(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    write_gsd(tmp_path / "good.gsd", [1])
    with gsd.hoomd.open(str(tmp_path / "good.gsd"), "r") as file:
        frame = file[0]
    change(frame)
    if frame.particles.N == 0:
        frame.particles = gsd.hoomd.ParticleData()
    with gsd.hoomd.open(str(tmp_path / "bad.gsd"), "w") as file:
        file.append(frame)
    with pytest.raises(DataError, match=message):
        read_frames(tmp_path / "bad.gsd")
    (tmp_path / "cut.gsd").write_bytes((tmp_path / "good.gsd").read_bytes()[:-700])
    with pytest.raises(DataError, match=r"cut\.gsd: cannot be read"):
        read_frames(tmp_path / "cut.gsd")


def test_gsd_that_names_too_few_types(tmp_path: Path) -> None:
    write_gsd(tmp_path / "a.gsd", [1], ("A",))
    check_frame(read_frames(tmp_path / "a.gsd")[0], 1, shift=(-3, -3))


def test_a_frame_is_listed_once_and_files_have_one_name(tmp_path: Path) -> None:
    """Under two names it would be in training and test, or be liquid and glass."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "ramp.dump").write_text(dump_text(1) + dump_text(2))
    liquid = {"path": "ramp.dump", "label": "liquid"}
    glass = {"path": "./ramp.dump", "label": "glass"}
    for frames in ((0, -2), ("all", 1), (1, 1)):
        entries = [{**e, "frame": f} for e, f in zip((liquid, glass), frames, strict=True)]
        with pytest.raises(DataError, match=r"frame \d of ramp\.dump is listed twice"):
            store(write_list(source, entries), tmp_path)
    stored = store(write_list(source, [{**liquid, "frame": 0}, {**glass, "frame": 1}]), tmp_path)
    assert stored.trajectories.tolist() == [0, 0]


def test_trajectory_files_become_a_data_set(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "ramp.dump").write_text(dump_text(1) + dump_text(2) + dump_text(3))
    (source / "b.xyz").write_text(xyz_text(4))
    write_gsd(source / "c.gsd", [5, 6])
    write_list(
        source,
        [
            {"path": "ramp.dump", "label": "liquid", "frame": 0},
            {"path": "ramp.dump", "label": "glass", "frame": -1},
            {"path": "b.xyz", "label": "liquid", "trajectory": 12},
            {"path": "c.gsd", "label": "glass", "frame": "all"},
        ],
    )
    stored = store(source, tmp_path)
    assert stored.labels.tolist() == [0, 1, 0, 1, 1]
    assert stored.trajectories.tolist() == [0, 0, 1, 2, 2]
    for row, seed in enumerate((1, 3, 4)):
        places, types = particles(seed)
        there = Configuration(places.astype(np.float32), types, BOX)
        assert (stored.images[row] == render(there, SETTINGS.render)).all()
    assert stored.column("configurations/density") == pytest.approx(30 / 36)
    psi6 = stored.column("configurations/psi6")
    assert ((psi6 > 0.2) & (psi6 < 0.8)).all()
    assert stored.record["psi6"]["liquid"] > 0


def test_windows_of_an_oblong_box(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("liquid_1.xyz", "glass_1.xyz"):
        text = xyz_text(1).replace("6.0 0 0 0 6.0", "6.0 0 0 0 8.0")
        (source / name).write_text(text)
    with pytest.raises(DataError, match=r"glass_1\.xyz: the box is 6 × 8 σ.*set render\.window"):
        store(source, tmp_path)
    windows = {"pixels": 20, "window": 6.0, "windows_per_configuration": 3}
    assert len(store(source, tmp_path, with_changes(render=windows))) == 6


def test_names_tell_labels_and_trajectories(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    names = ("liquid_7.xyz", "Glass-7.xyz", "glass_8.extxyz", "liquid.9.dump.gz", "liquid.xyz")
    for name in (*names, "notes.xyz"):
        if name.endswith(".gz"):
            with gzip.open(source / name, "wt") as file:
                file.write(dump_text(1))
        else:
            (source / name).write_text(xyz_text(1))
    found = {entry.path: (entry.label, entry.trajectory) for entry in read_listing(source)}
    assert found == {
        "liquid_7.xyz": (0, "7"),
        "Glass-7.xyz": (1, "7"),
        "glass_8.extxyz": (1, "8"),
        "liquid.9.dump.gz": (0, "9"),
        "liquid.xyz": (0, "liquid.xyz"),
    }
    assert len(store(source, tmp_path)) == 5


def test_several_frames_need_a_choice(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "liquid.xyz").write_text(xyz_text(1) + xyz_text(2))
    (source / "glass.xyz").write_text(xyz_text(3))
    with pytest.raises(DataError, match=r"liquid\.xyz: has 2 frames; say which"):
        store(source, tmp_path)
    entries = [
        {"path": "liquid.xyz", "label": "liquid", "frame": 2},
        {"path": "glass.xyz", "label": "glass"},
    ]
    with pytest.raises(DataError, match="has 2 frames, and no frame 2"):
        store(write_list(source, entries), tmp_path)


def test_systems_of_two_sizes(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "liquid_1.xyz").write_text(xyz_text(1))
    fewer = xyz_text(2).splitlines()[:-1]
    (source / "glass_1.xyz").write_text("\n".join(["29", *fewer[1:], ""]))
    with pytest.raises(DataError, match="one size of system"):
        store(source, tmp_path)


def test_job_on_ranks(
    tmp_path: Path, mpirun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    source, _ = write_images(tmp_path / "in", count=600)
    tree = {"study": {"name": "s", "seeds": 1}, "render": {"pixels": 20}}
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({**tree, "data": {"name": "mine", "source": "import"}}))
    done = mpirun(3, "jobs.import_data", source, study, "--logs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "600 images of 20 px (300 liquid, 300 glass) from 600 trajectories" in done.stdout
    stored = data.load(SETTINGS, tmp_path)
    stored.verify()
    assert all((stored.images[i] == picture(i)[..., :3]).all() for i in range(600))
    (source / "images/500.png").write_bytes(b"no image")
    failed = mpirun(2, "jobs.import_data", source, study, "--logs", tmp_path / "other")
    assert failed.returncode == 65
    assert failed.stderr.count("500.png: is no PNG image") == 1
    assert "Traceback" not in failed.stderr
