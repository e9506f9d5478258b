"""Going back after a collapse: when, to where, with what changed, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glass_cnn.rollback import onset
from glass_cnn.settings import Analysis, Rollback
from hpc.rundir import read_json, read_records
from tests import tiny
from tests.conftest import MpiRun

ANALYSIS = Analysis(learned_accuracy=0.9, learned_evaluations=2)


def evaluations(accuracies: list[float], fractions: list[float] | None = None) -> list[dict]:
    """Records of 100 examples, half of them glass."""
    fractions = fractions or [0.5] * len(accuracies)
    return [
        {
            "iteration": number,
            "step": 10 * number,
            "validation_accuracy": accuracy,
            "predicted_glass_fraction": fraction,
            "validation_examples": 100,
            "validation_glass": 50,
            "finite": True,
        }
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
    records[1]["finite"] = False
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


def test_thresholds_belong_to_a_run_that_rolls_back() -> None:
    """They decide what it does; a run that does not roll back is the same under all of them."""
    other = {"analysis": {"learned_accuracy": 0.7}}
    rolls = {"train": {"rollback": {"enabled": True}}}
    assert tiny.settings().run_digest() == tiny.settings(**other).run_digest()
    assert tiny.settings(**rolls).run_digest() != tiny.settings(**rolls, **other).run_digest()
