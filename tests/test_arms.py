"""What is estimated of a study's arms, against what its made-up runs did."""

from __future__ import annotations

from pathlib import Path

import pytest

from glass_cnn.analysis import arms, effects
from glass_cnn.analysis.arms import Estimates, estimate
from glass_cnn.analysis.table import aggregate
from hpc.records import append_record
from tests import synthetic

FATES: dict[str, list[str | None]] = {
    "a": ["permanent_collapse", "transient_collapse", "survived", "never_learned", "non_finite"],
    "b": ["survived", "permanent_collapse", "survived", "survived", None],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Estimates:
    """Two arms on five seeds; the last run of b has ended and is not complete."""
    changes = {name: {"train.l2": value} for name, value in (("a", 0.1), ("b", 0.2))}
    study = synthetic.study(seeds=5, arms=changes, train={"iterations": 60, "batch_size": 20})
    place = synthetic.directory(study, tmp_path_factory.mktemp("logs"))
    for run in study.runs:
        fate = FATES[run.point.label][run.seed]
        folder = synthetic.write_run(place, run, fate or "permanent_collapse", done=bool(fate))
        if (run.point.label, run.seed) == ("a", 2):
            append_record(folder.events, {"event": "rollback"})
            append_record(folder.events, {"event": "rollback"})
    return estimate(aggregate(study, place))


def test_only_complete_runs_count(found: Estimates) -> None:
    a, b = found.arms
    assert (found.complete, found.wanted) == (9, 10)
    assert (a.learned.k, a.learned.n, a.collapsed.k, a.collapsed.n) == (4, 5, 2, 4)
    assert (b.learned.k, b.learned.n, b.collapsed.k, b.collapsed.n) == (4, 4, 1, 4)
    assert a.outcomes == {str(fate): 1 for fate in FATES["a"]}
    assert b.states == {"complete": 4, "unfinished": 1}
    assert (a.rollbacks, b.rollbacks) == (2, 0)


def test_times_are_steps_from_learning_to_the_collapse_or_the_end(found: Estimates) -> None:
    a, b = found.arms
    # Made-up runs collapse at evaluation 40 of 60, lose their finite loss at 50; of 10 steps each.
    learned = 400 - a.times[0]
    assert 150 < learned < 350
    assert a.events == [True, True, False, False]
    ends = [400, 400, 600, 490]
    assert a.times == pytest.approx([end - learned for end in ends], abs=30)
    assert b.events == [False, True, False, False]
    times, values = a.censored
    assert times == [t for t, event in zip(a.times, a.events, strict=True) if not event]
    assert values == [0.5, 0.5]


def test_ends_tell_runs_that_never_learned_from_those_that_held(found: Estimates) -> None:
    a, b = found.arms
    assert [a.ends[seed][0] for seed in range(5)] == [True, True, False, None, False]
    assert [b.ends[seed][0] for seed in range(4)] == [False, True, False, False]
    assert 4 not in b.ends


def test_survivors_are_the_runs_that_survived(found: Estimates) -> None:
    a, b = found.arms
    assert (len(a.survivors), len(b.survivors)) == (1, 3)
    assert all(value is not None and value > 0.95 for value in a.survivors + b.survivors)
    assert (len(a.final), len(b.optimal)) == (5, 4)


def test_arms_are_paired_by_seed(found: Estimates) -> None:
    (pair,) = found.pairs
    assert (pair.a, pair.b, pair.pairs, pair.both_learned) == ("a", "b", 4, 3)
    assert (pair.only_a, pair.only_b, pair.both) == (1, 0, 1)
    assert pair.accuracy_difference < 0
    ((a, b, p, hazard),) = found.paces
    assert (a, b) == ("a", "b")
    lives = [[(arm.times, arm.events) for arm in found.arms]]
    assert p == found.log_rank == effects.log_rank(lives)
    assert hazard == effects.hazard_ratio(lives)
    assert found.factors == [], "two arms are compared as a pair"


def test_many_arms_are_not_compared_in_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "PAIRWISE_UP_TO", 2)
    study = synthetic.study(seeds=2, grid={"train.l2": [0.1, 0.2, 0.3]})
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run, "permanent_collapse" if run.seed else "survived")
    many = estimate(aggregate(study, place))
    assert (many.comparisons, many.pairs, many.paces) == ([], [], [])
    assert [each.factor.names for each in many.factors] == [("train.l2",)]
    assert many.log_rank is not None
