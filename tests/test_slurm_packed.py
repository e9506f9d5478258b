"""Runs that share a batch job: how many, what is asked for, and what becomes of each of them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.pipeline import SECTIONS
from hpc import batch, gpus, packed, provenance, requeue, slurm
from hpc.batch import Pack, plan, read_job_file, shape_of
from hpc.environment import BATCH_JOB, FACTS, GPUS
from hpc.errors import ConfigError
from hpc.records import read_records
from hpc.site import Site, load_site
from hpc.slurm import Queued
from hpc.stages import Stage, Task
from hpc.starts import Starts
from tests.conftest import ROOT
from tests.slurm.stages import study_stages, task

GOLDEN = Path(__file__).parent / "slurm" / "golden" / "packed.txt"


def training(runs: int, ranks: int = 1, threads: int = 1, per_job: int = 0, **more: Any) -> Stage:
    tasks = tuple(task(f"r{i}") for i in range(runs))
    return Stage("train", tasks, ranks, threads, main=True, tasks_per_job=per_job, **more)


# -- how many share a job --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "site", "pack"),
    [
        # as many as fill a node, spread evenly over the fewest jobs
        (training(100), {"ranks_per_node": 32}, Pack(25, 25, 1, 1, 1)),
        (training(64), {"ranks_per_node": 32}, Pack(32, 32, 1, 1, 1)),
        (training(3), {"ranks_per_node": 32}, Pack(3, 3, 1, 1, 1)),
        (training(100, ranks=5, threads=2), {"ranks_per_node": 32}, Pack(6, 6, 5, 2, 1)),
        (training(100), {"ranks_per_node": 4, "cpus_per_rank": 8}, Pack(4, 4, 1, 8, 1)),
        (training(9), {"ranks_per_node": 4, "ranks": 2}, Pack(2, 2, 2, 1, 1)),
        # as many as one wants; those that the node does not hold wait for their turn
        (training(100, per_job=10), {"ranks_per_node": 32}, Pack(10, 10, 1, 1, 1)),
        (training(100, per_job=50), {"ranks_per_node": 32}, Pack(50, 32, 1, 1, 1)),
        (training(6, per_job=3), {"ranks_per_node": 1}, Pack(3, 1, 1, 1, 1)),
        (training(3, per_job=10), {"ranks_per_node": 32}, Pack(3, 3, 1, 1, 1)),
        # GPUs
        (training(9), {"ranks_per_node": 4, "gpus_per_rank": 1}, Pack(3, 3, 1, 1, 1)),
        (
            training(9, tasks_per_gpu=3),
            {"ranks_per_node": 4, "gpus_per_rank": 1, "cpus_per_rank": 8},
            Pack(9, 9, 1, 2, 3),
        ),
        (training(9, tasks_per_gpu=3), {"ranks_per_node": 4}, Pack(3, 3, 1, 1, 1)),
        (training(8), {"ranks_per_node": 8, "gpus_per_node": 4}, Pack(4, 4, 1, 1, 1)),
        # each has a job to itself
        (training(1), {"ranks_per_node": 32}, None),
        (training(100, per_job=1), {"ranks_per_node": 32}, None),
        (training(100), {}, None),
        (training(100, ranks=17), {"ranks_per_node": 32}, None),
        (training(100, ranks=33), {"ranks_per_node": 32}, None),
        (training(100, ranks=2, per_job=5), {"ranks_per_node": 1}, None),
        (training(100, ranks=2), {"ranks_per_node": 8, "min_nodes": 1}, None),
    ],
)
def test_runs_of_less_than_a_node_share_one(
    stage: Stage, site: dict[str, Any], pack: Pack | None
) -> None:
    assert shape_of(stage, Site(**site)).pack == pack


@pytest.mark.parametrize(
    ("stage", "site", "words"),
    [
        (
            training(100, threads=2),
            {"ranks_per_node": 32, "memory_per_rank": "1500M"},
            "--nodes=1 --ntasks=25 --ntasks-per-node=25 --cpus-per-task=2 --mem=37500M",
        ),
        (
            training(100),
            {"ranks_per_node": 32, "memory": "64G"},
            "--nodes=1 --ntasks=25 --ntasks-per-node=25 --cpus-per-task=1 --mem=64G",
        ),
        (
            training(8, tasks_per_gpu=2),
            {"ranks_per_node": 4, "gpus_per_rank": "a100:1", "cpus_per_rank": 8},
            "--nodes=1 --ntasks=4 --ntasks-per-node=4 --cpus-per-task=8 --gpus-per-node=a100:4",
        ),
        (
            training(8, per_job=2),
            {"ranks_per_node": 4, "gpus_per_node": "a100:4", "cpus_per_rank": 8},
            "--nodes=1 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=8 --gpus-per-node=a100:4",
        ),
        (
            training(1),
            {"ranks_per_node": 32, "memory_per_rank": "4G"},
            "--nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 --mem=4G",
        ),
    ],
)
def test_a_job_asks_for_what_its_runs_need_at_a_time(
    stage: Stage, site: dict[str, Any], words: str
) -> None:
    asked = batch.resources(stage, Site(**site))
    assert " ".join(asked[: asked.index("--time=1:00:00")]) == words


def test_every_run_is_in_one_job_whatever_the_limit_of_arrays() -> None:
    site = Site(ranks_per_node=4)
    for limit, sizes in ((1001, [250]), (101, [100, 100, 50]), (1, [1] * 250), (0, [1] * 250)):
        (jobs,) = plan([training(1000)], Path("/j"), site, limit)
        assert [job.size for job in jobs] == sizes
        names = [each.name for job in jobs for each in job.stage.tasks]
        assert names == [f"r{i}" for i in range(1000)]
        assert all(job.shape.pack == Pack(4, 4, 1, 1, 1) for job in jobs)
        assert jobs[0].array == (limit > 1)
    words = batch.command(plan([training(10)], Path("/j"), Site(ranks_per_node=4), 9)[0][0], "x")
    assert "--array=0-2" in words, "4 + 4 + 2 runs"


def test_a_last_part_that_is_smaller_asks_for_less() -> None:
    (jobs,) = plan([training(9, per_job=4)], Path("/j"), Site(ranks_per_node=8), 3)
    assert [(job.size, len(job.stage.tasks)) for job in jobs] == [(2, 6), (1, 3)]
    (jobs,) = plan([training(5, per_job=4)], Path("/j"), Site(ranks_per_node=8), 2)
    assert [job.shape.ranks for job in jobs] == [3, 2]


def test_packed_submission_is_as_it_was() -> None:
    site = load_site("cpu", {}, SECTIONS)
    stages = study_stages(5, ranks=8)
    stages[1] = replace(stages[1], tasks_per_job=0)
    jobs = plan(stages, Path("/logs/study/jobs/20260102-030405"), site, 1001)[1]
    parts = [text for job in jobs for text in (shlex.join(batch.command(job, "x")), job.text)]
    assert "\n".join(parts) == GOLDEN.read_text()
    assert batch.cost(stages[1], site) == (
        "train: 5 tasks, 3 to a job (3 at a time): 2 jobs of 24 ranks on 1 node, 48 CPUs, 2:00:00 "
        "at a time: up to 192 core-hours per allocation"
    )


def test_it_is_said_that_runs_of_several_nodes_share_no_job() -> None:
    stage, site = training(4, ranks=2, per_job=2), Site(ranks_per_node=1)
    assert batch.cost(stage, site).endswith("none shares a job, for each takes more than one node")
    assert "shares" not in batch.cost(replace(stage, tasks_per_job=0), site), "nobody has asked"


# -- the queue -------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Callable[..., tuple[Path, list[Task]]]:
    """`shared(runs, per_job=n, **site)`: a job file under logs/study whose runs share jobs."""

    def make(
        runs: int, per_job: int = 2, module: str = "m", **site: Any
    ) -> tuple[Path, list[Task]]:
        study = tmp_path / "logs" / "study"
        tasks = [task(f"r{i}", module, study) for i in range(runs)]
        stage = Stage("train", tuple(tasks), 1, 1, main=True, tasks_per_job=per_job)
        profile = Site(ranks_per_node=per_job, bind="none", **site)
        (jobs,) = plan([stage], study / "jobs" / "20260102-030405", profile, 1001)
        jobs[0].file.parent.mkdir(parents=True)
        jobs[0].file.write_text(jobs[0].text)
        return jobs[0].file, tasks

    return make


def test_the_queue_names_the_job_of_each_run(shared: Callable[..., Any], tmp_path: Path) -> None:
    file, _ = shared(5)
    rows = [
        Queued("17", 0, "RUNNING", "None", "n1", str(file)),
        Queued("17", 2, "PENDING", "Priority", "", str(file)),
        Queued("17", 7, "PENDING", "Priority", "", str(file)),
    ]
    found = slurm.active(tmp_path / "logs", rows)
    assert {name: row.target for name, row in found.values()} == {
        "r0": "17_0", "r1": "17_0", "r4": "17_2",
    }  # fmt: skip
    whole = [Queued("17", None, "PENDING", "Priority", "", str(file))]
    assert len(slurm.active(tmp_path / "logs", whole)) == 5


def test_a_run_that_failed_is_not_in_the_queue_though_its_job_is(
    shared: Callable[..., Any], tmp_path: Path
) -> None:
    file, (failed, refused, *_) = shared(4)
    for each, status in ((failed, 78), (refused, 75)):
        starts = Starts.of("17_0", each)
        starts.say(starts.begin(1))
        starts.write("no_requeue", 0, status=status, reason="Slurm ends this job itself")
    row = Queued("17", 0, "PENDING", "BeginTime", "", str(file))
    assert [name for name, _ in slurm.active(tmp_path / "logs", [row]).values()] == ["r1"]
    other = replace(row, job="18")
    assert len(slurm.active(tmp_path / "logs", [other])) == 2, "a job that it was put into anew"


def test_cancelling_signals_each_job_once(
    shared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = shared(4)
    rows = [Queued("17", i, "RUNNING", "None", "n1", str(file)) for i in (0, 1)]
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, "queue", lambda: rows)
    monkeypatch.setattr(slurm, "call", lambda *words: calls.append(words))
    assert slurm.cancel(tmp_path / "logs" / "study") == (0, 4)
    assert calls[-1] == ("scancel", "--quiet", "--batch", "--signal=USR2", "17_0", "17_1")


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
