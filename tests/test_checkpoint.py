"""Checkpoints: saving in the background, retention, the optimal model, reading."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.checkpoint import InvalidCheckpoint, newest, read
from hpc.checkpoint_names import MANIFEST, STATE
from hpc.errors import StorageError
from tests.checkpoints import (
    IDENTITY,
    Directory,
    belongs,
    damage,
    fork,
    meta,
    state,
    wait,
)


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "checkpoints")


# -- save and read ------------------------------------------------------------------------------


def test_what_is_saved_comes_back(run: Directory) -> None:
    run.write(10)
    found = run.latest()
    assert (found.step, found.ranks, found.identity) == (10, 2, IDENTITY)
    assert belongs(found)
    assert run.events == []


def test_meta_comes_back_exactly(run: Directory) -> None:
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


def test_no_checkpoint_is_no_error(run: Directory) -> None:
    with run.open() as checkpoints:
        assert checkpoints.latest() is None
    assert newest(run.path / "nowhere") is None


def test_the_copy_is_taken_at_once(run: Directory) -> None:
    tensors = state(10)
    with run.open() as checkpoints:
        checkpoints.save(10, tensors, meta(10))
        for tensor in tensors.values():
            tensor[...] = -1
    assert belongs(run.latest())


def test_arrays_may_change_their_shapes(run: Directory) -> None:
    with run.open() as checkpoints:
        checkpoints.prepare(state(1))
        checkpoints.save(1, state(1), meta(1))
        checkpoints.save(2, state(2, size=7), meta(2))
    assert belongs(run.latest(), size=7)


def test_newest_is_by_step_not_by_clock(run: Directory) -> None:
    run.write(9, 100, 20, keep=9)
    for age, path in enumerate(reversed(run.kept())):
        os.utime(path, (age, age))
    assert run.latest().step == 100


def test_a_step_saved_again_replaces_the_first(run: Directory) -> None:
    with run.open() as checkpoints:
        for count in range(4):
            checkpoints.save(10, state(10), {"count": count})
            checkpoints.flush()
            assert len(run.kept()) == 1
    assert run.latest().meta == {"count": 3}


def test_same_state_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Directory(tmp_path / name).write(10)
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


def test_training_goes_on_while_the_writer_works(run: Directory) -> None:
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


def test_a_save_waits_for_the_one_before(run: Directory) -> None:
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


def test_an_interrupted_wait_leaves_the_snapshot_to_the_writer(run: Directory) -> None:
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
    run = Directory(tmp_path_factory.mktemp("run"))
    expected: set[int] = set()
    with run.open(keep=keep, milestone=lambda step: step % every == 0) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), meta(step))
            expected.add(step)
            recent = sorted(expected)[-keep:]
            expected = {s for s in expected if s in recent or s % every == 0}
    assert run.steps() == sorted(expected)
    assert run.latest().step == max(steps)


def test_nothing_is_removed_before_the_new_one_is_safe(run: Directory) -> None:
    run.write(10, keep=1)
    obstacle = run.path / ".tmp-step-000000020"
    with run.open(keep=1) as checkpoints:
        obstacle.write_text("in the way")
        checkpoints.save(20, state(20), meta(20))
        with pytest.raises(StorageError):
            checkpoints.flush()
    assert run.latest().step == 10


def test_keep_must_be_positive(run: Directory) -> None:
    with pytest.raises(ValueError, match="keep = 0"):
        run.open(keep=0)


def test_refused_ones_go_when_they_are_outlived(run: Directory) -> None:
    run.write(10, 20)
    damage(run.path / "step-000000020" / STATE, 4100)
    assert run.latest().step == 10
    run.write(30, keep=2)
    assert (run.path / "step-000000020.refused").exists()
    run.write(40, 50, keep=2)
    assert sorted(p.name for p in run.path.glob("step*")) == ["step-000000040", "step-000000050"]


def test_dropping_what_came_after_a_step(run: Directory) -> None:
    with run.open(keep=9) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state(step), meta(step))
        checkpoints.drop_after(10)
        assert run.steps() == [10]
        checkpoints.save(20, state(20), meta(20))
    assert run.steps() == [10, 20]


def test_going_back_and_taking_another_way(run: Directory) -> None:
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


def test_starting_over(run: Directory) -> None:
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


def test_best_is_replaced(run: Directory) -> None:
    with run.open(keep=2) as checkpoints:
        for step in (10, 20, 20, 30):
            run.save_with_best(checkpoints, step)
            checkpoints.flush()
            assert belongs(read(run.path / "best", IDENTITY))
            assert run.best_steps() == sorted({max(step - 10, 10), step})
    assert read(run.path / "best").step == 30


def test_the_best_up_to_now_is_waited_for(run: Directory) -> None:
    with run.open() as checkpoints:
        assert checkpoints.best() is None
        for step in (10, 20):
            run.save_with_best(checkpoints, step)
            found = checkpoints.best()
            assert found is not None
            assert found.step == step
            assert belongs(found)


def test_best_is_written_with_the_next_checkpoint_and_no_earlier(run: Directory) -> None:
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


def test_a_run_finds_the_best_model_of_the_checkpoint_it_returns_to(run: Directory) -> None:
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


def test_without_a_better_one_before_there_is_none(run: Directory) -> None:
    with run.open() as checkpoints:
        checkpoints.save(10, state(10), meta(10))
        run.save_with_best(checkpoints, 20)
        assert checkpoints.latest(at_most=10)
    with pytest.raises(InvalidCheckpoint, match=r"best .*manifest\.json is missing"):
        read(run.path / "best")
    assert run.latest().best == 20
    assert read(run.path / "best").step == 20


def test_going_back_and_dying_before_the_new_way_begins(run: Directory) -> None:
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
def test_a_checkpoint_whose_best_model_is_damaged_is_refused(
    run: Directory, part: str, how: str
) -> None:
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


def test_a_damaged_pointer_to_the_best_model_is_mended(run: Directory) -> None:
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
    run: Directory, after_end: Any, milestone: int | None, steps: list[int], best: list[int]
) -> None:
    with run.open(milestone=lambda step: step == milestone) as checkpoints:
        for step in (10, 20, 30):
            run.save_with_best(checkpoints, step)
        checkpoints.save(40, state(40), meta(40))
        checkpoints.retire(after_end)
    assert run.steps() == steps
    assert run.best_steps() == best
    assert read(run.path / "best", IDENTITY).step == 30


def test_best_may_be_replaced_while_it_is_read(run: Directory) -> None:
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


def test_the_documented_way_to_read_one_without_tensorflow(run: Directory) -> None:
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
