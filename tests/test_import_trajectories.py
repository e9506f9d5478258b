"""Imports of trajectory files: which frames, of what, and what is odd about some of them."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glass_cnn.configuration import Configuration
from glass_cnn.data import dataset as data
from glass_cnn.data.imports import import_data as import_data_of
from glass_cnn.data.render import render
from glass_cnn.settings import RunSettings
from hpc.errors import ConfigError, DataError, Stopped
from hpc.preempt import StopFlag
from hpc.world import world
from jobs import import_data
from tests.own_data import (
    BOX,
    SETTINGS,
    Entries,
    dump_text,
    nothing_is_stored,
    particles,
    picture,
    store,
    with_changes,
    write_gsd,
    write_images,
    write_list,
    write_trajectories,
    xyz_text,
)


def test_a_frame_is_listed_once_and_files_have_one_name(tmp_path: Path) -> None:
    """Under two names it would be in training and test, or be liquid and glass."""
    source = write_trajectories(tmp_path / "in", ramp=dump_text(1) + dump_text(2))
    liquid = {"path": "ramp.dump", "label": "liquid"}
    glass = {"path": "./ramp.dump", "label": "glass"}
    for frames in ((0, -2), ("all", 1), (1, 1)):
        entries = [{**e, "frame": f} for e, f in zip((liquid, glass), frames, strict=True)]
        with pytest.raises(DataError, match=r"frame \d of ramp\.dump is listed twice"):
            store(write_list(source, entries), tmp_path)
    stored = store(write_list(source, [{**liquid, "frame": 0}, {**glass, "frame": 1}]), tmp_path)
    assert stored.trajectories.tolist() == [0, 0]


def test_trajectory_files_become_a_data_set(tmp_path: Path) -> None:
    source = write_trajectories(
        tmp_path / "in", ramp=dump_text(1) + dump_text(2) + dump_text(3), b=xyz_text(4)
    )
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
    texts = [xyz_text(seed).replace("6.0 0 0 0 6.0", "6.0 0 0 0 8.0") for seed in (1, 2)]
    source = write_trajectories(tmp_path / "in", liquid_1=texts[0], glass_1=texts[1])
    with pytest.raises(DataError, match=r"glass_1\.xyz.*: the box is 6 × 8 σ.*set render\.window"):
        store(source, tmp_path)
    windows = {"pixels": 20, "window": 6.0, "windows_per_configuration": 3}
    assert len(store(source, tmp_path, with_changes(render=windows))) == 6


def test_several_frames_need_a_choice(tmp_path: Path) -> None:
    source = write_trajectories(
        tmp_path / "in", liquid=xyz_text(1) + "\n" + xyz_text(2), glass=xyz_text(3)
    )
    line = r'\[{"path": "liquid\.xyz", "label": "liquid", "frame": -1}, …\]'
    with pytest.raises(DataError, match=rf"liquid\.xyz: has 2 frames; say which .* {line}"):
        store(source, tmp_path)
    entries: Entries = [
        {"path": "liquid.xyz", "label": "liquid", "frame": 2},
        {"path": "glass.xyz", "label": "glass"},
    ]
    with pytest.raises(DataError, match="has 2 frames, and no frame 2"):
        store(write_list(source, entries), tmp_path)
    entries[0]["frame"] = "all"
    assert len(store(write_list(source, entries), tmp_path)) == 3


def test_systems_of_two_sizes(tmp_path: Path) -> None:
    fewer = "\n".join(["29", *xyz_text(2).splitlines()[1:-1], ""])
    source = write_trajectories(tmp_path / "in", glass_1=fewer, liquid_1=xyz_text(1))
    message = r"liquid_1\.xyz, frame 0: has 30 particles, and frame 0 of glass_1\.xyz has 29"
    with pytest.raises(DataError, match=message):
        store(source, tmp_path)


def test_a_frame_that_cannot_be_drawn_is_refused_by_its_number(tmp_path: Path) -> None:
    source = write_trajectories(
        tmp_path / "in", a=dump_text(1) + dump_text(2, z=0.5), b=dump_text(3)
    )
    entries = [
        {"path": "a.dump", "label": "liquid", "frame": "all"},
        {"path": "b.dump", "label": "glass"},
    ]
    with pytest.raises(DataError, match=r"a\.dump, frame 1: z spreads over"):
        store(write_list(source, entries), tmp_path)
    assert nothing_is_stored(tmp_path)


ARGON = {"Ar": "A", "Ne": "B"}


def with_types(types: dict[str, str]) -> RunSettings:
    return with_changes(data={"name": "mine", "source": "import", "types": types})


def test_the_study_says_which_particles_are_which(tmp_path: Path) -> None:
    """By names of elements, GSD's names and LAMMPS' numbers; who writes A and B need not."""
    source = write_trajectories(
        tmp_path / "in", a=xyz_text(1, ("Ar", "Ne")), b=xyz_text(2, ("B", "A"))
    )
    write_gsd(source / "c.gsd", [3], ("Ne", "Ar"))
    (source / "d.dump").write_text(dump_text(4, "id type element x y").replace(" A ", " Ar "))
    files = (("a.xyz", "liquid"), ("b.xyz", "glass"), ("c.gsd", "glass"), ("d.dump", "glass"))
    write_list(source, [{"path": path, "label": label} for path, label in files])
    with pytest.raises(
        DataError,
        match=r"a\.xyz, frame 0: has particles of type Ar, Ne; write data: {types: {Ar: A, Ne: B}}",
    ):
        store(source, tmp_path)
    swapped = with_types({**ARGON, "1": "B", "2": "A"})
    stored = store(source, tmp_path, swapped)
    types = stored.column("configurations/types")
    for row, wanted in enumerate((particles(1)[1], 3 - particles(2)[1], 3 - particles(3)[1])):
        assert (types[row] == wanted).all()
    assert (types[3] == 3 - particles(4)[1]).all()
    assert store(source, tmp_path, swapped).path == stored.path
    assert with_types(ARGON).dataset_digest() != swapped.dataset_digest()


def test_names_that_the_study_does_not_know(tmp_path: Path) -> None:
    texts = {"liquid": xyz_text(1, ("Ar", "Kr")), "glass": xyz_text(2)}
    source = write_trajectories(tmp_path / "in", **texts)
    with pytest.raises(DataError, match=r"of type Ar, Kr, and data\.types tells of Ar, Ne only"):
        store(source, tmp_path, with_types(ARGON))
    (source / "liquid.xyz").write_text(xyz_text(1).replace("\nA ", "\nC ", 1))
    with pytest.raises(DataError, match="of type A, B, C; there are two at most, A and B"):
        store(source, tmp_path)


def test_fit_means_nothing_for_trajectory_files(tmp_path: Path) -> None:
    source = write_trajectories(tmp_path / "in", liquid=xyz_text(1), glass=xyz_text(2))
    with pytest.raises(ConfigError, match=r"render\.fit has no meaning for trajectory files"):
        store(source, tmp_path, with_changes(render={"pixels": 20, "fit": "crop"}))


# What is odd


def lattice_text(side: float, distance: float, seed: int, share: int = 20) -> str:
    """36 particles on a shaken square lattice that fills the box, `share` of them of type A."""
    shaken = np.random.default_rng(seed).uniform(-0.02, 0.02, (36, 2))
    places = distance * (np.stack(np.divmod(np.arange(36), 6), axis=1) + 0.5 + shaken)
    rows = [f"{'A' if i < share else 'B'} {x} {y} 0" for i, (x, y) in enumerate(places)]
    return "\n".join(["36", f'Lattice="{side} 0 0 0 {side} 0 0 0 1"', *rows, ""])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (lattice_text(6, 1.0, 1), None),
        (
            lattice_text(21, 3.5, 1),
            r"1 of 3 .* density out of 0\.3 … 3\.0 .*\(0\.0816 in frame 0 of",
        ),
        (lattice_text(3, 0.5, 1), r"1 of 3 configurations have a density out of .* lengths in σ"),
        (lattice_text(6, 1.19, 1), r"in 1 of 3 .* closer than 0\.3 σ \(.* σ in frame 0 of glass_1"),
        (
            lattice_text(6, 1.0, 1, 30),
            r"compositions differ, from 55\.6% A in .* to 83\.3% in .*s_1",
        ),
    ],
)
def test_what_is_odd_is_told(
    tmp_path: Path, text: str, told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {f"liquid_{seed}": lattice_text(6, 1.0, seed) for seed in (2, 3)}
    assert len(store(write_trajectories(tmp_path / "in", glass_1=text, **good), tmp_path)) == 3
    output = capsys.readouterr().out
    if told is None:
        assert output == "names of 3 files tell 3 trajectories, 3 of them of one class only, " \
            "such as glass_1.xyz\n"  # fmt: skip
    else:
        assert re.search(told, output)


# The job


def write_study(path: Path, **sections: object) -> Path:
    tree = {"study": {"name": "s", "seeds": 1}, "render": {"pixels": 20}}
    path.write_text(json.dumps({**tree, "data": {"name": "mine", "source": "import"}, **sections}))
    return path


def run_job(source: Path, study: Path, logs: Path) -> None:
    args = import_data.parse([str(source), str(study), "--logs", str(logs)])
    import_data.import_all(args, world(), StopFlag())


def test_job_on_ranks(
    tmp_path: Path, mpirun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    source, _ = write_images(tmp_path / "in", count=600)
    study = write_study(tmp_path / "study.yaml")
    done = mpirun(3, "jobs.import_data", source, study, "--logs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "600 images of 20 px (300 liquid, 300 glass) from 600 trajectories" in done.stdout
    stored = data.load(SETTINGS, tmp_path)
    stored.verify()
    assert all((stored.images[i] == picture(i)[..., :3]).all() for i in range(600))
    (source / "images/500.png").write_bytes(b"no image")
    failed = mpirun(2, "jobs.import_data", source, study, "--logs", tmp_path / "other")
    assert failed.returncode == 65
    assert failed.stderr.count("500.png: is no PNG, JPEG or TIFF picture") == 1
    assert "Traceback" not in failed.stderr
    Image.fromarray(picture(3)).save(source / "images/500.png")  # of another rank's share
    failed = mpirun(2, "jobs.import_data", source, study, "--logs", tmp_path / "other")
    assert failed.returncode == 65
    assert failed.stderr.count("images/3.png (glass) and images/500.png (liquid) are the same") == 1


def test_an_import_that_is_stopped_reads_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("read after it was stopped")

    monkeypatch.setattr("glass_cnn.data.imports.look", never)
    monkeypatch.setattr("glass_cnn.data.imports.read_frames", never)
    pictures, _ = write_images(tmp_path / "pictures")
    dumps = write_trajectories(tmp_path / "dumps", liquid=dump_text(1), glass=dump_text(2))
    stop = StopFlag()
    stop.signal = signal.SIGTERM
    for source in (pictures, dumps):
        with pytest.raises(Stopped, match=r"stopped by SIGTERM .* run the same command again"):
            import_data_of(source, SETTINGS, tmp_path, world(), stop)
        assert nothing_is_stored(tmp_path)


def test_the_summary_says_how_many_trajectories_there_are_and_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = write_images(tmp_path / "in", count=40)
    wide = {"split.train": 0.6, "split.test": 0.25}
    arms = {"wide": wide, "base": {}, "long": {"train.iterations": 9}}
    study = write_study(tmp_path / "study.yaml", study={"name": "s", "seeds": 1, "arms": arms})
    for _ in range(2):  # when it is imported already, too
        run_job(source, study, tmp_path)
        told = capsys.readouterr().out
        for line in (
            "train           28 images of     28 trajectories: 14 liquid, 14 glass (50.0% glass)",
            "40 trajectories (20 with liquids, 20 with glasses); for the split 0.7 / 0.15 / 0.15 "
            "at least 6 with liquids and 6 with glasses are needed",
            "for the split 0.6 / 0.15 / 0.25 at least 5 with liquids and 5 with glasses are needed",
        ):
            assert told.count(line) == 1, line


def test_one_class_alone_is_told_as_such(tmp_path: Path) -> None:
    source = write_trajectories(tmp_path / "in", liquid_1=dump_text(1), liquid_2=dump_text(2))
    with pytest.raises(DataError, match=r"in: has 2 images, all labelled liquid; a data set needs"):
        run_job(source, write_study(tmp_path / "study.yaml"), tmp_path)


def test_what_a_study_cannot_split_is_not_stored(tmp_path: Path) -> None:
    """One GSD file of each class is two trajectories, however many frames they have."""
    source = tmp_path / "in"
    source.mkdir()
    for label, seeds in (("liquid", [1, 2, 3]), ("glass", [4, 5, 6])):
        write_gsd(source / f"{label}.gsd", seeds)
    entries = [{"path": f"{k}.gsd", "label": k, "frame": "all"} for k in ("liquid", "glass")]
    study = write_study(tmp_path / "study.yaml")
    with pytest.raises(DataError, match=r"in: 2 trajectories cannot be split .* At least 6 with"):
        run_job(write_list(source, entries), study, tmp_path)
    assert nothing_is_stored(tmp_path)


def test_packed_dumps_of_two_folders_need_no_list(tmp_path: Path) -> None:
    for seed in range(8):
        folder = tmp_path / "in" / ("liquid", "glass")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"dump.{seed // 2:03d}.gz").write_bytes(gzip.compress(dump_text(seed).encode()))
    stored = store(tmp_path / "in", tmp_path)
    assert stored.trajectories.tolist() == [0, 1, 2, 3] * 2
    assert stored.labels.tolist() == [1] * 4 + [0] * 4
