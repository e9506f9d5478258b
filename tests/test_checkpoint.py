from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc import checkpoint
from hpc.checkpoint import (
    Checkpoint,
    Checkpoints,
    DirectoryInUse,
    InvalidCheckpoint,
    NoValidCheckpoint,
    newest,
    read,
)
from hpc.config import DataError
from hpc.rundir import StorageError

IDENTITY = "0123456789abcdef" * 4
STATE, MANIFEST = checkpoint.STATE, checkpoint.MANIFEST


def state(step: int, size: int = 20) -> dict[str, np.ndarray]:
    """Arrays that tell the step they belong to."""
    weights = np.arange(size, dtype=np.float32) + step
    return {"model/w": weights, "adam/m": weights * 2, "count": np.asarray(step, np.int64)}


def meta(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 0.1 * step, "rate": 1e-5, "note": f"after {step}"}


def belongs(found: Checkpoint, size: int = 20) -> bool:
    """Whether a checkpoint is whole, and all its parts are of its own step."""
    wanted = state(found.step, size)
    return found.meta == meta(found.step) and all(
        np.array_equal(found.tensors[name], tensor) for name, tensor in wanted.items()
    )


class Run:
    """A directory of checkpoints with the events it reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []

    def open(self, **changes: Any) -> Checkpoints:
        defaults: dict[str, Any] = {"keep": 3, "milestone": None, "ranks": 2, "patience": 0.0}
        defaults |= {"on_event": self.events.append, "identity": IDENTITY}
        return Checkpoints(self.path, **(defaults | changes))

    def write(self, *steps: int, **changes: Any) -> None:
        with self.open(**changes) as checkpoints:
            for step in steps:
                checkpoints.save(step, state(step), meta(step))

    def steps(self) -> list[int]:
        return [json.loads((p / MANIFEST).read_text())["step"] for p in self.kept()]

    @staticmethod
    def save_with_best(checkpoints: Checkpoints, step: int) -> None:
        """A checkpoint at a step that was the best until then."""
        checkpoints.save_best(step, state(step), meta(step))
        checkpoints.save(step, state(step), meta(step))

    def best_steps(self) -> list[int]:
        """Steps of the best models on disk; asserts that there is nothing but them."""
        names = sorted(p.name for p in (self.path / "best").iterdir())
        steps = [int(name[9:18]) for name in names if name.startswith("manifest-")]
        assert len(names) == 2 * len(steps) + 1
        return steps

    def kept(self) -> list[Path]:
        return sorted(p for p in self.path.glob("step-*") if ".refused" not in p.name)

    def latest(self) -> Checkpoint:
        with self.open() as checkpoints:
            found = checkpoints.latest()
        assert found is not None
        return found

    def reasons(self) -> list[str]:
        return [e["reason"] for e in self.events if e["event"] == "checkpoint_refused"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints")


# -- save and read ------------------------------------------------------------------------------


def test_what_is_saved_comes_back(run: Run) -> None:
    run.write(10)
    found = run.latest()
    assert (found.step, found.ranks, found.identity) == (10, 2, IDENTITY)
    assert belongs(found)
    assert run.events == []


def test_meta_comes_back_exactly(run: Run) -> None:
    values = {
        "tenth": 0.1,
        "huge": 1e308,
        "big": 2**70,
        "none": None,
        "list": [1, [True]],
        "ü": "ä\n",
    }
    with run.open() as checkpoints:
        checkpoints.save(1, state(1), values)
    assert run.latest().meta == values


def test_no_checkpoint_is_no_error(run: Run) -> None:
    with run.open() as checkpoints:
        assert checkpoints.latest() is None
    assert newest(run.path / "nowhere") is None


def test_the_copy_is_taken_at_once(run: Run) -> None:
    tensors = state(10)
    with run.open() as checkpoints:
        checkpoints.save(10, tensors, meta(10))
        for tensor in tensors.values():
            tensor[...] = -1
    assert belongs(run.latest())


def test_arrays_may_change_their_shapes(run: Run) -> None:
    with run.open() as checkpoints:
        checkpoints.prepare(state(1))
        checkpoints.save(1, state(1), meta(1))
        checkpoints.save(2, state(2, size=7), meta(2))
    assert belongs(run.latest(), size=7)


def test_newest_is_by_step_not_by_clock(run: Run) -> None:
    run.write(9, 100, 20, keep=9)
    for age, path in enumerate(reversed(run.kept())):
        os.utime(path, (age, age))
    assert run.latest().step == 100


def test_a_step_saved_again_replaces_the_first(run: Run) -> None:
    with run.open() as checkpoints:
        for count in range(4):
            checkpoints.save(10, state(10), {"count": count})
            checkpoints.flush()
            assert len(run.kept()) == 1
    assert run.latest().meta == {"count": 3}


def test_same_state_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Run(tmp_path / name).write(10)
    for part in (STATE, MANIFEST):
        one, other = (tmp_path / name / "step-000000010" / part for name in "ab")
        assert one.read_bytes() == other.read_bytes()


# -- in the background --------------------------------------------------------------------------


class Gate:
    """A milestone rule that keeps the writer waiting."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, _: int) -> bool:
        self.reached.set()
        assert self.open.wait(30)
        return False


def test_training_goes_on_while_the_writer_works(run: Run) -> None:
    gate = Gate()
    with run.open(keep=1, milestone=gate) as checkpoints:
        checkpoints.save(1, state(1), meta(1))
        checkpoints.save(2, state(2), meta(2))
        assert gate.reached.wait(30)  # the writer now stands still; save has long returned
        checkpoints.check()
        assert run.steps() == [1, 2]
        gate.open.set()
        checkpoints.flush()
        assert run.steps() == [2]


def test_a_save_waits_for_the_one_before(run: Run) -> None:
    gate = Gate()
    with run.open(keep=1, milestone=gate) as checkpoints:
        checkpoints.save(1, state(1), meta(1))
        checkpoints.save(2, state(2), meta(2))
        assert gate.reached.wait(30)
        third = threading.Thread(target=checkpoints.save, args=(3, state(3), meta(3)))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        gate.open.set()
        third.join(30)
        assert not third.is_alive()


def test_an_interrupted_wait_leaves_the_snapshot_to_the_writer(run: Run) -> None:
    gate = Gate()

    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    with run.open(keep=1, milestone=gate) as checkpoints:
        checkpoints.save(1, state(1), meta(1))
        checkpoints.save(2, state(2), meta(2))
        assert gate.reached.wait(30)
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupt):
            checkpoints.save(3, state(3), meta(3))
        signal.signal(signal.SIGALRM, before)
        assert checkpoints._pending is not None
        gate.open.set()
    assert belongs(run.latest())


# -- retention ----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    keep=st.integers(1, 4),
    every=st.integers(1, 7),
)
def test_retention(
    steps: list[int], keep: int, every: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    expected: set[int] = set()
    with run.open(keep=keep, milestone=lambda step: step % every == 0) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), meta(step))
            expected.add(step)
            recent = sorted(expected)[-keep:]
            expected = {s for s in expected if s in recent or s % every == 0}
    assert run.steps() == sorted(expected)
    assert run.latest().step == max(steps)


def test_nothing_is_removed_before_the_new_one_is_safe(run: Run) -> None:
    run.write(10, keep=1)
    obstacle = run.path / ".tmp-step-000000020"
    with run.open(keep=1) as checkpoints:
        obstacle.write_text("in the way")
        checkpoints.save(20, state(20), meta(20))
        with pytest.raises(StorageError):
            checkpoints.flush()
    assert run.latest().step == 10


def test_keep_must_be_positive(run: Run) -> None:
    with pytest.raises(ValueError, match="keep = 0"):
        run.open(keep=0)


def test_refused_ones_go_when_they_are_outlived(run: Run) -> None:
    run.write(10, 20)
    damage(run.path / "step-000000020" / STATE, 4100)
    assert run.latest().step == 10
    run.write(30, keep=2)
    assert (run.path / "step-000000020.refused").exists()
    run.write(40, 50, keep=2)
    assert sorted(p.name for p in run.path.glob("step*")) == ["step-000000040", "step-000000050"]


def test_dropping_what_came_after_a_step(run: Run) -> None:
    with run.open(keep=9) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state(step), meta(step))
        checkpoints.drop_after(10)
        assert run.steps() == [10]
        checkpoints.save(20, state(20), meta(20))
    assert run.steps() == [10, 20]


def test_going_back_and_taking_another_way(run: Run) -> None:
    with run.open(keep=9) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state(step), meta(step))
        assert checkpoints.latest(at_most=9) is None
        found = checkpoints.latest(at_most=29)
        assert found is not None
        assert found.step == 20
        checkpoints.drop_after(found.step)
        checkpoints.save(found.step, found.tensors, {"rate_factor": 0.5})
    assert run.steps() == [10, 20]
    found = run.latest()
    assert found.meta == {"rate_factor": 0.5}
    assert np.array_equal(found.tensors["model/w"], state(20)["model/w"])


def test_starting_over(run: Run) -> None:
    run.write(10, 20)
    damage(run.path / "step-000000020" / MANIFEST, 50)
    assert run.latest().step == 10
    with run.open() as checkpoints:
        checkpoints.save_best(10, state(10), {})
        checkpoints.save(10, state(10), {})
        checkpoints.clear()
        assert [p.name for p in run.path.iterdir()] == [".lock"]
        checkpoints.save(10, state(10), {})
        assert not (run.path / "best").exists()
        checkpoints.clear()
        assert checkpoints.latest() is None


# -- the optimal model --------------------------------------------------------------------------


def test_best_is_replaced(run: Run) -> None:
    with run.open(keep=2) as checkpoints:
        for step in (10, 20, 20, 30):
            run.save_with_best(checkpoints, step)
            checkpoints.flush()
            assert belongs(read(run.path / "best", IDENTITY))
            assert run.best_steps() == sorted({max(step - 10, 10), step})
    assert read(run.path / "best").step == 30


def test_the_best_up_to_now_is_waited_for(run: Run) -> None:
    with run.open() as checkpoints:
        assert checkpoints.best() is None
        for step in (10, 20):
            run.save_with_best(checkpoints, step)
            found = checkpoints.best()
            assert found is not None
            assert found.step == step
            assert belongs(found)


def test_best_is_written_with_the_next_checkpoint_and_no_earlier(run: Run) -> None:
    with run.open() as checkpoints:
        tensors = state(10)
        for step in (8, 9, 10):
            tensors["model/w"][...] = state(step)["model/w"]
            checkpoints.save_best(step, {"model/w": tensors["model/w"]}, meta(step))
        tensors["model/w"][...] = -1
        checkpoints.flush()
        assert not (run.path / "best").exists()
        checkpoints.save(20, state(20), meta(20))
    best = read(run.path / "best", IDENTITY)
    assert (best.step, best.meta, best.best) == (10, meta(10), None)
    assert np.array_equal(best.tensors["model/w"], state(10)["model/w"])
    assert run.best_steps() == [10]
    assert run.latest().best == 10


def test_a_run_finds_the_best_model_of_the_checkpoint_it_returns_to(run: Run) -> None:
    with run.open(keep=2) as checkpoints:
        run.save_with_best(checkpoints, 10)
        checkpoints.save(20, state(20), meta(20))
        checkpoints.save_best(25, state(25), meta(25))
        checkpoints.save(30, state(30), meta(30))
    assert read(run.path / "best").step == 25
    damage(run.path / "step-000000030" / STATE, 4100)
    with run.open(keep=2) as checkpoints:
        found = checkpoints.latest()
        assert found is not None
        assert (found.step, found.best) == (20, 10)
        assert belongs(read(run.path / "best"))
        assert read(run.path / "best").step == 10
        checkpoints.save(30, state(30), meta(30))  # on this way it was never better
        checkpoints.flush()
        assert run.best_steps() == [10]
        run.save_with_best(checkpoints, 40)
    assert read(run.path / "best").step == 40
    assert run.best_steps() == [10, 40]


def test_without_a_better_one_before_there_is_none(run: Run) -> None:
    with run.open() as checkpoints:
        checkpoints.save(10, state(10), meta(10))
        run.save_with_best(checkpoints, 20)
        assert checkpoints.latest(at_most=10)
    with pytest.raises(InvalidCheckpoint, match=r"best .*manifest\.json is missing"):
        read(run.path / "best")
    assert run.latest().best == 20
    assert read(run.path / "best").step == 20


def test_going_back_and_dying_before_the_new_way_begins(run: Run) -> None:
    with run.open(keep=9) as checkpoints:
        run.save_with_best(checkpoints, 10)
        run.save_with_best(checkpoints, 20)
        checkpoints.save_best(25, state(25), meta(25))  # held, and of the way that is left
        found = checkpoints.latest(at_most=19)
        assert found is not None
        assert read(run.path / "best").step == found.best == 10
        if found.step == 10:
            checkpoints.save(10, state(10), meta(10))
    assert run.latest().best == 20
    assert read(run.path / "best").step == 20


@pytest.mark.parametrize("part", ["state-000000020.safetensors", "manifest-000000020.json"])
@pytest.mark.parametrize("how", ["flip", "remove"])
def test_a_checkpoint_whose_best_model_is_damaged_is_refused(run: Run, part: str, how: str) -> None:
    with run.open() as checkpoints:
        run.save_with_best(checkpoints, 10)
        run.save_with_best(checkpoints, 20)
    file = run.path / "best" / part
    file.unlink() if how == "remove" else damage(file, file.stat().st_size // 2)
    assert run.latest().step == 10
    (reason,) = run.reasons()
    assert reason.startswith(f"its best model: {part} is ")
    assert belongs(read(run.path / "best", IDENTITY))
    assert read(run.path / "best").step == 10


def test_a_damaged_pointer_to_the_best_model_is_mended(run: Run) -> None:
    with run.open() as checkpoints:
        run.save_with_best(checkpoints, 10)
    damage(run.path / "best" / MANIFEST, 30)
    assert run.latest().step == 10
    assert read(run.path / "best").step == 10
    assert run.events == []


# -- after the end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after_end", "milestone", "steps", "best"),
    [
        ("all", None, [20, 30, 40], [20, 30]),
        ("last", None, [40], [30]),
        ("best", None, [], [30]),
        ("last", 20, [20, 40], [20, 30]),
        ("best", 20, [20], [20, 30]),
    ],
)
def test_what_is_left_of_a_complete_run(
    run: Run, after_end: Any, milestone: int | None, steps: list[int], best: list[int]
) -> None:
    with run.open(milestone=lambda step: step == milestone) as checkpoints:
        for step in (10, 20, 30):
            run.save_with_best(checkpoints, step)
        checkpoints.save(40, state(40), meta(40))
        checkpoints.retire(after_end)
    assert run.steps() == steps
    assert run.best_steps() == best
    assert read(run.path / "best", IDENTITY).step == 30


def test_best_may_be_replaced_while_it_is_read(run: Run) -> None:
    def child() -> None:
        with run.open(keep=1) as checkpoints:
            run.save_with_best(checkpoints, 10)
            checkpoints.flush()
            todo = ["replace it"]

            def hook(event: str, args: tuple[Any, ...]) -> None:
                if event == "open" and "state-000000010" in str(args[0]) and todo:
                    todo.clear()  # the manifest was read, its state is about to be opened
                    run.save_with_best(checkpoints, 20)
                    checkpoints.flush()

            sys.addaudithook(hook)
            found = read(run.path / "best")
            assert not todo
            assert found.step == 20
            assert belongs(found)

    assert wait(fork(child)) == 0


# -- damage -------------------------------------------------------------------------------------


def damage(path: Path, where: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 1 << bit]))


def flips(path: Path, folder: Path, places: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """The flipped (byte, bit) that go unnoticed."""
    unnoticed = []
    original = path.read_bytes()
    for where, bit in places:
        damage(path, where, bit)
        with contextlib.suppress(InvalidCheckpoint):
            read(folder, IDENTITY)
            unnoticed.append((where, bit))
        damage(path, where, bit)
    assert path.read_bytes() == original
    return unnoticed


def test_every_flipped_bit_of_the_manifest_is_found(run: Run) -> None:
    run.write(10)
    folder = run.kept()[0]
    size = (folder / MANIFEST).stat().st_size
    assert flips(folder / MANIFEST, folder, itertools.product(range(size), range(8))) == []
    assert belongs(read(folder, IDENTITY))


def test_a_flipped_bit_in_every_byte_of_the_state_is_found(run: Run) -> None:
    run.write(10)
    folder = run.kept()[0]
    size = (folder / STATE).stat().st_size
    assert flips(folder / STATE, folder, ((at, at % 8) for at in range(size))) == []
    assert belongs(read(folder, IDENTITY))


@pytest.mark.parametrize("part", [STATE, MANIFEST])
def test_every_truncation_is_found(run: Run, part: str) -> None:
    run.write(10)
    folder = run.kept()[0]
    whole = (folder / part).read_bytes()
    for length in {0, 1, 7, 8, 9, *range(0, len(whole), 97), len(whole) - 1}:
        (folder / part).write_bytes(whole[:length])
        with pytest.raises(InvalidCheckpoint, match=part):
            read(folder)


def remove(part: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part).unlink()


def append(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / part).open("ab") as file:
            file.write(b"\0")

    return change


def flip(part: str, where: int) -> Callable[[Path], None]:
    return lambda folder: damage(folder / part, where)


def replace(part: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / part).write_text(text)

    return change


def take_from_other(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.copy(folder.with_name("step-000000010") / part, folder / part)

    return change


def be_a_copy(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-000000010"), folder)


def empty(folder: Path) -> None:
    for part in folder.iterdir():
        part.unlink()


def be_a_directory(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / part).unlink()
        (folder / part).mkdir()

    return change


def rewrite(**changes: Any) -> Callable[[Path], None]:
    """A manifest that is sound in itself, with other content."""

    def change(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text()) | changes
        del content["checksum"]
        (folder / MANIFEST).write_bytes(checkpoint._manifest_text(content))

    return change


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "header flipped": (flip(STATE, 3), f"{STATE} is damaged"),
    "padding flipped": (flip(STATE, 4000), f"{STATE} is damaged"),
    "tensor flipped": (flip(STATE, 4100), f"{STATE} is damaged between bytes 0 and"),
    "manifest flipped": (flip(MANIFEST, 40), f"{MANIFEST} is damaged"),
    "no state": (remove(STATE), f"{STATE} is missing"),
    "no manifest": (remove(MANIFEST), f"{MANIFEST} is missing"),
    "empty": (empty, f"{MANIFEST} is missing"),
    "state too long": (append(STATE), "bytes instead of"),
    "manifest too long": (append(MANIFEST), f"{MANIFEST} is damaged"),
    "state is a directory": (be_a_directory(STATE), STATE),
    "manifest is a directory": (be_a_directory(MANIFEST), MANIFEST),
    "state of another": (take_from_other(STATE), f"{STATE} is damaged"),
    "manifest of another": (take_from_other(MANIFEST), "holds step 10"),
    "renamed": (be_a_copy, "holds step 10: the directory was renamed"),
    "other settings": (rewrite(identity="f" * 64), "other settings"),
    "newer version": (
        rewrite(format=checkpoint.FORMAT + 1),
        f"newer version of this program .checkpoint format {checkpoint.FORMAT + 1}",
    ),
    "manifest too deep": (replace(MANIFEST, "[" * 10**5), f"{MANIFEST} is damaged"),
    "manifest a list": (replace(MANIFEST, "[]"), f"{MANIFEST} is damaged"),
}


@pytest.mark.parametrize("harm", HARM)
def test_the_next_older_one_is_used(run: Run, harm: str) -> None:
    run.write(10, 20)
    change, reason = HARM[harm]
    change(run.path / "step-000000020")
    found = run.latest()
    assert found.step == 10
    assert belongs(found)
    (event,) = run.events
    assert event["event"] == "checkpoint_refused"
    assert event["path"].endswith("step-000000020")
    assert re.search(reason, event["reason"])
    assert [p.name for p in run.path.glob("*.refused")] == ["step-000000020.refused"]
    assert run.latest().step == 10
    assert len(run.events) == 1  # marked: not looked at again
    run.write(20)
    assert run.latest().step == 20


def test_the_error_is_the_same_on_other_ranks(run: Run) -> None:
    with pytest.raises(InvalidCheckpoint, match="there is no such directory") as caught:
        read(run.path / "step-000000001")
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (str(sent), sent.path) == (str(caught.value), run.path / "step-000000001")


def test_none_valid_stops_the_run_until_told_otherwise(run: Run) -> None:
    run.write(10, 20)
    for folder in run.kept():
        damage(folder / STATE, 4100)
    for _ in range(2):  # the refusal is no way to a silent start from nothing
        with run.open() as checkpoints, pytest.raises(NoValidCheckpoint) as caught:
            checkpoints.latest()
        assert isinstance(caught.value, DataError)
        assert str(run.path) in str(caught.value)
        assert "step-000000020" in str(caught.value)
        assert "--start-over" in str(caught.value)
    with run.open() as checkpoints:
        checkpoints.clear()
        assert checkpoints.latest() is None


def test_reading_another_run_changes_nothing_there(run: Run) -> None:
    run.write(10, 20)
    found = newest(run.path)
    assert found is not None
    assert found.step == 20
    damage(run.path / "step-000000020" / STATE, 4100)
    with pytest.raises(
        InvalidCheckpoint, match=r"step-000000020 is no usable checkpoint: .*damaged"
    ):
        newest(run.path)
    refused: list[InvalidCheckpoint] = []
    found = newest(run.path, None, refused.append)
    assert found is not None
    assert found.step == 10
    assert len(refused) == 1
    assert run.steps() == [10, 20]


def test_a_copy_elsewhere_is_readable(run: Run, tmp_path: Path) -> None:
    run.write(10)
    shutil.copytree(run.kept()[0], tmp_path / "my favourite")
    assert belongs(read(tmp_path / "my favourite"))
    with pytest.raises(InvalidCheckpoint, match="no such directory"):
        read(tmp_path / "another")


def test_trouble_of_the_system_is_no_fault_of_the_checkpoint(run: Run) -> None:
    run.write(10)
    (folder,) = run.kept()

    def child() -> None:
        with run.open() as checkpoints:
            lowest = os.dup(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))
            with pytest.raises(StorageError, match="step-000000010: cannot be read: Too many open"):
                read(folder)
            with pytest.raises(StorageError, match="checkpoints: cannot be read: Too many open"):
                checkpoints.latest()

    assert wait(fork(child)) == 0
    assert run.steps() == [10]
    assert run.events == []


# -- storage that fails -------------------------------------------------------------------------


@pytest.mark.parametrize("notice", ["check", "flush", "save", "close"])
def test_a_failed_write_is_raised_once_at_the_next_call(run: Run, notice: str) -> None:
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
        run = Run(disk / "checkpoints")
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
        run = Run(disk / "checkpoints")
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


def test_a_best_model_that_could_not_be_written_is_written_later(run: Run) -> None:
    with run.open() as checkpoints:
        (run.path / "best").write_text("in the way")
        run.save_with_best(checkpoints, 10)
        with pytest.raises(StorageError, match="File exists"):
            checkpoints.flush()
        (run.path / "best").unlink()
        checkpoints.save(20, state(20), meta(20))
    assert run.latest().best == 10
    assert belongs(read(run.path / "best"))


def test_a_limit_on_file_size_is_reported(run: Run) -> None:
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


def test_too_little_memory_is_reported(run: Run) -> None:
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
        run = Run(disk / "checkpoints")
        run.write(10)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StorageError, match=r"\.lock: not writable.*LOGS=dir"):
            run.open()
        assert belongs(read(run.kept()[0], IDENTITY))
        assert newest(run.path) is not None


def test_a_file_in_the_directorys_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(StorageError, match="checkpoints: File exists"):
        Run(tmp_path / "checkpoints").open()


def test_a_directory_that_vanishes_is_reported(run: Run) -> None:
    with run.open() as checkpoints:
        shutil.rmtree(run.path)
        checkpoints.save(10, state(10), meta(10))
        with pytest.raises(StorageError, match="No such file"):
            checkpoints.flush()


# -- one writer ---------------------------------------------------------------------------------


def fork(action: Callable[[], None]) -> int:
    """Run `action` in a child; exit status 1 if it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of others do not matter here
        pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return pid


def wait(pid: int) -> int:
    """Exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_second_writer_is_refused_until_the_first_is_dead(run: Run) -> None:
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


def test_a_writer_about_to_end_is_waited_for(run: Run) -> None:
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


def test_a_file_system_without_locks_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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


def save_another(run: Run, checkpoints: Checkpoints) -> None:
    run.save_with_best(checkpoints, 20)
    checkpoints.flush()


def save_again(run: Run, checkpoints: Checkpoints) -> None:
    assert checkpoints.latest()
    checkpoints.save(10, state(10), meta(10))
    checkpoints.flush()


def refuse_one(run: Run, checkpoints: Checkpoints) -> None:
    shutil.copytree(run.kept()[0], run.path / "step-000000030")
    found = checkpoints.latest()
    assert found is not None


def go_back(run: Run, checkpoints: Checkpoints) -> None:
    run.save_with_best(checkpoints, 20)
    assert checkpoints.latest(at_most=10)
    checkpoints.drop_after(10)
    checkpoints.save(10, state(10), meta(10))
    checkpoints.flush()


def retire(run: Run, checkpoints: Checkpoints) -> None:
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
    tmp_path: Path, action: Callable[[Run, Checkpoints], None], keep: int, possible: set[int]
) -> None:
    before = Run(tmp_path / "before")
    with before.open() as checkpoints:
        before.save_with_best(checkpoints, 10)

    def child(run: Run, moment: int) -> Callable[[], None]:
        def act() -> None:
            die_at(moment)
            with run.open(keep=keep) as checkpoints:
                action(run, checkpoints)

        return act

    seen = set()
    for moment in itertools.count():
        run = Run(tmp_path / f"{moment}")
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


def begin(run: Run, checkpoints: Checkpoints) -> None:
    checkpoints.clear()
    run.save_with_best(checkpoints, 20)


@pytest.mark.parametrize(
    ("action", "keep"), [(begin, 1), (save_another, 1), (save_again, 1), (go_back, 2), (retire, 2)]
)
def test_everything_is_on_disk_before_it_counts(
    run: Run,
    action: Callable[[Run, Checkpoints], None],
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


def test_killed_at_random_while_saving_in_a_loop(run: Run, tmp_path: Path) -> None:
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


def test_the_documented_way_to_read_one_without_tensorflow(run: Run) -> None:
    with run.open() as checkpoints:
        run.save_with_best(checkpoints, 1230)
    text = (Path(__file__).parent.parent / "docs" / "restart.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for place in ("checkpoints/best", "checkpoints/step-000001230"):
        script = code.replace("checkpoints/best", place)
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=run.path.parent, capture_output=True, text=True
        )
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        assert lines[0] == "step 1230"
        assert "model/w float32 (20,)" in lines
