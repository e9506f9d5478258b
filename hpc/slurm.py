"""The Slurm launcher: site profiles, job files, sbatch command lines, and what the queue says.

    logs/<study>/jobs/<stamp>/train-1.tsv        tasks of one array, and how to start them
    logs/<study>/jobs/<stamp>/submission.json    job ids of everything submitted at that time
    logs/<study>/jobs/<stamp>/*.out              what the batch scripts say
    logs/<study>/jobs/<stamp>/train-1.cancelled  `make cancel` was here: checkpoint, no requeue

`plan` and `command` are pure: they turn stages and a site profile into job files and sbatch command
lines. `launch` submits them. The templates in slurm/ read the job files as data; nothing that a
setting says is ever evaluated by a shell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pwd
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from hpc.config import Settings, to_tree, validate
from hpc.errors import EXIT_COMPLETE, ConfigError, UserError
from hpc.files import make_directory, read_json, write_atomic, write_json
from hpc.stages import Stage, Task
from hpc.words import plural, shown
from hpc.yaml_files import read_tree, union

PROJECT = Path(__file__).resolve().parent.parent
DEVELOPMENT = PROJECT / ".slurm-dev" / "slurm.conf"
"""configuration of the development cluster while it is up (`make slurm-up`)"""
MAX_ARRAY_SIZE = 1001
"""Slurm's default, taken where Slurm cannot be asked; indices run up to one less"""
JOBS = "jobs"
"""directory of a study's submissions: job files, job ids, job logs"""
SHOWN_TASKS = 3
"""tasks of each job file that a dry run shows"""


class SlurmError(UserError):
    """Slurm refused a request or does not answer (exit code 70)."""


# -- site profiles ---------------------------------------------------------------------------------


def _plain(value: str) -> str:
    if not value or value.startswith("-") or not value.isprintable():
        raise ValueError("must not be empty, begin with '-' or hold control characters")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must not hold control characters")
    return value


def _time_text(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError('write it in quotes, as "hours:minutes:seconds" (YAML makes 1:30:00 5400)')
    return value


_TIME = re.compile(
    r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?"
    r"|(?P<h>\d+):(?P<hm>\d+):(?P<hs>\d+)|(?P<m>\d+)(?::(?P<s>\d+))?)"
)


def seconds(time_limit: str) -> int:
    """Length of a time limit as Slurm writes it: "90", "90:00", "1:30:00", "1-12", "1-12:00:00".

    Raises ValueError for anything else.
    """
    match = _TIME.fullmatch(time_limit)
    if match is None:
        raise ValueError(
            'must look like "1:30:00" (hours:minutes:seconds) or "2-12:00:00" (days-…)'
        )
    part = {key: int(value or 0) for key, value in match.groupdict().items()}
    minutes = part["dm"] + part["hm"] + part["m"]
    hours = 24 * part["d"] + part["dh"] + part["h"]
    return 3600 * hours + 60 * minutes + part["ds"] + part["hs"] + part["s"]


def _check_time(value: str) -> str:
    if seconds(value) < 60:
        raise ValueError("must be at least a minute")
    return value


def _check_variables(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        _printable(value)
    return variables


Count = Annotated[int, pydantic.Field(ge=1)]
Word = Annotated[str, pydantic.AfterValidator(_plain)]
Text = Annotated[str, pydantic.AfterValidator(_printable)]
Time = Annotated[str, pydantic.BeforeValidator(_time_text), pydantic.AfterValidator(_check_time)]
Gpus = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_.-]+:[0-9]+$")]
Memory = Annotated[str, pydantic.Field(pattern=r"^[0-9]+[KMGT]?$")]
Variables = Annotated[dict[str, str], pydantic.AfterValidator(_check_variables)]


class Site(Settings):
    """What one cluster is like: slurm/sites/<name>.yaml with `launch.slurm` laid over it."""

    launcher: Literal["srun", "mpiexec"] = "srun"
    """what starts the ranks"""
    mpi: Literal["pmi2", "pmix", "none"] = "pmi2"
    """srun's plug-in: pmi2 for MPICH and its kin, pmix for Open MPI (`srun --mpi=list`)"""
    bind: Literal["cores", "none"] = "cores"
    """keep each rank on its own cores, or leave that to the system"""
    ranks: Count | None = None
    """ranks of each task; null takes launch.ranks"""
    ranks_per_node: Count = 1
    """ranks that one node holds (its GPUs, where there are some)"""
    nodes: Count | None = None
    """nodes of each job; null takes as many as the ranks need"""
    min_nodes: Count | None = None
    """start on fewer nodes, with fewer ranks, when no more are free; null waits for all"""
    cpus_per_rank: Count | None = None
    """CPUs of each rank; null takes launch.threads_per_rank"""
    gpus_per_node: Annotated[int, pydantic.Field(ge=0)] | Gpus = 0
    """GPUs of each node for training, a number or "type:number"; each rank takes one of them"""
    memory: Memory | None = None
    """memory of each node, for example 16G; null takes the partition's default"""
    time: Time = "1:00:00"
    """time limit of one allocation; a longer run goes on in the next one"""
    signal_lead: Annotated[int, pydantic.Field(ge=1, le=65_535)] = 120
    """seconds before the time limit at which the run is told to checkpoint"""
    partition: Word | None = None
    """partition, or several with commas"""
    account: Word | None = None
    """account that is charged"""
    qos: Word | None = None
    """quality of service"""
    constraint: Word | None = None
    """node features, for example a100|h100"""
    modules: tuple[Word, ...] = ()
    """environment modules to load, in this order"""
    environment: Variables = pydantic.Field(default_factory=dict)
    """environment variables to set"""
    launcher_options: tuple[Text, ...] = ()
    """more options for srun or mpiexec, one word each"""
    options: tuple[Text, ...] = ()
    """more options for sbatch, one word each (--exclusive, --mail-type=END); they win"""
    throttle: Count | None = None
    """tasks of an array that may run at the same time; null leaves it to Slurm"""
    max_array_size: Annotated[int, pydantic.Field(ge=2)] | None = None
    """tasks in one array, plus 1; null asks Slurm"""
    max_requeues: Annotated[int, pydantic.Field(ge=0)] = 100
    """times that a job puts itself back into the queue"""
    simulate: dict[str, Any] = pydantic.Field(default_factory=dict)
    """values that differ for simulation jobs"""
    aggregate: dict[str, Any] = pydantic.Field(default_factory=dict)
    """values that differ for the aggregation job"""

    def of(self, stage: str) -> Site:
        """The profile of one stage: its own section over the rest; nodes, GPUs for training only.

        Raises ConfigError.
        """
        if stage == "train":
            return self
        tree = {"nodes": None, "min_nodes": None, "gpus_per_node": 0, **getattr(self, stage)}
        return validate(Site, union(to_tree(self), tree), f"the site profile's section '{stage}'")


def load_site(name: str, over: Mapping[str, Any]) -> Site:
    """Read a profile by its name in slurm/sites/ or its path; `over` (launch.slurm) is laid on it.

    Raises ConfigError.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = PROJECT / "slurm" / "sites" / f"{name}.yaml"
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        if name not in known:
            raise ConfigError(
                f"launch.site = {name!r}: no such site profile. Known: {', '.join(known)}; or give "
                "the path of a YAML file of your own."
            )
    where = f"{path} with launch.slurm" if over else str(path)
    site = validate(Site, union(read_tree(path), over), where)
    for stage in ("simulate", "aggregate"):
        site.of(stage)
    return site


# -- job files and command lines (pure) ------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One sbatch: an array of tasks."""

    stage: Stage
    site: Site
    file: Path
    """job file, read by the template"""
    after: Literal["", "afterok", "afterany"]
    """how it depends on the jobs of the stage before it"""

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


def plan(stages: Sequence[Stage], folder: Path, site: Site, array_limit: int) -> list[list[Job]]:
    """The jobs of each stage, chunked so that no array index reaches `array_limit`."""
    size = (site.max_array_size or array_limit) - 1
    jobs: list[list[Job]] = []
    for number, stage in enumerate(stages):
        before = stages[number - 1].name if number else ""
        after: Any = "afterok" if before == "simulate" else "afterany" if before else ""
        after = "afterany" if before and stage.after_failures else after
        files = _names(stage.name, sum(s.name == stage.name for s in stages[:number]))
        jobs.append([])
        for first in range(0, len(stage.tasks), size):
            chunk = dataclasses.replace(stage, tasks=stage.tasks[first : first + size])
            jobs[-1].append(Job(chunk, site.of(stage.name), folder / next(files), after))
    return jobs


def _names(stage: str, earlier: int) -> Iterator[str]:
    """train-1.tsv, train-2.tsv, … and train_2-1.tsv, … for the stage's second time."""
    again = f"_{earlier + 1}" if earlier else ""
    number = 0
    while True:
        number += 1
        yield f"{stage}{again}-{number}.tsv"


def command(job: Job, study: str, before: Sequence[str] = ()) -> list[str]:
    """The sbatch command line of a job that depends on the job ids `before`."""
    words = ["sbatch", "--parsable", f"--job-name={study}-{job.stage.name}"]
    words += [f"--output={_pattern(job.file.parent)}/{job.file.stem}-%a.out"]
    words += [f"--comment={job.file}"]
    throttle = f"%{job.site.throttle}" if job.site.throttle and len(job.stage.tasks) > 1 else ""
    words += [f"--array=0-{len(job.stage.tasks) - 1}{throttle}"]
    if job.after and before:
        words += [f"--dependency={job.after}:{':'.join(before)}"]
        words += ["--kill-on-invalid-dep=yes"] if job.after == "afterok" else []
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
    words += [f"--gpus-per-node={site.gpus_per_node}"] if site.gpus_per_node else []
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


def _task_keys(text: str) -> list[tuple[str, str]]:
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
    gpus = int(str(site.gpus_per_node).rpartition(":")[2]) * shape.nodes
    if gpus:
        each += f", {plural(gpus, 'GPU')}"
        total += f" and {_hours(count * gpus * hours)} GPU-hours"
    tasks = plural(count, "task")
    return f"{stage.name}: {tasks} of {each}, {site.time} at a time: {total} per allocation"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


# -- calls to Slurm --------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """The environment for Slurm's commands; they find the development cluster while it is up."""
    if "SLURM_CONF" not in os.environ and DEVELOPMENT.exists():
        return {**os.environ, "SLURM_CONF": str(DEVELOPMENT.resolve())}
    return dict(os.environ)


def call(*words: str, timeout: float = 120) -> str:
    """Output of one of Slurm's commands; raises SlurmError with what it said."""
    try:
        done = subprocess.run(
            words, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=timeout
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]} is not in PATH: run this where Slurm's commands are (a login node), or "
            "use LAUNCHER=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{words[0]} did not answer in {timeout:.0f} s; try again later."
        ) from None
    if done.returncode:
        said = "; ".join(done.stderr.split("\n")).strip("; ") or f"exit code {done.returncode}"
        raise SlurmError(f"{shlex.join(words)}\nsays: {said}")
    return done.stdout


def answers() -> bool:
    """Whether jobs can be submitted from here."""
    if shutil.which("sbatch") is None:
        return False
    with contextlib.suppress(SlurmError):
        call("sinfo", "--noheader", "--format=%P", timeout=15)
        return True
    return False


@dataclass(frozen=True)
class Queued:
    """One job or array task that is in the queue, pending or running."""

    job: str
    """id of the job or of its array"""
    index: int
    """array index; 0 for a job that is none"""
    state: str
    """PENDING, RUNNING, COMPLETING, …"""
    reason: str
    """why it is pending"""
    nodes: str
    file: str
    """its job file, which the launcher gives it as a comment; whatever else for others' jobs"""

    @property
    def target(self) -> str:
        """What scancel and scontrol call it."""
        return f"{self.job}_{self.index}"


def queue() -> list[Queued]:
    """Everything of this user's that is in the queue; raises SlurmError."""
    # A format string: --json needs a plug-in that few have installed. The comment comes last
    # because it may hold the separator.
    fields = "%F|%K|%T|%r|%N|%k"
    user = pwd.getpwuid(os.getuid()).pw_name
    text = call("squeue", "--array", "--noheader", f"--user={user}", f"--format={fields}")
    return [_queued(line) for line in text.splitlines() if line.count("|") >= 5]


def _queued(line: str) -> Queued:
    job, index, state, reason, nodes, file = line.split("|", 5)
    return Queued(job, int(index) if index.isdigit() else 0, state, reason, nodes, file)


def _array_limit() -> int:
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.M)
    return int(match[1]) if match else MAX_ARRAY_SIZE


# -- submissions -----------------------------------------------------------------------------------


Active = dict[str, tuple[str, Queued]]
"""done file -> (task's name, its place in the queue)"""


def active(logs: Path, rows: Sequence[Queued]) -> Active:
    """All tasks of all studies under `logs` that are in the queue.

    One study may have submitted the runs of another that it needs. A job is known by its id, or
    by its comment where the id was lost (a crash between sbatch and the record).
    """
    files = {job["id"]: job["file"] for record in _records(logs) for job in record["jobs"]}
    keys: dict[str, list[tuple[str, str]]] = {}
    found = {}
    for row in rows:
        file = files.get(row.job, row.file)
        if file not in keys:
            keys[file] = _tasks_of(Path(file), logs)
        if row.index < len(keys[file]):
            name, done = keys[file][row.index]
            found[done] = (name, dataclasses.replace(row, file=file))
    return found


def _tasks_of(file: Path, logs: Path) -> list[tuple[str, str]]:
    """(name, done file) of a job file's tasks; none where it is not of a study under `logs`.

    `logs` may have been called otherwise when they were submitted, by a link that leads to it.
    """
    then = file.parent.parent.parent.parent
    if os.path.realpath(then) != os.path.realpath(logs) or not file.is_file():
        return []
    tasks = _task_keys(file.read_text())
    return [(name, str(logs / os.path.relpath(done, then))) for name, done in tasks]


def active_in(study: Path, rows: Sequence[Queued]) -> Active:
    """The tasks of one study: those it submitted, and its runs whoever submitted them."""
    return {
        done: (name, row)
        for done, (name, row) in active(study.parent, rows).items()
        if study in Path(done).parents or study.name == Path(row.file).parts[-4]
    }


def _records(logs: Path) -> list[dict[str, Any]]:
    """All submissions of all studies."""
    return [read_json(path) for path in logs.glob("*/jobs/*/submission.json")]


def launch(
    stages: Sequence[Stage],
    study: Path,
    site_name: str,
    over: Mapping[str, Any],
    *,
    dry_run: bool = False,
) -> int:
    """Submit what is neither done nor in the queue; returns the exit code.

    Each stage depends on the one before it, its parts already in the queue included. Raises
    ConfigError, SlurmError; what was submitted before an error is recorded and stays.
    """
    site = load_site(site_name, over)
    folder = study / JOBS / time.strftime("%Y%m%d-%H%M%S")
    if dry_run:
        limit = _array_limit() if answers() else MAX_ARRAY_SIZE
        _show(plan(stages, folder, site, limit), study.name)
        return EXIT_COMPLETE
    with _lock(study):
        queued = active(study.parent, queue())
        _recall(stages, queued)
        jobs = plan([_missing(stage, queued) for stage in stages], folder, site, _array_limit())
        _submit(stages, jobs, study, queued)
    return EXIT_COMPLETE


@contextlib.contextmanager
def _lock(study: Path) -> Iterator[None]:
    """One submission of a study at a time."""
    make_directory(study / JOBS)
    with (study / JOBS / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SlurmError(f"{study.name} is being submitted by another process.") from None
        yield


def _missing(stage: Stage, queued: Active) -> Stage:
    tasks = tuple(task for task in stage.tasks if str(task.done) not in queued)
    return dataclasses.replace(stage, tasks=tasks)


def _recall(stages: Sequence[Stage], queued: Active) -> None:
    """Take pending last stages out of the queue when more will come that they must wait for."""
    if not any(_missing(stage, queued).tasks for stage in stages if not stage.after_failures):
        return
    for task in (task for stage in stages if stage.after_failures for task in stage.tasks):
        if str(task.done) in queued:
            call("scancel", "--state=PENDING", queued.pop(str(task.done))[1].job)


def _submit(
    stages: Sequence[Stage],
    jobs: Sequence[Sequence[Job]],
    study: Path,
    queued: Active,
) -> None:
    record: dict[str, Any] = {"study": study.name, "jobs": []}
    before: list[str] = []
    for stage, chunks in zip(stages, jobs, strict=True):
        rows = [queued[str(t.done)][1] for t in stage.tasks if str(t.done) in queued]
        ids = list(dict.fromkeys(row.job for row in rows))
        if rows:
            print(f"{stage.name}: {plural(len(rows), 'task')} in the queue already")
        if chunks:
            print(cost(_missing(stage, queued), chunks[0].site))
        for job in chunks:
            ids.append(_submit_one(job, study, before, record))
        before = ids or before
    print(f"{plural(len(record['jobs']), 'job')} submitted; make status CONFIG={study.name}")


def _submit_one(job: Job, study: Path, before: Sequence[str], record: dict[str, Any]) -> str:
    """Write the job file, submit it, record its id; returns the id."""
    folder = make_directory(job.file.parent)
    write_atomic(job.file, job.text)
    answer = call(*command(job, study.name, before))
    name = answer.strip().split(";")[0]  # "id" or "id;cluster"
    entry = {"id": name, "stage": job.stage.name, "tasks": len(job.stage.tasks)}
    record["jobs"].append({**entry, "file": str(job.file)})
    write_json(folder / "submission.json", record)
    print(f"  job {name}: {plural(len(job.stage.tasks), 'task')} ({shown(job.file)})")
    return name


def _show(jobs: Sequence[Sequence[Job]], study: str) -> None:
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


def _show_job_file(job: Job) -> None:
    lines = job.text.splitlines()
    left = len(job.stage.tasks) - SHOWN_TASKS
    print(f"# --- {job.file} ---")
    for line in lines[: -left or None] if left > 0 else lines:
        print(f"#   {line}")
    if left > 0:
        print(f"#   … and {plural(left, 'task')} more")


def cancel(study: Path) -> tuple[int, int]:
    """Stop a study: pending jobs go, running ones checkpoint and are not requeued.

    Returns how many were pending and how many running. Raises SlurmError.
    """
    rows = [row for _, row in active_in(study, queue()).values()]
    for file in {row.file for row in rows}:
        write_atomic(cancelled(Path(file)), time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
    running = [row for row in rows if row.state != "PENDING"]
    if rows:
        call("scancel", "--quiet", "--state=PENDING", *sorted({row.job for row in rows}))
    if running:
        # The batch script tells all ranks; they have more time than after a plain scancel.
        call("scancel", "--quiet", "--batch", "--signal=USR2", *(row.target for row in running))
    return len(rows) - len(running), len(running)


def cancelled(job_file: Path) -> Path:
    """The mark that `make cancel` leaves beside a job file."""
    return job_file.with_suffix(".cancelled")
