"""The local launcher: tasks side by side on cores of their own, failures, stops, nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc import local
from hpc.errors import UserError
from hpc.stages import Stage, Task
from tests.conftest import ROOT

pytestmark = pytest.mark.lasting

# A task that does what its arguments say, and records what it was given. It starts in no time.
WORKER = """
import json, os, signal, sys, time

place, name, code, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
stopped = []
signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
rank = os.environ.get("PMI_RANK", "0")
fact = {
    "name": name, "rank": int(rank), "pid": os.getpid(), "started": time.monotonic(),
    "cores": os.environ["LAUNCH_CORES"], "threads": os.environ["OMP_NUM_THREADS"],
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "promised": os.environ.get("LAUNCH_GPUS"),
}
with open(f"{place}/{name}-{rank}.part", "w") as file:
    json.dump(fact, file)
os.rename(f"{place}/{name}-{rank}.part", f"{place}/{name}-{rank}.json")
end = time.monotonic() + seconds
while time.monotonic() < end and not stopped:
    time.sleep(0.02)
if stopped:
    time.sleep(0.5 * (name == "b"))  # not all at the same time
    print("stopped at a checkpoint")
    sys.exit(75)
fact["ended"] = time.monotonic()
with open(f"{place}/{name}-{rank}.json", "w") as file:
    json.dump(fact, file)
if code:
    print(f"error: {name} went wrong", file=sys.stderr)
elif rank == "0":
    open(f"{place}/{name}.done", "w").close()
sys.exit(code)
"""
CORES = sorted(os.sched_getaffinity(0))
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


@pytest.fixture
def on_two_cores() -> Iterator[None]:
    os.sched_setaffinity(0, CORES[:2])
    yield
    os.sched_setaffinity(0, CORES)


@pytest.fixture
def make_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """`make_task("a", code=1, seconds=2.0)`: a task whose module is the worker above."""
    (tmp_path / "glass_test_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")

    def task(name: str, code: int = 0, seconds: float = 0.0) -> Task:
        words = (str(tmp_path), name, str(code), str(seconds))
        done, log = tmp_path / f"{name}.done", tmp_path / "output" / f"{name}.log"
        return Task(name, "glass_test_worker", words, done, log)

    return task


def facts(place: Path) -> dict[str, dict]:
    """What each rank of each task wrote down."""
    return {path.stem: json.loads(path.read_text()) for path in place.glob("*.json")}


def no_children_left() -> bool:
    """Whether this process has no child, zombies included."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            return False
    return True


def test_every_task_runs_and_says_so(
    make_task: Callable[..., Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tuple(make_task(name) for name in "abc")
    assert local.Local().launch([Stage("train", tasks, 1, 1)]) == 0
    assert sorted(facts(tmp_path)) == ["a-0", "b-0", "c-0"]
    said = capsys.readouterr().out
    assert "train: 3 to do" in said
    assert all(f"✓ {name} (" in said for name in "abc")
    assert no_children_left()


def test_a_failed_task_ends_neither_its_stage_nor_the_report(
    make_task: Callable[..., Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Stage("train", (make_task("bad", code=65), make_task("good")), 1, 1)
    between = Stage("between", (make_task("never"),), 1, 1)
    report = Stage("aggregate", (make_task("report"),), 1, 1, after_failures=True)
    assert local.Local(1).launch([train, between, report]) == 65
    assert sorted(facts(tmp_path)) == ["bad-0", "good-0", "report-0"]
    said = capsys.readouterr().out.replace("\n", " ")
    assert "✗ bad: exit code 65: error: bad went wrong (all of it:" in said
    log = tmp_path / "output" / "bad.log"
    assert str(log) in said.replace(" ", "")
    assert "error: bad went wrong" in log.read_text()


def test_training_goes_on_after_a_failed_simulation_of_another_data_set(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    stages = [
        Stage("simulate", (make_task("bad", code=70),), 1, 1),
        Stage("train", (make_task("good"),), 1, 1, after_failures=True),
    ]
    assert local.Local().launch(stages) == 70
    assert "good-0" in facts(tmp_path)


def test_an_end_is_noticed_at_once(
    make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next look: of many short runs every core would be idle half of the time."""
    monkeypatch.setattr(local, "LOOK_EVERY", 30.0)
    began = time.monotonic()
    tasks = tuple(make_task(f"t{number}") for number in range(4))
    assert local.Local(1).launch([Stage("train", tasks, 1, 1)]) == 0
    assert time.monotonic() - began < 20


def test_the_first_failure_gives_the_code(make_task: Callable[..., Task]) -> None:
    tasks = tuple(make_task(f"t{code}", code=code) for code in (0, 78, 65))
    assert local.Local(1).launch([Stage("train", tasks, 1, 1)]) == 78


def test_a_task_killed_by_a_signal_is_an_internal_error(
    make_task: Callable[..., Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "glass_test_worker.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert local.Local().launch([Stage("train", (make_task("a"),), 1, 1)]) == 70
    assert "exit code 70" in capsys.readouterr().out


@two_cores
def test_tasks_run_side_by_side_on_cores_of_their_own(
    on_two_cores: None, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    tasks = tuple(make_task(name, seconds=1.0) for name in "abcd")
    assert local.Local(2).launch([Stage("train", tasks, 1, 1)]) == 0
    found = list(facts(tmp_path).values())
    for task in found:
        same_time = [
            other for other in found
            if other["started"] < task["ended"] and task["started"] < other["ended"]
        ]  # fmt: skip
        assert len(same_time) <= 2
        cores = [other["cores"] for other in same_time]
        assert len(set(cores)) == len(cores), "two tasks on one core"
    assert {task["cores"] for task in found} <= {str(core) for core in CORES}
    first = sorted(found, key=lambda task: task["started"])[:2]
    assert first[1]["started"] < first[0]["ended"], "not side by side"


@two_cores
def test_tasks_that_leave_room_for_another_study_are_not_bound(
    on_two_cores: None, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    tasks = tuple(make_task(name) for name in "ab")
    assert local.Local(1).launch([Stage("train", tasks, 1, 1)]) == 0
    assert [fact["cores"] for fact in facts(tmp_path).values()] == ["", ""]


@two_cores
@pytest.mark.requires("mpi")
def test_ranks_are_started_by_mpiexec_with_their_threads(
    on_two_cores: None, make_task: Callable[..., Task], tmp_path: Path
) -> None:
    assert local.Local().launch([Stage("train", (make_task("a"),), 2, 1)]) == 0
    found = facts(tmp_path)
    assert sorted(found) == ["a-0", "a-1"]
    for fact in found.values():
        assert fact["cores"] == ",".join(map(str, CORES[:2]))
        assert fact["threads"] == "1"


def test_more_ranks_than_cores_are_not_pinned(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    assert local.Local().launch([Stage("train", (make_task("a"),), 1, 2 * len(CORES))]) == 0
    (fact,) = facts(tmp_path).values()
    assert fact["cores"] == ""
    assert fact["threads"] == str(2 * len(CORES))


CARDS = ("GPU-a", "GPU-b")


def on_gpus(tasks: tuple[Task, ...], ranks: int = 1, sharing: int = 1) -> Stage:
    return Stage("train", tasks, ranks, 1, gpus_per_rank=1, tasks_per_gpu=sharing)


def test_runs_side_by_side_have_gpus_of_their_own(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    tasks = tuple(make_task(name, seconds=0.4) for name in "abc")
    report = Stage("aggregate", (make_task("report"),), 1, 1)
    assert local.Local(3, CARDS).launch([on_gpus(tasks), report]) == 0
    found = facts(tmp_path)
    without = found.pop("report-0")
    assert (without["gpus"], without["promised"]) == ("", None), "it needs none"
    for task in found.values():
        same_time = [
            other["gpus"] for other in found.values()
            if other["started"] < task["ended"] and task["started"] < other["ended"]
        ]  # fmt: skip
        assert len(set(same_time)) == len(same_time) <= 2, "two runs on one GPU"
    assert {task["gpus"] for task in found.values()} == set(CARDS)
    assert {task["promised"] for task in found.values()} == {"1"}


@pytest.mark.requires("mpi")
def test_every_rank_sees_the_gpus_of_its_task(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    assert local.Local(0, CARDS).launch([on_gpus((make_task("a"),), 2)]) == 0
    assert {fact["gpus"] for fact in facts(tmp_path).values()} == {"GPU-a,GPU-b"}


def test_small_runs_share_a_gpu_where_that_is_asked_for(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    tasks = tuple(make_task(name, seconds=0.5) for name in "ab")
    assert local.Local(2, CARDS[:1]).launch([on_gpus(tasks, sharing=2)]) == 0
    first, second = facts(tmp_path).values()
    assert first["gpus"] == second["gpus"] == "GPU-a"
    assert first["started"] < second["ended"]
    assert second["started"] < first["ended"], "not side by side"


def test_more_ranks_than_gpus_are_refused_before_anything_starts(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    stages = [Stage("simulate", (make_task("a"),), 1, 1), on_gpus((make_task("b"),), 3)]
    with pytest.raises(UserError, match=r"3 ranks need 3 GPUs, and there are 2 here: RANKS=2"):
        local.Local(0, CARDS).launch(stages)
    assert facts(tmp_path) == {}


def test_without_gpus_nothing_is_said_of_them(
    make_task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as it was")
    assert local.Local().launch([on_gpus((make_task("a"),))]) == 0
    (fact,) = facts(tmp_path).values()
    assert (fact["gpus"], fact["promised"]) == ("as it was", None)


def test_a_dry_run_shows_and_starts_nothing(
    make_task: Callable[..., Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [Stage("train", (make_task("a"), make_task("b")), 1, 1)]
    assert local.Local().launch(stages, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "# train: 2 tasks of 1 rank with 1 thread" in said
    assert f"-m glass_test_worker {tmp_path} a 0" in said
    assert local.Local(5, CARDS).launch([on_gpus(stages[0].tasks)], dry_run=True) == 0
    assert "on 1 core and 1 GPU, 2 at a time" in capsys.readouterr().out
    assert not (tmp_path / "output").exists()
    assert facts(tmp_path) == {}


LAUNCH = """
import sys
from pathlib import Path
from hpc import local
from hpc.errors import UserError
from hpc.stages import Stage, Task
place, ranks = Path(sys.argv[1]), int(sys.argv[2])
def task(name):
    words = (str(place), name, "0", "60")
    return Task(name, "glass_test_worker", words, place / f"{name}.done", place / f"{name}.log")
train = Stage("train", tuple(task(name) for name in "abc"), ranks, 1)
last = Stage("aggregate", (task("d"),), 1, 1, after_failures=True)
sys.exit(local.Local(2).launch([train, last]))
"""


def wait_for_tasks(place: Path, count: int) -> None:
    """Until so many ranks have begun."""
    deadline = time.monotonic() + 60
    while len(facts(place)) < count:
        assert time.monotonic() < deadline, "the tasks did not begin"
        time.sleep(0.05)


@pytest.fixture
def _not_under_nohup() -> Iterator[None]:
    """What is started is not told to ignore SIGHUP, even if these tests were."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_not_under_nohup")
@pytest.mark.requires("mpi")
@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGUSR2, 1), (signal.SIGHUP, 1)],
)
def test_a_stop_reaches_every_task_and_waits_for_its_checkpoint(
    make_task: Callable[..., Task], tmp_path: Path, number: int, ranks: int
) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, tmp_path, str(ranks)], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    wait_for_tasks(tmp_path, 2 * ranks)
    os.killpg(launcher.pid, number)  # as a terminal does
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 75, said
    found = facts(tmp_path)
    assert {fact["name"] for fact in found.values()} == {"a", "b"}, "none is started any more"
    assert said.count("stopped at a checkpoint") == 2, said
    assert said.count("stopping: each running task writes a checkpoint") == 1
    for name in "ab":
        log = (tmp_path / f"{name}.log").read_text()
        assert log.count("stopped at a checkpoint") == ranks
    for fact in found.values():
        assert not Path(f"/proc/{fact['pid']}").exists(), "a process is left"


def test_nobody_listening_costs_no_run(make_task: Callable[..., Task], tmp_path: Path) -> None:
    """`make submit | head -1`: the reader is gone after the first line, the tasks have begun."""
    make_task("a")
    script = LAUNCH.replace('"60"', '"0.5"')
    launcher = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert launcher.stdout is not None
    assert launcher.stdout.readline().startswith("train: 3 to do")
    launcher.stdout.close()
    assert launcher.stderr is not None
    assert launcher.stderr.read() == ""
    assert launcher.wait(timeout=60) == 0
    assert {path.name for path in tmp_path.glob("*.done")} == {f"{name}.done" for name in "abcd"}


def test_a_request_that_comes_after_the_work_makes_no_failure(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    """A task that is killed by the request while it shuts down has done what it was for."""
    make_task("a")
    ends = 'open(f"{place}/{name}.done", "w").close()\n    os.kill(os.getpid(), signal.SIGTERM)'
    worker = WORKER.replace('print("stopped at a checkpoint")\n    sys.exit(75)', ends)
    (tmp_path / "glass_test_worker.py").write_text(worker)
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, tmp_path, "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    wait_for_tasks(tmp_path, 2)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 75, "the third has not begun"
    assert said.count("✓") == 2, said
    assert "✗" not in said


def test_a_log_that_cannot_be_written_is_a_message(
    make_task: Callable[..., Task], tmp_path: Path
) -> None:
    (tmp_path / "output").write_text("a file where a directory is needed")
    with pytest.raises(UserError, match=r"output: .*choose another place with LOGS=dir"):
        local.Local().launch([Stage("train", (make_task("a"),), 1, 1)])
    assert no_children_left()
