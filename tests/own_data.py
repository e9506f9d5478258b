"""What people have lying about: pictures, dumps, XYZ and GSD files made for tests of imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gsd.hoomd
import numpy as np
from PIL import Image

from glass_cnn.data import dataset as data
from glass_cnn.data.imports import import_data
from glass_cnn.settings import RunSettings, build_run
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


def nothing_is_stored(logs: Path) -> bool:
    return not [path for path in (logs / "datasets").glob("*") if path.suffix != ".lock"]


def write_list(source: Path, entries: Any) -> Path:
    source.mkdir(exist_ok=True)
    (source / "metadata.json").write_text(json.dumps(entries))
    return source


# Pictures


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


def write_trajectories(source: Path, **texts: str) -> Path:
    """A folder with `glass_1=text` as glass_1.dump or glass_1.xyz, as the text is."""
    source.mkdir()
    for name, text in texts.items():
        ending = ".dump" if text.startswith("ITEM") else ".xyz"
        (source / (name + ending)).write_text(text)
    return source


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
