"""Why a task of the local launcher failed: ranks that never meet, memory that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import failures, local
from hpc.failures import first_error, last_error, last_line, too_little_memory
from hpc.local import Local
from hpc.stages import Meter, Stage, Task
from tests.conftest import ROOT
from tests.plans import processes

pytestmark = pytest.mark.lasting

WORLD = "from hpc.commandline import run_ranks\nimport argparse, sys, time\n"


@pytest.fixture
def make_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """`make_task(source)`: a task that runs a program."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")

    def task(source: str, meter: Meter | None = None) -> Task:
        (tmp_path / "launch_test_program.py").write_text(source)
        log, done = tmp_path / "output.log", tmp_path / "done"
        return Task("it", "launch_test_program", (str(tmp_path),), done, log, meter=meter)

    return task


def start(task: Task, ranks: int = 2) -> int:
    return Local(1).launch([Stage("train", (task,), ranks, 1)])


@pytest.mark.requires("mpi")
def test_ranks_that_never_meet_are_ended_with_their_first_error(
    make_task: Callable[..., Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local, "PATIENCE", 8.0)
    (tmp_path / "output.log").write_text("error: of an earlier start\n")
    source = "import time\nprint('loading')\nprint('srun: error: no such host')\nprint('waiting')\n"
    began = time.monotonic()
    assert start(make_task(f"{source}time.sleep(120)")) == 70
    assert time.monotonic() - began < 60
    said = capsys.readouterr().out.replace("\n", " ")
    assert "its ranks did not start within 8 s: srun: error: no such host (all of it:" in said
    assert not processes(str(tmp_path)), "processes are left"


@pytest.mark.requires("mpi")
def test_ranks_that_have_met_may_take_their_time(
    make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PATIENCE", 10.0)
    source = (
        WORLD + "sys.exit(run_ranks(lambda *_: time.sleep(14), argparse.ArgumentParser()"
        ".parse_args, []))"
    )
    assert start(make_task(source)) == 0


@pytest.mark.requires("mpi")
def test_a_task_that_gets_on_is_left_alone(
    make_task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that it does not say when it has begun."""
    monkeypatch.setattr(local, "PATIENCE", 3.0)
    source = (
        "import time, sys\nfrom pathlib import Path\n"
        "Path(sys.argv[1], 'records').write_text('{\"a\":1}\\n')\ntime.sleep(6)"
    )
    assert start(make_task(source, Meter(tmp_path / "records", 2, {}))) == 0


def test_one_rank_has_nobody_to_meet(
    make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PATIENCE", 0.1)
    assert start(make_task("import time; time.sleep(1)"), ranks=1) == 0


def test_an_error_of_an_earlier_start_is_not_told_again(
    make_task: Callable[..., Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "output.log").write_text("error: long mended\n")
    assert start(make_task("import sys; print('a new one'); sys.exit(65)"), ranks=1) == 65
    said = capsys.readouterr().out
    assert "a new one" in said
    assert "long mended" not in said


def test_lines_of_errors_are_found() -> None:
    lines = ["reading", "mpiexec: node2: Permission denied", "error: first", "error: last", "end"]
    assert first_error(lines) == "mpiexec: node2: Permission denied"
    assert last_error(lines) == "error: last"
    assert first_error(["a", "b"]) == "a"
    assert last_error(["a", "b"]) == "b"
    assert first_error([]) == "they said nothing"
    assert last_line(Path("/nowhere")) == ""


# Shared memory


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 KiB of shared memory."""
    real = os.statvfs("/")
    little = os.statvfs_result((4096, 4096, 64, 64, 64, *tuple(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: little)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize(
    ("status", "line"),
    [(7, ""), (-7, ""), (135, ""), (11, ""), (15, "APPLICATION TERMINATED: Bus error (signal 7)")],
)
def test_a_bus_error_is_called_what_it_is(status: int, line: str) -> None:
    said = too_little_memory(status, [line])
    assert said.startswith("/dev/shm has 256 KiB, 256 of them free: too little for ranks")
    assert "--shm-size=1g" in said


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("status", [1, 65, 70, 78, 137])
def test_other_failures_are_not_laid_on_memory(status: int) -> None:
    assert too_little_memory(status, ["error: batch_size 25 is smaller than …"]) == ""


def test_a_bus_error_with_memory_enough_is_something_else() -> None:
    if os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < failures.ENOUGH:
        pytest.skip("there is little shared memory here")
    assert too_little_memory(7, ["Bus error"]) == ""


LITTLE = 'mount -t tmpfs -o size=256k none /dev/shm && exec "$@"'
INSIDE = """
import sys
from pathlib import Path
from hpc.local import Local
from hpc.stages import Stage, Task
place = Path(sys.argv[1])
task = Task("it", "launch_test_program", (), place / "done", place / "output.log")
sys.exit(Local(1).launch([Stage("train", (task,), 2, 1)]))
"""


@pytest.mark.requires("mpi")
def test_real_ranks_with_256_kib_of_shared_memory_are_told_why_they_died(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    apart = ["unshare", "--mount", "--map-root-user", "bash", "-c", LITTLE, "bash"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")
    make_task(WORLD + "from hpc.world import world\nworld()")
    done = subprocess.run(
        [*apart, sys.executable, "-c", INSIDE, str(tmp_path)],
        capture_output=True, text=True, timeout=100, cwd=ROOT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stdout.replace("\n", " ")
    assert done.returncode != 0, said
    assert "/dev/shm has 256 KiB" in said
    assert "bus error" in said
