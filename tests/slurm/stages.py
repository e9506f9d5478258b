"""A study as stages, in small, for tests of what the Slurm launcher makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glass_cnn.paths import DatasetDir
from hpc.batch import plan
from hpc.site import Site
from hpc.stages import Stage, Task

LOGS = Path("/scratch/o'hara & sons/100% $HOME/logs")


def task(name: str, module: str = "jobs.train", folder: Path = LOGS) -> Task:
    run = folder / "runs" / name
    words = (str(folder / "study.yaml"), name, "--logs", str(folder))
    return Task(name, module, words, run / "result.json", run / "output.log", run / "checkpoints")


def study_stages(runs: int, ranks: int = 4, folder: Path = LOGS) -> list[Stage]:
    """Simulate, train and aggregate; everything is missing."""
    words = ("study.yaml",)
    name, report_file = "endpoint-1234abcd", folder / "report.html"
    data = Task(name, "jobs.dataset", words, DatasetDir(folder).record, folder / "build.log")
    report = Task("report", "jobs.report", words, report_file, folder / "report.log")
    trainings = tuple(task(f"base-s{i}-0123abcd", folder=folder) for i in range(runs))
    return [
        Stage("simulate", (data,), 8, 1),
        Stage("train", trainings, ranks, 2, needs="success", main=True),
        Stage("aggregate", (report,), 1, 1, sums_up=True),
    ]


def share_jobs(
    study: Path, runs: int, per_job: int = 2, module: str = "m", **site: Any
) -> tuple[Path, list[Task]]:
    """Write the job file of a study whose runs share jobs; returns it and the runs."""
    tasks = [task(f"r{i}", module, study) for i in range(runs)]
    stage = Stage("train", tuple(tasks), 1, 1, main=True, tasks_per_job=per_job)
    profile = Site(ranks_per_node=per_job, bind="none", **site)
    (jobs,) = plan([stage], study / "jobs" / "20260102-030405", profile, 1001)
    jobs[0].file.parent.mkdir(parents=True)
    jobs[0].file.write_text(jobs[0].text)
    return jobs[0].file, tasks
