"""Faults for a program on real ranks: what can happen to it, at which moment, and what it leaves.

Used by `tests.torture.campaign`. Processes are found by a mark in their environment, so those whose
parent was killed are found as well, and nothing is ever struck that was not started here.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from glass_cnn.paths import RunDir
from hpc import checkpoint, checkpoint_names
from hpc.records import read_records

MARK = "GLASS_FAULTS"
LOOK_EVERY = 0.02
"""seconds between looks at what a start does"""
LOOK_FOR_SAVE = 0.003
"""the same while waiting for a save, which takes a few hundredths of a second"""

MOMENTS = ("start-up", "training", "save", "evaluation")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR1", "SIGUSR2")
DAMAGES = (
    "flip in the header", "flip in a tensor", "flip in the manifest", "flip in the best model",
    "truncated state", "truncated manifest", "state deleted", "manifest deleted",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One thing that happens to a run."""

    kind: str
    moment: str
    """one of MOMENTS, or "between starts"; an evaluation is aimed at, not always hit"""

    def __str__(self) -> str:
        return f"{self.kind}, {self.moment}"


PAUSES = [Fault("SIGSTOP + SIGCONT", moment) for moment in MOMENTS]
JUMPS = [Fault(f"clock set {way}", moment) for way in ("back", "forward") for moment in MOMENTS]
STRIKES = [Fault(name, moment) for name in SIGNALS for moment in MOMENTS]
DAMAGE = [Fault(damage, "between starts") for damage in DAMAGES]
HANG = Fault("SIGSTOP for good", "training")
FILE_LIMIT = Fault("file size limit", "training")
DISK_FULL = Fault("disk full", "training")
READ_ONLY = Fault("read-only file system", "between starts")
TIMES = Fault("times of all files moved", "between starts")


def deck(mounts: bool, clocks: bool, several_ranks: bool) -> list[Fault]:
    """Every fault that is possible here, once."""
    cards = [*STRIKES, *PAUSES, *DAMAGE, FILE_LIMIT, TIMES]
    cards += [DISK_FULL, READ_ONLY] if mounts else []
    cards += JUMPS if clocks else []
    return cards + ([HANG] if several_ranks else [])


class StartedRun:
    """One start of a program on its ranks, from outside.

    Args:
        command: its command line; each rank's has `module` in it.
        console: file that its output is appended to.
        environment: what it is given beside this process's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        module: str,
        run: RunDir,
        console: Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.module, self.run = module, run
        self.mark = uuid.uuid4().hex
        self.records = _size(run.metrics)
        self.starts = _size(run.provenance)
        self.began = time.monotonic()
        with console.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **(environment or {}),
                    "OMP_NUM_THREADS": "1",
                    MARK: self.mark,
                },
                cwd=cwd,
                start_new_session=True,
            )
        self.restored: float | None = None
        """seconds until the state was restored and the first step was next"""
        self.evaluated: float | None = None
        """seconds until the first evaluation was recorded"""

    def alive(self) -> list[psutil.Process]:
        """Every living process of this start, those that lost their parent included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marked = process.environ().get(MARK) == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The living ranks, in their order."""
        found = []
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                words, its = process.cmdline(), process.environ()
                if self.module in words and "-n" not in words:
                    number = its.get("PMI_RANK") or its.get("OMPI_COMM_WORLD_RANK")
                    found.append((int(number or 0), process.pid, process))
        return [process for _, _, process in sorted(found)]

    def wait_until(
        self, moment: Callable[[], bool], seconds: float, every: float = LOOK_EVERY
    ) -> bool:
        """Wait for a moment; False when it did not come in time or the start has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            self._watch()
            if moment():
                return True
            time.sleep(every)
        return False

    def wait(self, seconds: float) -> int | None:
        """Its exit code, None when it has not ended in time."""
        self.wait_until(lambda: False, seconds)
        return self.process.poll()

    def kill(self, seconds: float = 10.0) -> None:
        """End whatever is left of it, and wait that long for the last of it to be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.01)

    def survivors(self, seconds: float = 10.0) -> list[int]:
        """Processes that outlive it by more than `seconds`; they are ended then."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [process.pid for process in self.alive()]
        if left:
            self.kill()
        return left

    def begun(self) -> bool:
        """Whether it restored a state and went on from there."""
        return _size(self.run.provenance) > self.starts

    def evaluations(self) -> int:
        """Bytes of evaluations recorded: anything but 0 means more than at the start."""
        return max(0, _size(self.run.metrics) - self.records) if self.begun() else 0

    def _watch(self) -> None:
        if self.restored is None and self.begun():
            self.restored = time.monotonic() - self.began
            self.records = _size(self.run.metrics)  # cut back by now
        elif self.restored is not None and self.evaluated is None and self.evaluations():
            self.evaluated = time.monotonic() - self.began


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# -- moments ------------------------------------------------------------------------------------


def reach(
    start: StartedRun, moment: str, rng: random.Random, usual_start: float, seconds: float
) -> bool:
    """Wait for a random instant of this kind; False when the start ended before.

    `usual_start` is how many seconds starts take, `seconds` the longest to wait.
    """
    if moment == "start-up":
        delay = rng.uniform(0, usual_start)
        begun = start.wait_until(lambda: time.monotonic() > start.began + delay, seconds)
        return begun and bool(start.alive())
    if not start.wait_until(lambda: start.evaluations() > 0, seconds):
        return False
    if moment == "save":
        return start.wait_until(lambda: _is_saving(start.run), seconds, LOOK_FOR_SAVE)
    return _between_evaluations(start, moment, rng, seconds)


def _between_evaluations(
    start: StartedRun, moment: str, rng: random.Random, seconds: float
) -> bool:
    """An instant between two evaluations' ends; an evaluation is the second half of it."""
    share = rng.uniform(0.5, 0.95) if moment == "evaluation" else rng.uniform(0.1, 1.5)
    ends = []
    for _ in range(rng.randint(2, 4)):
        size = start.evaluations()
        if not start.wait_until(lambda size=size: start.evaluations() != size, seconds):  # type: ignore[misc]
            return False
        ends.append(time.monotonic())
    strike = ends[-1] + share * (ends[-1] - ends[0]) / (len(ends) - 1)
    return start.wait_until(lambda: time.monotonic() >= strike, seconds)


def _is_saving(run: RunDir) -> bool:
    try:
        return any(e.name.startswith(checkpoint_names.ASIDE) for e in os.scandir(run.checkpoints))
    except OSError:
        return False


# -- processes ----------------------------------------------------------------------------------


def strike(start: StartedRun, name: str, rng: random.Random) -> bool:
    """Send a signal to a random rank, to all, or to the launcher; False when nobody is there."""
    ranks = start.ranks()
    target = rng.choice(("rank", "rank", "all", "launcher"))
    chosen = {"rank": [rng.choice(ranks)] if ranks else [], "all": ranks}.get(target, [])
    pids = [process.pid for process in chosen] or [start.process.pid]
    if start.process.poll() is not None:
        return False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, name))
    return True


def pause(start: StartedRun, rng: random.Random) -> bool:
    """Stop a random rank for a moment."""
    ranks = start.ranks()
    if not ranks:
        return False
    chosen = rng.choice(ranks)
    with contextlib.suppress(psutil.Error):
        chosen.suspend()
        time.sleep(rng.uniform(0.1, 1.0))
        chosen.resume()
        return True
    return False


def hang(start: StartedRun, rng: random.Random) -> int | None:
    """Stop a random rank for good; returns its process id."""
    ranks = start.ranks()
    if not ranks:
        return None
    chosen = rng.choice(ranks)
    chosen.suspend()
    return chosen.pid


def limit_files(start: StartedRun) -> bool:
    """Let no file of rank 0 grow beyond 1 MB: its next checkpoint cannot be written."""
    for rank in start.ranks()[:1]:
        with contextlib.suppress(psutil.Error):
            rank.rlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
            return True
    return False


# -- clocks -------------------------------------------------------------------------------------

SHIM = Path(__file__).with_name("clock.cpp")
LONGEST_JUMP = 3e8
"""seconds, ten years"""


def build_clock(library: Path) -> bool:
    """Compile what stands between a process and its wall clock; False where that cannot be."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(compiler[0]) is None or re.search(r"[\s:]", str(library)):  # see ld.so(8)
        return False
    words = [*compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    return subprocess.run(words, check=False).returncode == 0


class Clocks:
    """The wall clocks of a run's ranks, which can be set while it runs.

    A clock that is set stays so for the starts that follow. The jumps of one rank alone are those
    of ranks on different nodes.

    Args:
        path: file of the shifts.
        library: what `build_clock` made.
    """

    def __init__(self, path: Path, library: Path, ranks: int) -> None:
        self.path, self.shifts = path, [0] * ranks
        self.environment = {"LD_PRELOAD": str(library), "GLASS_CLOCK": str(path)}
        self._write()

    def jump(self, way: str, rng: random.Random) -> float:
        """Set a random rank's clock, or all, by one second to ten years; returns the seconds."""
        seconds = math.exp(rng.uniform(0, math.log(LONGEST_JUMP)))
        seconds = -seconds if way == "clock set back" else seconds
        everyone = range(len(self.shifts))
        for rank in rng.choice((everyone, [rng.choice(everyone)])):
            self.shifts[rank] += round(seconds * 1e9)
        self._write()
        return seconds

    def _write(self) -> None:
        with self.path.open("r+b" if self.path.exists() else "wb") as file:  # it is mapped
            file.write(array.array("q", self.shifts).tobytes())


# -- files --------------------------------------------------------------------------------------


def steps_on_disk(run: RunDir) -> list[int]:
    """Steps of the checkpoints in use, from old to new."""
    return sorted({entry.step for entry in checkpoint_names.saved(run.checkpoints)})


def damage(run: RunDir, kind: str, rng: random.Random) -> bool:
    """Damage the newest checkpoint; False where no older one could take its place."""
    paths = [entry.path for entry in checkpoint_names.saved(run.checkpoints)]
    if len(paths) < 2:
        return False
    older, newest = checkpoint.read(paths[-2]), checkpoint.read(paths[-1])
    state, manifest = newest.path / checkpoint_names.STATE, newest.path / checkpoint_names.MANIFEST
    best = run.checkpoints / checkpoint_names.BEST / checkpoint_names.best_state(newest.best or 0)
    if kind == "flip in the best model" and (newest.best == older.best or not best.exists()):
        return False
    match kind:
        case "flip in the header":
            _flip(state, rng.randrange(4096), rng)
        case "flip in a tensor":
            _flip(state, rng.randrange(4096, state.stat().st_size), rng)
        case "flip in the manifest":
            _flip(manifest, rng.randrange(manifest.stat().st_size), rng)
        case "flip in the best model":
            _flip(best, rng.randrange(best.stat().st_size), rng)
        case "truncated state":
            os.truncate(state, rng.randrange(state.stat().st_size))
        case "truncated manifest":
            os.truncate(manifest, rng.randrange(manifest.stat().st_size))
        case "state deleted":
            state.unlink()
        case "manifest deleted":
            manifest.unlink()
        case _:
            raise ValueError(kind)
    return True


def _flip(path: Path, where: int, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def move_times(directory: Path, rng: random.Random) -> bool:
    """Give every file a time within ten years of now: what a clock that was set would leave."""
    for path in directory.rglob("*"):
        then = time.time() + rng.uniform(-3e8, 3e8)
        os.utime(path, (then, then), follow_symlinks=False)
    return True


class SmallDisk:
    """A file system of its own in memory, which can be filled and made read-only (root only)."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(path)], check=True
        )

    def fill(self) -> None:
        """Take all the space there is."""
        with contextlib.suppress(OSError), (self.path / "ballast").open("wb", 0) as file:
            while True:
                file.write(bytes(2**16))

    def empty(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Not writable for the time being."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


def can_mount(scratch: Path) -> bool:
    """Whether this system lets us mount a file system."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    try:
        SmallDisk(scratch, 1).close()
    except subprocess.CalledProcessError:
        return False
    return True


def last_step(run: RunDir) -> int:
    """Step of the last evaluation on record."""
    return max((record["step"] for record in read_records(run.metrics)), default=0)
