"""The launcher of a cluster: Slurm's commands, what its queue holds, submissions, cancelling.

    logs/<study>/jobs/<stamp>/train-1.tsv        tasks of one array; see `hpc.batch`
    logs/<study>/jobs/<stamp>/submission.json    job ids of everything submitted at that time
    logs/<study>/jobs/<stamp>/*.out              what the batch scripts print
    logs/<study>/jobs/<stamp>/train-1.cancelled  `make cancel` was here: checkpoint, no requeue

What Slurm prints is believed only where it looks like what was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import batch
from hpc.batch import MAX_ARRAY_SIZE, BatchJob
from hpc.environment import for_slurm, wishes
from hpc.errors import EXIT_COMPLETE, DataError, UserError
from hpc.files import (
    locked,
    make_directory,
    new_directory,
    read_json,
    write_atomic,
    write_json,
)
from hpc.records import now
from hpc.site import PROJECT, load_site
from hpc.stages import Room, Stage, Task
from hpc.starts import Starts
from hpc.words import plural, shown

DEVELOPMENT = PROJECT / ".slurm-dev" / "slurm.conf"
"""configuration of the development cluster while it is up (`make slurm-up`)"""
JOBS = "jobs"
"""directory of a study's submissions: job files, job ids, job logs"""
LOCK = ".submitting"
"""file in the directory of all studies that is held by who submits one of them"""
TRIES = 3
"""times that Slurm is asked something before it counts as not answering"""
ANSWER_SECONDS = 40.0
"""seconds that each of them may take"""
PAUSE = 2.0
"""seconds between them"""
PATIENCE = 120.0
"""seconds for which another submission is waited for"""
MOST_INDICES = 1_000_000
"""of one line of squeue; Slurm's own limit on arrays is not much higher"""
_BUSY = re.compile(r"timed out|unable to contact|try again|temporarily|zero bytes", re.I)
"""what Slurm's commands say when its controller is there, and does not answer just now"""
SAFE = (
    "If a job was submitted all the same, the queue tells: make status shows it, and the same "
    "command submits only what is not there."
)
"""what is right after an answer from sbatch that cannot be read: jobs are known by their comment"""


class SlurmError(UserError):
    """Slurm refused a request or does not answer (exit code 70)."""


class SlurmTimeout(SlurmError):
    """Slurm does not answer just now."""


# -- calls to Slurm --------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """The environment for Slurm's commands; they find the development cluster while it is up."""
    clean = for_slurm()
    if "SLURM_CONF" not in clean and DEVELOPMENT.exists():
        clean["SLURM_CONF"] = str(DEVELOPMENT.resolve())
    return clean


def call(*words: str, timeout: float = 120) -> str:
    """Output of one of Slurm's commands; raises SlurmError with what it said."""
    try:
        done = subprocess.run(
            words, cwd=PROJECT, env=environment(), capture_output=True, timeout=timeout,
            text=True, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]} is not in PATH: run this where Slurm's commands are (a login node), or "
            "use LAUNCHER=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmTimeout(
            f"{words[0]} did not answer in {timeout:.0f} s; try again later."
        ) from None
    if done.returncode:
        said = "; ".join(done.stderr.split("\n")).strip("; ") or f"exit code {done.returncode}"
        kind = SlurmTimeout if _BUSY.search(done.stderr) else SlurmError
        raise kind(f"{shlex.join(words)}\nsays: {said}")
    return done.stdout


def ask(*words: str, timeout: float = ANSWER_SECONDS, tries: int = 0) -> str:
    """`call` for what may be repeated: Slurm is asked again when it does not answer in time."""
    for left in reversed(range(tries or TRIES)):
        try:
            return call(*words, timeout=timeout)
        except SlurmTimeout:
            if not left:
                raise
            time.sleep(PAUSE)
    raise AssertionError("the last try returns or raises")


def answers(tries: int = 0) -> bool:
    """Whether jobs can be submitted from here; raises SlurmTimeout where that cannot be told."""
    if shutil.which("sbatch") is None:
        return False
    try:
        ask("sinfo", "--noheader", "--format=%P", timeout=15, tries=tries)
    except SlurmTimeout:
        raise
    except SlurmError:
        return False
    return True


@dataclass(frozen=True)
class Queued:
    """One job or array task that is in the queue, pending or running."""

    job: str
    """id of the job or of its array"""
    index: int | None
    """array index; None for a job that is no array, or all of an array's tasks"""
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
        return self.job if self.index is None else f"{self.job}_{self.index}"


def queue(tries: int = 0) -> list[Queued]:
    """Everything of this user's that is in the queue; raises SlurmError, after so many tries."""
    # A format string: --json needs a plug-in that few have installed. The comment comes last
    # because it may hold the separator. The user by number: some have no name.
    words = ["squeue", "--array", "--noheader", f"--user={os.getuid()}"]
    text = ask(*words, "--format=%F|%K|%T|%r|%N|%k", tries=tries)
    return [row for line in text.splitlines() for row in _queued(line)]


def _queued(line: str) -> Iterator[Queued]:
    """The tasks of a line of squeue: one, or those of an array that were not told apart.

    A line that does not begin with a job's id is none of its own.
    """
    job, *rest = line.split("|", 5)
    if not job.isdecimal() or len(rest) < 5:
        return
    index, state, reason, nodes, file = rest
    for each in _indices(index):
        yield Queued(job, each, state or "UNKNOWN", reason, nodes, file)


def _indices(text: str) -> Sequence[int | None]:
    """Array indices as squeue writes them: "7", "[0-3,8,10-20:5%2]"; [None] for anything else."""
    parts = text.strip("[]").split("%")[0].split(",")
    matches = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", part) for part in parts]
    ranges = [range(int(m[1]), int(m[2] or m[1]) + 1, int(m[3] or 0) or 1) for m in matches if m]
    if len(ranges) < len(parts) or sum(map(len, ranges)) > MOST_INDICES:
        return [None]
    return [index for each in ranges for index in each]


def _array_limit() -> int:
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
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
    read: dict[str, batch.JobFile | None] = {}
    found = {}
    for row in rows:
        file = files.get(row.job, row.file)
        if file not in read:
            read[file] = _job_file(Path(file), logs)
        if (there := read[file]) is None:
            continue
        for task in there.of(row.index):
            if not there.pack or not _given_up(row, task, there.max_requeues):
                found[str(task.done)] = (task.name, dataclasses.replace(row, file=file))
    return found


def _given_up(row: Queued, task: Task, bound: int) -> bool:
    """Whether a job that several tasks share goes on without this one, which has failed."""
    with contextlib.suppress(DataError):  # events that nobody can read tell of no failure
        return Starts.of(row.target, task).given_up(bound) is not None
    return False


def _job_file(file: Path, logs: Path) -> batch.JobFile | None:
    """A job file with its tasks as they are called now; None where it is of no study under `logs`.

    `logs` may have been called otherwise when they were submitted, by a link that leads to it.
    """
    then = file.parent.parent.parent.parent
    if os.path.realpath(then) != os.path.realpath(logs) or not file.is_file():
        return None
    if then == logs:
        return batch.read_job_file(file)
    return batch.read_job_file(file, lambda path: logs / os.path.relpath(path, then))


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


@dataclass(frozen=True)
class Slurm:
    """The launcher of a cluster, for one study."""

    study: Path
    """the study's directory"""
    site: str
    """site profile"""
    over: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """values laid over it"""
    sections: tuple[str, ...] = ()
    """names of stages that may have values of their own in it"""
    notify: str | None = None
    """address to which Slurm writes when the last job has ended"""

    def room(self) -> Room:
        """See `Launcher`: what a node has."""
        return batch.room_of(load_site(self.site, self.over, self.sections))

    def launch(self, stages: Sequence[Stage], dry_run: bool = False) -> int:
        """Submit what is neither done nor in the queue; returns the exit code.

        Each stage depends on the one before it, its parts already in the queue included. Raises
        ConfigError, SlurmError; what was submitted before an error is recorded and stays.
        """
        site = load_site(self.site, self.over, self.sections)
        folder = self.study / JOBS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        if dry_run:
            limit = _array_limit() if answers() else MAX_ARRAY_SIZE
            batch.show(batch.plan(stages, folder, site, limit, self.notify), self.study.name)
            return EXIT_COMPLETE
        make_directory(folder.parent)
        _tell_wishes()
        with _sole_submission(self.study.parent):
            queued = active(self.study.parent, queue())
            _recall(stages, queued)
            todo = [_missing(stage, queued) for stage in stages]
            if any(stage.tasks for stage in todo):
                folder = new_directory(folder)
            jobs = batch.plan(todo, folder, site, _array_limit(), self.notify)
            _submit(stages, jobs, self.study, queued)
        return EXIT_COMPLETE


def _tell_wishes() -> None:
    """Say which of the user's own defaults for sbatch do not count."""
    if names := wishes():
        print(
            f"note: {', '.join(names)} of the environment: not passed on to Slurm. What a job "
            "needs stands in its site profile, or in launch.slurm (account, partition, options)."
        )


@contextlib.contextmanager
def _sole_submission(logs: Path) -> Iterator[None]:
    """One submission at a time: two studies may need the same third one."""

    def wait(holder: str, seconds: float) -> None:
        if seconds > PATIENCE:
            raise SlurmError(f"{logs}: {holder} is submitting studies there; try again later.")

    def go_on(_error: OSError) -> None:
        print(f"note: {logs} is on a file system without locks: submit one study at a time.")

    with locked(logs / LOCK, wait, go_on):
        yield


def _missing(stage: Stage, queued: Active) -> Stage:
    tasks = tuple(task for task in stage.tasks if str(task.done) not in queued)
    return dataclasses.replace(stage, tasks=tasks)


def _job_id(answer: str) -> str:
    """The id in sbatch's answer, `id` or `id;cluster`, whatever a site prints around it."""
    form = r"(?:Submitted batch job )?(\d+)(?:;[\w.-]+)?"
    found = [re.fullmatch(form, line.strip()) for line in answer.splitlines()]
    ids = [match[1] for match in found if match]
    if len(ids) != 1:
        raise SlurmError(
            f"sbatch printed {'several numbers' if ids else 'no job id'}: "
            f"{answer.strip()[:300]!r}. {SAFE}"
        )
    return ids[0]


def _recall(stages: Sequence[Stage], queued: Active) -> None:
    """Take pending last stages out of the queue when more will come that they must wait for."""
    if not any(_missing(stage, queued).tasks for stage in stages if not stage.sums_up):
        return
    for task in (task for stage in stages if stage.sums_up for task in stage.tasks):
        if str(task.done) in queued:
            call("scancel", "--state=PENDING", queued.pop(str(task.done))[1].job)


def _submit(
    stages: Sequence[Stage],
    jobs: Sequence[Sequence[BatchJob]],
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
            print(batch.cost(_missing(stage, queued), chunks[0].site))
            _tell_throttle(chunks)
        for job in chunks:
            ids.append(_submit_one(job, study, before, record))
        before = ids or before
    if not record["jobs"] and any(_missing(stage, queued).tasks for stage in stages):
        raise SlurmError(f"{study.name}: tasks are missing, and no job was made of them.")
    many = plural(len(record["jobs"]), "job") if record["jobs"] else "nothing more to be"
    print(f"{many} submitted; make status CONFIG={study.name}")


def _tell_throttle(jobs: Sequence[BatchJob]) -> None:
    if (most := jobs[0].site.throttle) and not jobs[0].array and len(jobs) > most:
        print(f"note: job arrays are off here, so more than {most} (throttle) may run at once")


def _submit_one(job: BatchJob, study: Path, before: Sequence[str], record: dict[str, Any]) -> str:
    """Write the job file, submit it, record its id; returns the id."""
    folder = make_directory(job.file.parent)
    write_atomic(job.file, job.text)
    try:
        name = _job_id(call(*batch.command(job, study.name, before)))
    except SlurmTimeout as error:
        raise SlurmTimeout(f"{error} {SAFE}") from None
    entry = {"id": name, "stage": job.stage.name, "tasks": len(job.stage.tasks)}
    record["jobs"].append({**entry, "file": str(job.file)})
    write_json(folder / "submission.json", record)
    packed = f" in {plural(job.size, 'part')}" if job.shape.pack else ""
    print(f"  job {name}: {plural(len(job.stage.tasks), 'task')}{packed} ({shown(job.file)})")
    return name


def cancel(study: Path) -> tuple[int, int]:
    """Stop a study: pending jobs go, running ones checkpoint and are not requeued.

    Returns how many were pending and how many running. Raises SlurmError.
    """
    rows = [row for _, row in active_in(study, queue()).values()]
    for file in {row.file for row in rows}:
        write_atomic(cancelled(Path(file)), f"{now()}\n")
    running = [row for row in rows if row.state != "PENDING"]
    if rows:
        call("scancel", "--quiet", "--state=PENDING", *sorted({row.job for row in rows}))
    if running:
        # The batch script tells all ranks; they have more time than after a plain scancel.
        targets = dict.fromkeys(row.target for row in running)  # several tasks may share a job
        call("scancel", "--quiet", "--batch", "--signal=USR2", *targets)
    return len(rows) - len(running), len(running)


def cancelled(job_file: Path) -> Path:
    """The mark that `make cancel` leaves beside a job file."""
    return job_file.with_suffix(".cancelled")
