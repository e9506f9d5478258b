"""How often checkpoints come where failures are expected; see hpc/checkpoint_interval.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn.lineage import read_digests
from hpc.checkpoint_interval import Interval, best
from tests import tiny


@pytest.mark.parametrize(
    ("save", "between", "restart"),
    [(0.5, 3600.0, 30.0), (5.0, 86400.0, 120.0), (20.0, 600.0, 60.0), (0.01, 3600.0, 0.0)],
)
def test_no_other_interval_leaves_more_time_for_work(
    save: float, between: float, restart: float
) -> None:
    """Against the share of work of a million intervals."""
    interval = np.linspace(save, 50 * best(save, between, restart), 1_000_000)
    failed = interval / between * (restart + interval / 2)
    share = (interval - save) / (interval + failed)
    assert best(save, between, restart) == pytest.approx(interval[share.argmax()], rel=1e-3)


def test_one_is_due_when_the_best_interval_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    interval = Interval(3600.0)
    assert interval.due(), "nothing is known of its cost yet"
    interval.saved(0.4)
    interval.saved(0.6)
    wait = best(0.5, 3600.0, interval._restart)
    clock[0] += wait - 0.01
    assert not interval.due()
    clock[0] += 0.02
    assert interval.due()
    interval.saved(0.5)
    assert not interval.due()


def test_none_is_due_where_no_failures_are_expected() -> None:
    interval = Interval(None)
    assert not interval.due()
    interval.saved(0.1)
    assert not interval.due()


def test_a_run_with_more_checkpoints_is_the_same_run(
    mpirun: Callable[..., Any], tiny_logs: Path, tmp_path: Path
) -> None:
    found = []
    for hours in (None, 1e-9):
        root = tiny.share(tiny_logs, tmp_path / f"logs {hours}")
        kept = {"every_iterations": 4, "keep": 9, "after_end": "all"}
        tree = tiny.tree(checkpoint={**kept, "hours_between_failures": hours})
        config = tiny.write_study(root / "study.yaml", tree)
        done = mpirun(1, "jobs.train", config, "--logs", root)
        assert done.returncode == 0, done.stdout + done.stderr
        run = tiny.only_run(root)
        found.append((run.path.name, tiny.outcome(run)["result"]))
    digests = read_digests(run.digests)
    assert digests[0].step == 3, "the first evaluation, for nothing is known of the cost"
    assert [digest.step for digest in digests if digest.regular] == [12]
    assert len(list(run.checkpoints.glob("step-*"))) == len(digests) >= 2
    assert found[0] == found[1], "name, digest and chain"
