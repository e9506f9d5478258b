"""Data sets: made whole or not at all, opened with checks, split, ordered, read ahead."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_cnn.data import dataset as data
from glass_cnn.data import simulate, store
from glass_cnn.data.render import render
from glass_cnn.settings import RunSettings, Split, build_run
from glass_cnn.train_settings import Augmentation
from hpc.errors import DataError, StorageError
from hpc.preempt import StopFlag
from hpc.world import world

TREE: dict[str, Any] = {
    "simulation": {
        "trajectories": 9,
        "particles": 60,
        "equilibration_steps": 100,
        "cooling_steps": 400,
        "frames": 4,
    },
    "data": {"name": "tiny"},
    "render": {"pixels": 24, "window": 5.0, "windows_per_configuration": 40},
    "launch": {"ranks": 1},
}


def with_changes(**sections: Any) -> RunSettings:
    return build_run({**TREE, **sections}, "test")


SETTINGS = with_changes()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logs directory with simulated trajectories and the data set made of them."""
    root = tmp_path_factory.mktemp("logs")
    simulate.run(SETTINGS, root, world())
    store.build(SETTINGS, root, world())
    return root


@pytest.fixture
def copy(logs: Path, tmp_path: Path) -> Path:
    """A copy of the logs directory to be damaged."""
    return Path(shutil.copytree(logs, tmp_path / "logs"))


@pytest.fixture(scope="module")
def tiny(logs: Path) -> data.Dataset:
    return data.load(SETTINGS, logs)


# Making and opening


def test_contents(tiny: data.Dataset, logs: Path) -> None:
    assert len(tiny) == 9 * 2 * 40
    assert tiny.images.shape == (720, 24, 24, 3)
    assert not tiny.images.flags.writeable
    with h5py.File(simulate.product(SETTINGS, logs)) as file:
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
    column = {n: tiny.column(f"configurations/{n}") for n in ("box", "density", "psi6", "seeds")}
    assert column["box"] == pytest.approx(np.full((18, 2), math.sqrt(60 / 1.2)))
    assert column["density"] == pytest.approx(np.full(18, 1.2))
    rate = tiny.column("configurations/cooling_rate")
    assert rate == pytest.approx(np.full(18, (2.0 - 0.05) / (400 * 0.005)))
    for i, positions in enumerate(tiny.column("configurations/positions")):
        order = simulate.hexatic_order(positions, column["box"][i])
        assert column["psi6"][i] == pytest.approx(order, rel=1e-4)
        assert (column["seeds"][i] == simulate.trajectory_seeds(1, i // 2)).all()
    assert (tiny.column("configurations/trajectory") == np.arange(18) // 2).all()
    means = [column["psi6"][k::2].mean() for k in (0, 1)]
    assert list(tiny.record["psi6"].values()) == pytest.approx(means, abs=1e-6)


def test_images_are_what_render_draws(tiny: data.Dataset) -> None:
    columns = {n: tiny.column(f"configurations/{n}") for n in ("positions", "types", "box")}
    corners = tiny.column("images/corner")
    for i in (0, 1, 255, 256, 719):
        c = i // 40
        expected = render(
            columns["positions"][c],
            columns["types"][c],
            columns["box"][c],
            SETTINGS.render,
            corners[i],
        )
        assert (tiny.images[i] == expected).all()
    assert (corners >= 0).all()
    assert (corners < columns["box"][0]).all()
    assert (corners / columns["box"][0]).mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.04)
    assert (corners / columns["box"][0]).max(axis=0) == pytest.approx([1, 1], abs=0.02)
    assert len(np.unique(corners, axis=0)) == len(corners)


def test_columns_say_their_unit(tiny: data.Dataset) -> None:
    with h5py.File(tiny.path / "dataset.h5") as file:
        for group in file.values():
            for column in group.values():
                assert column.attrs["unit"]
    with pytest.raises(DataError, match="no column 'images/mass'; it has configurations/box"):
        tiny.column("images/mass")


def test_inherent_structures(tmp_path: Path) -> None:
    settings = with_changes(data={"name": "inherent", "form": "inherent"})
    simulate.run(settings, tmp_path, world())
    store.build(settings, tmp_path, world())
    inherent = data.load(settings, tmp_path)
    energy = inherent.column("configurations/potential_energy")
    assert (energy == inherent.column("configurations/inherent_energy")).all()
    with h5py.File(simulate.product(settings, tmp_path)) as file:
        kept = file["inherent_positions"][:, [0, -1]].reshape(18, 60, 2)
    assert (inherent.column("configurations/positions") == kept).all()
    box = math.sqrt(60 / 1.2)
    expected = [simulate.hexatic_order(positions, box) for positions in kept]
    assert inherent.column("configurations/psi6") == pytest.approx(expected, rel=1e-4)


def test_same_settings_find_it_again(logs: Path) -> None:
    place = data.directory(SETTINGS, logs)
    before = (place / "dataset.json").stat()
    assert store.build(SETTINGS, logs, world()) == place
    assert (place / "dataset.json").stat().st_mtime_ns == before.st_mtime_ns
    other = with_changes(render={**TREE["render"], "seed": 2})
    assert data.directory(other, logs) != place
    assert not list(place.parent.glob(".*building*"))


def test_ranks_make_the_same_data_set(
    copy: Path, mpirun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps({**TREE, "study": {"name": "s", "seeds": 1}}))
    place = data.directory(SETTINGS, copy)
    alone = data.load(place)
    shutil.rmtree(place)
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
    aside = place.with_name(f".{place.name}.building")
    place.rename(aside)
    (aside / "dataset.json").unlink()
    with pytest.raises(DataError, match="there is no such data set"):
        data.load(SETTINGS, copy)
    store.build(SETTINGS, copy, world())
    data.load(SETTINGS, copy).verify()
    assert not aside.exists()


def test_directory_without_its_marker_is_made_anew(copy: Path) -> None:
    place = data.directory(SETTINGS, copy)
    (place / "dataset.json").unlink()
    (place / "images.npy").write_bytes(b"half")
    store.build(SETTINGS, copy, world())
    data.load(SETTINGS, copy).verify()


def test_stop_leaves_nothing(copy: Path) -> None:
    place = data.directory(SETTINGS, copy)
    shutil.rmtree(place)
    stop = StopFlag()
    stop.signal = 15
    with pytest.raises(simulate.Stopped, match="SIGTERM"):
        store.build(SETTINGS, copy, world(), stop)
    assert [p.name for p in place.parent.iterdir()] == [f".{place.name}.lock"]


@pytest.mark.parametrize("finished", [True, False])
def test_second_builder_waits_for_the_first(copy: Path, finished: bool) -> None:
    """Two jobs that need the same data set at the same time; the first makes it or is killed."""
    place = data.directory(SETTINGS, copy)
    made = place.rename(copy / "made")
    before = (made / "dataset.json").stat()
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, '.');"
        "from tests.test_dataset import SETTINGS; from glass_cnn.data import store;"
        "from hpc.world import world; store.build(SETTINGS, Path(sys.argv[1]), world())"
    )
    lock = store._lock(place, StopFlag())
    with subprocess.Popen(
        [sys.executable, "-c", script, str(copy)], stdout=subprocess.PIPE, text=True
    ) as second:
        assert second.stdout is not None
        assert "waiting" in second.stdout.readline()
        assert second.poll() is None
        if finished:
            made.rename(place)
        lock.close()
        assert second.wait(60) == 0
    data.load(SETTINGS, copy).verify()
    assert ((place / "dataset.json").stat().st_ino == before.st_ino) == finished


def test_no_trajectories(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such trajectories.*jobs\.simulate"):
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
    shutil.rmtree(data.directory(SETTINGS, copy))
    truncate(simulate.product(SETTINGS, copy))
    with pytest.raises(DataError, match=r"trajectories\.h5: is damaged"):
        store.build(SETTINGS, copy, world())


@pytest.mark.parametrize("name", ["images.npy", "dataset.h5", "dataset.json"])
@pytest.mark.parametrize("damage", [truncate, lambda p: p.write_bytes(b""), Path.unlink])
def test_damage_is_one_message(copy: Path, name: str, damage: Callable[[Path], None]) -> None:
    place = data.directory(SETTINGS, copy)
    damage(place / name)
    with pytest.raises(DataError, match=r"damaged|no such") as error:
        data.load(SETTINGS, copy)
    assert str(place) in str(error.value)


@pytest.mark.parametrize(("name", "place"), [("images.npy", 200_000), ("dataset.h5", -2000)])
def test_verify_finds_a_flipped_bit(copy: Path, name: str, place: int) -> None:
    path = data.directory(SETTINGS, copy) / name
    flip(path, place % path.stat().st_size)
    opened = data.load(SETTINGS, copy)
    with pytest.raises(DataError, match=name):
        opened.verify()


def test_foreign_marker(copy: Path) -> None:
    marker = data.directory(SETTINGS, copy) / "dataset.json"
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
from tests.test_dataset import SETTINGS
ranks = world()  # MPI needs large files of its own
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
sys.exit(run_main(lambda words: store.build(SETTINGS, Path(words[0]), ranks) and 0))
"""


@pytest.mark.parametrize("size", [1000, 200_000])
def test_no_space(copy: Path, size: int) -> None:
    """A process that may write so many bytes to a file meets a full disk.

    Neither dataset.h5 (small limit) nor images.npy (larger one) finds room.
    """
    place = data.directory(SETTINGS, copy)
    shutil.rmtree(place)
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
    assert [p.name for p in place.parent.iterdir()] == [f".{place.name}.lock"]
    store.build(SETTINGS, copy, world())
    data.load(SETTINGS, copy).verify()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_full_file_system(logs: Path, tmp_path: Path) -> None:
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
        shutil.copytree(logs / "trajectories", mount / "trajectories")
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


# Split


def test_split_keeps_trajectories_together(tiny: data.Dataset) -> None:
    parts = data.split(tiny, SETTINGS)
    chosen = [parts.train, parts.validation, parts.test]
    assert sorted(np.concatenate(chosen)) == list(range(len(tiny)))
    groups = [set(tiny.trajectories[part]) for part in chosen]
    assert [len(g) for g in groups] == [6, 2, 1]  # 9 × 0.7 / 0.15 / 0.15 = 6.3 / 1.35 / 1.35
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    again = data.split(tiny, SETTINGS)
    assert all(
        (a == b).all()
        for a, b in zip(chosen, (again.train, again.validation, again.test), strict=True)
    )
    other = data.split(tiny, with_changes(split={"seed": 2}))
    assert set(tiny.trajectories[other.train]) != groups[0]
    assert (
        "480 images of      6 trajectories: 240 liquid, 240 glass (50.0% glass)" in parts.describe()
    )


def test_first_examples_of_a_part_are_a_fair_sample(tiny: data.Dataset) -> None:
    first = data.split(tiny, SETTINGS).validation[:80]
    assert 20 < tiny.labels[first].sum() < 60
    groups, counts = np.unique(tiny.trajectories[first], return_counts=True)
    assert len(groups) == 2
    assert min(counts) > 20


def test_split_does_not_depend_on_the_seed_of_the_run(tiny: data.Dataset) -> None:
    one, two = (data.split(tiny, with_changes(seed=seed)) for seed in (1, 2))
    assert (one.test == two.test).all()


@given(
    count=st.integers(5, 400),
    shares=st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33)]),
    pure=st.integers(0, 400),
)
def test_shares_are_exact(count: int, shares: tuple[float, ...], pure: int) -> None:
    """`pure` trajectories hold one class only, the others both."""
    settings = Split(train=shares[0], validation=shares[1], test=shares[2])
    trajectories = np.repeat(np.arange(count), 2)
    labels = np.tile([0, 1], count)
    for k in range(min(pure, count)):
        labels[2 * k : 2 * k + 2] = k % 2
    try:
        part = data.assign(trajectories, labels, settings)[::2]
    except DataError:
        assert (np.array(shares) * count < 1).any()
        return
    sizes = np.bincount(part, minlength=3)
    assert np.abs(sizes - np.array(shares) * count).max() < 1
    assert sizes.sum() == count
    for k in (0, 1):  # trajectories of one class are divided like all of them
        of_class = part[: min(pure, count)][k::2]
        expected = len(of_class) * sizes / count
        assert np.abs(np.bincount(of_class, minlength=3) - expected).max() < 2


def test_too_few_trajectories() -> None:
    with pytest.raises(DataError, match=r"4 trajectories cannot be split.*at least 5"):
        data.assign(np.repeat(np.arange(4), 2), np.tile([0, 1], 4), Split())


def test_part_without_a_class() -> None:
    labels = np.array([0] * 19 + [1], np.uint8)
    lonely = data.Dataset(Path("here"), {}, np.zeros(20), labels, np.arange(20))
    for seed in range(20):  # none helps, and the message says so
        with pytest.raises(DataError, match=r"part of the split has \d+ liquid and 0 glass.*seed"):
            data.split(lonely, with_changes(split={"seed": seed}))


def test_permuted_labels(logs: Path, tiny: data.Dataset) -> None:
    permuted = data.load(with_changes(data={**TREE["data"], "permute_labels": True}), logs)
    assert permuted.path == tiny.path
    assert permuted.labels.sum() == tiny.labels.sum()
    assert 0.4 < (permuted.labels == tiny.labels).mean() < 0.6
    parts = data.split(permuted, SETTINGS)
    assert (parts.labels == permuted.labels).all()


# Order and augmentation


@given(
    seed=st.integers(0, 2**31 - 1),
    batch=st.integers(1, 50),
    count=st.integers(1, 40),
)
def test_every_epoch_visits_every_sample_once(seed: int, batch: int, count: int) -> None:
    steps = -(-3 * count // batch)
    visited = np.concatenate([data.order(seed, step, batch, count) for step in range(steps)])
    for epoch in range(3):
        assert sorted(visited[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert (data.order(seed, steps - 1, batch, count) == visited[-batch:]).all()


def test_orders_far_along_are_those_of_their_epoch() -> None:
    """Against the definition, permutation after permutation, at the end of a very long run."""
    count, batch, step = 13, 8, 10**7
    first = step * batch
    epochs = range(first // count, (first + batch) // count + 1)
    whole = [data.permutation(data.philox(data.Stream.ORDER, 5, e), count) for e in epochs]
    start = first - epochs[0] * count
    assert (data.order(5, step, batch, count) == np.concatenate(whole)[start:][:batch]).all()
    assert len({tuple(order) for order in whole}) == len(whole)


def test_orders_differ_between_seeds_and_epochs() -> None:
    first = data.order(1, 0, 100, 100)
    assert (first != data.order(2, 0, 100, 100)).any()
    assert (first != data.order(1, 1, 100, 100)).any()


def test_streams_never_change() -> None:
    """Runs that were stopped under another version must go on in the same order."""
    assert data.order(7, 3, 6, 10).tolist() == [2, 8, 1, 0, 2, 7]
    rotation, flip, row, column = (choice.tolist() for choice in data.augment(7, 3, 3))
    assert (rotation, flip) == ([0, 1, 0], [1, 1, 1])
    assert row == [1220886660, 2257623138, 1670817295]
    assert column == [4065016017, 4117752372, 2080058311]


def test_augmentation_does_not_depend_on_the_batch_size() -> None:
    one = data.augment(5, 2, 12)
    two = data.augment(5, 4, 6)
    assert all((a[:6] == b).all() for a, b in zip(one, two, strict=True))
    many = data.augment(5, 0, 4000)
    assert np.bincount(many.rotation).tolist() == pytest.approx([1000] * 4, abs=120)
    assert np.bincount(many.flip).tolist() == pytest.approx([2000] * 2, abs=150)
    assert many.shift_row.mean() == pytest.approx(2**31, rel=0.05)
    assert abs(np.corrcoef(many.shift_row, many.shift_column)[0, 1]) < 0.05


@pytest.mark.parametrize(("rotations", "flips"), [(True, True), (True, False), (False, True)])
def test_each_symmetry_of_the_square_is_as_frequent_as_the_others(
    rotations: bool, flips: bool
) -> None:
    """All eight, or the four turns, or the two of a mirror, of an image that has none itself."""
    image = np.random.default_rng(2).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    count = 4000
    settings = Augmentation(rotations=rotations, flips=flips)
    seen = data.apply(np.stack([image] * count), data.augment(9, 3, count), settings)
    turns = range(4 if rotations else 1)
    allowed = {np.rot90(image, turn).tobytes() for turn in turns}
    if flips:
        allowed |= {np.rot90(image[:, ::-1], turn).tobytes() for turn in turns}
    counts = Counter(picture.tobytes() for picture in seen)
    assert counts.keys() == allowed
    expected = count / len(allowed)
    assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in counts.values())


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"rotations": True},
        {"flips": True},
        {"translations": True},
        {"rotations": True, "flips": True, "translations": True},
    ],
)
def test_apply_equals_one_image_at_a_time(chosen: dict[str, bool]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    choices = data.augment(3, 1, 40)
    result = data.apply(images, choices, Augmentation(**chosen))
    for image, got, turn, flip_it, row, column in zip(images, result, *choices, strict=True):
        expected = image
        if chosen.get("translations"):
            shift = (int(row * 12 / 2**32), int(column * 12 / 2**32))
            expected = np.roll(expected, shift, axis=(0, 1))
        if chosen.get("flips") and flip_it:
            expected = np.fliplr(expected)
        if chosen.get("rotations"):
            expected = np.rot90(expected, turn)
        assert (got == expected).all()


def test_rotation_by_the_augmentation_is_rotation_of_the_particles(tiny: data.Dataset) -> None:
    box = tiny.column("configurations/box")[0, 0]
    place, types = (tiny.column(f"configurations/{n}")[0] for n in ("positions", "types"))
    settings = with_changes(render={"pixels": 32, "style": "disc"}).render
    image = render(place, types, box, settings)[None]
    choices = data.Choices(*(np.array([k]) for k in (1, 1, 0, 0)))
    turned = data.apply(image, choices, Augmentation(rotations=True, flips=True))
    mirrored = place.astype(float) * [-1, 1]
    expected = render(mirrored[:, ::-1] * [-1, 1], types, box, settings)
    assert np.abs(turned[0] - expected.astype(int)).max() <= 1


# Batches


def take(tiny: data.Dataset, count: int, **how: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    options = {"seed": 3, "batch_size": 25, "augmentation": Augmentation(flips=True), **how}
    reading = data.batches(tiny, data.split(tiny, SETTINGS).train, **options)
    taken = [next(reading) for _ in range(count)]
    reading.close()
    return taken


def test_batches_hold_what_order_and_augment_say(tiny: data.Dataset) -> None:
    part = data.split(tiny, SETTINGS).train
    for step, (images, labels) in enumerate(take(tiny, 30)):
        chosen = part[data.order(3, step, 25, len(part))]
        assert (labels == tiny.labels[chosen]).all()
        drawn = data.augment(3, step, 25)
        assert (images == data.apply(tiny.images[chosen], drawn, Augmentation(flips=True))).all()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_together_see_the_same_batch(tiny: data.Dataset, ranks: int) -> None:
    whole = take(tiny, 3, first_step=17)
    shares = [
        take(tiny, 3, first_step=17, rows=slice(25 * r // ranks, 25 * (r + 1) // ranks))
        for r in range(ranks)
    ]
    for step in range(3):
        for kind in (0, 1):
            joined = np.concatenate([share[step][kind] for share in shares])
            assert (joined == whole[step][kind]).all()


def test_restart_goes_on_where_it_stopped(tiny: data.Dataset) -> None:
    run = take(tiny, 6)
    resumed = take(tiny, 2, first_step=4)
    for (images, labels), (images_again, labels_again) in zip(run[4:], resumed, strict=True):
        assert (images == images_again).all()
        assert (labels == labels_again).all()


def readers() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def test_one_batch_is_read_ahead_and_the_thread_ends(tiny: data.Dataset) -> None:
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, index: Any) -> Any:
            read.append(len(index))
            return super().__getitem__(index)

    watched = data.Dataset(
        tiny.path, tiny.record, tiny.images.view(Watched), tiny.labels, tiny.trajectories
    )
    reading = data.batches(watched, np.arange(10), 1, 5, Augmentation())
    next(reading)
    deadline = time.monotonic() + 10
    while len(read) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(read) == 2
    assert readers() == 1
    reading.close()
    assert readers() == 0


def test_error_of_the_reader_reaches_the_loop(tiny: data.Dataset) -> None:
    reading = data.batches(tiny, np.array([0, len(tiny)]), 1, 2, Augmentation())
    with pytest.raises(IndexError):
        next(reading)
    assert readers() == 0
