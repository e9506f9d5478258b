"""Going back after a collapse: when, to where, with what changed, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glass_cnn.records import Evaluation
from glass_cnn.settings import Analysis
from glass_cnn.train_settings import Rollback
from glass_cnn.training.rollback import onset
from hpc.files import read_json
from hpc.records import read_records
from tests import tiny
from tests.conftest import MpiRun
from tests.plans import Plan, fault

ANALYSIS = Analysis(learned_accuracy=0.9, learned_evaluations=2)


def evaluations(accuracies: list[float], fractions: list[float] | None = None) -> list[Evaluation]:
    """Records of 100 examples, half of them glass."""
    fractions = fractions or [0.5] * len(accuracies)
    return [
        Evaluation(
            iteration=number,
            step=10 * number,
            learning_rate=1e-3,
            train_accuracy=accuracy,
            train_loss=1.0,
            validation_accuracy=accuracy,
            validation_loss=1.0,
            predicted_glass_fraction=fraction,
            validation_examples=100,
            validation_glass=50,
        )
        for number, (accuracy, fraction) in enumerate(
            zip(accuracies, fractions, strict=True), start=1
        )
    ]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([], None),
        ([0.5, 0.5, 0.5, 0.5], None),  # never learned: nothing to go back to
        ([0.95, 0.95, 0.97], None),
        ([0.95, 0.95, 0.5, 0.5], None),  # two of three evaluations at chance
        ([0.95, 0.95, 0.5, 0.5, 0.5], 3),
        ([0.95, 0.95, 0.5, 0.95, 0.5, 0.5, 0.5], 5),  # the streak that lasts counts
        ([0.95, 0.95, 0.5, 0.5, 0.5, 0.95], None),  # over again
        ([0.95, 0.5, 0.5, 0.5], None),  # once is not learned
    ],
)
def test_onset(accuracies: list[float], expected: int | None) -> None:
    assert onset(evaluations(accuracies), Rollback(enabled=True), ANALYSIS) == expected


def test_one_class_is_chance_whatever_its_accuracy() -> None:
    records = evaluations([0.95, 0.95, 0.8, 0.8, 0.8], [0.5, 0.5, 1.0, 0.0, 1.0])
    assert onset(records, Rollback(enabled=True), ANALYSIS) == 3


def test_a_loss_that_is_not_finite_counts_at_once() -> None:
    records = evaluations([0.5, 0.5])
    records[1].finite = False
    assert onset(records, Rollback(enabled=True), ANALYSIS) == 2


# A rate of 3 after the first evaluation above one half ends every run in one class.
COLLAPSING: dict[str, Any] = {
    "analysis": {"learned_accuracy": 0.5, "learned_evaluations": 1, "chance_sigmas": 0},
    "checkpoint": {"every_iterations": 1},
    "train": {
        "iterations": 16,
        "learning_rate": {
            "kind": "threshold",
            "initial": 1e-3,
            "levels": [{"above": 0.5, "rate": 3.0}],
        },
        "rollback": {
            "enabled": True,
            "back_iterations": 1,
            "chance_evaluations": 2,
            "at_most": 1,
            "skip_steps": 7,
        },
    },
}


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_a_collapsed_run_goes_back(tmp_path: Path, tiny_logs: Path, mpirun: MpiRun) -> None:
    """Each action once; the records have no gap, no repeat, and say what was left behind."""
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    arms = {
        action: {"train.rollback.action": action}
        for action in ("skip", "lower_rate", "fresh_optimizer")
    }
    study = {"name": "back", "seeds": 1, "arms": arms}
    config = tiny.write_study(tmp_path / "back.yaml", tiny.tree(**COLLAPSING, study=study))
    for action in arms:
        done = mpirun(2, "jobs.train", config, action, "--logs", logs)
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = (logs / "back" / "runs").glob(f"{action}-*")
        metrics = read_records(run / "metrics.jsonl")
        assert [record["iteration"] for record in metrics] == list(range(1, 17))
        (event,) = [e for e in read_records(run / "events.jsonl") if e["event"] == "rollback"]
        assert event["action"] == action
        assert event["step"] <= (event["iteration"] - 1) * 3
        first_left = event["step"] // 3 + 1
        assert event["abandoned"][0]["iteration"] == first_left
        assert read_json(run / "result.json")["rollbacks"] == [event["iteration"]]
        left = {a["iteration"]: a["validation_loss"] for a in event["abandoned"]}
        redone = {r["iteration"]: r["validation_loss"] for r in metrics}
        assert any(redone[i] != loss for i, loss in left.items()), "went the same way again"


@pytest.mark.slow
@pytest.mark.requires("mpi")
def test_an_interruption_changes_no_rollback(
    tmp_path: Path, tiny_logs: Path, mpirun: MpiRun
) -> None:
    """Neither where it goes back to, nor whether it does, nor what becomes of it."""
    plan = Plan(tmp_path, tiny_logs, 1)

    def study(case: str, iterations: int = 16) -> None:
        change: dict[str, Any] = {
            "checkpoint": {"every_iterations": 2, "keep": 1},
            "train": {
                "iterations": iterations,
                "learning_rate": {"kind": "constant", "initial": 3e-5},  # never far from chance
                "rollback": {"back_iterations": 2, "chance_evaluations": 3},
            },
        }
        plan.study(case, **tiny.merge(COLLAPSING, change))

    study("undisturbed")
    plan.add("undisturbed")
    plan.carry_out(mpirun)
    wanted = plan.run("undisturbed")
    (back,) = [e for e in read_records(wanted.events) if e["event"] == "rollback"]
    first, goal, onset = back["step"], (back["iteration"] - 2) * 3, back["iteration"] * 3
    assert (first % 6, goal - first) == (0, 3), "the last regular checkpoint"
    seen = back["abandoned"][-1]["iteration"]

    # Stopped between the checkpoint that is gone back to and the onset, at every step.
    study("interrupted")
    for call in (first + 1, *[1] * (onset - first)):
        plan.add("interrupted", fault(0, "step", call, "SIGTERM"))
    plan.add("interrupted")

    # Killed when it was about to go back, after its last evaluation.
    for case in ("short", "killed"):
        study(case, iterations=seen)
    plan.add("short")

    # Nothing to go back to: the checkpoints before the onset are damaged.
    study("damaged")
    plan.add("damaged", fault(0, "step", onset - 1, "SIGTERM"))
    newest = f"checkpoints/step-{onset - 1:09}/manifest.json"
    files = f"$(ls checkpoints/step-*/manifest.json | grep -v {newest})"
    harm = f"truncate -s 9 {files} && [ -s {newest} ]"
    plan.shell("bash", "-c", f"cd '{plan.logs('damaged')}'/tiny/runs/* && {harm}")
    plan.add("damaged")

    plan.add("killed", fault(0, "go back", 1, "SIGKILL"))
    plan.carry_out(mpirun, code=None)
    plan.add("killed")
    plan.carry_out(mpirun)

    assert tiny.outcome(plan.run("interrupted")) == tiny.outcome(wanted)
    assert read_json(plan.run("short").result)["rollbacks"] == [back["iteration"]]
    assert tiny.outcome(plan.run("killed")) == tiny.outcome(plan.run("short"))
    assert plan.codes["damaged"] == [[75], [0]]
    events = [e["event"] for e in read_records(plan.run("damaged").events)]
    assert "rollback_impossible" in events
    assert "rollback" not in events


def test_thresholds_belong_to_a_run_that_rolls_back() -> None:
    """They decide what it does; a run that does not roll back is the same under all of them."""
    other = {"analysis": {"learned_accuracy": 0.7}}
    rolls = {"train": {"rollback": {"enabled": True}}}
    assert tiny.settings().run_digest() == tiny.settings(**other).run_digest()
    assert tiny.settings(**rolls).run_digest() != tiny.settings(**rolls, **other).run_digest()
