"""Making a data set: configurations to columns and images, on all ranks, whole or not at all.

A data set is made in a directory aside, `.<name>.building`, and renamed when it is complete, so
one that can be seen is complete. What a killed build left behind is removed by the next. The same
settings have the same name and find their data set again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import itertools
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from glass_cnn.data import trajectories
from glass_cnn.data.dataset import (
    FORMAT,
    block_checksum,
    blocks,
    check_classes,
    configuration,
    directory,
    file_checksum,
    fingerprint_of,
    load,
)
from glass_cnn.data.render import Image, render
from glass_cnn.data.trajectories import Trajectory
from glass_cnn.mixture import SPECIES
from glass_cnn.paths import DatasetDir
from glass_cnn.settings import CLASSES, Render, RunSettings
from glass_cnn.streams import Stream, philox
from hpc.config import to_tree
from hpc.errors import Stopped
from hpc.files import (
    fsync_directory,
    locked,
    make_directory,
    storage_errors,
    write_atomic,
    write_json,
)
from hpc.preempt import StopFlag, signal_name
from hpc.progress import track
from hpc.records import now
from hpc.world import World

UNITS = {
    "positions": "sigma, wrapped into the box",
    "types": ", ".join(f"{number} is {name}" for number, name in SPECIES.items()),
    "box": "sigma, both sides",
    "temperature": "epsilon/k_B",
    "density": "sigma^-2",
    "cooling_rate": "epsilon/(k_B tau)",
    "seeds": "LAMMPS seeds of places, types and velocities",
    "potential_energy": "epsilon per particle, of these positions",
    "inherent_energy": "epsilon per particle, of their inherent structure",
    "psi6": "mean |psi_6| over particles, of these positions",
    "label": "0 liquid, 1 glass",
    "trajectory": "number of the trajectory",
    "configuration": "row in /configurations",
    "corner": "sigma, lower left corner of the window",
    "path": "imported file, in the imported directory",
}
"""unit or meaning of every column"""

Arrays = dict[str, np.ndarray]
Draw = Callable[[slice], Image]
"""draws a slice of the images: uint8 [n, pixels, pixels, 3]"""


@dataclass(frozen=True)
class Contents:
    """What a data set will hold, before its images are drawn."""

    images: Arrays
    """columns with one row for each image: label, trajectory, configuration, corner…"""
    configurations: Arrays
    """columns with one row for each configuration; empty for imported images"""
    record: dict[str, Any]
    """what the data set's record says beside the counts"""


def build(
    settings: RunSettings, root: Path, world: World, stop: StopFlag | None = None
) -> DatasetDir:
    """Make the data set of `settings` unless it exists, all ranks together; returns its directory.

    Raises, on every rank alike, DataError when trajectories are missing or damaged, or the data
    set is to be imported and has not been; StorageError when it cannot be written; Stopped.
    """
    target = directory(settings, root)
    if settings.data.source == "import":
        world.on_root(lambda: load(settings, root))
        return target
    draw = functools.partial(draw_configurations, settings.render)
    return store(target, settings, world, lambda: _simulated(settings, root), draw, stop)


def store(
    target: DatasetDir,
    settings: RunSettings,
    world: World,
    collect: Callable[[], Contents],
    open_images: Callable[[Path], Draw],
    stop: StopFlag | None = None,
) -> DatasetDir:
    """Write a data set unless it exists, all ranks together; returns `target`.

    `collect`, called on rank 0, says what it holds. `open_images`, called on every rank with the
    path of the stored columns, returns the function that draws a slice of the images.
    """
    aside = DatasetDir(target.building)
    stop = stop or StopFlag()

    def exists() -> bool:
        return bool(world.broadcast(world.on_root(lambda: _is_whole(target))))

    if exists():  # needs no lock: it may lie where nothing can be written
        return target
    with _sole_builder(target, world, stop):
        if exists():
            return target
        try:
            contents = world.on_root(lambda: _prepare(aside, collect, settings.render))
            checksums = _write_images(aside, settings.render, world, open_images, stop)
            world.on_root(lambda: _publish(aside, target, settings, contents, checksums))
        finally:
            if world.is_root:
                shutil.rmtree(aside.path, ignore_errors=True)
    return target


@contextlib.contextmanager
def _sole_builder(target: DatasetDir, world: World, stop: StopFlag) -> Iterator[None]:
    """Let one job at a time make a data set; the others wait and then find it."""
    with contextlib.ExitStack() as stack:
        world.on_root(lambda: stack.enter_context(_lock(target, stop)))
        yield


def _lock(target: DatasetDir, stop: StopFlag) -> contextlib.AbstractContextManager[None]:
    """The lock of those who make this data set."""

    def waiting(who: str, seconds: float) -> None:
        if seconds < 0.1:
            print(f"{target.name} is being made by {who}: waiting.", flush=True)
        heed(stop)

    def without(_: OSError) -> None:
        print(
            f"{target.path.parent} is on a file system without locks: let no other job make "
            f"{target.name} at the same time.",
            flush=True,
        )

    make_directory(target.path.parent)
    return locked(target.lock, waiting, without)


def heed(stop: StopFlag) -> None:
    """Raise Stopped when that was asked for."""
    if stop.signal:
        raise Stopped(
            f"stopped by {signal_name(stop.signal)} before the data set was whole; "
            "run the same command again to make it."
        )


def _is_whole(target: DatasetDir) -> bool:
    """Whether the data set exists; raises DataError when what exists is damaged."""
    if not target.is_done():
        return False
    load(target)
    return True


def _prepare(aside: DatasetDir, collect: Callable[[], Contents], settings: Render) -> Contents:
    """Make the directory aside, with the columns and room for all images."""
    shutil.rmtree(aside.path, ignore_errors=True)  # left behind by a build that was killed
    contents = collect()
    check_classes(contents.images["label"], contents.record["source"])
    make_directory(aside.path)
    _write_columns(aside.columns, contents)
    _reserve(aside.images, len(contents.images["label"]), settings.pixels)
    return contents


def _write_columns(path: Path, contents: Contents) -> None:
    """Write the columns: made in memory, so that a full disk is an error of one plain write."""
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for group, columns in (
            ("images", contents.images),
            ("configurations", contents.configurations),
        ):
            for name, values in columns.items():
                text = values.dtype.kind == "U"
                kind = h5py.string_dtype() if text else values.dtype
                column = file.create_dataset(
                    f"{group}/{name}", data=values.astype(object) if text else values, dtype=kind
                )
                column.attrs["unit"] = UNITS[name]
        file.attrs["format"] = FORMAT
        file.flush()
        content = file.id.get_file_image()
    write_atomic(path, content)


def _reserve(path: Path, count: int, pixels: int) -> None:
    """Write the header of the images and reserve their space, so that a full disk shows at once."""
    shape = (count, pixels, pixels, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with storage_errors(path), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, file.tell() + int(np.prod(shape, dtype=np.int64)))


def _write_images(
    aside: DatasetDir,
    settings: Render,
    world: World,
    open_images: Callable[[Path], Draw],
    stop: StopFlag,
) -> list[str]:
    """Draw and write this rank's share of blocks; returns the checksums of all, on rank 0."""
    path = aside.images
    draw = open_images(aside.columns)

    def write_share() -> list[str]:
        checksums = []
        with storage_errors(path), path.open("r+b") as file:
            (count, *_), start = _header(file)
            share = blocks(count)[world.share(len(blocks(count)))]
            for block in track("images", share) if world.is_root else share:
                heed(stop)
                images = np.ascontiguousarray(draw(block))
                file.seek(start + block.start * 3 * settings.pixels**2)
                file.write(images.data)
                checksums.append(block_checksum(images))
            file.flush()
            os.fsync(file.fileno())
        return checksums

    return list(itertools.chain(*(world.gather(world.everywhere(write_share)) or [])))


def _header(file: Any) -> tuple[tuple[int, ...], int]:
    """Shape of the array in an open .npy file and where its data start."""
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return shape, file.tell()


def _publish(
    aside: DatasetDir,
    target: DatasetDir,
    settings: RunSettings,
    contents: Contents | None,
    checksums: list[str],
) -> None:
    """Write the record and give the directory its name: from here on the data set exists."""
    assert contents is not None  # this runs on rank 0, which collected them
    write_json(aside.record, _record(aside, target, settings, contents, checksums))
    with storage_errors(target.path):
        fsync_directory(aside.path)
        shutil.rmtree(target.path, ignore_errors=True)  # had no record: was no data set
        aside.path.rename(target.path)
        fsync_directory(target.path.parent)
        target.lock.unlink(missing_ok=True)  # who waits for it finds the data set


def _record(
    aside: DatasetDir,
    target: DatasetDir,
    settings: RunSettings,
    contents: Contents,
    checksums: list[str],
) -> dict[str, Any]:
    labels = contents.images["label"]
    tree = to_tree(settings)
    return {
        "format": FORMAT,
        "name": target.name,
        "digest": settings.dataset_digest(),
        "images": len(labels),
        "pixels": settings.render.pixels,
        "classes": {name: int((labels == k).sum()) for k, name in enumerate(CLASSES)},
        "trajectories": len(np.unique(contents.images["trajectory"])),
        "data_fingerprint": fingerprint_of(checksums, labels, contents.images["trajectory"]),
        "psi6": _class_means(contents.configurations, "psi6"),
        "inherent_energy": _class_means(contents.configurations, "inherent_energy"),
        **contents.record,
        "settings": {key: tree[key] for key in ("simulation", "data", "render")},
        "software": _versions(),
        "created": now(),
        "sizes": {file.name: file.stat().st_size for file in (aside.images, aside.columns)},
        "checksums": {
            aside.columns.name: file_checksum(aside.columns),
            aside.images.name: checksums,
        },
    }


def _class_means(configurations: Arrays, name: str) -> dict[str, float] | None:
    if name not in configurations:
        return None
    values, labels = configurations[name], configurations["label"]
    return {c: round(float(values[labels == k].mean()), 6) for k, c in enumerate(CLASSES)}


def _versions() -> dict[str, str]:
    packages = ("glass-cnn", "numpy", "h5py", "lammps", "pillow", "gsd")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def image_columns(configurations: Arrays, settings: Render) -> Arrays:
    """One row for each window of each configuration, the windows at places fixed by the seed."""
    per = settings.windows_per_configuration
    index = np.repeat(np.arange(len(configurations["label"])), per)
    corner: np.ndarray = np.zeros((len(index), 2))
    if settings.window is not None:
        words = philox(Stream.WINDOWS, settings.seed).random_raw(2 * len(index))
        corner = (words >> np.uint64(11)).reshape(-1, 2) * 2.0**-53 * configurations["box"][index]
    return {
        "label": configurations["label"][index],
        "trajectory": configurations["trajectory"][index],
        "configuration": index,
        "corner": corner,
    }


def draw_configurations(settings: Render, path: Path) -> Draw:
    """The function that draws images of the configurations whose columns lie at `path`."""

    def draw(block: slice) -> Image:
        with h5py.File(path, "r", locking="best-effort") as file:
            index = file["images/configuration"][block]
            corners = file["images/corner"][block]
            rows = slice(index[0], index[-1] + 1)
            positions, types, box = (
                file[f"configurations/{name}"][rows] for name in ("positions", "types", "box")
            )
        drawn = [
            configuration(path, rows.start + k, positions[k], types[k], box[k])
            for k in range(len(positions))
        ]
        each = zip(index - rows.start, corners, strict=True)
        return np.stack([render(drawn[k], settings, corner) for k, corner in each])

    return draw


def _simulated(settings: RunSettings, root: Path) -> Contents:
    """The two chosen frames of every simulated trajectory, liquid and glass in turn."""
    place = trajectories.directory(settings, root)
    found = trajectories.load(place)
    configurations = _chosen_frames(found, settings)
    images = image_columns(configurations, settings.render)
    return Contents(images, configurations, {"source": str(place.file)})


def _chosen_frames(found: Sequence[Trajectory], settings: RunSettings) -> Arrays:
    """Columns with one row for each configuration; raises DataError for what is none."""
    kept = found[0].frames.tolist()
    frames = [kept.index(settings.frame(side)) for side in ("liquid", "glass")]
    inherent = settings.data.form == "inherent"
    chosen = [(trajectory, frame) for trajectory in found for frame in frames]
    configurations = [one.configuration(frame, inherent) for one, frame in chosen]

    def measured(name: str) -> np.ndarray:
        return np.array([getattr(one, name)[frame] for one, frame in chosen])

    return {
        "positions": np.stack([one.positions for one in configurations]),
        "types": np.stack([one.species for one in configurations]),
        "box": np.stack([one.box for one in configurations]),
        "temperature": measured("temperature"),
        "density": np.array([one.density for one in configurations]),
        "cooling_rate": np.array([one.cooling_rate for one, _ in chosen]),
        "seeds": np.stack([one.seeds for one, _ in chosen]),
        "potential_energy": measured("inherent_energy" if inherent else "potential_energy"),
        "inherent_energy": measured("inherent_energy"),
        "psi6": measured("inherent_psi6" if inherent else "psi6"),
        "label": np.tile(np.array([0, 1], np.uint8), len(found)),
        "trajectory": np.array([one.index for one, _ in chosen], np.int64),
    }
