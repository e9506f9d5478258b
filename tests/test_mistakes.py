"""Mistakes and mishaps that any job may meet: one message, no traceback, nothing lost."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glass_cnn.paths import StudyDir
from glass_cnn.study import load_study
from hpc.commandline import run_main
from hpc.errors import ConfigError
from jobs import report, status
from tests import synthetic, tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.lasting


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyDir:
    """A study of two complete runs under `tmp_path`; no Slurm."""
    monkeypatch.setenv("PATH", os.devnull)
    study = synthetic.study(seeds=2)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    return place


def respect_permissions() -> None:
    """Take from root what lets it read and write anywhere, as from any other user."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def as_a_user(*words: str) -> subprocess.CompletedProcess[str]:
    """A job without privileges."""
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=respect_permissions,
    )  # fmt: skip


def test_a_directory_or_name_that_is_no_study_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"CONFIG=.*empty: is a directory without a study\.yaml"):
        load_study(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"CONFIG=other: is neither .* \(which holds none"):
        load_study("other", root=tmp_path)
    (tmp_path / "one").mkdir()
    tiny.write_study(tmp_path / "one" / "study.yaml", tiny.tree("one"))
    with pytest.raises(ConfigError, match=r"nor the name of a study in .*\(one\)\."):
        load_study("other", root=tmp_path)
    assert load_study("one", root=tmp_path).name == "one"


def test_links_in_a_circle_and_names_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match=r"loop\.yaml: cannot be read"):
        load_study(tmp_path / "loop.yaml")
    for name in ("datasets", "trajectories"):
        study = tiny.write_study(tmp_path / "s.yaml", tiny.tree(name))
        with pytest.raises(ConfigError, match="is the name of the directory of all data"):
            load_study(study)


def test_one_damaged_study_does_not_hide_the_others(
    place: StudyDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "study.yaml").write_text("study: 3")
    assert run_main(status.main, ["--logs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "study is a number; a mapping 'key: value' is needed" in shown
    assert "synthetic  2 runs: 2 complete" in shown
    assert run_main(status.main, ["another", "--logs", str(tmp_path)]) == 78


def test_damaged_runs_come_with_a_remedy(
    place: StudyDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(place.runs.glob("*-s0-*/result.json")).write_text("")
    assert run_main(status.main, ["--logs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1 damaged, 1 complete" in shown
    assert "result.json: Input data was truncated\n" in shown, "not cut in a pipe"
    assert "remove the directory of such a run" in shown


def test_a_file_in_place_of_the_runs(place: StudyDir, capsys: pytest.CaptureFixture[str]) -> None:
    place.runs.rename(place.path / "moved")
    place.runs.write_text("")
    assert run_main(report.main, [str(place.path)]) == 65
    assert capsys.readouterr().err == f"error: {place.runs}: cannot be read: Not a directory.\n"


def test_runs_of_somebody_else_can_be_looked_at_not_changed(place: StudyDir) -> None:
    place.path.chmod(0o555)
    try:
        seen = as_a_user("jobs.status", str(place.path))
        made = as_a_user("jobs.report", str(place.path))
    finally:
        place.path.chmod(0o755)
    assert seen.returncode == 0, seen.stderr
    assert "2 runs: 2 complete" in seen.stdout
    assert made.returncode == 70
    assert made.stderr.startswith("error: ")
    assert "Permission denied" in made.stderr
    assert len(made.stderr.splitlines()) == 1


def test_what_may_not_be_read_is_named(place: StudyDir, tmp_path: Path) -> None:
    run = next(place.runs.iterdir())
    run.chmod(0)
    try:
        done = as_a_user("jobs.evaluate", str(run))
    finally:
        run.chmod(0o755)
    assert done.returncode == 70
    assert done.stderr.startswith(f"error: {run}/config.yaml: permission denied; ")
    assert len(done.stderr.splitlines()) == 1
