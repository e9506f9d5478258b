"""A short torture: every test run injects the same seeded choice of faults into real runs."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from glass_cnn.paths import RunDir
from hpc.checkpoint_writer import Checkpoints
from hpc.records import Event
from tests.checkpoints import IDENTITY, Directory, state
from tests.conftest import ROOT
from tests.torture import faults

COUNT = 10


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_tortured_runs_end_bit_identical(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.torture", "--logs", str(tmp_path), "--seed", "263"]
    command += ["--count", str(COUNT), "--ranks", "2", "--iterations", "16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads((tmp_path / "torture" / "torture.json").read_text())
    assert ledger["injected"] >= COUNT  # a start may suffer several
    assert ledger["runs"] == ledger["ended"] == ledger["identical"] > 0
    assert ledger["starts"] > ledger["runs"]
    assert ledger["complaints"] == []
    assert sum(tally["identical"] for tally in ledger["tallies"].values()) == ledger["injected"]
    assert any(kind.startswith("clock set back") for kind in ledger["tallies"])
    table = (tmp_path / "torture" / "torture.md").read_text()
    assert table in done.stdout
    assert f"**{ledger['injected']} faults in {ledger['runs']} runs" in table


@pytest.mark.lasting
def test_wrong_numbers_are_refused() -> None:
    for words in (["--ranks", "2,x"], ["--ranks", "0"], ["--count", "0"]):
        command = [sys.executable, "-m", "tests.torture", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 78
        assert done.stderr.startswith("error: --")
        assert words[0] in done.stderr
        assert "Traceback" not in done.stderr


def test_a_study_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "torture").mkdir()
    (tmp_path / "torture" / "study.yaml").write_text("precious")
    command = [sys.executable, "-m", "tests.torture", "--logs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 78
    assert "holds a study of that name" in done.stderr
    assert (tmp_path / "torture" / "study.yaml").read_text() == "precious"


# That the damage is real: a torture that changes nothing would always be survived.


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with three checkpoints and two best models."""
    checkpoints = Directory(tmp_path / "checkpoints")
    with checkpoints.open() as open_:
        for step in (10, 20, 30):
            if step != 20:
                open_.save_best(step, state(step, 5000), {})
            open_.save(step, state(step, 5000), {})
    return RunDir(tmp_path)


@pytest.mark.parametrize("kind", faults.DAMAGES)
@pytest.mark.parametrize("seed", range(5))
def test_every_damage_is_found(run: RunDir, kind: str, seed: int) -> None:
    assert faults.steps_on_disk(run) == [10, 20, 30]
    assert faults.damage(run, kind, random.Random(seed))
    events: list[Event] = []
    with Checkpoints(run.checkpoints, IDENTITY, 3, None, 1, events.append) as checkpoints:
        found = checkpoints.latest()
    assert found is not None
    assert found.step == 20
    assert [event.event for event in events] == ["checkpoint_refused"]
    assert faults.steps_on_disk(run) == [10, 20]


def test_the_only_valid_checkpoint_is_spared(run: RunDir) -> None:
    for path in sorted(run.checkpoints.glob("step-*"))[:2]:
        path.rename(path.with_name(path.name + ".refused"))
    assert not faults.damage(run, "truncated state", random.Random(0))


def test_a_best_model_that_all_count_on_is_spared(run: RunDir) -> None:
    with Directory(run.checkpoints).open() as checkpoints:
        assert checkpoints.latest()
        checkpoints.save(40, state(40, 5000), {})
    assert not faults.damage(run, "flip in the best model", random.Random(0))


def test_times_of_files_play_no_part(run: RunDir) -> None:
    before = {path: path.stat().st_mtime for path in run.path.rglob("*")}
    assert faults.move_times(run.path, random.Random(0))
    assert all(abs(path.stat().st_mtime - then) > 60 for path, then in before.items())
    with Directory(run.checkpoints).open() as checkpoints:
        found = checkpoints.latest()
    assert found is not None
    assert found.step == 30


TELLING = """
import datetime, sys, time
for _ in sys.stdin:
    now = time.time(), datetime.datetime.now().timestamp(), time.monotonic()
    print(*now, time.localtime().tm_year, flush=True)
"""


@pytest.fixture
def clocks(tmp_path: Path) -> faults.Clocks:
    """The clocks of two ranks."""
    assert faults.build_clock(tmp_path / "clock.so")
    return faults.Clocks(tmp_path / "clocks", tmp_path / "clock.so", 2)


@pytest.fixture
def ranks(clocks: faults.Clocks) -> Iterator[Sequence[Callable[[], list[float]]]]:
    """Two processes that tell their clocks when asked: wall clock twice, monotonic, year."""
    with contextlib.ExitStack() as stack:
        asked = []
        for rank in range(2):
            environment = {**os.environ, **clocks.environment, "PMI_RANK": str(rank)}
            words = [sys.executable, "-c", TELLING]
            process = subprocess.Popen(
                words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            asked.append(functools.partial(tell, process))
        yield asked


def tell(process: subprocess.Popen[str]) -> list[float]:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return [float(word) for word in process.stdout.readline().split()]


@pytest.mark.parametrize("way", ["clock set back", "clock set forward"])
def test_a_clock_is_set_while_a_process_runs(
    way: str, clocks: faults.Clocks, ranks: Sequence[Callable[[], list[float]]]
) -> None:
    rng = random.Random(5)
    for _ in range(5):
        before, shifts = [rank() for rank in ranks], list(clocks.shifts)
        seconds = clocks.jump(way, rng)
        assert 1 <= (seconds if way == "clock set forward" else -seconds) <= 3e8
        jumps = [(new - old) / 1e9 for new, old in zip(clocks.shifts, shifts, strict=True)]
        assert set(np.round(jumps, 6)) <= {0.0, np.round(seconds, 6)}
        assert any(jumps)
        for rank, then, jump in zip(ranks, before, jumps, strict=True):
            wall, date, monotonic, year = rank()
            passed = monotonic - then[2]
            assert 0 < passed < 60
            assert wall - then[0] - passed == pytest.approx(jump, abs=0.5)
            assert date - then[1] - passed == pytest.approx(jump, abs=0.5)
            assert year == datetime.datetime.fromtimestamp(wall).year
    assert clocks.shifts[0] != clocks.shifts[1]  # some jumps were of one rank alone


def test_a_clock_needs_a_compiler_and_a_plain_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not faults.build_clock(tmp_path / "a b" / "clock.so")
    for compiler in (str(tmp_path / "none"), "false"):
        monkeypatch.setenv("CXX", compiler)
        assert not faults.build_clock(tmp_path / "clock.so")
    monkeypatch.setenv("CXX", "c++ -DANY")
    assert faults.build_clock(tmp_path / "clock.so")


def test_what_is_started_is_found_and_ended(tmp_path: Path) -> None:
    """Also a process whose parent is gone."""
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; "
    child += "time.sleep(60)'])"
    command = [sys.executable, "-c", child]
    start = faults.StartedRun(command, "time", RunDir(tmp_path), tmp_path / "console.log", ROOT)
    assert start.wait(30) == 0
    deadline = time.monotonic() + 30
    while not start.alive() and time.monotonic() < deadline:
        time.sleep(0.01)  # for an instant after exec, a process has no environment
    (orphan,) = start.alive()
    assert start.survivors(0.2) == [orphan.pid]
    assert start.alive() == []
    assert os.getpid() not in [process.pid for process in start.alive()]
