"""The doctor: what it finds on this machine, and what it says of it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from jobs import doctor
from tests.clones import run


@pytest.mark.requires("mpi")
def test_doctor_finds_two_ranks_and_their_sum(root: Path) -> None:
    answer = run(sys.executable, "-m", "jobs.doctor", cwd=root)
    assert "2 ranks start, and Horovod sums over them" in answer.stdout, answer.stdout
    assert "LAMMPS styles that run: plain, opt" in answer.stdout
    assert answer.returncode == (70 if "  problem" in answer.stdout else 0)


def test_doctor_names_what_is_wrong(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/base.txt").write_text("# note\nnumpy==1.0\nnot-installed==2\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    [difference] = doctor.differing_pins()
    assert difference == f"numpy {metadata.version('numpy')} instead of ==1.0"
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", str(root))
    findings = list(doctor.examine_mpi())
    assert [finding.state for finding in findings] == ["ok", "problem"]
    assert "no mpiexec in PATH" in findings[1].text


@pytest.mark.parametrize(
    ("status", "output", "state", "text"),
    [
        (0, '{"ranks": 2, "sum": 3.0, "way": "mpi"}', "ok", "2 ranks start, and MPI sums over"),
        (
            0,
            '{"ranks": 1, "sum": 1.0, "way": "mpi"}\n{"ranks": 1, "sum": 1.0, "way": "mpi"}',
            "problem",
            "do not see each other",
        ),
        (0, '{"ranks": 2, "sum": 4.0, "way": "mpi"}', "problem", "do not start"),
        (1, "", "problem", "no route to host"),
    ],
)
def test_doctor_judges_a_world(status: int, output: str, state: str, text: str) -> None:
    world = subprocess.CompletedProcess((), status, output, "no route to host\n")
    finding = doctor.judge_world(world)
    assert finding.state == state
    assert text in finding.text
