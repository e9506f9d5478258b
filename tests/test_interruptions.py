"""What a run's records tell of the time that it held and used (benchmarks/interruptions.py)."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.interruptions import times, useful_share
from glass_cnn.paths import RunDir
from hpc.records import append_record

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


def test_the_time_that_a_run_used_is_told_from_what_its_jobs_held(tmp_path: Path) -> None:
    """Five iterations of 2 s in two allocations: one of 11 s, stopped in the third, and one of 12.

    The wait in the queue is held by nobody.
    """
    run = RunDir(tmp_path)
    for event, at in (("job_start", 0), ("stopped", 10), ("requeue", 11), ("job_start", 100)):
        time = datetime.fromtimestamp(BEGAN + at, UTC).isoformat(timespec="seconds")
        append_record(run.events, {"event": event, "time": time})
    for step in (0, 25):
        append_record(run.provenance, {"resumed_step": step})
    # The first and the third have a start in them.
    for number, seconds in enumerate((5.0, 7.0, 15.0, 17.0, 19.0), start=1):
        append_record(run.metrics, {"step": 10 * number, "seconds": seconds})
    run.result.write_text("{}")
    os.utime(run.result, (BEGAN + 112, BEGAN + 112))
    took = times(run)
    assert (took.held, took.useful, took.jobs, took.iteration) == (23, 10, 2, 2)
    assert took.cost == 6.5


def test_the_share_of_an_hour_is_what_one_interruption_leaves_of_it() -> None:
    assert useful_share(0) == 100
    assert useful_share(36) == pytest.approx(99)
