"""Running stages on this machine: mpiexec, ranks on cores of their own, runs side by side."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hpc.commandline import outliving_the_reader
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE, EXIT_INTERNAL, ConfigError
from hpc.files import make_directory, storage_errors
from hpc.preempt import STOP_SIGNALS, StopFlag
from hpc.records import read_records
from hpc.stages import Stage, Task
from hpc.words import plural

PLAIN_EVERY = 15.0
"""seconds between lines on the state of running tasks where there is no terminal"""
GRACE = 120.0
"""seconds that stopped tasks have for their checkpoints"""


def launch(stages: Sequence[Stage], side_by_side: int = 0, dry_run: bool = False) -> int:
    """Run the stages one after the other; a failed task ends neither its stage nor the next.

    `side_by_side` tasks at a time, 0 for as many as the cores hold. SIGINT, SIGTERM, SIGHUP
    and SIGUSR2 are passed on as a request to checkpoint and stop.

    Returns:
        EXIT_COMPLETE when every task is done, EXIT_AGAIN when stopped on request, else the exit
        code of the first task that failed.
    """
    if dry_run:
        _show(stages, side_by_side)
        return EXIT_COMPLETE
    failed = EXIT_COMPLETE
    with outliving_the_reader(), _forwarding() as stop:
        for stage in stages:
            if failed and not stage.after_failures and stage.name != "train":
                continue
            codes = _Room(stage, side_by_side, stop).run()
            if stop.signal:
                return EXIT_AGAIN
            failed = failed or next((code for code in codes if code), EXIT_COMPLETE)
    return failed


def _show(stages: Sequence[Stage], side_by_side: int) -> None:
    for stage in stages:
        each, at_once = _shape(stage, side_by_side)
        print(
            f"# {stage.name}: {plural(len(stage.tasks), 'task')} of {plural(stage.ranks, 'rank')} "
            f"with {plural(stage.threads, 'thread')} on {plural(each, 'core')}, {at_once} at a time"
        )
        for task in stage.tasks:
            print(shlex.join(command(stage, task)))


def command(stage: Stage, task: Task) -> list[str]:
    """The command line of one task."""
    launcher = [_mpiexec(), "-n", str(stage.ranks)] if stage.ranks > 1 else []
    return [*launcher, sys.executable, "-m", task.module, *task.args]


def _mpiexec() -> str:
    own = Path(sys.prefix) / "bin" / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise ConfigError("mpiexec is not in PATH: run 'make setup', or load your MPI's module.")
    return found


def _shape(stage: Stage, side_by_side: int) -> tuple[int, int]:
    """Cores of each task and tasks at a time."""
    cores = len(os.sched_getaffinity(0))
    need = min(stage.ranks * stage.threads, cores)
    at_once = side_by_side or max(1, cores // need)
    return need, min(at_once, max(1, len(stage.tasks)))


@contextlib.contextmanager
def _forwarding() -> Iterator[StopFlag]:
    """A stop flag while tasks run; the former handlers afterwards."""
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)}
    try:
        yield StopFlag().install()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen
    log: IO[bytes]
    cores: list[int]
    since: float = field(default_factory=time.monotonic)
    started_at: int | None = None
    """records there were at the start, for the rate"""


class _Room:
    """One stage under way."""

    def __init__(self, stage: Stage, side_by_side: int, stop: StopFlag) -> None:
        self.stage, self.stop = stage, stop
        self.waiting = list(stage.tasks)
        self.running: list[_Running] = []
        self.codes: list[int] = []
        each, self.at_once = _shape(stage, side_by_side)
        self.free = sorted(os.sched_getaffinity(0))
        self.each = each
        self.console = Console()
        self.asked = 0.0

    def run(self) -> list[int]:
        """Run all tasks; returns their exit codes."""
        if not self.waiting:
            return []
        self.console.print(
            f"[bold]{self.stage.name}[/bold]: {len(self.waiting)} to do, {self.at_once} at a time, "
            f"{plural(self.stage.ranks, 'rank')} each"
        )
        try:
            with self._display() as refresh:
                while self.running or (self.waiting and not self.stop.signal):
                    self._start()
                    self._pass_on()
                    time.sleep(0.1)
                    self._reap()
                    refresh()
        finally:
            self._kill()
        return self.codes

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.at_once and not self.stop.signal:
            task = self.waiting.pop(0)
            make_directory(task.log.parent)
            with storage_errors(task.log):
                log = open(task.log, "ab")  # noqa: SIM115 - closed when the task ends
            cores = self.free[: self.each]
            process = subprocess.Popen(
                command(self.stage, task),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(cores),
                start_new_session=True,  # Ctrl-C reaches it as our SIGUSR1, not by itself
            )
            if len(cores) == self.each and self.at_once > 1:
                self.free = self.free[self.each :]
            self.running.append(_Running(task, process, log, cores, started_at=_count(task)))

    def _environment(self, cores: list[int]) -> dict[str, str]:
        threads = str(self.stage.threads)
        enough = len(cores) >= self.stage.ranks * self.stage.threads
        return {
            **os.environ,
            "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            "GLASS_CORES": ",".join(map(str, cores)) if enough else "",
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
        elif time.monotonic() - self.asked > GRACE:
            self._kill()

    def _reap(self) -> None:
        for run in [r for r in self.running if r.process.poll() is not None]:
            self.running.remove(run)
            run.log.close()
            if run.cores and run.cores[0] not in self.free:
                self.free = sorted([*self.free, *run.cores])
            code = run.process.returncode
            code = EXIT_INTERNAL if code < 0 else code
            if self.asked and run.task.done.exists() and not self.stage.after_failures:
                code = EXIT_COMPLETE  # the request came when it had done its work, and ended it so
            self.codes.append(code)
            self._tell(run, code)

    def _tell(self, run: _Running, code: int) -> None:
        took = time.monotonic() - run.since
        name = run.task.name
        if code == EXIT_COMPLETE:
            self.console.print(
                f"[green]✓[/green] {name} ({took:.0f} s)", highlight=False, soft_wrap=True
            )
        elif code == EXIT_AGAIN:
            self.console.print(
                f"[yellow]‖[/yellow] {name} stopped at a checkpoint",
                highlight=False,
                soft_wrap=True,
            )
        else:
            self.console.print(
                f"[red]✗[/red] {name}: exit code {code}: ", Text(_last_error(run.task.log)),
                f" (all of it: {run.task.log})", highlight=False, sep="", soft_wrap=True,
            )  # fmt: skip

    def _kill(self) -> None:
        """End what still runs, by the process groups started here."""
        for run in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()

    # -- what one sees --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _display(self) -> Iterator[Any]:
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=4, transient=True) as live:
                yield lambda: live.update(self._bars())
        else:
            self._next = time.monotonic() + PLAIN_EVERY
            yield self._lines

    def _bars(self) -> Group:
        table = Table.grid(padding=(0, 1))
        for run in self.running:
            done, text = self._state(run)
            bar: Any = (
                ProgressBar(total=run.task.total, completed=done, width=30)
                if run.task.total
                else Spinner("dots")
            )
            table.add_row(run.task.name, bar, text)
        left = len(self.waiting)
        return Group(table, Text(f"{len(self.codes)} ended, {left} waiting", style="dim"))

    def _lines(self) -> None:
        if time.monotonic() > self._next:
            self._next = time.monotonic() + PLAIN_EVERY
            for run in self.running:
                line = f"  {run.task.name}: {self._state(run)[1]}"
                self.console.print(line, highlight=False, soft_wrap=True)

    def _state(self, run: _Running) -> tuple[int, str]:
        """Records done and a few words: from the records, else the last line of the log."""
        if run.task.records is None or not run.task.total:
            return 0, _last_line(run.task.log)
        records = read_records(run.task.records)
        done = len(records)
        if not records:
            return 0, "starting"
        fresh = done - (run.started_at or 0)
        words = [f"{done}/{run.task.total}"]
        accuracy, loss = records[-1].get("validation_accuracy"), records[-1].get("validation_loss")
        if accuracy is not None:
            words.append(f"accuracy {accuracy:.2%}")
        if loss is not None:
            words.append(f"loss {loss:.3f}")
        if fresh > 0:
            each = (time.monotonic() - run.since) / fresh
            if run.task.images:
                words.append(f"{run.task.images / each:.0f} img/s")
            words.append(f"ETA {each * (run.task.total - done):.0f} s")
        return done, "  ".join(words)


def _count(task: Task) -> int:
    return len(read_records(task.records)) if task.records else 0


def _last_line(log: Path) -> str:
    """The last line a task said; only the end of the file is read."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = [x for x in file.read().decode(errors="replace").splitlines() if x.strip()]
        return lines[-1][:120] if lines else ""
    return ""


def _last_error(log: Path) -> str:
    """The last message that begins with `error:`, else the last line."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return next((x for x in reversed(lines) if x.startswith("error:")), _last_line(log))
    return ""
