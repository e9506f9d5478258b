"""Runs that share a batch job: what becomes of each of them, and of the job."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc import gpus, packed, provenance, requeue, slurm
from hpc.batch import Pack, read_job_file
from hpc.environment import BATCH_JOB, FACTS, GPUS
from hpc.errors import ConfigError
from hpc.records import read_records
from hpc.stages import Task
from hpc.starts import Starts
from tests.conftest import ROOT
from tests.slurm.stages import share_jobs


@pytest.fixture
def shared(tmp_path: Path) -> Callable[..., tuple[Path, list[Task]]]:
    """`shared(runs, per_job=n, **site)`: a job file under logs/study whose runs share jobs."""
    return functools.partial(share_jobs, tmp_path / "logs" / "study")


# -- inside the job --------------------------------------------------------------------------------

RUN = """
import json, os, signal, sys, time
from pathlib import Path
import packed_plan
name = sys.argv[2]
place = Path(sys.argv[1]).parent / "runs" / name
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
facts = {key: os.environ.get(key) for key in ("LAUNCH_BATCH_JOB", "LAUNCH_CORES", "SLURM_JOB_ID")}
facts["job"] = json.loads(os.environ["LAUNCH_BATCH_FACTS"])
(place / "facts.json").write_text(json.dumps(facts))
for what in packed_plan.PLAN[name].split():
    kind, _, value = what.partition("=")
    if kind == "saves":
        (place / "checkpoints" / f"step-{int(value):09d}").mkdir(parents=True, exist_ok=True)
    if kind == "sleeps":
        time.sleep(float(value))
    if kind == "dies" and not list(place.glob("checkpoints/*1")):
        (place / "checkpoints" / "step-000000001").mkdir(parents=True)
        os.kill(os.getpid(), int(value))
    if kind == "always-dies":
        os.kill(os.getpid(), int(value))
    if kind == "exits":
        sys.exit(int(value))
(place / "result.json").write_text("{}")
"""


@pytest.fixture
def job(
    shared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`job("sleeps=1", "exits=78")`: runs that do so in one job; how to start it, and the runs."""
    (tmp_path / "packed_run.py").write_text(RUN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")

    def make(*plans: str, **site: Any) -> tuple[Callable[..., subprocess.Popen[str]], list[Task]]:
        file, tasks = shared(len(plans), len(plans), "packed_run", **site)
        plan = dict(zip((each.name for each in tasks), plans, strict=True))
        (tmp_path / "packed_plan.py").write_text(f"PLAN = {plan!r}")
        words = ["--job", "17_0", "--job-file", str(file), "--index", "0", "--", sys.executable]

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-m", "hpc.packed", *words], cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip

        return start, tasks

    return make


def told(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = process.communicate(timeout=60)[0]
    return process.returncode, said


def events(run: Task) -> list[str]:
    found = read_records(run.log.with_name("events.jsonl"))
    return [event["event"] for event in found if event["job"] == "17_0"]


@pytest.mark.lasting
def test_a_failure_ends_no_other_run_and_is_not_tried_for_ever(job: Callable[..., Any]) -> None:
    start, (bad, good) = job("exits=78", "sleeps=0.3")
    code, said = told(start())
    assert code == 78, said
    assert good.done.exists()
    assert events(good) == ["job_start"]
    assert events(bad) == ["job_start", "no_requeue"]
    log = bad.log.read_text().splitlines()
    assert "job 17_0, restart 0: r0 on n1, 1 rank, from step 0; first start" in log[0]
    assert log[1].endswith("no requeue: exit code 78: bad configuration; mend it and submit again")
    code, said = told(start())
    assert code == 78, "the job still tells the worst"
    assert "r0: exit code 78 before this start of the job; not started again" in said
    assert events(bad) == ["job_start", "no_requeue"]
    facts = json.loads((good.log.parent / "facts.json").read_text())
    assert facts["LAUNCH_BATCH_JOB"] == "17_0", "make cancel leaves it to Slurm"
    assert facts["job"] == {"job": "17", "nodes": "n1", "tasks": "2"}
    assert facts["SLURM_JOB_ID"] is None, "no mpiexec looks for nodes"


@pytest.mark.lasting
def test_events_that_cannot_be_read_stop_no_other_run(job: Callable[..., Any]) -> None:
    start, (damaged, good) = job("sleeps=0", "sleeps=0")
    damaged.log.parent.mkdir(parents=True)
    damaged.log.with_name("events.jsonl").write_text('{"event":7}\n')
    code, said = told(start())
    assert code == 65, said
    assert "error: r0: events.jsonl" in said
    assert good.done.exists()
    assert not damaged.done.exists()


@pytest.mark.lasting
def test_ranks_that_were_killed_start_again_as_long_as_they_get_on(job: Callable[..., Any]) -> None:
    start, (once, always) = job("dies=9 saves=2", "always-dies=9")
    code, said = told(start())
    assert code == 70, said
    assert once.done.exists()
    assert events(once) == ["job_start", "restart", "job_start"]
    assert "ranks were killed (exit code 137)" in once.log.read_text()
    assert events(always) == ["job_start", "restart", "job_start", "no_requeue"]
    assert "two starts in a row made no progress beyond step 0" in always.log.read_text()
    code, said = told(start())
    assert code == 137, said
    assert len(events(always)) == 4, "it is not tried again"


@pytest.mark.lasting
def test_no_run_is_started_again_more_often_than_a_job_of_its_own(job: Callable[..., Any]) -> None:
    start, (run, _) = job("dies=9", "sleeps=0", max_requeues=0)
    assert told(start())[0] == 70
    assert "requeued 0 times already (max_requeues)" in run.log.read_text()


@pytest.mark.lasting
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_request_to_stop_reaches_every_run(
    job: Callable[..., Any],
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, runs = job("saves=5 sleeps=60", "sleeps=0", "saves=7 sleeps=60")
    process = start()
    last = runs[2].log.parent / "checkpoints" / "step-000000007"
    deadline = time.monotonic() + 30
    while not (last.exists() and runs[1].done.exists()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    code, said = told(process)
    assert code == 75, said
    assert [events(run) for run in runs] == [["job_start"]] * 3, "the job decides when all ended"


# -- the end of the job ----------------------------------------------------------------------------


@pytest.fixture
def end(
    shared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """`end([(START, 0)], …)`: what a job's end asks of Slurm, and writes to runs of such a past."""
    asked: list[str] = []
    state = requeue.JobState("RUNNING", 100, 160, preempted=True)
    monkeypatch.setattr(requeue, "job_state", lambda _: state)

    def ask(*words: str, **_: Any) -> str:
        asked.append(" ".join(words))
        return ""

    monkeypatch.setattr(slurm, "ask", ask)

    def make(
        *histories: Sequence[tuple[str, int]], status: int = 75, cancelled: bool = False
    ) -> Any:
        file, tasks = shared(len(histories), len(histories), max_requeues=2)
        for each, history in zip(tasks, histories, strict=True):
            for event, step in history:
                each.log.parent.mkdir(parents=True, exist_ok=True)
                Starts.of("17_0", each).write(event, step, status=0)
        for each in tasks[1:]:
            (each.log.parent / "checkpoints" / "step-000000009").mkdir(parents=True)
        if cancelled:
            slurm.cancelled(file).touch()
        words = ["--job", "17_0", "--job-file", str(file), "--index", "0", "--bound", "2"]
        requeue.main(["end", *words, "--status", str(status), "--asked", "USR2"])
        return asked, [
            events(each)[len(history) :] for each, history in zip(tasks, histories, strict=True)
        ]

    return make


START, BACK, REFUSED = "job_start", "requeue", "no_requeue"


def test_the_job_goes_back_if_one_of_its_runs_is_to_go_on(end: Callable[..., Any]) -> None:
    asked, written = end(
        [(START, 0), (BACK, 0), (START, 0)],  # no progress
        [(START, 0), (BACK, 5), (START, 5)],
        [(START, 0), (BACK, 3), (START, 3), (BACK, 6), (START, 6)],  # often enough
        [],  # its turn has not come
    )
    assert asked == ["scontrol requeue 17_0"]
    assert written == [[REFUSED], [BACK], [REFUSED], []]


def test_a_run_whose_turn_has_not_come_is_reason_enough_to_go_back(end: Callable[..., Any]) -> None:
    asked, written = end([(START, 0), (BACK, 0), (START, 0)], [])
    assert asked == ["scontrol requeue 17_0"]
    assert written == [[REFUSED], []]


def test_a_job_without_runs_that_may_go_on_ends(end: Callable[..., Any]) -> None:
    asked, written = end([(START, 0), (BACK, 0), (START, 0)], [(START, 0), (REFUSED, 9)])
    assert asked == []
    assert written == [[REFUSED], []], "what failed was decided over when it did"


def test_a_cancelled_job_stays_out_of_the_queue(end: Callable[..., Any]) -> None:
    asked, written = end([(START, 0)], [], cancelled=True)
    assert asked == []
    assert written == [[REFUSED], []]


def test_a_launcher_that_was_killed_takes_no_run_with_it(
    end: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked, written = end([(START, 0)], [(START, 0)], status=137)
    assert asked == ["scontrol requeue 17_0"]
    assert written == [[BACK], [BACK]]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["r0", "r1"], "each is named"


# -- cores, GPUs, facts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "given", "bound"), [(8, "8", True), (8, "4", False), (3, "3", False), (8, "", True)]
)
def test_runs_are_bound_only_to_cores_that_are_the_jobs_own(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    allowed: int,
    given: str,
    bound: bool,
) -> None:
    """Where Slurm keeps no job on its cores, those of others would be among them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", given)
    assert packed._has_cores(Pack(2, 2, 2, 1, 1)) == bound
    assert ("not bound to cores" in capsys.readouterr().out) != bound


def test_gpus_that_were_promised_and_are_not_there_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "here", lambda: gpus.Found(complaint="no driver"))
    assert packed._cards() == (), "none were promised"
    monkeypatch.setenv(GPUS, "1")
    with pytest.raises(ConfigError, match=r"shows none of them on .*: no driver. Nothing is"):
        packed._cards()
    monkeypatch.setattr(gpus, "here", lambda: gpus.Found(("GPU-a", "GPU-b")))
    assert packed._cards() == ("GPU-a", "GPU-b")


def test_a_run_knows_the_job_that_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    given = packed._variables("17_0", 3)
    assert given[BATCH_JOB] == "17_0"
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv(FACTS, given[FACTS])
    assert provenance.slurm() == {"job": "17", "nodes": "n1", "tasks": "3"}


def test_a_job_file_whose_tasks_share_no_job_is_a_message(shared: Callable[..., Any]) -> None:
    file, _ = shared(1, 1)
    words = ["--job", "1", "--job-file", str(file), "--index", "0", "python"]
    with pytest.raises(ConfigError, match="no tasks share a job"):
        packed.main(words)


# -- the template ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("srun", "srun --mpi=none --ntasks=1 --cpus-per-task=6 --cpu-bind=cores --wait=5 PYTHON "),
        ("mpiexec", "PYTHON "),
    ],
)
def test_the_template_starts_one_launcher_for_all(
    root: Path, tmp_path: Path, shared: Callable[..., Any], launcher: str, words: str
) -> None:
    file, _ = shared(4, launcher=launcher, launcher_options=("--wait=5",))
    text = file.read_text()
    file.write_text(text.replace("bind\tnone", "bind\tcores"))
    script = f"""
        . {root}/slurm/common.sh
        python=PYTHON me=17_1 SLURM_ARRAY_TASK_ID=1 SLURM_CPUS_ON_NODE=6
        export SLURM_CPUS_PER_TASK=1 SLURM_TRES_PER_TASK=cpu:1
        run() {{ status=0; echo "$forward: $*"; env | grep _PER_TASK; }}
        set_damaged_aside() {{ echo "first: damaged results"; }}
        read_job train --tasks "$1"
        [ -n "$packed" ] && main_packed
    """
    done = subprocess.run(
        ["bash", "-uc", script, "bash", str(file)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("first: damaged results")
    part = f"--job 17_1 --job-file {file} --index 1"
    assert f"USR1: {words}-m hpc.packed {part} -- PYTHON\n" in done.stdout
    assert ("_PER_TASK" in done.stdout) == (launcher == "mpiexec"), "srun would ask for it again"
    assert [each.name for each in read_job_file(file).of(1)] == ["r2", "r3"]
