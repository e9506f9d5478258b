"""Copies of a run: one weight moves by one unit in the last place at its step, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.paths import RunDir
from glass_cnn.training.engine import Engine
from glass_cnn.training.rounding import move_if_due
from hpc import checkpoint
from hpc.files import read_json
from hpc.world import world
from tests import tiny
from tests.plans import Plan, fault

STEP = 6
"""updates before the weight moves; there is a checkpoint at this step"""
KEEP = {"every_iterations": 2, "keep": 9, "after_end": "all"}


# Which weight


@pytest.fixture(scope="module")
def engine(tensorflow: object) -> Engine:
    return Engine(tiny.settings(rounding={"copy": 3, "step": STEP}), world())


def changed(engine: Engine, step: int) -> list[tuple[str, int, int]]:
    """Tensor and place of what moves before an update, and by how many units."""
    before = tiny.arrays(engine.snapshot())
    move_if_due(engine, step)
    found = []
    for name, now in tiny.arrays(engine.snapshot()).items():
        moved = now.view(np.int32).astype(np.int64) - before[name].view(np.int32)
        found += [(name, int(at), int(moved.flat[at])) for at in np.flatnonzero(moved)]
    return found


def test_one_weight_moves_by_one_unit_at_its_step_and_at_no_other(engine: Engine) -> None:
    assert changed(engine, STEP - 1) == changed(engine, STEP + 1) == []
    ((name, place, units),) = changed(engine, STEP)
    assert name in ("model/conv1/weights", "model/conv2/weights", "model/output/weights")
    assert abs(units) == 1
    again = [(n, p) for n, p, _ in changed(engine, STEP)]
    assert again == [(name, place)], "the same one wherever the run stands"


def test_copies_and_seeds_move_other_weights(tensorflow: object) -> None:
    found = set()
    for seed, copy in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]:
        settings = tiny.settings(seed=seed, rounding={"copy": copy, "step": 0})
        found.add(tuple(changed(Engine(settings, world()), 0)[0]))
    assert len(found) == 5


def test_a_run_that_is_no_copy_is_left_alone(tensorflow: object) -> None:
    assert changed(Engine(tiny.settings(), world()), 0) == []


# Whole trainings


@pytest.fixture(scope="module")
def plans(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Plan]:
    """On one and two ranks a run, a copy of it, and that copy stopped right before and after the
    weight has moved."""
    done = {}
    for ranks in (1, 2):
        plan = done[ranks] = Plan(tmp_path_factory.mktemp(f"copies{ranks}-"), tiny_logs, ranks)
        for case in ("straight", "stopped"):
            copies = {"count": 2, "step": STEP}
            section = {"name": "tiny", "seeds": 1, "copies": copies}
            plan.study(case, study=section, checkpoint=KEEP)
        plan.add("straight", None, "base-s0-")
        plan.add("straight", None, "base-s0c1-")
        for each in (fault(0, "evaluate", 6, "SIGTERM"), fault(0, "step", 1, "SIGUSR1"), None):
            plan.add("stopped", each, "base-s0c1-")
        plan.carry_out(mpirun)
    return done


def run(plan: Plan, case: str, which: str) -> RunDir:
    (path,) = (plan.logs(case) / "tiny" / "runs").glob(f"base-{which}-*")
    return RunDir(path)


def weights(place: RunDir, step: int) -> dict[str, np.ndarray]:
    return checkpoint.read(place.checkpoints / f"step-{step:09d}").tensors


trained = [pytest.mark.slow, pytest.mark.requires("mpi"), pytest.mark.timeout(600)]


@pytest.mark.parametrize("ranks", [pytest.param(n, marks=trained) for n in (1, 2)])
def test_a_copy_is_the_run_until_its_step_and_another_one_after_it(
    plans: dict[int, Plan], ranks: int
) -> None:
    own, copy = (run(plans[ranks], "straight", which) for which in ("s0", "s0c1"))
    until = (weights(own, STEP), weights(copy, STEP))
    assert all(np.array_equal(until[0][name], until[1][name]) for name in until[0])
    first, second = (tiny.outcome(place) for place in (own, copy))
    assert first["metrics"][:2] == second["metrics"][:2]
    assert first["result"]["weights_sha256"] != second["result"]["weights_sha256"]
    after = (weights(own, 12), weights(copy, 12))
    assert not all(np.array_equal(after[0][name], after[1][name]) for name in after[0])


@pytest.mark.parametrize("ranks", [pytest.param(n, marks=trained) for n in (1, 2)])
def test_a_copy_that_was_stopped_and_repeated_ends_with_the_same_bits(
    plans: dict[int, Plan], ranks: int
) -> None:
    plan = plans[ranks]
    assert plan.codes["stopped"] == [[75] * ranks, [75] * ranks, [0] * ranks]
    straight, stopped = (run(plan, case, "s0c1") for case in ("straight", "stopped"))
    assert tiny.starts(stopped) == [0, STEP, STEP + 1]
    assert tiny.outcome(stopped) == tiny.outcome(straight)
    assert read_json(stopped.result)["restarts"] == 2


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_the_same_weight_moves_on_any_number_of_ranks(plans: dict[int, Plan]) -> None:
    line = re.compile(r"^copy 1: before step 7 weight \d+ of \S+", re.MULTILINE)
    told = [
        line.findall(run(plan, case, "s0c1").log.read_text())
        for plan in plans.values()
        for case in ("straight", "stopped")
    ]
    assert told == [told[0]] * 4
    assert len(told[0]) == 1
