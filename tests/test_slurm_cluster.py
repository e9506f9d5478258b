"""Batch jobs on a real Slurm of three nodes: arrays, preemption, time limit, cancel, dead nodes.

The runs are `tests/slurm/stand_in.py`: real MPI ranks that take seconds. What an interrupted run
must end with is computed here, in the plainest way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from hpc import slurm
from hpc.requeue import newest_step
from hpc.rundir import RunDir, StudyDir, read_json, read_records
from hpc.stages import Stage, Task

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 30
PER_EVALUATION = 10
SITE = {
    "mpi": "pmi2", "bind": "none", "ranks_per_node": 1, "partition": "low", "time": "10:00",
    "signal_lead": 20, "launcher_options": ["--wait=10"], "aggregate": {"ranks": 1},
}  # fmt: skip


def weights(steps: int = STEPS) -> str:
    """Digest after so many steps, without ranks, batches, checkpoints or restarts."""
    digest = ""
    for step in range(steps):
        digest = hashlib.sha256(
            f"{digest}{sum(i * (step + 1) for i in range(80))}".encode()
        ).hexdigest()
    return digest


class Cluster:
    """The development cluster, in a place of its own."""

    def __init__(self, root: Path, link: Path) -> None:
        self.script, self.link = root / "slurm" / "cluster.sh", link

    def do(self, *words: str) -> None:
        done = subprocess.run(
            ["bash", str(self.script), *words, str(self.link)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def conf(self) -> Path:
        return self.link.resolve() / "slurm.conf"

    def set_user_signal(self, wanted: bool) -> None:
        """Whether a preempted job gets the signal of its --signal option, or only CONT and TERM."""
        lines = [x for x in self.conf.read_text().splitlines() if "preempt_send" not in x]
        lines += ["SlurmctldParameters=preempt_send_user_signal"] if wanted else []
        self.conf.write_text("\n".join(lines) + "\n")
        slurm.call("scontrol", "reconfigure")

    def take_all_nodes(self) -> None:
        """A job of the high partition that needs every node for a moment."""
        slurm.call(
            "sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null",
            "--job-name=important", "--wrap=sleep 1",
        )  # fmt: skip

    def kill_node(self, name: str) -> None:
        """End a node's slurmd and everything it runs, as a power cut would."""
        daemon = next(
            p for p in psutil.process_iter(["cmdline"])
            if p.info["cmdline"] and p.info["cmdline"][:3] == ["slurmd", "-N", name]
            and str(self.conf) in p.info["cmdline"]
        )  # fmt: skip
        daemon.kill()
        for process in psutil.process_iter(["pid"]):
            if _environment(process).get("SLURMD_NODENAME") == name or _is_step(process, name):
                process.kill()


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _is_step(process: psutil.Process, node: str) -> bool:
    """Whether this is a slurmstepd of the node: it has the node's spool socket open."""
    try:
        return process.name() == "slurmstepd" and any(
            f"{node}_" in connection.laddr for connection in process.net_connections("unix")
        )
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def cluster(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(root, tmp_path_factory.mktemp("slurm") / "cluster")
    cluster.do("up")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(cluster.conf)
    yield cluster
    cluster.do("down")
    os.environ.pop("SLURM_CONF")
    if before is not None:
        os.environ["SLURM_CONF"] = before


class Study:
    """A study of stand-in runs."""

    def __init__(self, path: Path, **site: Any) -> None:
        self.place = StudyDir(path / "logs" / "it's a $tudy")
        path.mkdir()
        self.site_file = path / "site.yaml"
        self.site = {**SITE, **site}
        self.site_file.write_text(yaml.safe_dump(self.site))
        self.tasks: list[Task] = []

    def add(self, name: str, *options: object) -> RunDir:
        run = RunDir(self.place.runs / name)
        words = (str(run.path), *map(str, options))
        log = run.path / "output.log"
        self.tasks.append(
            Task(name, "tests.slurm.stand_in", words, run.result, log, run.metrics, 3)
        )
        return run

    def submit(self, ranks: int = 2) -> None:
        todo = tuple(task for task in self.tasks if not task.done.exists())
        words = ("collect", str(self.place.path))
        report = self.place.report
        last = Task("report", "tests.slurm.stand_in", words, report, self.place.path / "report.log")
        stages = [Stage("train", todo, ranks, 1), Stage("aggregate", (last,), 1, 1, True)]
        assert slurm.launch(stages, self.place, str(self.site_file), {}) == 0

    def rows(self) -> dict[str, slurm.Queued]:
        """Task name -> where it is in the queue."""
        return dict(slurm.active_in(self.place, slurm.queue()).values())

    def signal(self, name: str) -> None:
        """What Slurm does before a time limit."""
        slurm.call("scancel", "--batch", "--signal=USR2", self.rows()[name].target)


@pytest.fixture
def study(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Study]]:
    made: list[Study] = []

    def make(**site: Any) -> Study:
        made.append(Study(tmp_path / str(len(made)), **site))
        return made[-1]

    yield make
    for one in made:
        jobs = {row.job for row in one.rows().values()}
        if jobs:
            slurm.call("scancel", *jobs)


def until(done: Callable[[], object], what: str, runs: list[RunDir], timeout: float = 120) -> None:
    """Wait for something; say what the runs said if it does not come."""
    end = time.monotonic() + timeout
    while not done():
        if time.monotonic() > end:
            logs = "\n".join(log(run)[-3000:] for run in runs)
            pytest.fail(f"no {what} in {timeout} s\n{slurm.call('squeue', '--array')}\n{logs}")
        time.sleep(0.2)


def until_done(*runs: RunDir, timeout: float = 120) -> None:
    until(lambda: all(run.is_done() for run in runs), "end of all runs", list(runs), timeout)


def until_says(run: RunDir, text: str, timeout: float = 60) -> None:
    until(lambda: text in log(run), repr(text), [run], timeout)


def log(run: RunDir) -> str:
    path = run.path / "output.log"
    return path.read_text() if path.exists() else ""


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run.events) if record["event"] == kind]


def starts(run: RunDir) -> list[int]:
    """Step from which each start went on."""
    return [record["resumed_step"] for record in read_records(run.provenance)]


def assert_exact(run: RunDir, steps: int = STEPS) -> None:
    """The same end as without interruption, and each evaluation exactly once."""
    assert read_json(run.result)["weights_sha256"] == weights(steps), log(run)
    iterations = [record["iteration"] for record in read_records(run.metrics)]
    assert iterations == list(range(1, steps // PER_EVALUATION + 1))


def assert_nothing_lost(run: RunDir) -> None:
    """Every later start went on at the very step at which the one before it stopped."""
    stops = [record["step"] for record in events(run, "requeue")]
    began = starts(run)
    assert began[len(began) - len(stops) :] == stops, log(run)


def test_study_through_arrays_to_the_report(study: Callable[..., Study]) -> None:
    it = study(max_array_size=3, throttle=2)
    good = [it.add(f"good {i}", "--steps", STEPS) for i in range(3)]
    bad = it.add("wrong", "--exit", 78)
    it.submit()
    first = {name: row.target for name, row in it.rows().items()}
    it.submit()
    assert {name: row.target for name, row in it.rows().items()} == first
    assert len({row.partition("_")[0] for row in first.values()}) == 3, "two chunks and a report"
    until(it.place.report.exists, "report", [*good, bad])
    for run in good:
        assert_exact(run)
    assert set(read_json(it.place.report)) == {"good 0", "good 1", "good 2"}
    assert len(events(bad, "job_start")) == 1
    assert "bad configuration" in events(bad, "no_requeue")[0]["reason"]
    until(lambda: not it.rows(), "end of all jobs", [])
    it.submit()
    assert set(it.rows()) == {"wrong", "report"}, "only what is missing"


@pytest.mark.parametrize(("launcher", "user_signal"), [("srun", False), ("mpiexec", True)])
def test_preemption_in_training_evaluation_and_start_up(
    cluster: Cluster, study: Callable[..., Study], launcher: str, user_signal: bool
) -> None:
    cluster.set_user_signal(user_signal)
    it = study(launcher=launcher, launcher_options=[])
    training = it.add("training", "--step-seconds", 0.3)
    evaluating = it.add("evaluating", "--step-seconds", 0.01, "--evaluation-seconds", 4)
    starting = it.add("starting", "--start-seconds", 5)
    runs = [training, evaluating, starting]
    it.submit()
    until(lambda: (training.checkpoints / "step-000000005").exists(), "checkpoint", runs)
    until_says(evaluating, "evaluating")
    until_says(starting, "starting up")
    cluster.take_all_nodes()
    until_done(*runs)
    for run in runs:
        assert_exact(run)
        assert [record["reason"].split(" at ")[0] for record in events(run, "requeue")] == [
            "preempted"
        ]
        assert_nothing_lost(run)
    assert starts(training)[1] >= 5
    assert starts(starting) == [0], "it had not begun"


def test_time_limit_shorter_than_the_run(study: Callable[..., Study]) -> None:
    it = study(time="1:00", signal_lead=5)
    # Slurm looks every 30 s, so each allocation lasts for 30 or for 55 s.
    run = it.add("long", "--steps", 100, "--step-seconds", 0.6)
    it.submit()
    until_done(run, timeout=300)
    assert_exact(run, 100)
    assert_nothing_lost(run)
    reasons = {record["reason"].split(" at ")[0] for record in events(run, "requeue")}
    assert reasons == {"time limit"}
    assert len(starts(run)) >= 2


def test_scancel_is_a_checkpoint_and_no_requeue(study: Callable[..., Study]) -> None:
    studies = [study(launcher="srun"), study(launcher="mpiexec", launcher_options=[])]
    runs = [it.add(it.site["launcher"], "--step-seconds", 0.5) for it in studies]
    for it in studies:
        it.submit()
    for it, run in zip(studies, runs, strict=True):
        until(lambda r=run: (r.checkpoints / "step-000000005").exists(), "checkpoint", runs)  # type: ignore[misc]
        slurm.call("scancel", it.rows()[run.name].target)
    until(lambda: all(events(run, "no_requeue") for run in runs), "decisions", runs)
    until(
        lambda: not any(run.name in it.rows() for it, run in zip(studies, runs, strict=True)),
        "ends",
        runs,
    )
    for it, run in zip(studies, runs, strict=True):
        assert "cancelled" in events(run, "no_requeue")[0]["reason"]
        it.submit()
    until_done(*runs)
    for run in runs:
        stopped = events(run, "no_requeue")[0]["step"]
        assert starts(run) == [0, stopped]
        assert stopped >= 5
        assert_exact(run)


def test_make_cancel_stops_what_runs_and_forgets_what_waits(study: Callable[..., Study]) -> None:
    it = study(throttle=1)
    run, waiting = it.add("run", "--step-seconds", 0.5), it.add("waiting")
    it.submit()
    until(lambda: (run.checkpoints / "step-000000005").exists(), "checkpoint", [run])
    assert slurm.cancel(it.place) == (2, 1)
    until(lambda: events(run, "no_requeue"), "decision", [run])
    assert "make cancel" in events(run, "no_requeue")[0]["reason"]
    until(lambda: not it.rows(), "empty queue", [run])
    assert not waiting.path.joinpath("events.jsonl").exists()
    it.submit()
    until_done(run, waiting)
    assert_exact(run)


def test_goes_on_with_fewer_ranks_when_nodes_are_missing(study: Callable[..., Study]) -> None:
    it = study(min_nodes=1)
    run = it.add("run", "--step-seconds", 0.3)
    it.submit()
    until(lambda: (run.checkpoints / "step-000000005").exists(), "checkpoint", [run])
    slurm.call("scontrol", "update", "NodeName=n2,n3", "State=DRAIN", "Reason=test")
    try:
        it.signal("run")
        until_done(run)
    finally:
        slurm.call("scontrol", "update", "NodeName=n2,n3", "State=RESUME")
    assert_exact(run)
    assert_nothing_lost(run)
    assert [record["ranks"] for record in read_records(run.provenance)] == [2, 1]


def test_ranks_that_are_killed(study: Callable[..., Study]) -> None:
    """All at once on one node, as for want of memory: MPICH's shared memory stays behind there."""
    it = study(ranks_per_node=2)
    run = it.add("run", "--step-seconds", 0.3)
    it.submit()
    until(lambda: (run.checkpoints / "step-000000005").exists(), "checkpoint", [run])
    ranks = ranks_of(run)
    assert len(ranks) == 2
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    until_done(run)
    assert_exact(run)
    assert "killed" in events(run, "requeue")[0]["reason"]


def test_srun_starts_ranks_whatever_lies_in_memory(study: Callable[..., Study]) -> None:
    """MPICH over UCX hands the heap behind its address to Slurm's PMI, which takes only so much."""
    it = study()
    done = it.place.path / "done"
    it.tasks.append(
        Task("crowded", "tests.slurm.crowded", (str(done),), done, done.with_name("log"))
    )
    it.submit()
    until(lambda: done.exists() or not it.rows(), "end", [])
    assert done.exists(), done.with_name("log").read_text()
    assert done.read_text() == "2 ranks\n"


def ranks_of(run: RunDir) -> list[psutil.Process]:
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(run.path) in (p.info["cmdline"] or [])
        and "SLURM_PROCID" in _environment(p)
        and "srun" not in p.info["cmdline"][0]
    ]


def test_requeues_are_bounded_and_stop_without_progress(study: Callable[..., Study]) -> None:
    bounded, stuck = study(max_requeues=1), study()
    run, idle = bounded.add("run", "--step-seconds", 0.5), stuck.add("idle", "--stuck")
    bounded.submit()
    stuck.submit()
    for number in (1, 2):
        for it, one in ((bounded, run), (stuck, idle)):
            until(lambda n=number, r=one: len(starts(r)) == n, "start", [run, idle])  # type: ignore[misc]
            time.sleep(1.5)  # some steps
            it.signal(one.name)
    until(lambda: events(run, "no_requeue"), "decision", [run])
    assert "max_requeues" in events(run, "no_requeue")[0]["reason"]
    assert len(events(run, "requeue")) == 1
    until(lambda: events(idle, "no_requeue"), "decision", [idle])
    assert "no progress" in events(idle, "no_requeue")[0]["reason"]
    assert len(events(idle, "job_start")) == 2


def test_ten_thousand_runs_are_a_few_commands(study: Callable[..., Study]) -> None:
    it = study(options=["--hold"])
    for number in range(10_000):
        it.add(f"run-{number}")
    it.submit()
    rows = it.rows()
    assert len(rows) == 10_001
    assert len({row.job for row in rows.values()}) == 11, "ten arrays and the aggregation"
    it.submit()
    assert it.rows().keys() == rows.keys(), "nothing twice"
    assert slurm.cancel(it.place) == (10_001, 0)
    assert it.rows() == {}


def test_refusals_of_slurm_are_one_message(study: Callable[..., Study]) -> None:
    it = study(partition="nowhere")
    it.add("run")
    with pytest.raises(slurm.SlurmError, match="invalid partition"):
        it.submit()
    assert it.rows() == {}


def test_cluster_may_be_started_twice(cluster: Cluster) -> None:
    daemons = sorted(p.read_text() for p in cluster.link.resolve().glob("*.pid"))
    cluster.do("up")
    assert sorted(p.read_text() for p in cluster.link.resolve().glob("*.pid")) == daemons


# -- the real training -----------------------------------------------------------------------------

CONFIG = """
study: {name: tiny, seeds: 1}
simulation: {trajectories: 20, particles: 100, equilibration_steps: 200, cooling_steps: 400}
data: {name: tiny}
render: {style: disc, pixels: 24}
model: {recipe: modern}
train: {batch_size: 16, iterations: 100, diagnostics_every: 10}
checkpoint: {every_iterations: 5}
launch: {ranks: 2, site: dev}
"""


def test_training_ends_with_the_same_bits_whatever_happened(
    cluster: Cluster, root: Path, tmp_path: Path
) -> None:
    """A study from simulation to report, preempted, then with a node that dies; and by hand."""
    cluster.set_user_signal(False)
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    interrupted, plain = tmp_path / "interrupted", tmp_path / "plain"
    words = [str(config), "--launcher", "slurm", "--logs", str(interrupted)]
    subprocess.run([sys.executable, "-m", "jobs.submit", *words], cwd=root, check=True)
    run = the_run(interrupted)
    until(lambda: len(read_records(run.metrics)) > 5, "iterations", [run])
    cluster.take_all_nodes()
    until(lambda: len(starts(run)) == 2, "second start", [run])
    stopped = events(run, "requeue")[0]["step"]
    until(lambda: newest_step(run.checkpoints) > stopped, "another checkpoint", [run])
    kept = newest_step(run.checkpoints)
    cluster.kill_node("n2")
    try:
        # While Slurm finds out, the same run goes through undisturbed on the other nodes.
        for folder in ("datasets", "trajectories"):
            shutil.copytree(interrupted / folder, plain / folder)
        by_hand(config, plain)
        reference = the_run(plain)
        until_done(run, reference, timeout=300)
    finally:
        cluster.do("node", "2")
    assert events(run, "requeue")[0]["reason"].startswith("preempted")
    assert starts(run)[:2] == [0, stopped], "the preemption cost no step"
    assert len(starts(run)) == 3
    assert starts(run)[2] >= kept, "the dead node cost at most what came after a checkpoint"
    assert [r["iteration"] for r in read_records(run.metrics)] == list(range(1, 101))
    assert len(starts(reference)) == 1
    ours, theirs = read_json(run.result), read_json(reference.result)
    assert ours["weights_sha256"] == theirs["weights_sha256"], log(run)
    report = StudyDir(interrupted / "tiny").report
    until(report.exists, "report", [])


def the_run(logs: Path) -> RunDir:
    runs = StudyDir(logs / "tiny").runs
    until(lambda: list(runs.glob("*/provenance.jsonl")), "first start", [], 180)
    return RunDir(next(runs.iterdir()))


def by_hand(config: Path, logs: Path) -> None:
    """The same run as a user of the cluster starts it, where nobody can preempt it."""
    os.environ["GLASS_LOGS"] = str(logs)
    try:
        slurm.call(
            "sbatch", "--partition=high", "--nodes=2", "--output=/dev/null",
            "slurm/train.sh", str(config), "base",
        )  # fmt: skip
    finally:
        del os.environ["GLASS_LOGS"]
