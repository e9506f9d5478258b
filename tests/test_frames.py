"""Configurations as files of other programs, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glass_cnn.configuration import Configuration
from glass_cnn.data.dataset import load
from glass_cnn.data.formats import read_trajectory
from glass_cnn.data.writers import Format, LabelledFrame, write_frames
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE, EXIT_CONFIG, EXIT_DATA
from jobs import export_frames
from tests import small_data, tiny
from tests.own_data import BOX, particles

FORMS: tuple[Format, ...] = ("gsd", "xyz")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_back(tmp_path: Path, form: Format) -> None:
    frames = [
        LabelledFrame(Configuration(*particles(1), BOX), 4, 0.45, -3.2, "glass"),
        LabelledFrame(Configuration(*particles(2), BOX + np.array([0, 1])), 5),
    ]
    path = tmp_path / f"a.{form}"
    write_frames(path, frames, form)
    found = read_trajectory(path)
    assert [one.temperature for one in found] == [0.45, None]
    for one, frame in zip(found, frames, strict=True):
        np.testing.assert_allclose(one.configuration.box, frame.configuration.box)
        np.testing.assert_array_equal(one.configuration.species, frame.configuration.species)
        places = frame.configuration.wrapped()
        tolerance = 1e-6 if form == "gsd" else 0  # whose box reaches from −L/2 to L/2
        np.testing.assert_allclose(one.configuration.positions, places, rtol=0, atol=tolerance)
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{form}"]


def test_files_say_what_other_programs_show(tmp_path: Path) -> None:
    import gsd.hoomd

    frame = LabelledFrame(Configuration(*particles(1), BOX), 4, 0.45, -3.2, "glass")
    for form in FORMS:
        write_frames(tmp_path / f"a.{form}", [frame], form)
    count, header, first, *rest = (tmp_path / "a.xyz").read_text().splitlines()
    assert int(count) == 1 + len(rest) == 30
    assert header == (
        'Lattice="6.0 0 0 0 6.0 0 0 0 1.0" pbc="T T F" Properties=species:S:1:pos:R:3:radius:R:1 '
        "temperature=0.45 energy_per_particle=-3.2 trajectory=4 label=glass"
    )
    species, *numbers = first.split()
    assert float(numbers[-1]) == {"A": 0.5, "B": 0.44}[species]
    with gsd.hoomd.open(str(tmp_path / "a.gsd"), "r") as file:
        one = file[0]
    assert one.configuration.dimensions == 2
    assert sorted(set(one.particles.diameter.tolist())) == pytest.approx([0.88, 1.0])
    assert one.log["trajectory"].tolist() == [4]


def test_a_data_set_becomes_a_file(
    small_logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny.share(small_logs, tmp_path / "logs")
    tree = {"study": {"name": "small", "seeds": 1}, **small_data.TREE}
    config = tiny.write_study(tmp_path / "small.yaml", tree)
    words = [str(config), "--logs", str(root), "--format", "xyz"]
    assert run_main(export_frames.main, words) == EXIT_COMPLETE
    assert "18 frames" in capsys.readouterr().out
    data = load(small_data.SETTINGS, root)
    found = read_trajectory(root / "small" / "frames" / f"{data.path.name}.xyz")
    assert [one.temperature for one in found] == data.column("configurations/temperature").tolist()
    np.testing.assert_array_equal(
        found[3].configuration.positions, data.column("configurations/positions")[3]
    )


def test_a_cooling_is_simulated_with_more_frames(
    small_logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It begins as that of the data set; LAMMPS, stopped more often, rounds otherwise then."""
    root = tiny.share(small_logs, tmp_path / "logs")
    tree = {"study": {"name": "small", "seeds": 1}, **small_data.TREE}
    config = tiny.write_study(tmp_path / "small.yaml", tree)
    words = [str(config), "--logs", str(root), "--trajectory", "2", "--frames"]
    assert run_main(export_frames.main, [*words, "4", "--format", "xyz"]) == EXIT_COMPLETE
    found = read_trajectory(root / "small" / "frames" / "tiny-cooling-2.xyz")
    ramp = small_data.SETTINGS.simulation
    expected = [ramp.temperature(k) for k in range(4)]
    assert [one.temperature for one in found] == pytest.approx(expected)
    data = load(small_data.SETTINGS, root)
    ends = data.column("configurations/positions")[4:6]
    np.testing.assert_array_equal(found[0].configuration.positions, ends[0])
    assert run_main(export_frames.main, [*words, "5"]) == EXIT_CONFIG
    assert "--frames 5: the ramp has 4" in capsys.readouterr().err


def test_without_data_it_says_how_to_make_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {"study": {"name": "small", "seeds": 1}, **small_data.TREE}
    config = tiny.write_study(tmp_path / "small.yaml", tree)
    assert run_main(export_frames.main, [str(config), "--logs", str(tmp_path)]) == EXIT_DATA
    assert "there is no such data set" in capsys.readouterr().err
