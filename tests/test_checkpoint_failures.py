"""Storage that fails, two writers, and processes that die: no moment without a checkpoint."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc.checkpoint import DirectoryInUse, newest, read
from hpc.checkpoint_writer import Checkpoints
from hpc.errors import StorageError
from tests.checkpoints import IDENTITY, Directory, belongs, fork, meta, state, wait

pytestmark = pytest.mark.lasting


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "checkpoints")


# -- storage that fails -------------------------------------------------------------------------


@pytest.mark.parametrize("notice", ["check", "flush", "save", "close"])
def test_a_failed_write_is_raised_once_at_the_next_call(run: Directory, notice: str) -> None:
    run.write(10)
    checkpoints = run.open()
    obstacle = run.path / ".tmp-step-000000020"
    obstacle.write_text("in the way")
    checkpoints.save(20, state(20), meta(20))
    with contextlib.suppress(TimeoutError):
        assert checkpoints._pending is not None
        checkpoints._pending.exception(30)
    with pytest.raises(StorageError, match="File exists"):
        checkpoints.save(30, state(30), meta(30)) if notice == "save" else getattr(
            checkpoints, notice
        )()
    obstacle.unlink()
    if notice != "close":
        checkpoints.save(30, state(30), meta(30))
        checkpoints.close()
    assert run.latest().step == (10 if notice == "close" else 30)


@contextlib.contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """A tmpfs of 1 MB where the system lets us mount one."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", *options, "none", str(path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with mounted(tmp_path / "small") as disk:
        run = Directory(disk / "checkpoints")
        with run.open() as checkpoints:
            checkpoints.save(10, state(10, size=100_000), meta(10))
            checkpoints.flush()
            checkpoints.save(20, state(20, size=100_000), meta(20))
            with pytest.raises(StorageError, match=r"checkpoints: no space left.*LOGS=dir"):
                checkpoints.flush()
            assert sorted(p.name for p in run.path.iterdir()) == [".lock", "step-000000010"]
            checkpoints.save(30, state(30, size=20_000), meta(30))
        assert belongs(run.latest(), size=20_000)


def test_a_full_disk_keeps_the_best_model(tmp_path: Path) -> None:
    with mounted(tmp_path / "small") as disk:
        run = Directory(disk / "checkpoints")
        with run.open() as checkpoints:
            checkpoints.save_best(10, state(10, size=100_000), meta(10))
            checkpoints.save(10, state(10), meta(10))
            checkpoints.flush()
            checkpoints.save_best(20, state(20, size=100_000), meta(20))
            checkpoints.save(20, state(20), meta(20))
            with pytest.raises(StorageError, match="no space left"):
                checkpoints.flush()
            assert run.steps() == [10]  # none without its best model
            assert belongs(read(run.path / "best"), size=100_000)
            assert run.best_steps() == [10]
            checkpoints.save_best(30, state(30), meta(30))
            checkpoints.save(30, state(30), meta(30))
        assert run.latest().step == read(run.path / "best").step == 30


def test_a_best_model_that_could_not_be_written_is_written_later(run: Directory) -> None:
    with run.open() as checkpoints:
        (run.path / "best").write_text("in the way")
        run.save_with_best(checkpoints, 10)
        with pytest.raises(StorageError, match="File exists"):
            checkpoints.flush()
        (run.path / "best").unlink()
        checkpoints.save(20, state(20), meta(20))
    assert run.latest().best == 10
    assert belongs(read(run.path / "best"))


def test_a_limit_on_file_size_is_reported(run: Directory) -> None:
    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with run.open() as checkpoints:
            checkpoints.save(10, state(10), meta(10))
            checkpoints.flush()
            checkpoints.save(20, state(20, size=100_000), meta(20))
            with pytest.raises(StorageError, match="File too large"):
                checkpoints.flush()

    assert wait(fork(child)) == 0
    assert run.steps() == [10]
    assert belongs(run.latest())


def test_too_little_memory_is_reported(run: Directory) -> None:
    def child() -> None:
        huge = np.broadcast_to(np.float32(1), (10**10,))  # an array that takes no memory itself
        resource.setrlimit(resource.RLIMIT_AS, (20 * 10**9, 20 * 10**9))
        with run.open() as checkpoints:
            with pytest.raises(StorageError, match=r"no memory .* \(40000 MB\)"):
                checkpoints.save(10, {"huge": huge}, {})
            checkpoints.prepare({"huge": huge})
            with pytest.raises(StorageError, match="no memory"):
                checkpoints.flush()

    assert wait(fork(child)) == 0


def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk") as disk:
        run = Directory(disk / "checkpoints")
        run.write(10)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StorageError, match=r"\.lock: not writable.*LOGS=dir"):
            run.open()
        assert belongs(read(run.kept()[0], IDENTITY))
        assert newest(run.path) is not None


def test_a_file_in_the_directorys_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(StorageError, match="checkpoints: File exists"):
        Directory(tmp_path / "checkpoints").open()


def test_a_directory_that_vanishes_is_reported(run: Directory) -> None:
    with run.open() as checkpoints:
        shutil.rmtree(run.path)
        checkpoints.save(10, state(10), meta(10))
        with pytest.raises(StorageError, match="No such file"):
            checkpoints.flush()


# -- one writer ---------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_is_dead(run: Directory) -> None:
    ready, tell = os.pipe()

    def child() -> None:
        with run.open():
            os.write(tell, b"x")
            time.sleep(60)

    pid = fork(child)
    try:
        os.read(ready, 1)
        with pytest.raises(DirectoryInUse, match=f"process {pid} on .* is writing this run"):
            run.open()
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        os.close(ready)
        os.close(tell)
    run.write(10)
    assert run.steps() == [10]


def test_a_writer_about_to_end_is_waited_for(run: Directory) -> None:
    ready, tell = os.pipe()

    def child() -> None:
        with run.open():
            os.write(tell, b"x")
            time.sleep(0.2)

    pid = fork(child)
    os.read(ready, 1)
    run.open(patience=30.0).close()
    assert wait(pid) == 0
    os.close(ready)
    os.close(tell)


def test_a_file_system_without_locks_is_reported(
    run: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    run.write(10)
    assert [event["event"] for event in run.events] == ["checkpoint_lock_unsupported"]
    assert run.steps() == [10]


# -- crashes ------------------------------------------------------------------------------------

# What Python tells its audit hooks of: each is a moment between two changes on disk.
MOMENTS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}


def die_at(moment: int) -> None:
    """From now on, be killed at the given file operation of this process."""
    count = itertools.count()

    def hook(event: str, _: object) -> None:
        if event in MOMENTS and next(count) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def save_another(run: Directory, checkpoints: Checkpoints) -> None:
    run.save_with_best(checkpoints, 20)
    checkpoints.flush()


def save_again(run: Directory, checkpoints: Checkpoints) -> None:
    assert checkpoints.latest()
    checkpoints.save(10, state(10), meta(10))
    checkpoints.flush()


def refuse_one(run: Directory, checkpoints: Checkpoints) -> None:
    shutil.copytree(run.kept()[0], run.path / "step-000000030")
    found = checkpoints.latest()
    assert found is not None


def go_back(run: Directory, checkpoints: Checkpoints) -> None:
    run.save_with_best(checkpoints, 20)
    assert checkpoints.latest(at_most=10)
    checkpoints.drop_after(10)
    checkpoints.save(10, state(10), meta(10))
    checkpoints.flush()


def retire(run: Directory, checkpoints: Checkpoints) -> None:
    run.save_with_best(checkpoints, 20)
    checkpoints.retire("last")


@pytest.mark.parametrize(
    ("action", "keep", "possible"),
    [
        (save_another, 1, {10, 20}),
        (save_again, 1, {10}),
        (refuse_one, 1, {10}),
        (go_back, 2, {10, 20}),
        (retire, 2, {10, 20}),
    ],
)
def test_killed_between_any_two_file_operations(
    tmp_path: Path, action: Callable[[Directory, Checkpoints], None], keep: int, possible: set[int]
) -> None:
    before = Directory(tmp_path / "before")
    with before.open() as checkpoints:
        before.save_with_best(checkpoints, 10)

    def child(run: Directory, moment: int) -> Callable[[], None]:
        def act() -> None:
            die_at(moment)
            with run.open(keep=keep) as checkpoints:
                action(run, checkpoints)

        return act

    seen = set()
    for moment in itertools.count():
        run = Directory(tmp_path / f"{moment}")
        shutil.copytree(before.path, run.path)
        status = wait(fork(child(run, moment)))
        assert status in (0, -signal.SIGKILL)
        found = run.latest()
        assert belongs(found)
        seen.add(found.step)
        best = read(run.path / "best", IDENTITY)
        assert best.step == found.best == found.step  # each was the best until then
        assert belongs(best)
        names = {p.name for p in run.path.rglob("*")}
        assert not any(name.startswith(".tmp") or ".json." in name for name in names)
        assert set(run.best_steps()) <= {10, 20}
        run.write(40)
        assert run.latest().step == 40
        if status == 0:
            break
    assert moment > 5
    assert seen == possible


def watch_durability(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """From now on nothing gets its final name, and nothing older goes, before it is on disk.

    A kill leaves the page cache alone, so only the order of the calls can tell what a power cut
    would leave. Returns the directories with names that are not on disk yet, up to date.
    """
    synced: set[int] = set()
    loose: set[str] = set()
    fsync = os.fsync

    def noticed(descriptor: int) -> None:
        fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        loose.discard(path)
        synced.add(os.fstat(descriptor).st_ino)

    def hook(event: str, args: Any) -> None:
        if event == "os.rename":
            source, target = Path(args[0]), Path(args[1])
            files = (
                [p for p in source.glob("*") if p.name != ".lock"] if source.is_dir() else [source]
            )
            if target.name.startswith(".tmp-removed"):
                assert not loose, f"{source} goes before {loose} is on disk"
            else:
                assert {p.stat().st_ino for p in files} <= synced, f"{source} is not on disk"
                assert not {str(source), str(target.parent)} & loose, f"{target} counts too soon"
            loose.add(str(target.parent))
        elif event == "os.mkdir" and not Path(args[0]).name.startswith(".tmp"):
            loose.add(str(Path(args[0]).parent))
        elif event == "os.remove" and Path(args[0]).is_absolute():
            assert not loose, f"{args[0]} goes before {loose} is on disk"

    monkeypatch.setattr(os, "fsync", noticed)
    sys.addaudithook(hook)
    return loose


def begin(run: Directory, checkpoints: Checkpoints) -> None:
    checkpoints.clear()
    run.save_with_best(checkpoints, 20)


@pytest.mark.parametrize(
    ("action", "keep"), [(begin, 1), (save_another, 1), (save_again, 1), (go_back, 2), (retire, 2)]
)
def test_everything_is_on_disk_before_it_counts(
    run: Directory,
    action: Callable[[Directory, Checkpoints], None],
    keep: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run.open() as checkpoints:
        run.save_with_best(checkpoints, 10)

    def child() -> None:
        loose = watch_durability(monkeypatch)
        with run.open(keep=keep) as checkpoints:
            action(run, checkpoints)
        assert not loose, f"names in {loose} are not on disk"

    assert wait(fork(child)) == 0


def test_killed_at_random_while_saving_in_a_loop(run: Directory, tmp_path: Path) -> None:
    size, acknowledged = 100_000, tmp_path / "acknowledged"
    acknowledged.write_text("0\n")
    moments = random.Random(4)

    def child() -> None:
        with run.open(keep=2) as checkpoints, acknowledged.open("a") as durable:
            found = checkpoints.latest()
            for step in itertools.count(found.step + 1 if found else 1):
                if step % 3 == 0:
                    checkpoints.save_best(step, state(step), meta(step))
                checkpoints.save(step, state(step, size), meta(step))
                if step % 3 == 0:
                    checkpoints.flush()
                    print(step, file=durable, flush=True)

    kills = reached = 0
    while kills < 40 or reached < 20:
        kills += 1
        pid = fork(child)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
        promised = int(acknowledged.read_text().split()[-1])
        with run.open() as checkpoints:
            found = checkpoints.latest()
        assert (found.step if found else 0) >= max(promised, reached)
        assert found is None or belongs(found, size)
        assert not list(run.path.glob(".tmp*"))
        if promised:
            best = read(run.path / "best", IDENTITY)
            assert found is not None
            assert best.step == found.best == found.step // 3 * 3
            assert belongs(best)
        reached = found.step if found else 0
    assert run.reasons() == []
