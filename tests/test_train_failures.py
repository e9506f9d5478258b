"""Ranks that crash, hang or meet another process; stops while libraries load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glass_cnn import records
from glass_cnn.study import load_study
from hpc.records import read_records
from tests.conftest import ONE_THREAD
from tests.plans import DRIVER, Plan, fault, processes

pytestmark = [pytest.mark.requires("mpi"), pytest.mark.slow, pytest.mark.timeout(1800)]

# Two processes for one run

TRAINS = """
import sys, time
from pathlib import Path
from hpc.checkpoint_writer import Checkpoints
run, go = Path(sys.argv[1]), Path(sys.argv[2])
with Checkpoints(run / "checkpoints", "", 1, None, 1, print):
    print("locked", flush=True)
    while not go.exists():
        time.sleep(0.05)
    (run / "result.json").write_text(sys.argv[3])
"""


def test_a_run_that_another_process_trains_is_left_to_it(tiny_logs: Path, tmp_path: Path) -> None:
    """Neither begun anew under its hands, nor trained once more when it has just ended."""
    plan = Plan(tmp_path, tiny_logs, 1)
    study = plan.study("two", checkpoint={"after_end": "best"})
    run = load_study(study).run_dir(plan.logs("two"), load_study(study).runs[0])
    run.checkpoints.mkdir(parents=True)
    words = [sys.executable, "-m", "jobs.train", str(study), "--logs", str(plan.logs("two"))]
    options: Any = {"stdout": subprocess.PIPE, "text": True, "cwd": DRIVER.parents[2]}
    go = tmp_path / "go"
    end = records.Tested(iteration=4, validation_accuracy=0.5, test_accuracy=0.5)
    result = msgspec.json.encode(
        records.Result(
            seed=0,
            steps=12,
            optimal=end,
            final=end,
            weights_sha256="0" * 64,
            restarts=0,
            wall_seconds=1.0,
        )
    ).decode()
    trains = [sys.executable, "-c", TRAINS, str(run.path), str(go), result]
    with subprocess.Popen(trains, **options) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        run.metrics.write_text("{}\n")
        over = subprocess.run([*words, "--start-over"], stderr=subprocess.PIPE, **options)
        assert over.returncode == 70
        assert "is writing this run's checkpoints" in over.stderr
        assert run.metrics.exists()
        with subprocess.Popen(words, **options) as second:
            while not run.config.exists():  # written just before it waits for the other
                time.sleep(0.02)
            go.touch()
            assert second.wait(timeout=100) == 0
    assert run.result.read_text() == result
    assert not run.provenance.exists()


# Ranks that crash or hang


def test_a_crash_of_one_rank_ends_all_and_is_kept(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path: Path
) -> None:
    plan = Plan(tmp_path, tiny_logs, 2)
    plan.add("crash", fault(1, "step", 4, "raise"))
    plan.carry_out(mpirun, code=70)
    (crash,) = plan.run("crash").path.glob("crashes/*")
    assert crash.name == "rank-1.txt"
    assert "RuntimeError: injected" in crash.read_text()
    assert "rank 1: internal error" in plan.said["crash"][0][1]


def test_ranks_that_end_with_different_weights_do_not_complete_a_run(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path: Path
) -> None:
    plan = Plan(tmp_path, tiny_logs, 2)
    plan.add("flip", fault(1, "step", 4, "flip"))
    plan.carry_out(mpirun, code=70)
    assert "ranks ended with different weights" in "".join(plan.said["flip"][0])  # one is first
    assert not plan.run("flip").result.exists()


def test_a_rank_that_hangs_is_named_and_nothing_is_left(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path: Path
) -> None:
    plan = Plan(tmp_path, tiny_logs, 2)
    plan.study("hang", launch={"hang_seconds": 25})
    plan.add("hang", fault(1, "step", 4, "SIGSTOP"))
    plan.carry_out(mpirun, code=None)
    said = "".join(plan.said["hang"][0])
    assert said.count("error: no progress for") == 1
    assert re.search(r"s: rank 1 \(process \d+ on \S+, last seen [^)]+\) fell behind", said)
    assert "raise launch.hang_seconds (now 25)" in said


# Real processes, while they start


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_stop_while_libraries_load_is_heeded_and_ranks_have_cores_of_their_own(
    tiny_logs: Path, tmp_path: Path
) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    plan = Plan(tmp_path, tiny_logs, 2)
    study = plan.study("early")
    words = ["-m", "jobs.train", str(study), "--logs", str(plan.logs("early"))]
    with subprocess.Popen(
        ["mpiexec", "-n", "2", sys.executable, *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=DRIVER.parents[2],
        env={**os.environ, **ONE_THREAD, "LAUNCH_CORES": ",".join(map(str, cores))},
    ) as world:  # fmt: skip
        deadline = time.monotonic() + 60
        while pinned(str(study)) != [{core} for core in cores]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        world.send_signal(signal.SIGUSR1)  # which mpiexec hands on to every rank
        said = world.communicate(timeout=200)[0]
    assert world.returncode == 75, said
    assert "stopped: SIGUSR1 at step 0" in said
    (start,) = read_records(plan.run("early").provenance)
    assert (start["ranks"], start["resumed_step"]) == (2, 0)
    assert not processes(str(study))


def pinned(word: str) -> list[set[int]]:
    """Cores of each Python process whose command line contains a word, those on one core."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
            allowed = os.sched_getaffinity(int(path.parent.name))
        except OSError:
            continue
        if line[0] == sys.executable.encode() and word.encode() in line and len(allowed) == 1:
            found.append(allowed)
    return sorted(found, key=min)
