"""Runs that are interrupted in every way end as if nothing had happened."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc.files import read_json
from hpc.records import read_records
from tests import tiny
from tests.plans import DRIVER, Fault, Plan, fault

# Many runs share an MPI start, in fixtures: these take minutes where cores are busy.

pytestmark = [pytest.mark.requires("mpi"), pytest.mark.slow, pytest.mark.timeout(1800)]
SIZES = (3, 1, 2)
"""in this order: a run that one leaves unfinished is finished by the next"""
WANTED = {1: "auto", 2: "auto", 3: "data"}
"""launch.division of so many ranks; on two of them auto takes rows"""
DIVISION = {1: "data", 2: "rows", 3: "data"}

# What happens to the runs that are compared with an undisturbed one: lists of faults, one a start.
# An iteration evaluates 41 examples in portions of 10 over all ranks: 5 calls on any number of
# ranks; the test of the final and of the best weights has 42 examples.


def disturbances(ranks: int) -> dict[str, list[Fault]]:
    """Cases: every signal, any rank, at step boundaries, in evaluations, while starting, ending."""
    last = ranks - 1
    rng = random.Random(ranks)
    signals = ["SIGUSR1", "SIGTERM", "SIGINT", "SIGUSR2"]
    scattered = [
        fault(rng.randrange(ranks), "step", rng.randint(1, 3), rng.choice(signals))
        for _ in range(3)
    ]
    return {
        "steps": scattered,
        "evaluation": [
            fault(last, "evaluate", 2, "SIGTERM"),
            fault(0, "evaluate", 6, "SIGUSR1"),
        ],
        "edges": [
            fault(last, "restore", 1, "SIGINT"),
            fault(0, "record", 2, "SIGTERM"),
            fault(last, "finish", 1, "SIGUSR1"),
            fault(0, "compare weights", 1, "SIGTERM"),
        ],
        "tests": [
            fault(0, "test the best", 1, "SIGTERM"),
            fault(last, "evaluate", 5, "SIGINT"),
            fault(0, "evaluate", 10, "SIGUSR2"),
        ],
    }


@pytest.fixture(scope="module")
def plans(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Plan]:
    """Everything that is compared between numbers of ranks; few MPI starts for many runs."""
    done: dict[int, Plan] = {}
    for before, ranks in zip((None, *SIZES), SIZES, strict=False):
        launch = {"division": WANTED[ranks]}
        place = tmp_path_factory.mktemp(f"ranks{ranks}-")
        plan = done[ranks] = Plan(place, tiny_logs, ranks, launch)
        plan.add("undisturbed")
        for case, faults in disturbances(ranks).items():
            for each in faults:
                plan.add(case, each)
            plan.add(case)
        plan.add("too late", fault(0, "write the result", 1, "SIGTERM"))
        plan.add("left", fault(0, "step", 8, "SIGTERM"))
        if before is not None:
            shutil.copytree(done[before].logs("left"), plan.logs("taken over"), symlinks=True)
            plan.study("taken over")
            plan.add("taken over")
        plan.add("killed", fault(ranks - 1, "step", 8, "SIGKILL"))
        plan.carry_out(mpirun, code=None)
        plan.add("killed", fault(-1, "evaluate", 2, "SIGKILL"))
        plan.carry_out(mpirun, code=None)
        plan.add("killed")
        plan.carry_out(mpirun)
    return done


every_size = pytest.mark.parametrize("ranks", SIZES)


@every_size
def test_interrupted_runs_end_with_the_same_bits(plans: dict[int, Plan], ranks: int) -> None:
    plan = plans[ranks]
    wanted = tiny.outcome(plan.run("undisturbed"))
    assert len(wanted["metrics"]) == 4
    for case, faults in disturbances(ranks).items():
        assert plan.codes[case] == [[75] * ranks] * len(faults) + [[0] * ranks], case
        assert tiny.outcome(plan.run(case)) == wanted, case
        result = read_json(plan.run(case).result)
        assert result["restarts"] == len(faults)


@every_size
def test_records_have_neither_gaps_nor_repeats(plans: dict[int, Plan], ranks: int) -> None:
    for case in ("undisturbed", *disturbances(ranks)):
        records = read_records(plans[ranks].run(case).metrics)
        assert [r["iteration"] for r in records] == [1, 2, 3, 4]
        assert [r["step"] for r in records] == [3, 6, 9, 12]
        assert [r["validation_examples"] for r in records] == [41] * 4
        seconds = [r["seconds"] for r in records]
        assert seconds == sorted(seconds)


@every_size
def test_each_start_says_where_it_began_and_why(plans: dict[int, Plan], ranks: int) -> None:
    plan = plans[ranks]
    for case, faults in disturbances(ranks).items():
        begins = read_records(plan.run(case).provenance)
        assert [b["ranks"] for b in begins] == [ranks] * (len(faults) + 1)
        assert begins[0]["reason"] == "new run"
        assert begins[0]["resumed_step"] == 0
        for each, begin in zip(faults, begins[1:], strict=True):
            assert begin["reason"] == f"resumed after {each['do']}"
            assert begin["versions"]["python"]
            assert begin["numerics"] == begins[0]["numerics"]
            assert begin["numerics"]["division"] == DIVISION[ranks]
            assert begin["numerics_changes"] == []
    steps = tiny.starts(plan.run("steps"))
    moved = [b - a for a, b in itertools.pairwise(steps)]
    assert moved == [each["call"] for each in disturbances(ranks)["steps"]]
    assert tiny.starts(plan.run("evaluation")) == [0, 3, 6]
    assert tiny.starts(plan.run("edges")) == [0, 0, 6, 12, 12]
    assert tiny.starts(plan.run("tests")) == [0, 12, 12, 12]


@every_size
def test_a_stop_during_the_last_writes_comes_too_late(plans: dict[int, Plan], ranks: int) -> None:
    plan = plans[ranks]
    assert plan.codes["too late"] == [[0] * ranks]
    run = plan.run("too late")
    assert tiny.outcome(run) == tiny.outcome(plan.run("undisturbed"))
    assert not run.events.exists(), "nothing was stopped"


@every_size
def test_undisturbed_records_are_what_the_design_says(plans: dict[int, Plan], ranks: int) -> None:
    run = plans[ranks].run("undisturbed")
    result, records = read_json(run.result), read_records(run.metrics)
    best = max(records, key=lambda r: r["validation_accuracy"])
    assert result["optimal"]["iteration"] == best["iteration"]
    assert result["optimal"]["validation_accuracy"] == best["validation_accuracy"]
    assert result["final"]["validation_accuracy"] == records[-1]["validation_accuracy"]
    assert result["final"]["iteration"] == 4
    assert (result["steps"], result["seed"], result["restarts"]) == (12, 0, 0)
    usage = result["usage"]
    assert usage["cores"] == ranks
    assert 0 < usage["processor_seconds"] <= 4 * usage["wall_seconds"] * ranks
    assert 50e6 < usage["peak_memory"] < 50e9
    assert re.fullmatch("[0-9a-f]{64}", result["weights_sha256"])
    assert result["examples"] == {"train": 196, "validation": 42, "test": 42}
    for point in ("optimal", "final"):
        hits = result[point]["test_accuracy"] * 42
        assert hits == pytest.approx(round(hits))
    for record in records:
        correct = record["validation_accuracy"] * 41
        assert correct == pytest.approx(round(correct), abs=1e-9)
        assert record["epoch"] == pytest.approx(record["step"] * 25 / 196)
        assert record["finite"] is True
        assert 0 <= record["train_accuracy"] <= 1
        above = [r["validation_accuracy"] > 0.5 for r in records[: record["iteration"] - 1]]
        assert record["learning_rate"] == (5e-4 if above and above[-1] else 1e-3)
    assert run.log.read_text().count("\niteration ") == 4
    assert len(list(run.tensorboard.glob("events.out.tfevents.*"))) == 1
    assert not list(run.heartbeats.iterdir())


def test_ranks_change_nothing_beyond_rounding(plans: dict[int, Plan]) -> None:
    alone, *others = (tiny.outcome(plans[n].run("undisturbed"))["metrics"] for n in (1, 2, 3))
    for metrics in others:
        assert_close(metrics, alone)


def assert_close(metrics: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for found, record in zip(metrics, wanted, strict=True):
        for key in ("train_loss", "validation_loss", "l2_loss"):
            assert found[key] == pytest.approx(record[key], rel=1e-2), key
        for key in ("iteration", "step", "epoch", "validation_examples", "validation_glass"):
            assert found[key] == record[key]


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 2)])
def test_a_run_goes_on_at_another_number_of_ranks(
    plans: dict[int, Plan], old: int, new: int
) -> None:
    run = plans[new].run("taken over")
    assert plans[old].codes["left"] == [[75] * old]
    assert plans[new].codes["taken over"] == [[0] * new]
    begins = read_records(run.provenance)
    assert [(b["ranks"], b["resumed_step"]) for b in begins] == [(old, 0), (new, 8)]
    (change,) = begins[1]["numerics_changes"]
    assert change["step"] == 8
    assert f"ranks {old}, now {new}" in change["what"]
    before, after = (tiny.outcome(plans[n].run("undisturbed"))["metrics"] for n in (old, new))
    found = tiny.outcome(run)["metrics"]
    assert found[:2] == before[:2]
    assert_close(found, after)


@every_size
def test_killed_runs_end_with_the_same_bits(plans: dict[int, Plan], ranks: int) -> None:
    """One rank at a step, then all of them within an evaluation."""
    plan = plans[ranks]
    assert plan.codes["killed"] == [[0] * ranks]
    run = plan.run("killed")
    assert tiny.outcome(run) == tiny.outcome(plan.run("undisturbed"))
    begins = read_records(run.provenance)
    assert len(begins) == 3
    reasons = {0: "begun again without a checkpoint", 6: "resumed after an end without notice"}
    for begin in begins[1:]:  # at 0 when the kill was faster than the checkpoint of step 6
        assert begin["reason"] == reasons[begin["resumed_step"]]


# A done run


def test_a_done_run_ends_at_once_and_nothing_changes(plans: dict[int, Plan]) -> None:
    root, config = plans[1].logs("undisturbed"), plans[1].place / "undisturbed.yaml"
    before = tiny.fingerprint(root / "tiny")
    command = [sys.executable, "-m", "jobs.train", str(config), "--logs", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DRIVER.parents[2])
    assert done.returncode == 0
    assert done.stdout.strip().endswith("complete; nothing to do.")
    assert done.stderr == ""
    assert tiny.fingerprint(root / "tiny") == before
