"""Stages to batch jobs: job files and sbatch command lines. Calls nothing.

    logs/<study>/jobs/<stamp>/train-1.tsv   tasks of one array, and how to start their ranks

Small tasks are packed: each task of the array is then a job of one node that holds several of them
(`hpc.packed` starts those), n n+1 … of the job file.

The templates in slurm/ read job files as data; nothing that a setting says is ever evaluated by a
shell.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpc.errors import ConfigError
from hpc.site import PROJECT, Site, seconds
from hpc.stages import Room, Stage, Task
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
        return job_text(self.site, self.stage.tasks, self.shape)

    @property
    def shape(self) -> Shape:
        """What each job asks for."""
        return shape_of(self.stage, self.site)

    @property
    def size(self) -> int:
        """Tasks of the array, each of which may hold several of the stage."""
        return -(-len(self.stage.tasks) // self.shape.tasks)


@dataclass(frozen=True)
class Shape:
    """Ranks and nodes of one job, and its tasks."""

    nodes: int
    per_node: int
    ranks: int | None
    """None: as many as the nodes that Slurm has free (site.min_nodes)"""
    pack: Pack | None = None
    """how several tasks share it; None: it is one task's"""

    @property
    def tasks(self) -> int:
        """Tasks of one job."""
        return self.pack.tasks if self.pack else 1


@dataclass(frozen=True)
class Pack:
    """How tasks share a job; a line of numbers in its job file, in this order."""

    tasks: int
    """tasks of each job; the last one may have fewer"""
    at_once: int
    """as many of them run at a time"""
    ranks: int
    """of each"""
    threads: int
    """CPUs of each rank"""
    tasks_per_gpu: int


def shape_of(stage: Stage, site: Site) -> Shape:
    """What one job of a stage asks for; raises ConfigError.

    Tasks of less than a node share one: `tasks_per_job` at most, else as many as it holds at a
    time, spread evenly over the fewest jobs.
    """
    one = _shape_of_one(stage, site)
    if stage.tasks_per_job == 1 or one.nodes > 1 or one.ranks is None:
        return one
    sharing = stage.tasks_per_gpu if _gpus(one, site)[1] else 1
    room = _most_ranks(site) // one.ranks * sharing
    jobs = -(-len(stage.tasks) // (stage.tasks_per_job or room))
    count = -(-len(stage.tasks) // max(1, jobs))
    if count < 2:
        return one
    at_once = min(count, room)
    ranks = -(-at_once // sharing) * one.ranks
    threads = max(1, (site.cpus_per_rank or stage.threads) // sharing)
    return Shape(1, ranks, ranks, Pack(count, at_once, one.ranks, threads, sharing))


def room_of(site: Site) -> Room:
    """What a node has for the main stage; where a job has several, its ranks are to fill them."""
    nodes = site.nodes or site.min_nodes
    each = site.ranks or (nodes * _most_ranks(site) if nodes else None)
    gpus = site.gpus_per_node or site.gpus_per_rank
    return Room(_most_ranks(site), site.cpus_per_rank or 1, gpus != 0, more=True, each=each)


def _most_ranks(site: Site) -> int:
    """Ranks that a node holds."""
    gpus = int(str(site.gpus_per_node).rpartition(":")[2])
    return min(site.ranks_per_node, gpus) if gpus else site.ranks_per_node


def _shape_of_one(stage: Stage, site: Site) -> Shape:
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
        if not stage.tasks:
            continue
        own = site.of(stage.name, stage.main)
        each = shape_of(stage, own).tasks
        for first in range(0, len(stage.tasks), size * each):
            some = stage.tasks[first : first + size * each]
            chunk = dataclasses.replace(stage, tasks=some, tasks_per_job=each)
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
    throttle = f"%{job.site.throttle}" if job.site.throttle and job.size > 1 else ""
    words += [f"--array=0-{job.size - 1}{throttle}"] if job.array else []
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
    shape = shape_of(stage, site)
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
    memory = site.memory or _summed(site.memory_per_rank, shape.per_node)
    words += [f"--mem={memory}"] if memory else []
    words += [f"--time={site.time}", f"--signal=B:USR2@{site.signal_lead}"]
    words += ["--requeue", "--open-mode=append"]
    for name in ("partition", "account", "qos", "constraint"):
        value = getattr(site, name)
        words += [f"--{name}={value}"] if value else []
    return [*words, *site.options]


def _summed(memory: str | None, ranks: int) -> str:
    """Memory of so many ranks, in the unit of one's."""
    match = re.fullmatch(r"([0-9]+)([KMGT]?)", memory or "")
    return f"{int(match[1]) * ranks}{match[2]}" if match else ""


def job_text(site: Site, tasks: Sequence[Task], shape: Shape | None = None) -> str:
    """A job file: `site` lines on how to start ranks, then one `task` line each, tabs between.

    A `task` line holds name, checkpoint directory (or nothing), done file, log, module, arguments.
    A `pack` line stands before them where several share a job.
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
    if shape is not None and shape.pack:
        lines += [("pack", *map(str, dataclasses.astuple(shape.pack)))]
    return "".join(_line(fields) for fields in [*lines, *map(_task_fields, tasks)])


def _task_fields(task: Task) -> tuple[str, ...]:
    checkpoints = str(task.checkpoints or "")
    return ("task", task.name, checkpoints, str(task.done), str(task.log), task.module, *task.args)


def _line(fields: Sequence[str]) -> str:
    for field in fields:
        if not field.isprintable():
            raise ConfigError(f"{field!r}: a job file cannot carry control characters.")
    return "\t".join(fields) + "\n"


@dataclass(frozen=True)
class JobFile:
    """What stands in a job file, less what only batch scripts need of the site."""

    tasks: tuple[Task, ...]
    pack: Pack | None
    site: Mapping[str, str]
    """its values of one word: bind, max_requeues, signal_lead, …"""

    @property
    def max_requeues(self) -> int:
        """Times that a job may start a task again."""
        return int(self.site["max_requeues"])

    def of(self, index: int | None) -> tuple[Task, ...]:
        """The tasks of one array task; of the whole array for None."""
        each = self.pack.tasks if self.pack else 1
        return self.tasks if index is None else self.tasks[index * each : (index + 1) * each]


def read_job_file(file: Path, place: Callable[[str], Path] = Path) -> JobFile:
    """What `job_text` has written; `place` makes paths of its words. Raises OSError."""
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    packs = [Pack(*map(int, fields[1:])) for fields in lines if fields[0] == "pack"]
    site = {fields[1]: fields[2] for fields in lines if fields[0] == "site"}
    tasks = tuple(_task(fields[1:], place) for fields in lines if fields[0] == "task")
    return JobFile(tasks, packs[0] if packs else None, site)


def _task(fields: Sequence[str], place: Callable[[str], Path]) -> Task:
    name, checkpoints, done, log, module, *words = fields
    saved = place(checkpoints) if checkpoints else None
    return Task(name, module, tuple(words), place(done), place(log), saved)


def cost(stage: Stage, site: Site) -> str:
    """What a stage may take, in words; upper bounds, for one allocation of each job."""
    shape = shape_of(stage, site)
    ranks = shape.ranks or shape.nodes * shape.per_node
    jobs, cpus = -(-len(stage.tasks) // shape.tasks), ranks * (site.cpus_per_rank or stage.threads)
    hours = seconds(site.time) / 3600
    each = f"{plural(ranks, 'rank')} on {plural(shape.nodes, 'node')}, {plural(cpus, 'CPU')}"
    total = f"up to {_hours(jobs * cpus * hours)} core-hours"
    gpus = _gpus(shape, site)[1] * shape.nodes
    if gpus:
        # Slurm is asked per node, and nodes are alike: a rank each for some, one more for others.
        idle = gpus - ranks
        each += f", {plural(gpus, 'GPU')}" + (f" ({idle} of them idle)" if idle > 0 else "")
        total += f" and {_hours(jobs * gpus * hours)} GPU-hours"
    tasks = plural(len(stage.tasks), "task")
    if shape.pack:
        tasks += f", {shape.tasks} to a job ({shape.pack.at_once} at a time): {plural(jobs, 'job')}"
    apart = stage.tasks_per_job > 1 and shape.pack is None and len(stage.tasks) > 1
    note = "; none shares a job, for each takes more than one node" if apart else ""
    return f"{stage.name}: {tasks} of {each}, {site.time} at a time: {total} per allocation{note}"


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
