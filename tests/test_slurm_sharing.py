"""Runs that share a batch job: how many do, what is asked for, and which are in the queue."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.pipeline import SECTIONS
from hpc import batch, slurm
from hpc.batch import Pack, plan, shape_of
from hpc.site import Site, load_site
from hpc.slurm import Queued
from hpc.stages import Stage, Task
from hpc.starts import Starts
from tests.slurm.stages import share_jobs, study_stages, task

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
    return functools.partial(share_jobs, tmp_path / "logs" / "study")


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
