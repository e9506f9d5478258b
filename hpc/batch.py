"""Stages to batch jobs: job files and sbatch command lines. Calls nothing.

    logs/<study>/jobs/<stamp>/train-1.tsv   tasks of one array, and how to start their ranks

The templates in slurm/ read job files as data; nothing that a setting says is ever evaluated by a
shell.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpc.errors import ConfigError
from hpc.site import PROJECT, Site, seconds
from hpc.stages import Stage, Task
from hpc.words import plural

MAX_ARRAY_SIZE = 1001
"""Slurm's default, taken where Slurm cannot be asked; indices run up to one less"""
SHOWN_TASKS = 3
"""tasks of each job file that a dry run shows"""


@dataclass(frozen=True)
class BatchJob:
    """One sbatch: an array of tasks."""

    stage: Stage
    site: Site
    file: Path
    """job file, read by the template"""
    after: Literal["", "afterok", "afterany"]
    """how it depends on the jobs of the stage before it"""
    array: bool = True
    """an array of its tasks, also of one; else a single job of a single task"""
    notify: str | None = None
    """address that is told of its end"""

    @property
    def text(self) -> str:
        """Content of the job file."""
        return job_text(self.site, self.stage.tasks, _shape(self.stage, self.site))


@dataclass(frozen=True)
class Shape:
    """Ranks and nodes of one job."""

    nodes: int
    per_node: int
    ranks: int | None
    """None: as many as the nodes that Slurm has free (site.min_nodes)"""


def _shape(stage: Stage, site: Site) -> Shape:
    ranks = site.ranks or stage.ranks
    nodes = site.nodes or -(-ranks // site.ranks_per_node)
    per_node = -(-ranks // nodes)
    if per_node > site.ranks_per_node or nodes > ranks:
        raise ConfigError(
            f"{plural(ranks, 'rank')} cannot be spread over {plural(nodes, 'node')} with 1 to "
            f"{site.ranks_per_node} on each: change launch.ranks (RANKS=n), or nodes or "
            "ranks_per_node in launch.slurm."
        )
    if site.min_nodes is None:
        return Shape(nodes, per_node, ranks)
    if site.min_nodes > nodes or nodes * per_node != ranks:
        raise ConfigError(
            f"min_nodes {site.min_nodes} needs at least as many nodes, with the same number of "
            f"ranks on each; there are {plural(ranks, 'rank')} on {plural(nodes, 'node')}."
        )
    return Shape(nodes, per_node, None)


def _gpus(shape: Shape, site: Site) -> tuple[str, int]:
    """Type of GPU, with its colon or nothing, and how many each node must have."""
    if site.gpus_per_node:
        kind, colon, count = str(site.gpus_per_node).rpartition(":")
        if int(count) < shape.per_node:
            raise ConfigError(
                f"{plural(shape.per_node, 'rank')} on a node of {plural(int(count), 'GPU')}: each "
                "needs its own; change ranks_per_node or gpus_per_node in launch.slurm."
            )
        return kind + colon, int(count)
    kind, colon, count = str(site.gpus_per_rank).rpartition(":")
    return kind + colon, int(count) * shape.per_node


def plan(
    stages: Sequence[Stage],
    folder: Path,
    site: Site,
    array_limit: int,
    notify: str | None = None,
) -> list[list[BatchJob]]:
    """The jobs of each stage, in chunks so that no array index reaches `array_limit`.

    `notify` is told of the end of the last stage's job alone. Where arrays are switched off (a
    limit of 0 or 1), each task is a job by itself.
    """
    limit = array_limit if site.max_array_size is None else site.max_array_size
    size, arrays = max(1, limit - 1), limit > 1
    jobs: list[list[BatchJob]] = []
    for number, stage in enumerate(stages):
        after: Literal["", "afterok", "afterany"] = ""
        if number:
            after = "afterok" if stage.needs == "success" else "afterany"
        files = _names(stage.name, sum(s.name == stage.name for s in stages[:number]))
        jobs.append([])
        for first in range(0, len(stage.tasks), size):
            chunk = dataclasses.replace(stage, tasks=stage.tasks[first : first + size])
            own = site.of(stage.name, stage.main)
            told = notify if stage.sums_up and number == len(stages) - 1 else None
            jobs[-1].append(BatchJob(chunk, own, folder / next(files), after, arrays, told))
    return jobs


def _names(stage: str, earlier: int) -> Iterator[str]:
    """train-1.tsv, train-2.tsv, … and train_2-1.tsv, … for the stage's second time."""
    again = f"_{earlier + 1}" if earlier else ""
    number = 0
    while True:
        number += 1
        yield f"{stage}{again}-{number}.tsv"


def command(job: BatchJob, study: str, before: Sequence[str] = ()) -> list[str]:
    """The sbatch command line of a job that depends on the job ids `before`."""
    words = ["sbatch", "--parsable", f"--job-name={study}-{job.stage.name}"]
    number = "%a" if job.array else "0"
    words += [f"--output={_pattern(job.file.parent)}/{job.file.stem}-{number}.out"]
    words += [f"--comment={job.file}"]
    throttle = f"%{job.site.throttle}" if job.site.throttle and len(job.stage.tasks) > 1 else ""
    words += [f"--array=0-{len(job.stage.tasks) - 1}{throttle}"] if job.array else []
    if job.after and before:
        words += [f"--dependency={job.after}:{':'.join(before)}"]
        words += ["--kill-on-invalid-dep=yes"] if job.after == "afterok" else []
    words += [f"--mail-user={job.notify}", "--mail-type=END,FAIL"] if job.notify else []
    template = f"slurm/{job.stage.name}.sh"
    return [*words, *resources(job.stage, job.site), template, "--tasks", str(job.file)]


def _pattern(folder: Path) -> str:
    """`folder` for --output, where % is special and a backslash cannot be written."""
    if "\\" in str(folder):
        raise ConfigError(
            f"LOGS: Slurm cannot write into {folder}: it has a backslash in its name."
        )
    return str(folder).replace("%", "%%")


def resources(stage: Stage, site: Site) -> list[str]:
    """sbatch's options for what a job needs; the profile's own `options` come last and win."""
    shape = _shape(stage, site)
    if shape.ranks is None:
        words = [f"--nodes={site.min_nodes}-{shape.nodes}"]
        # With --ntasks-per-node=1 Slurm takes one task as enough, and one node for it.
        words += [f"--ntasks-per-node={shape.per_node}"] if shape.per_node > 1 else []
    else:
        words = [f"--nodes={shape.nodes}", f"--ntasks={shape.ranks}"]
        words += [f"--ntasks-per-node={shape.per_node}"]
    words += [f"--cpus-per-task={site.cpus_per_rank or stage.threads}"]
    # Not --gpus-per-task: each rank would see its own alone, and NCCL go through the host's memory.
    kind, gpus = _gpus(shape, site)
    words += [f"--gpus-per-node={kind}{gpus}"] if gpus else []
    words += [f"--mem={site.memory}"] if site.memory else []
    words += [f"--time={site.time}", f"--signal=B:USR2@{site.signal_lead}"]
    words += ["--requeue", "--open-mode=append"]
    for name in ("partition", "account", "qos", "constraint"):
        value = getattr(site, name)
        words += [f"--{name}={value}"] if value else []
    return [*words, *site.options]


def job_text(site: Site, tasks: Sequence[Task], shape: Shape | None = None) -> str:
    """A job file: `site` lines on how to start ranks, then one `task` line each, tabs between.

    A `task` line holds name, checkpoint directory (or nothing), done file, log, module, arguments.
    """
    lines: list[Sequence[str]] = [("site", "launcher", site.launcher), ("site", "mpi", site.mpi)]
    lines += [("site", "bind", site.bind), ("site", "max_requeues", str(site.max_requeues))]
    lines += [("site", "signal_lead", str(site.signal_lead))]
    if shape is not None and shape.ranks is None:
        lines += [("site", "per_node", str(shape.per_node))]
    for name in ("gpus_per_rank", "gpus_per_node"):
        lines += [("site", name, str(getattr(site, name)))] if getattr(site, name) else []
    lines += [("site", "container", site.container)] if site.container else []
    lines += [("site", "module", module) for module in site.modules]
    lines += [("site", "environment", f"{k}={v}") for k, v in site.environment.items()]
    lines += [("site", "option", option) for option in site.launcher_options]
    return "".join(_line(fields) for fields in [*lines, *map(_task_fields, tasks)])


def _task_fields(task: Task) -> tuple[str, ...]:
    checkpoints = str(task.checkpoints or "")
    return ("task", task.name, checkpoints, str(task.done), str(task.log), task.module, *task.args)


def _line(fields: Sequence[str]) -> str:
    for field in fields:
        if not field.isprintable():
            raise ConfigError(f"{field!r}: a job file cannot carry control characters.")
    return "\t".join(fields) + "\n"


def task_keys(text: str) -> list[tuple[str, str]]:
    """(name, done file) of every task of a job file: the done file tells tasks apart."""
    lines = (line.split("\t") for line in text.splitlines() if line.startswith("task\t"))
    return [(fields[1], fields[3]) for fields in lines]


def cost(stage: Stage, site: Site) -> str:
    """What a stage may take, in words; upper bounds, for one allocation of each task."""
    shape = _shape(stage, site)
    ranks = shape.ranks or shape.nodes * shape.per_node
    count, cpus = len(stage.tasks), ranks * (site.cpus_per_rank or stage.threads)
    hours = seconds(site.time) / 3600
    each = f"{plural(ranks, 'rank')} on {plural(shape.nodes, 'node')}, {plural(cpus, 'CPU')}"
    total = f"up to {_hours(count * cpus * hours)} core-hours"
    gpus = _gpus(shape, site)[1] * shape.nodes
    if gpus:
        each += f", {plural(gpus, 'GPU')}"
        total += f" and {_hours(count * gpus * hours)} GPU-hours"
    tasks = plural(count, "task")
    return f"{stage.name}: {tasks} of {each}, {site.time} at a time: {total} per allocation"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def show(jobs: Sequence[Sequence[BatchJob]], study: str) -> None:
    """Print what a submission would do."""
    before: list[str] = []
    for chunks in jobs:
        for job in chunks:
            print(f"# {cost(job.stage, job.site)}")
            print(shlex.join(command(job, study, before)))
            _show_job_file(job)
        before = [f"<{job.file.stem}>" for job in chunks] or before
    for name in dict.fromkeys(job.stage.name for chunks in jobs for job in chunks):
        print(
            f"\n# --- slurm/{name}.sh ---\n{(PROJECT / 'slurm' / f'{name}.sh').read_text()}", end=""
        )


def _show_job_file(job: BatchJob) -> None:
    lines = job.text.splitlines()
    left = len(job.stage.tasks) - SHOWN_TASKS
    print(f"# --- {job.file} ---")
    for line in lines[: -left or None] if left > 0 else lines:
        print(f"#   {line}")
    if left > 0:
        print(f"#   … and {plural(left, 'task')} more")
