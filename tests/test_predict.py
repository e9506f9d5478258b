"""Saved models on pictures and frames without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy import special

from glass_cnn.data.formats import read_frames, read_trajectory
from glass_cnn.data.render import render
from glass_cnn.paths import RunDir
from glass_cnn.settings import load_run
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE, EXIT_CONFIG, EXIT_DATA
from jobs import predict
from tests import saved_runs
from tests.own_data import dump_text, particles, picture, write_gsd, xyz_text

pytestmark = pytest.mark.usefixtures("tensorflow")

BOX = 6.0
"""of tests.own_data"""
SAME_BOX = {"particles": 30, "density": 30 / BOX**2}
WHOLE = {"window": None, "windows_per_configuration": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    root = tmp_path_factory.mktemp("predict")
    return saved_runs.untrained(root, simulation=SAME_BOX, render=WHOLE)


def table(run: RunDir, name: str) -> pl.DataFrame:
    found = pl.read_parquet(run.predictions / f"{name}.parquet")
    assert pl.read_csv(run.predictions / f"{name}.csv").height == found.height
    return found


def call(run: RunDir, source: Path, *words: str) -> int:
    return run_main(predict.main, [str(run.path), str(source), *words])


def logits_of(run: RunDir, images: np.ndarray) -> np.ndarray:
    from glass_cnn.training.saved import open_model

    return open_model(run, load_run(run.config), "best").logits(images)


def heated(seed: int, temperature: float) -> str:
    lattice = f'Lattice="{BOX} 0 0 0 {BOX} 0 0 0 1" Properties=species:S:1:pos:R:3'
    return xyz_text(seed, head=f"{lattice} temperature={temperature}")


def test_pictures_are_told_one_by_one(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine"
    (source / "more").mkdir(parents=True)
    images: list[np.ndarray] = []
    for name in ("p2.png", "p10.png", "more/p1.png"):
        pixels = picture(len(images), size=(32, 32), channels=3)
        Image.fromarray(pixels).save(source / name)
        images.append(pixels)
    (source / "notes.txt").write_text("nothing to see")
    assert call(run, source) == EXIT_COMPLETE
    found = table(run, "mine")
    assert found["file"].to_list() == ["more/p1.png", "p2.png", "p10.png"]
    expected = logits_of(run, np.stack([images[2], images[0], images[1]]))
    np.testing.assert_array_equal(found.select("^logit.*$").to_numpy(), expected)
    assert found["p_glass"].to_numpy() == pytest.approx(special.softmax(expected, axis=1)[:, 1])
    named = np.where(expected[:, 1] > expected[:, 0], "glass", "liquid")
    assert found["predicted"].to_list() == named.tolist()
    shown = capsys.readouterr().out
    assert "left out, of no known kind: 1 file: notes.txt" in shown
    assert f"{(named == 'glass').sum()} of 3 images are called glass" in shown
    assert not (run.predictions / "mine.svg").exists()


def test_frames_are_drawn_as_the_runs_data_were(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "ramp.dump").write_text(dump_text(1) + dump_text(2))
    assert call(run, tmp_path / "ramp.dump", "--temperatures", "2:0.5") == EXIT_COMPLETE
    found = table(run, "ramp.dump")
    settings = load_run(run.config)
    drawn = [render(frame, settings.render) for frame in read_frames(tmp_path / "ramp.dump")]
    expected = logits_of(run, np.stack(drawn))
    np.testing.assert_array_equal(found.select("^logit.*$").to_numpy(), expected)
    assert found["frame"].to_list() == [0, 1]
    assert found["temperature"].to_list() == [2.0, 0.5]
    assert "temperature" in (run.predictions / "ramp.dump.svg").read_text()


def test_temperatures_are_read_from_the_files(run: RunDir, tmp_path: Path) -> None:
    source = tmp_path / "coolings"
    source.mkdir()
    (source / "a.xyz").write_text(heated(1, 0.7) + heated(2, 0.3))
    (source / "b.dump").write_text(dump_text(3))
    assert call(run, source, "--which", "latest") == EXIT_COMPLETE
    found = table(run, "coolings")
    assert found["temperature"].to_list() == [0.7, 0.3, None]
    figure = (run.predictions / "coolings.svg").read_text()
    assert "a.xyz" not in figure  # one line needs no legend
    assert "assumed transition 0.21" in figure


def test_the_log_of_a_gsd_frame_may_tell_its_temperature(tmp_path: Path) -> None:
    import gsd.hoomd

    write_gsd(tmp_path / "a.gsd", [1])
    with gsd.hoomd.open(str(tmp_path / "a.gsd"), "r+") as file:
        frame = file[0]
        frame.log = {"md/compute/ThermodynamicQuantities/kinetic_temperature": np.array([0.4])}
        file.append(frame)
    assert [one.temperature for one in read_trajectory(tmp_path / "a.gsd")] == [None, 0.4]


def test_windows_are_at_the_places_of_a_data_set(tmp_path: Path) -> None:
    window = {"window": 3.0, "windows_per_configuration": 2}
    run = saved_runs.untrained(tmp_path, simulation=SAME_BOX, render=window)
    (tmp_path / "one.xyz").write_text(xyz_text(1) + xyz_text(2))
    assert call(run, tmp_path / "one.xyz") == EXIT_COMPLETE
    found = table(run, "one.xyz")
    assert found.select("frame", "window").rows() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["logit_glass"].n_unique() == 4


def test_another_scale_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved_runs.untrained(tmp_path, render=WHOLE)
    (tmp_path / "one.xyz").write_text(xyz_text(1))
    assert call(run, tmp_path / "one.xyz", "--output", str(tmp_path / "out")) == EXIT_COMPLETE
    wide = f"{load_run(run.config).simulation.box:.4g}"
    assert f"note: one.xyz: the box is 6 σ wide, and {wide} σ" in capsys.readouterr().out
    assert (tmp_path / "out" / "one.xyz.csv").exists()
    assert not run.predictions.exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), EXIT_DATA, "holds nothing to look at; known are PNG"),
        (("--temperatures", "2"), EXIT_CONFIG, "write FIRST:LAST"),
    ],
)
def test_mistakes_are_told(
    run: RunDir, tmp_path: Path, words: Any, code: int, told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert call(run, tmp_path, *words) == code
    assert told in capsys.readouterr().err


def test_files_that_cannot_be_used_are_named(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, tmp_path / "none.png") == EXIT_DATA
    assert "none.png: no such file" in capsys.readouterr().err
    (tmp_path / "a.xyz").write_text(heated(1, 0.5).replace("=0.5", "=cold"))
    assert call(run, tmp_path / "a.xyz") == EXIT_DATA
    assert "temperature is 'cold', where a number is needed" in capsys.readouterr().err
    Image.fromarray(picture(1, size=(200, 200))).save(tmp_path / "b.png")
    assert call(run, tmp_path / "b.png") == EXIT_DATA
    assert "fit: resize" in capsys.readouterr().err
    assert call(run, tmp_path / "b.png", "--fit", "resize") == EXIT_COMPLETE
    assert len(particles(1)[0]) == 30
