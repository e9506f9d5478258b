"""Running stages on this machine: mpiexec, ranks on cores and GPUs of their own, side by side."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console
from rich.text import Text

from hpc.commandline import outliving_the_reader
from hpc.environment import CORES, GPUS, STARTED, for_ranks
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE, EXIT_INTERNAL, ConfigError
from hpc.failures import first_error, last_error, last_line, said_since, too_little_memory
from hpc.files import make_directory, storage_errors
from hpc.gpus import VISIBLE, Loans
from hpc.preempt import STOP_SIGNALS, StopFlag
from hpc.progress import Bar, Display, Pace
from hpc.records import Growing
from hpc.stages import Room, Stage, Task
from hpc.words import plural

GRACE = 120.0
"""seconds that stopped tasks have for their checkpoints"""
PATIENCE = 120.0
"""seconds in which the ranks of a task must have found each other"""
LOOK_EVERY = 0.25
"""seconds between two looks at tasks that say nothing; that one has ended is heard at once"""
Told = tuple[str, str, str]
"""what became of a task: a sign, its colour, and words"""
_DEADLY = range(signal.SIGILL, signal.SIGTERM + 1)
"""numbers of signals that end a program; none of them is an exit code of ours"""


class Clerk(Protocol):
    """Who is told of every start and end of a task, and may want it started once more."""

    def begins(self, task: Task) -> None:
        """It is about to start."""
        ...

    def goes_on(self, task: Task, code: int) -> bool:
        """Whether a task that was not done when it ended is to be started again at once.

        `code` is its exit code as a shell tells it: 128 + signal where it was killed.
        """
        ...


@dataclass(frozen=True)
class Local:
    """The launcher of this machine."""

    side_by_side: int = 0
    """tasks at a time; 0 for as many as cores and GPUs hold"""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that tasks are given; without any, what CUDA shows them is left alone"""
    program: tuple[str, ...] = (sys.executable,)
    """the Python of the tasks"""
    variables: Mapping[str, str] = field(default_factory=dict)
    """more of their environment"""
    bind: bool = True
    """keep tasks on cores of their own, of those that this process may use, where they fill them"""
    grace: float = GRACE
    """seconds that stopped tasks have for their checkpoints"""
    clerk: Clerk | None = None
    """who is told of every start and end"""
    stop: StopFlag | None = None
    """the request to stop, where it is listened for already"""

    def room(self) -> Room:
        """See `Launcher`: GPUs, and cores for each, or cores where there are none."""
        cores, gpus = len(os.sched_getaffinity(0)), len(self.gpus)
        ranks = gpus or cores
        return Room(ranks, max(1, cores // ranks), bool(gpus), self.side_by_side or None)

    def launch(self, stages: Sequence[Stage], dry_run: bool = False) -> int:
        """Run the stages one after the other; a failed task ends neither its stage nor the next.

        SIGINT, SIGTERM, SIGHUP and SIGUSR2 are passed on as a request to checkpoint and stop.

        Returns:
            EXIT_COMPLETE when every task is done, EXIT_AGAIN when stopped on request, else the
            exit code of the first task that failed.

        Raises:
            ConfigError before anything starts, where a task's ranks need more GPUs than there are.
        """
        plans = [_plan(stage, self) for stage in stages]
        if dry_run:
            _show(plans)
            return EXIT_COMPLETE
        failed = EXIT_COMPLETE
        with outliving_the_reader(), _forwarding(self.stop) as stop, Bell() as bell:
            for plan in plans:
                if failed and not plan.stage.after_failures:
                    continue
                codes = _StageRun(plan, self, stop, bell).run()
                if stop.signal:
                    return EXIT_AGAIN
                failed = failed or next((code for code in codes if code), EXIT_COMPLETE)
        return failed


def _show(plans: Sequence[_Plan]) -> None:
    for plan in plans:
        stage = plan.stage
        cards = f" and {plural(plan.gpus, 'GPU')}" if plan.gpus else ""
        print(
            f"# {stage.name}: {plural(len(stage.tasks), 'task')} of {plural(stage.ranks, 'rank')} "
            f"with {plural(stage.threads, 'thread')} on {plural(plan.cores, 'core')}{cards}, "
            f"{plan.at_once} at a time"
        )
        for task in stage.tasks:
            print(shlex.join(command(stage, task)))


def command(stage: Stage, task: Task, program: Sequence[str] = (sys.executable,)) -> list[str]:
    """The command line of one task."""
    launcher = [_mpiexec(), "-n", str(stage.ranks)] if stage.ranks > 1 else []
    return [*launcher, *program, "-m", task.module, *task.args]


def _mpiexec() -> str:
    own = Path(sys.prefix) / "bin" / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise ConfigError("mpiexec is not in PATH: run 'make setup', or load your MPI's module.")
    return found


@dataclass(frozen=True)
class _Plan:
    """A stage, and what each of its tasks gets."""

    stage: Stage
    cores: int
    gpus: int
    at_once: int
    """tasks at a time"""

    @property
    def bound(self) -> bool:
        """Whether tasks have cores of their own: where no more fit. Else another study, bound to
        the same first cores, would slow them down while the rest of the machine idles."""
        return (self.at_once + 1) * self.cores > len(os.sched_getaffinity(0))


def _plan(stage: Stage, given: Local) -> _Plan:
    cores, there = len(os.sched_getaffinity(0)), len(given.gpus)
    need = min(stage.ranks * stage.threads, cores)
    gpus = stage.ranks * stage.gpus_per_rank if there else 0
    if gpus > there:
        raise ConfigError(
            f"{stage.name}: {plural(stage.ranks, 'rank')} need {plural(gpus, 'GPU')}, and there "
            f"{'is' if there == 1 else 'are'} {there} here: RANKS={there} (launch.ranks), or "
            f"{VISIBLE}= make submit … to train on the processor."
        )
    at_once = given.side_by_side or max(1, cores // need)
    at_once = min(at_once, there * stage.tasks_per_gpu // gpus) if gpus else at_once
    return _Plan(stage, need, gpus, min(at_once, max(1, len(stage.tasks))))


@contextlib.contextmanager
def _forwarding(installed: StopFlag | None) -> Iterator[StopFlag]:
    """A stop flag while tasks run; the former handlers afterwards."""
    if installed is not None:
        yield installed
        return
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)}
    try:
        yield StopFlag().install()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Bell:
    """Rings when a process that was started here ends, or a signal comes that is listened to.

    So nobody has to look again and again, and an end is seen at once.
    """

    def __enter__(self) -> Bell:
        self._ear, self._wire = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._wire, False)
        # Without a handler of its own SIGCHLD is ignored, and wakes nobody.
        self._before = signal.signal(signal.SIGCHLD, lambda *_: None)
        self._other = signal.set_wakeup_fd(self._wire, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._other)
        signal.signal(signal.SIGCHLD, self._before)
        os.close(self._ear)
        os.close(self._wire)

    def wait(self, seconds: float) -> None:
        """Until it rings, at most so long."""
        if select.select([self._ear], [], [], seconds)[0]:
            os.read(self._ear, 4096)


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen
    log: IO[bytes]
    offset: int
    """where this start's part of the log begins"""
    cores: list[int]
    gpus: list[str]
    begun: Path
    """file that its first rank makes when the ranks have found each other"""
    growing: Growing | None
    """its record file"""
    pace: Pace
    """how fast records are added"""
    overdue: bool = False
    """ended because its ranks did not find each other"""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.pace.began

    def said(self) -> list[str]:
        """What this start has said so far, line by line."""
        return said_since(self.task.log, self.offset)


class _StageRun:
    """One stage under way."""

    def __init__(self, plan: _Plan, given: Local, stop: StopFlag, bell: Bell) -> None:
        self.plan, self.stage, self.stop, self.bell = plan, plan.stage, stop, bell
        self.given = given
        self.waiting = list(self.stage.tasks)
        self.running: list[_Running] = []
        self.codes: list[int] = []
        self.free = sorted(os.sched_getaffinity(0))
        self.loans = Loans(given.gpus, self.stage.tasks_per_gpu) if given.gpus else None
        self.console = Console()
        self.asked = 0.0
        threads = str(self.stage.threads)
        self.environment = {
            **for_ranks(),
            "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            **given.variables,
        }

    def run(self) -> list[int]:
        """Run all tasks; returns their exit codes."""
        if not self.waiting:
            return []
        self.console.print(
            f"[bold]{self.stage.name}[/bold]: {len(self.waiting)} to do, {self.plan.at_once} at a "
            f"time, {plural(self.stage.ranks, 'rank')} each"
        )
        with tempfile.TemporaryDirectory(prefix="launch-", ignore_cleanup_errors=True) as scratch:
            try:
                self._run(Path(scratch))
            finally:
                self._kill()
        return self.codes

    def _run(self, scratch: Path) -> None:
        with Display(self._bars, self._below, self.console) as display:
            while self.running or (self.waiting and not self.stop.signal):
                self._start(scratch)
                self._pass_on()
                self.bell.wait(LOOK_EVERY)
                self._end_overdue()
                self._reap()
                display.refresh()

    def _start(self, scratch: Path) -> None:
        while self.waiting and len(self.running) < self.plan.at_once and not self.stop.signal:
            gpus = self.loans.take(self.plan.gpus) if self.loans else []
            if gpus is None:
                return
            task = self.waiting.pop(0)
            make_directory(task.log.parent)
            if self.given.clerk:
                self.given.clerk.begins(task)
            with storage_errors(task.log):
                log = open(task.log, "ab")  # noqa: SIM115 - closed when the task ends
            offset = log.seek(0, os.SEEK_END)
            cores = self.free[: self.plan.cores] if self.plan.bound and self.given.bind else []
            growing = Growing(task.meter.records) if task.meter else None
            pace = Pace(growing.look().count if growing else 0)
            begun = scratch / task.name
            begun.unlink(missing_ok=True)  # of its start before this one
            process = subprocess.Popen(
                command(self.stage, task, self.given.program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(cores, gpus, begun),
                start_new_session=True,  # Ctrl-C reaches it as our SIGUSR1, not by itself
            )
            if len(cores) == self.plan.cores and self.plan.at_once > 1:
                self.free = self.free[self.plan.cores :]
            self.running.append(
                _Running(task, process, log, offset, cores, gpus, begun, growing, pace)
            )

    def _environment(self, cores: list[int], gpus: list[str], begun: Path) -> dict[str, str]:
        # Each rank sees all GPUs of its task and takes its own, so that they can reach each other.
        lent = {VISIBLE: ",".join(gpus)} if self.loans else {}
        promise = {GPUS: str(self.stage.gpus_per_rank)} if gpus else {}
        enough = len(cores) >= self.stage.ranks * self.stage.threads
        return {
            **self.environment,
            STARTED: str(begun),
            CORES: ",".join(map(str, cores)) if enough else "",
            **lent,
            **promise,
        }

    def _pass_on(self) -> None:
        """Ask the tasks to stop, once; after the grace time end them."""
        if not self.stop.signal:
            return
        if not self.asked:
            self.asked = time.monotonic()
            self.console.print("stopping: each running task writes a checkpoint …")
            for run in self.running:
                # MPICH's mpiexec hands USR1 on to every rank (USR2 would end it).
                run.process.send_signal(signal.SIGUSR1)
        elif time.monotonic() - self.asked > self.given.grace:
            self._kill()

    def _end_overdue(self) -> None:
        """End tasks of several ranks that have not found each other in all this time."""
        for run in self.running if self.stage.ranks > 1 else ():
            late = run.seconds > PATIENCE and not run.begun.exists()
            if late and not run.overdue and not _has_made_progress(run):
                run.overdue = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(run.process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        told: list[Told] = []
        for run in [r for r in self.running if r.process.poll() is not None]:
            self.running.remove(run)
            run.log.close()
            if self.loans:
                self.loans.give_back(run.gpus)
            if run.cores and run.cores[0] not in self.free:
                self.free = sorted([*self.free, *run.cores])
            code = run.process.returncode
            if self.asked and run.task.done.exists() and not self.stage.sums_up:
                code = EXIT_COMPLETE  # the request came when it had done its work, and ended it so
            elif code and self.given.clerk and not self.stop.signal:
                shown = as_shell_code(code, self.stage.ranks)
                if self.given.clerk.goes_on(run.task, shown):
                    self.waiting.append(run.task)
                    again = f"{run.task.name}: exit code {shown}; starts again"
                    told.append(("↻", "yellow", again))
                    continue
            code = EXIT_INTERNAL if code < 0 else code
            self.codes.append(code)
            told.append(self._told(run, code))
        if told:
            self._say(told)

    def _told(self, run: _Running, code: int) -> Told:
        name = run.task.name
        if code == EXIT_COMPLETE:
            return "✓", "green", f"{name} ({run.seconds:.0f} s)"
        if code == EXIT_AGAIN:
            return "‖", "yellow", f"{name} stopped at a checkpoint"
        reason = f"{self._reason(run)} (all of it: {run.task.log})"
        return "✗", "red", f"{name}: exit code {code}: {reason}"

    def _say(self, told: list[Told]) -> None:
        """All that ended at a time in one go: on a terminal all bars are drawn again after it."""
        if self.console.is_terminal:
            lines = (Text.assemble((sign, colour), " ", words) for sign, colour, words in told)
            self.console.print(*lines, sep="\n", highlight=False, soft_wrap=True)
        else:  # what rich takes for a line is a third of what starting a run takes
            text = "\n".join(f"{sign} {words}" for sign, _, words in told)
            print(text, file=self.console.file, flush=True)

    def _reason(self, run: _Running) -> str:
        """Why a task failed, as far as that can be seen from here."""
        said = run.said()
        if run.overdue:
            return f"its ranks did not start within {PATIENCE:.0f} s: {first_error(said)}"
        if self.stage.ranks > 1 and (memory := too_little_memory(run.process.returncode, said)):
            return memory
        return last_error(said)

    def _kill(self) -> None:
        """End what still runs, by the process groups started here."""
        for run in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()

    # -- what one sees --------------------------------------------------------------------------

    def _below(self) -> str:
        return f"{len(self.codes)} ended, {len(self.waiting)} waiting"

    def _bars(self) -> list[Bar]:
        return [self._bar(run) for run in self.running]

    def _bar(self, run: _Running) -> Bar:
        """How far a task is: from its records, else from the last line of its log."""
        meter, name = run.task.meter, run.task.name
        if meter is None or run.growing is None:
            return Bar(name, last_line(run.task.log))
        done, last = run.growing.look().count, run.growing.last
        if last is None:
            return Bar(name, "starting", 0, meter.total)
        words = [f"{done}/{meter.total}"]
        for key, form in meter.shown.items():
            if isinstance(value := last.get(key), int | float):
                words.append(form.format(value))
        if (rate := run.pace.rate(done)) > 0:
            words += [f"{meter.work * rate:.0f} {meter.unit}"] if meter.work else []
            words += [run.pace.words(done, meter.total)]
        return Bar(name, "  ".join(words), done, meter.total)


def as_shell_code(code: int, ranks: int) -> int:
    """An exit code as a shell tells it: 128 + signal for what a signal has ended.

    Python says - signal of its child, MPICH's mpiexec the bare number of what ended a rank.
    """
    if code < 0:
        return 128 - code
    return 128 + code if ranks > 1 and code in _DEADLY else code


def _has_made_progress(run: _Running) -> bool:
    """Whether a task got on, though nobody said that it had begun."""
    return run.growing is not None and run.growing.look().count > run.pace.first
