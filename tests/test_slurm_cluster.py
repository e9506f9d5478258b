"""Batch jobs on a real Slurm of three nodes: arrays, preemption, cancel, missing nodes, bounds.

The runs are `tests/slurm/stand_in.py`: real MPI ranks that take seconds, for what would take a
training long or what it would not do (`test_slurm_training.py` has the rest). What an interrupted
run must end with is computed here, in the plainest way.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.pipeline import SECTIONS
from hpc import slurm
from hpc.checkpoint_names import newest_step
from hpc.files import read_json
from hpc.records import read_records
from hpc.stages import Stage, Task
from tests.slurm.cluster import (
    Cluster,
    Ranks,
    assert_nothing_twice,
    development_cluster,
    events,
    hold,
    log,
    ranks_of,
    reasons,
    release,
    starts,
    targets,
    tell,
    until,
    until_done,
)

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


@pytest.fixture(scope="module")
def cluster(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with development_cluster(root, tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class StandInStudy:
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
            Task(
                name,
                "tests.slurm.stand_in",
                words,
                run.result,
                log,
                run.checkpoints,
            )
        )
        return run

    def submit(self, ranks: int = 2, per_job: int = 1) -> None:
        todo = tuple(task for task in self.tasks if not task.done.exists())
        words = ("collect", str(self.place.path))
        report = self.place.report
        last = Task("report", "tests.slurm.stand_in", words, report, self.place.path / "report.log")
        stages = [
            Stage("train", todo, ranks, 1, main=True, tasks_per_job=per_job),
            Stage("aggregate", (last,), 1, 1, sums_up=True),
        ]
        assert slurm.Slurm(self.place.path, str(self.site_file), {}, SECTIONS).launch(stages) == 0

    def rows(self) -> dict[str, slurm.Queued]:
        """Task name -> where it is in the queue."""
        return dict(slurm.active_in(self.place.path, slurm.queue()).values())

    def signal(self, name: str) -> None:
        """What Slurm does before a time limit."""
        slurm.call("scancel", "--batch", "--signal=USR2", self.rows()[name].target)


Studies = Callable[..., StandInStudy]
"""`make(**site)`: a study under a site profile with these values"""


@contextmanager
def studies_in(folder: Path) -> Iterator[Studies]:
    """Studies with directories in one; whatever of them is in the queue at the end is cancelled."""
    made: list[StandInStudy] = []

    def make(**site: Any) -> StandInStudy:
        made.append(StandInStudy(folder / str(len(made)), **site))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            jobs = {row.job for row in one.rows().values()}
            if jobs:
                slurm.call("scancel", *jobs)


@pytest.fixture
def study(cluster: Cluster, tmp_path: Path) -> Iterator[Studies]:
    with studies_in(tmp_path) as make:
        yield make


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


def test_study_through_arrays_to_the_report(study: Studies) -> None:
    it = study(max_array_size=3, throttle=2)
    good = [it.add(f"good {i}", "--steps", STEPS) for i in range(3)]
    bad = it.add("wrong", "--exit", 78)
    it.submit()
    first = targets(it.place)
    assert len({row.partition("_")[0] for row in first.values()}) == 3, "two chunks and a report"
    it.submit()
    assert_nothing_twice(it.place, first)
    until(it.place.report.exists, "report", [*good, bad])
    for run in good:
        assert_exact(run)
    assert set(read_json(it.place.report)) == {"good 0", "good 1", "good 2"}
    assert len(events(bad, "job_start")) == 1
    assert "bad configuration" in reasons(bad, "no_requeue")[0]
    until(lambda: not it.rows(), "end of all jobs", [])
    it.submit()
    assert set(it.rows()) == {"wrong", "report"}, "only what is missing"


@pytest.mark.parametrize(("launcher", "user_signal"), [("srun", False), ("mpiexec", True)])
def test_preemption_in_training_evaluation_and_start_up(
    cluster: Cluster, study: Studies, launcher: str, user_signal: bool
) -> None:
    cluster.set_user_signal(user_signal)
    it = study(launcher=launcher, launcher_options=[])
    starting = it.add("starting", "--start-seconds", 6)
    training = it.add("training", "--step-seconds", 0.3)
    evaluating = it.add("evaluating", "--step-seconds", 0.01, "--evaluation-seconds", 4)
    runs = [starting, training, evaluating]

    def in_evaluation(_: Ranks) -> bool:
        return log(evaluating).count("evaluating") > len(read_records(evaluating.metrics))

    it.submit()
    held = [
        hold(starting, lambda _: "starting up" in log(starting)),
        hold(training, lambda _: (training.checkpoints / "step-000000005").exists()),
        hold(evaluating, in_evaluation),
    ]
    cluster.take("n1", "n2", "n3")
    for ranks in held:
        release(ranks)
    until_done(*runs)
    for run in runs:
        assert_exact(run)
        assert [reason.split(" at ")[0] for reason in reasons(run)] == ["preempted"]
        assert_nothing_lost(run)
    assert starts(training)[1] >= 5
    assert starts(starting) == [0], "it had not begun"


def test_runs_that_share_jobs_end_as_those_with_jobs_of_their_own(
    cluster: Cluster, study: Studies
) -> None:
    """Two jobs of three runs, two at a time: one job is preempted, one run fails, one is killed."""
    cluster.set_user_signal(False)
    it = study(ranks_per_node=4)
    long, bad = it.add("long", "--step-seconds", 0.2), it.add("bad", "--exit", 78)
    next_, killed = it.add("next", "--step-seconds", 0.01), it.add("killed", "--step-seconds", 0.2)
    others = [it.add(name, "--step-seconds", 0.01) for name in ("fifth", "sixth")]
    good = [long, next_, killed, *others]
    it.submit(per_job=3)
    jobs = {name: row.target for name, row in it.rows().items()}
    assert len({jobs[run.name] for run in [long, bad, next_]}) == 1, "they share a job"
    assert len(set(jobs.values())) == 3, "two, and the report"
    until(lambda: (killed.checkpoints / "step-000000005").exists(), "checkpoint", good)
    tell(ranks_of(killed), signal.SIGKILL)
    held = hold(long, lambda _: (long.checkpoints / "step-000000005").exists())
    until(lambda: events(bad, "no_requeue"), "failure", good)
    assert "bad" not in it.rows(), "it may be submitted again while the others run"
    until(next_.result.exists, "the run whose turn came when another had failed", good)
    cluster.take(it.rows()["long"].nodes)
    release(held)
    until(it.place.report.exists, "report", good)
    for run in good:
        assert_exact(run)
    assert set(read_json(it.place.report)) == {run.name for run in good}
    assert [reason.split(" at ")[0] for reason in reasons(long)] == ["preempted"]
    assert_nothing_lost(long)
    assert "killed" in reasons(killed, "restart")[0], "by the job itself, at once"
    assert len(starts(killed)) == 2
    assert len(events(bad, "job_start")) == len(events(next_, "job_start")) == 1
    assert "bad configuration" in reasons(bad, "no_requeue")[0]
    assert {event["job"] for run in good for event in events(run, "job_start")} == {
        jobs["long"], jobs["killed"]
    }  # fmt: skip
    until(lambda: not it.rows(), "end of all jobs", [])
    it.submit(per_job=3)
    assert set(it.rows()) == {"bad", "report"}, "only what is missing"


def test_goes_on_with_fewer_ranks_when_nodes_are_missing(
    study: Studies,
) -> None:
    it = study(min_nodes=1, gpus_per_rank=1)
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
    begun = list(read_records(run.provenance))
    assert [record["ranks"] for record in begun] == [2, 1]
    for record in begun:
        given = [(len(visible.split(",")), promised) for visible, promised in record["gpus"]]
        assert given == [(1, "1")] * record["ranks"], "one GPU a rank, on nodes of two"


def test_srun_starts_ranks_whatever_lies_in_memory(study: Studies) -> None:
    """MPICH over UCX hands the heap behind its address to Slurm's PMI, which takes only so much."""
    it = study()
    done = it.place.path / "done"
    it.tasks.append(
        Task("crowded", "tests.slurm.crowded", (str(done),), done, done.with_name("log"))
    )
    it.submit()
    until(lambda: done.exists() or not it.rows(), "end", [])
    assert done.exists(), done.with_name("log").read_text()
    assert done.read_text() == "2 ranks over ofi\n"


def test_ten_thousand_runs_are_a_few_commands(study: Studies) -> None:
    it = study(options=["--hold"])
    for number in range(10_000):
        it.add(f"run-{number}")
    it.submit()
    rows = it.rows()
    assert len(rows) == 10_001
    assert len({row.job for row in rows.values()}) == 11, "ten arrays and the aggregation"
    it.submit()
    assert it.rows().keys() == rows.keys(), "nothing twice"
    assert slurm.cancel(it.place.path) == (10_001, 0)
    assert it.rows() == {}


def test_refusals_of_slurm_are_one_message(study: Studies) -> None:
    it = study(partition="nowhere")
    it.add("run")
    with pytest.raises(slurm.SlurmError, match="invalid partition"):
        it.submit()
    assert it.rows() == {}


def test_cluster_may_be_started_twice(cluster: Cluster) -> None:
    daemons = sorted(p.read_text() for p in cluster.link.resolve().glob("*.pid"))
    cluster.do("up")
    assert sorted(p.read_text() for p in cluster.link.resolve().glob("*.pid")) == daemons


# -- stories that need no node for themselves and wait most of the time: told together -------------


def scancel_under_mpiexec_is_a_checkpoint_and_no_requeue(
    study: Studies,
) -> None:
    it = study(launcher="mpiexec", launcher_options=[])
    run = it.add("run", "--step-seconds", 0.5)
    it.submit()
    until(lambda: (run.checkpoints / "step-000000005").exists(), "checkpoint", [run])
    slurm.call("scancel", it.rows()["run"].target)
    until(lambda: "run" not in it.rows(), "end", [run])
    assert reasons(run) == [], "no requeue"
    stopped = newest_step(run.checkpoints)
    it.submit()
    until_done(run)
    assert starts(run) == [0, stopped]
    assert stopped >= 5
    assert_exact(run)


def make_cancel_stops_what_runs_and_forgets_what_waits(
    study: Studies,
) -> None:
    it = study(throttle=1)
    run, waiting = it.add("run", "--step-seconds", 0.5), it.add("waiting")
    it.submit()
    until(lambda: (run.checkpoints / "step-000000005").exists(), "checkpoint", [run])
    assert slurm.cancel(it.place.path) == (2, 1)
    until(lambda: events(run, "no_requeue"), "decision", [run])
    assert "make cancel" in reasons(run, "no_requeue")[0]
    until(lambda: not it.rows(), "empty queue", [run])
    assert not waiting.path.joinpath("events.jsonl").exists()
    it.submit()
    until_done(run, waiting)
    assert_exact(run)


def ranks_that_are_killed(study: Studies) -> None:
    """All at once on one node, as for want of memory: MPICH's shared memory stays behind there."""
    it = study(ranks_per_node=2, gpus_per_rank=1)
    run = it.add("run", "--step-seconds", 0.3)
    it.submit()
    until(lambda: (run.checkpoints / "step-000000005").exists(), "checkpoint", [run])
    ranks = ranks_of(run)
    assert len(ranks) == 2
    tell(ranks, signal.SIGKILL)
    until_done(run)
    assert_exact(run)
    assert "killed" in reasons(run)[0]
    for record in read_records(run.provenance):
        assert record["gpus"] == [["0,1", "1"]] * 2, "each sees both, to reach the other's"


def two_starts_without_progress_are_the_last(study: Studies) -> None:
    it = study()
    run = it.add("idle", "--stuck")
    it.submit()
    for number in (1, 2):
        until(lambda n=number: len(starts(run)) == n, "start", [run])  # type: ignore[misc]
        it.signal("idle")
    until(lambda: events(run, "no_requeue"), "decision", [run])
    assert "no progress" in reasons(run, "no_requeue")[0]
    assert len(events(run, "job_start")) == 2


Story = Callable[[Studies], None]
STORIES: list[Story] = [
    make_cancel_stops_what_runs_and_forgets_what_waits,
    ranks_that_are_killed,
    scancel_under_mpiexec_is_a_checkpoint_and_no_requeue,
    two_starts_without_progress_are_the_last,
]


@pytest.fixture(scope="module")
def told(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Story, Future[None]]]:
    with ExitStack() as scope:
        threads = scope.enter_context(ThreadPoolExecutor(len(STORIES)))
        yield {
            story: threads.submit(
                story, scope.enter_context(studies_in(tmp_path_factory.mktemp("story")))
            )
            for story in STORIES
        }


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_what_becomes_of_a_run(told: dict[Story, Future[None]], story: Story) -> None:
    told[story].result()
