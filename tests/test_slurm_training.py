"""The real training on a real Slurm: however it is interrupted, it ends with the same bits.

All stories are told at the same time, because nearly all of each is waiting. Every one ends with
the comparison of everything that its run has left with what an undisturbed run has left. Where a
story strikes, the ranks are held (SIGSTOP) until the blow waits for them, so it hits them there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.data import simulate, store
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.study import load_study
from hpc import slurm
from hpc.checkpoint_names import newest_step
from hpc.records import read_records
from hpc.site import PROJECT
from hpc.world import world
from tests import tiny
from tests.slurm.cluster import (
    Cluster,
    assert_nothing_twice,
    development_cluster,
    evaluating,
    events,
    gone,
    hold,
    log,
    reasons,
    release,
    saved,
    starting,
    starts,
    targets,
    tell,
    until,
    until_done,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ITERATIONS = 40
STEPS_BETWEEN_CHECKPOINTS = 4 * 3
SETTINGS: dict[str, Any] = {
    "render": {"windows_per_configuration": 60},
    "train": {"iterations": ITERATIONS, "batches_per_iteration": 3},
    "checkpoint": {"every_iterations": 4},
}
TWO_NODES: dict[str, Any] = {"options": ["--nodelist=n1,n2"]}
ONE_NODE: dict[str, Any] = {"options": ["--nodelist=n3"], "ranks_per_node": 2}
STUDY = "tiny"
# Every submission is made from a shell in somebody's job, and none of this may matter.
OUTER = {
    "SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_JOB_NODELIST": "far[1-2]", "SLURM_NTASKS": "7", "SLURM_CPU_BIND": "mask_cpu:0x100",
    "SLURM_MEM_PER_CPU": "1", "SLURM_TRES_PER_TASK": "gres/gpu:9", "SLURM_DISTRIBUTION": "plane=9",
    "SBATCH_WAIT": "1", "SBATCH_PARTITION": "nowhere", "SQUEUE_STATES": "RUNNING",
    "SQUEUE_PARTITION": "high", "SCANCEL_STATE": "RUNNING", "SINFO_PARTITION": "nowhere",
    "PMI_RANK": "3", "PMI_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "4",
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    # evaluations that take longer than the steps between them; by rows ranks meet twice in each of
    # 60 portions, which takes seconds where nodes share two cores
    "thorough": {"train.evaluation_examples": 240, "train.evaluation_batch": 4},
    # only the training itself can find out that nothing is there
    "wrong": {"train.restart_from.run": "nobody/runs/*"},
}


class SlurmStudy:
    """A study on the cluster, in a logs directory of its own."""

    def __init__(
        self, folder: Path, arms: dict[str, dict[str, Any]], data: Path | None = None, **site: Any
    ) -> None:
        folder.mkdir(parents=True)
        self.logs = tiny.share(data, folder / "logs") if data else folder / "logs"
        # One report is enough: those of the others stay in the queue.
        last = {"options": ["--hold"] if data else []}
        launch = {"ranks": 2, "slurm": {**site, "aggregate": last}}
        tree = tiny.tree(STUDY, **SETTINGS, launch=launch)
        tree["study"]["arms"] = arms
        self.config = tiny.write_study(folder / "study.yaml", tree)
        self.place = StudyDir(self.logs / STUDY)
        study = load_study(self.config, (), self.logs)
        self.runs = {run.point.label: study.run_dir(self.logs, run) for run in study.runs}

    @property
    def run(self) -> RunDir:
        """The only one, or the first."""
        return next(iter(self.runs.values()))

    def submit(self, *options: str) -> str:
        words = [str(self.config), "--launcher", "slurm", "--logs", str(self.logs), *options]
        done = subprocess.run(
            [sys.executable, "-m", "jobs.submit", *words],
            cwd=PROJECT,
            env={**os.environ, **OUTER},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self) -> dict[str, slurm.Queued]:
        """Task name -> where it is in the queue."""
        return dict(slurm.active_in(self.place.path, slurm.queue()).values())

    def is_pending(self) -> bool:
        """Whether its only run waits in the queue; a job that goes back is not always listed."""
        row = self.rows().get(self.run.name)
        return row is not None and row.state == "PENDING"

    def signal(self) -> None:
        """What Slurm does before a time limit."""
        slurm.call("scancel", "--batch", "--signal=USR2", self.rows()[self.run.name].target)


class StageOf:
    """What stories share: a cluster, data, and what undisturbed runs end with."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.data = folder / "data"
        settings = tiny.settings(**SETTINGS)
        simulate.run(settings, self.data, world())
        store.build(settings, self.data, world())
        # It has no data: what it makes itself on the cluster must be the same.
        self.undisturbed = SlurmStudy(folder / "undisturbed", ARMS, **TWO_NODES)

    def study(self, name: str, arm: str = "plain", **site: Any) -> SlurmStudy:
        """A study of one run."""
        return SlurmStudy(self.folder / name, {arm: ARMS[arm]}, self.data, **site)

    def assert_as_undisturbed(self, *studies: SlurmStudy) -> None:
        """The same weights, results and metrics, each evaluation once; nothing else allowed."""
        for study in studies:
            for arm, run in study.runs.items():
                reference = self.undisturbed.runs[arm]
                until_done(run, reference)
                assert tiny.outcome(run) == tiny.outcome(reference), log(run)
                recorded = [record["iteration"] for record in read_records(run.metrics)]
                assert recorded == list(range(1, ITERATIONS + 1))


def assert_nothing_lost(run: RunDir) -> None:
    """Every start but the first went on at the very step at which the one before it stopped."""
    assert starts(run)[1:] == [record["step"] for record in events(run, "stopped")], log(run)


# -- the stories -----------------------------------------------------------------------------------


def a_study_from_simulation_to_report(stage: StageOf) -> None:
    """Arrays; a failing run beside good ones; submitting it again at once and afterwards."""
    study = stage.undisturbed
    study.submit()
    queued = targets(study.place)
    assert len(queued) == 1 + 3 + 1
    assert "nothing more to be submitted" in study.submit()
    assert_nothing_twice(study.place, queued)
    wrong = study.runs["wrong"]
    good = [run for run in study.runs.values() if run is not wrong]
    until(study.place.report.exists, "report", list(study.runs.values()))
    assert all(run.result.exists() and starts(run) == [0] for run in good)
    assert len(events(wrong, "job_start")) == 1, "it failed once"
    assert events(wrong, "requeue") == []
    assert "bad configuration" in reasons(wrong, "no_requeue")[0]
    assert "train.restart_from.run 'nobody/runs/*'" in log(wrong)
    until(lambda: not study.rows(), "end of all jobs")
    missing = study.submit("--dry-run")
    assert wrong.name in missing
    assert not any(run.name in missing for run in good)


def preempted_in_training_in_evaluation_and_at_start_up(stage: StageOf) -> None:
    training = stage.study("training", **TWO_NODES)
    evaluating_ = stage.study("evaluating", "thorough", **TWO_NODES)
    starting_ = stage.study("starting", **TWO_NODES)
    studies = [training, evaluating_, starting_]
    training.submit()
    evaluating_.submit()
    held = [hold(training.run, saved(training.run))]
    held += [hold(evaluating_.run, evaluating(evaluating_.run))]
    evaluated = read_records(evaluating_.run.metrics)
    starting_.submit()
    held += [hold(starting_.run, starting(starting_.run))]
    stage.cluster.take("n1", "n2")
    for ranks in held:
        release(ranks)
    stage.assert_as_undisturbed(*studies)
    for study in studies:
        assert [reason.split(" at ")[0] for reason in reasons(study.run)] == ["preempted"]
        assert_nothing_lost(study.run)
    assert starts(training.run)[1] >= STEPS_BETWEEN_CHECKPOINTS
    assert starts(evaluating_.run)[1] == (evaluated[-1]["step"] if evaluated else 0) + 3
    assert starts(starting_.run) == [0, 0]


def a_time_limit_shorter_than_the_run(stage: StageOf) -> None:
    study = stage.study("limit", time="3:00", signal_lead=90, **ONE_NODE)
    study.submit()
    for _ in range(2):
        release(hold(study.run, saved(study.run)))
    stage.assert_as_undisturbed(study)
    assert {reason.split(" at ")[0] for reason in reasons(study.run)} == {"time limit"}
    assert len(starts(study.run)) >= 3
    assert_nothing_lost(study.run)


def cancelled_and_submitted_again(stage: StageOf) -> None:
    study = stage.study("cancelled", **ONE_NODE)
    study.submit()
    held = hold(study.run, saved(study.run))
    assert "nothing more to be submitted" in study.submit(), "it runs already"
    slurm.call("scancel", study.rows()[study.run.name].target)
    release(held)
    until(lambda: study.run.name not in study.rows(), "end", [study.run])
    assert reasons(study.run) == [], "no requeue"
    study.submit()
    stage.assert_as_undisturbed(study)
    assert len(starts(study.run)) == 2
    assert_nothing_lost(study.run)


def requeued_as_often_as_allowed_and_submitted_again(stage: StageOf) -> None:
    study = stage.study("bounded", max_requeues=1, **ONE_NODE)
    study.submit()
    for _ in range(2):
        held = hold(study.run, saved(study.run))
        study.signal()
        release(held)
    until(lambda: events(study.run, "no_requeue"), "decision", [study.run])
    assert len(reasons(study.run)) == 1
    assert "max_requeues" in reasons(study.run, "no_requeue")[0]
    until(lambda: study.run.name not in study.rows(), "end", [study.run])
    study.submit()
    stage.assert_as_undisturbed(study)
    assert len(starts(study.run)) == 3
    assert_nothing_lost(study.run)


def a_node_dies(stage: StageOf) -> None:
    study = stage.study("node")
    study.submit()
    held = hold(study.run, saved(study.run))
    kept = newest_step(study.run.checkpoints)
    assert "n2" in slurm.call("scontrol", "show", "hostnames", study.rows()[study.run.name].nodes)
    stage.cluster.kill_node("n2")
    try:
        until(lambda: gone(held), "end of a rank")
        survivors = [rank for rank in held if not gone([rank])]
        assert len(survivors) == 1
        tell(survivors, signal.SIGCONT)
        until(lambda: gone(survivors), "end of the rank on the other node", [study.run])
        made = read_records(study.run.metrics)[-1]["step"]
        # On a busy machine it may run again before anybody has seen it wait.
        until(lambda: study.is_pending() or len(starts(study.run)) > 1, "requeue", [study.run])
    finally:
        stage.cluster.do("node", "2")
    stage.assert_as_undisturbed(study)
    assert len(starts(study.run)) == 2
    assert starts(study.run)[1] >= kept
    assert made - starts(study.run)[1] <= STEPS_BETWEEN_CHECKPOINTS


# -- the stage, and one test for each story --------------------------------------------------------

Story = Callable[[StageOf], None]
SCENES: list[list[Story]] = [
    [  # these need the nodes n1 and n2 for themselves, one after the other
        a_study_from_simulation_to_report,
        preempted_in_training_in_evaluation_and_at_start_up,
        a_node_dies,
    ],
    [a_time_limit_shorter_than_the_run],
    [cancelled_and_submitted_again, requeued_as_often_as_allowed_and_submitted_again],
]
STORIES = [story for scene in SCENES for story in scene]


@pytest.fixture(scope="module")
def told(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Story, Future[None]]]:
    folder = tmp_path_factory.mktemp("slurm")
    with ExitStack() as scope:
        cluster = scope.enter_context(development_cluster(root, folder))
        cluster.set_user_signal(True)
        stage = StageOf(cluster, folder)
        told: dict[Story, Future[None]] = {}
        for scene in SCENES:
            thread = scope.enter_context(ThreadPoolExecutor(1))
            told |= {story: thread.submit(story, stage) for story in scene}
        yield told


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_training_ends_with_the_same_bits(told: dict[Story, Future[None]], story: Story) -> None:
    told[story].result()
