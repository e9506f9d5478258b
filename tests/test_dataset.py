"""Data sets: made whole or not at all, opened with checks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from glass_cnn.configuration import Configuration, hexatic_order
from glass_cnn.data import dataset as data
from glass_cnn.data import simulate, store
from glass_cnn.data.render import render
from glass_cnn.data.trajectories import directory
from glass_cnn.paths import DatasetDir
from glass_cnn.streams import lammps_seeds
from hpc.errors import DataError, Stopped, StorageError
from hpc.preempt import StopFlag
from hpc.world import world
from tests.small_data import SETTINGS, TREE, with_changes


@pytest.fixture
def copy(small_logs: Path, tmp_path: Path) -> Path:
    """A copy of the logs directory to be damaged."""
    return Path(shutil.copytree(small_logs, tmp_path / "logs"))


@pytest.fixture(scope="module")
def tiny(small_logs: Path) -> data.Dataset:
    return data.load(SETTINGS, small_logs)


def test_contents(tiny: data.Dataset, small_logs: Path) -> None:
    assert len(tiny) == 9 * 2 * 40
    assert tiny.images.shape == (720, 24, 24, 3)
    assert not tiny.images.flags.writeable
    with h5py.File(directory(SETTINGS, small_logs).file) as file:
        places = file["positions"][:, [0, -1]]
        energies = file["potential_energy"][:, [0, -1]]
    assert (tiny.column("configurations/positions") == places.reshape(18, 60, 2)).all()
    assert (tiny.column("configurations/potential_energy") == energies.ravel()).all()
    labels = tiny.column("configurations/label")
    temperature = tiny.column("configurations/temperature")
    assert temperature[labels == 1] == pytest.approx(0.05)
    assert (temperature[labels == 0] > 1).all()
    configuration = tiny.column("images/configuration")
    assert (tiny.labels == labels[configuration]).all()
    assert (tiny.trajectories == configuration // 2).all()
    assert tiny.record["classes"] == {"liquid": 360, "glass": 360}
    assert tiny.record["settings"]["render"]["pixels"] == 24
    assert 0 < tiny.record["psi6"]["glass"] < 1
    tiny.verify()


def test_configurations_are_described_as_they_are(tiny: data.Dataset) -> None:
    """Each column from its definition: 60 particles at density 1.2, cooled over 400 steps."""
    wanted = ("box", "density", "psi6", "seeds", "types")
    column = {n: tiny.column(f"configurations/{n}") for n in wanted}
    assert column["box"] == pytest.approx(np.full((18, 2), math.sqrt(60 / 1.2)))
    assert column["density"] == pytest.approx(np.full(18, 1.2))
    rate = tiny.column("configurations/cooling_rate")
    assert rate == pytest.approx(np.full(18, (2.0 - 0.05) / (400 * 0.005)))
    for i, positions in enumerate(tiny.column("configurations/positions")):
        order = hexatic_order(Configuration(positions, column["types"][i], column["box"][i]))
        assert column["psi6"][i] == pytest.approx(order, rel=1e-4)
        assert (column["seeds"][i] == lammps_seeds(1, i // 2)).all()
    assert (tiny.column("configurations/trajectory") == np.arange(18) // 2).all()
    means = [column["psi6"][k::2].mean() for k in (0, 1)]
    assert list(tiny.record["psi6"].values()) == pytest.approx(means, abs=1e-6)


def test_images_are_what_render_draws(tiny: data.Dataset) -> None:
    configurations = tiny.configurations(np.arange(18))
    corners = tiny.column("images/corner")
    for i in (0, 1, 255, 256, 719):
        expected = render(configurations[i // 40], SETTINGS.render, corners[i])
        assert (tiny.images[i] == expected).all()
    box = tiny.column("configurations/box")[0]
    assert (corners >= 0).all()
    assert (corners < box).all()
    assert (corners / box).mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.04)
    assert (corners / box).max(axis=0) == pytest.approx([1, 1], abs=0.02)
    assert len(np.unique(corners, axis=0)) == len(corners)


def test_columns_say_their_unit(tiny: data.Dataset) -> None:
    with h5py.File(tiny.place.columns) as file:
        for group in file.values():
            for column in group.values():
                assert column.attrs["unit"]
    with pytest.raises(DataError, match="no column 'images/mass'; it has configurations/box"):
        tiny.column("images/mass")


@pytest.mark.lasting
def test_inherent_structures(tmp_path: Path) -> None:
    settings = with_changes(data={"name": "inherent", "form": "inherent"})
    simulate.run(settings, tmp_path, world())
    store.build(settings, tmp_path, world())
    inherent = data.load(settings, tmp_path)
    energy = inherent.column("configurations/potential_energy")
    assert (energy == inherent.column("configurations/inherent_energy")).all()
    with h5py.File(directory(settings, tmp_path).file) as file:
        kept = file["inherent_positions"][:, [0, -1]].reshape(18, 60, 2)
    assert (inherent.column("configurations/positions") == kept).all()
    expected = [hexatic_order(one) for one in inherent.configurations(np.arange(18))]
    assert inherent.column("configurations/psi6") == pytest.approx(expected, rel=1e-4)


def test_same_settings_find_it_again(small_logs: Path) -> None:
    place = data.directory(SETTINGS, small_logs)
    before = place.record.stat()
    assert store.build(SETTINGS, small_logs, world()) == place
    assert place.record.stat().st_mtime_ns == before.st_mtime_ns
    other = with_changes(render={**TREE["render"], "seed": 2})
    assert data.directory(other, small_logs) != place
    assert not list(place.path.parent.glob(".*building*"))


def test_ranks_make_the_same_data_set(
    copy: Path, mpirun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({**TREE, "study": {"name": "s", "seeds": 1}}))
    place = data.directory(SETTINGS, copy)
    alone = data.load(place)
    shutil.rmtree(place.path)
    done = mpirun(3, "jobs.dataset", study, "--logs", copy)
    assert done.returncode == 0, done.stderr
    assert "360 liquid, 360 glass" in done.stdout
    assert "validation" in done.stdout
    together = data.load(place)
    assert (together.images == alone.images).all()
    assert together.record["checksums"] == alone.record["checksums"]


def test_job_tells_a_mistake_once(
    mpirun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({"study": {"name": "s"}, "render": {"pixels": 0}}))
    done = mpirun(2, "jobs.dataset", study, "--logs", tmp_path)
    assert done.returncode == 78
    assert done.stderr.count("render.pixels") == 1
    assert "Traceback" not in done.stderr


def test_what_a_killed_build_left_is_removed(copy: Path) -> None:
    place = data.directory(SETTINGS, copy)
    aside = DatasetDir(place.building)
    place.path.rename(aside.path)
    aside.record.unlink()
    with pytest.raises(DataError, match="there is no such data set"):
        data.load(SETTINGS, copy)
    store.build(SETTINGS, copy, world())
    data.load(SETTINGS, copy).verify()
    assert not aside.path.exists()


def test_directory_without_its_marker_is_made_anew(copy: Path) -> None:
    place = data.directory(SETTINGS, copy)
    place.record.unlink()
    place.images.write_bytes(b"half")
    store.build(SETTINGS, copy, world())
    data.load(SETTINGS, copy).verify()


def test_stop_leaves_nothing(copy: Path) -> None:
    place = data.directory(SETTINGS, copy)
    shutil.rmtree(place.path)
    stop = StopFlag()
    stop.signal = 15
    with pytest.raises(Stopped, match="SIGTERM"):
        store.build(SETTINGS, copy, world(), stop)
    assert list(place.path.parent.iterdir()) == [place.lock]


@pytest.mark.lasting
@pytest.mark.parametrize("finished", [True, False])
def test_second_builder_waits_for_the_first(copy: Path, finished: bool) -> None:
    """Two jobs that need the same data set at the same time; the first makes it or is killed."""
    place = data.directory(SETTINGS, copy)
    made = DatasetDir(place.path.rename(copy / "made"))
    before = made.record.stat()
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, '.');"
        "from tests.small_data import SETTINGS; from glass_cnn.data import store;"
        "from hpc.world import world; store.build(SETTINGS, Path(sys.argv[1]), world())"
    )
    lock = contextlib.ExitStack()
    lock.enter_context(store._lock(place, StopFlag()))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(copy)], stdout=subprocess.PIPE, text=True
    ) as second:
        assert second.stdout is not None
        assert "waiting" in second.stdout.readline()
        assert second.poll() is None
        if finished:
            made.path.rename(place.path)
        lock.close()
        assert second.wait(60) == 0
    data.load(SETTINGS, copy).verify()
    assert (place.record.stat().st_ino == before.st_ino) == finished


def test_no_trajectories(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no such trajectories.*make submit CONFIG=.*glass simulate"
    ):
        store.build(SETTINGS, tmp_path, world())
    assert not list((tmp_path / "datasets").glob("tiny*"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_damaged_trajectories(copy: Path) -> None:
    shutil.rmtree(data.directory(SETTINGS, copy).path)
    truncate(directory(SETTINGS, copy).file)
    with pytest.raises(DataError, match=r"trajectories\.h5: is damaged"):
        store.build(SETTINGS, copy, world())


@pytest.mark.parametrize("name", ["images", "columns", "record"])
@pytest.mark.parametrize("damage", [truncate, lambda p: p.write_bytes(b""), Path.unlink])
def test_damage_is_one_message(copy: Path, name: str, damage: Callable[[Path], None]) -> None:
    place = data.directory(SETTINGS, copy)
    damage(getattr(place, name))
    with pytest.raises(DataError, match=r"damaged|no such") as error:
        data.load(SETTINGS, copy)
    assert str(place.path) in str(error.value)


@pytest.mark.parametrize(("name", "place"), [("images", 200_000), ("columns", -2000)])
def test_verify_finds_a_flipped_bit(copy: Path, name: str, place: int) -> None:
    path = getattr(data.directory(SETTINGS, copy), name)
    flip(path, place % path.stat().st_size)
    opened = data.load(SETTINGS, copy)
    with pytest.raises(DataError, match=path.name):
        opened.verify()


def test_foreign_marker(copy: Path) -> None:
    marker = data.directory(SETTINGS, copy).record
    for text in ("[]", '{"format": 2}', "{}"):
        marker.write_text(text)
        with pytest.raises(DataError, match="format"):
            data.load(SETTINGS, copy)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "is empty"), ([1, 1], "all labelled glass"), ([0, 1, 2], r"labels \[2\]")],
)
def test_classes_are_checked(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.check_classes(np.array(labels, np.uint8), "here")


def test_import_that_never_happened(tmp_path: Path) -> None:
    settings = with_changes(data={"name": "mine", "source": "import"})
    for action in (
        lambda: data.load(settings, tmp_path),
        lambda: store.build(settings, tmp_path, world()),
    ):
        with pytest.raises(DataError, match="make import SOURCE"):
            action()


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, ".")
from glass_cnn.data import store
from hpc.commandline import run_main
from hpc.world import world
from tests.small_data import SETTINGS
ranks = world()  # MPI needs large files of its own
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
sys.exit(run_main(lambda words: store.build(SETTINGS, Path(words[0]), ranks) and 0))
"""


@pytest.mark.lasting
@pytest.mark.parametrize("size", [1000, 200_000])
def test_no_space(copy: Path, size: int) -> None:
    """A process that may write so many bytes to a file meets a full disk.

    Neither the columns (small limit) nor the images (larger one) find room.
    """
    place = data.directory(SETTINGS, copy)
    shutil.rmtree(place.path)
    failed = subprocess.run(
        [sys.executable, "-c", LIMITED, str(copy), str(size)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == StorageError.exit_code
    assert failed.stderr.count("error:") == 1
    assert "Traceback" not in failed.stderr
    assert "LOGS=dir" in failed.stderr
    assert list(place.path.parent.iterdir()) == [place.lock]
    store.build(SETTINGS, copy, world())
    data.load(SETTINGS, copy).verify()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_full_file_system(small_logs: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("this root may not mount file systems")
    try:
        shutil.copytree(small_logs / "trajectories", mount / "trajectories")
        with pytest.raises(StorageError, match="no space left"):
            store.build(SETTINGS, mount, world())
        assert [p.suffix for p in (mount / "datasets").iterdir()] == [".lock"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_read_only_logs(copy: Path) -> None:
    shutil.rmtree(copy / "datasets")
    (copy / "datasets").write_text("")  # holds for root as well, unlike permissions
    with pytest.raises(StorageError, match="datasets"):
        store.build(SETTINGS, copy, world())
