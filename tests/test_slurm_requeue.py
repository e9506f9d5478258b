"""Whether a batch job goes back into the queue, and what is written down of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc import requeue, slurm
from hpc.checkpoint_names import newest_step
from hpc.records import read_records
from hpc.requeue import JobState, decide
from hpc.slurm import SlurmError
from hpc.starts import Starts

RUNNING = JobState("RUNNING", run_seconds=100, limit_seconds=3600)
NEAR_LIMIT = JobState("RUNNING", run_seconds=3550, limit_seconds=3600)
PREEMPTED = JobState("RUNNING", run_seconds=100, limit_seconds=160, preempted=True)
OVER = JobState("COMPLETING", run_seconds=3601, limit_seconds=3600)


@pytest.mark.parametrize(
    ("status", "job", "facts", "reason"),
    [
        (75, PREEMPTED, {}, "preempted at step 40"),
        (75, NEAR_LIMIT, {"asked": True}, "time limit at step 40"),
        (75, RUNNING, {"asked": True}, "asked to stop at step 40"),
        (75, OVER, {"asked": True}, "time limit at step 40"),
        (75, JobState("RUNNING", 3420, 3600), {"asked": True}, "time limit at step 40"),
        (75, JobState("RUNNING", 3419, 3600), {"asked": True}, "asked to stop at step 40"),
        (143, PREEMPTED, {}, "preempted at step 40"),
        (137, RUNNING, {}, "ranks were killed (exit code 137) at step 40"),
        (
            135,
            RUNNING,
            {},
            "ranks were killed (exit code 135: a bus error, is /dev/shm there too small?) "
            "at step 40",
        ),
        (75, JobState("RUNNING", None, 3600), {"asked": True}, "asked to stop at step 40"),
        (255, RUNNING, {}, "ranks were killed (exit code 255) at step 40"),
        (75, JobState("RUNNING", 10, None), {"asked": True}, "asked to stop at step 40"),
        (75, RUNNING, {"step": None}, "asked to stop"),
    ],
)
def test_goes_back_into_the_queue(
    status: int, job: JobState, facts: dict[str, Any], reason: str
) -> None:
    decision = decide(status, job, **{"step": 40, **facts})
    assert (decision.requeue, decision.reason) == (True, reason)


@pytest.mark.parametrize(
    ("status", "job", "facts", "reason"),
    [
        (78, RUNNING, {}, "bad configuration"),
        (65, RUNNING, {}, "bad data"),
        (70, RUNNING, {}, "internal error"),
        (1, RUNNING, {}, "exit code 1"),
        (78, PREEMPTED, {"asked": True}, "bad configuration"),
        (75, RUNNING, {"cancelled": True}, "make cancel"),
        (75, JobState("CANCELLED", 100, 3600), {}, "CANCELLED"),
        (75, JobState("COMPLETING", 100, 3600), {}, "COMPLETING"),
        (75, JobState("PENDING"), {}, "requeued"),
        (75, None, {}, "submit again"),
        (75, PREEMPTED, {"spent": "started often enough"}, "started often enough"),
        (137, RUNNING, {"spent": "started often enough"}, "started often enough"),
    ],
)
def test_stays_out_of_the_queue(
    status: int, job: JobState | None, facts: dict[str, Any], reason: str
) -> None:
    decision = decide(status, job, **{"step": 40, **facts})
    assert not decision.requeue
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("starts", "returns", "step", "reason"),
    [
        ([0], 9, 40, ""),
        ([0], 10, 40, "requeued 10 times already (max_requeues); submit again"),
        ([0, 20], 1, 40, ""),
        ([20, 40], 1, 40, ""),
        ([0, 40, 40], 2, 40, "two starts in a row made no progress beyond step 40"),
        ([0, 0], 1, 0, "two starts in a row made no progress beyond step 0"),
        ([0, 0], 1, None, ""),
    ],
)
def test_a_job_starts_a_task_as_long_as_it_gets_on(
    tmp_path: Path, starts: list[int], returns: int, step: int | None, reason: str
) -> None:
    """By the events beside its log; those of another job and of another task do not count."""
    mine = Starts("7", "r", tmp_path / "output.log")
    for other in (Starts("8", "r", mine.log), Starts("7", "s", mine.log)):
        other.write("job_start", 40)
        other.write("requeue", 40)
    for begun in starts:
        mine.write("job_start", begun)
    for _ in range(returns):
        mine.write("requeue", 40)
    assert mine.used_up(10, step) == reason


def test_newest_step_counts_only_checkpoints_in_use(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "none") == 0
    for name in ("step-000000100", "step-000000200.1", "step-000000300.refused", "best", ".tmp-x"):
        (tmp_path / name).mkdir()
    assert newest_step(tmp_path) == 200


def test_starts_and_decisions_are_recorded_with_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # inside some containers there is no scontrol
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    (tmp_path / "checkpoints" / "step-000000040").mkdir(parents=True)
    log = tmp_path / "output.log"
    words = ["--job", "7_3", "--name", "r", "--log", str(log)]
    words += ["--checkpoints", str(tmp_path / "checkpoints")]
    assert requeue.main(["begin", *words, "--ranks", "2"]) == 0
    assert requeue.main(["end", *words, "--status", "75", "--asked", "USR2"]) == 0
    assert requeue.main(["begin", *words, "--ranks", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "job 7_3, restart 0: r on n[1-2], 2 ranks, from step 40; first start" in said[0]
    assert "no requeue: Slurm cannot be asked from here" in said[1]
    assert said[2].endswith("Slurm cannot be asked from here; submit again to go on")
    records = read_records(tmp_path / "events.jsonl")
    assert [r["event"] for r in records] == ["job_start", "no_requeue", "job_start"]
    assert {r["job"] for r in records} == {"7_3"}
    assert [r["step"] for r in records] == [40, 40, 40]


SCONTROL = """#!/bin/sh
cd "$(dirname "$0")" || exit
if rm "busy-$1" 2>/dev/null; then echo "Socket timed out on send/recv" >&2; exit 1; fi
[ "$1" = requeue ] || exec cat job
echo "$2" >>requeued
mv after job 2>/dev/null
[ -e works ] || { echo "slurm_requeue: Requested operation is presently disabled" >&2; exit 1; }
"""


def job_line(state: str, preempted: str = "None") -> str:
    """What `scontrol --oneliner show job` says."""
    return (
        f"JobId=7 JobName=a b JobState={state} Reason=None Requeue=1 Restarts=0 RunTime=00:01:40 "
        f"TimeLimit=01:00:00 PreemptTime={preempted} StartTime=2026-01-02T03:04:05\n"
    )


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """`ended(name)`: a start of a task of job 7, its end with 75, and the records of both.

    Against a program that answers as scontrol does, from the file `job`; requeueing fails unless
    there is a file `works`, and leads to the state in the file `after`.
    """
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "job").write_text(job_line("RUNNING"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def end(name: str, *more: str) -> list[dict[str, Any]]:
        words = ["--job", "7", "--name", name, "--log", str(tmp_path / "output.log"), *more]
        requeue.main(["begin", *words])
        requeue.main(["end", *words, "--status", "75", "--asked", "USR2"])
        return read_records(tmp_path / "events.jsonl")[-2:]

    return end


def test_a_job_requeues_itself_as_often_as_it_may(
    ended: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    (tmp_path / "works").touch()
    (tmp_path / "job").write_text(job_line("RUNNING", "2026-01-02T03:05:05"))
    assert ended("a", "--bound", "1")[-1]["reason"] == "preempted"
    (tmp_path / "job").write_text(job_line("RUNNING"))
    assert ended("b", "--bound", "1")[-1]["reason"] == "asked to stop", "another task"
    last = ended("a", "--bound", "1")
    assert [record["event"] for record in last] == ["job_start", "no_requeue"]
    assert last[0]["reason"] == "preempted", "why the last start ended"
    assert last[1]["reason"] == "requeued 1 time already (max_requeues); submit again"
    assert (tmp_path / "requeued").read_text() == "7\n7\n"


@pytest.mark.parametrize("state", ["PENDING", "CANCELLED"])
def test_a_requeue_that_fails_is_no_error_where_slurm_was_faster(
    ended: Callable[..., list[dict[str, Any]]], tmp_path: Path, state: str
) -> None:
    (tmp_path / "after").write_text(job_line(state))
    if state == "PENDING":
        assert ended("a")[-1]["event"] == "requeue"
        return
    with pytest.raises(SlurmError, match="presently disabled"):
        ended("a")
    last = read_records(tmp_path / "events.jsonl")[-1]
    assert last["event"] == "no_requeue"
    assert "presently disabled" in last["reason"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("JobId=7 JobState=RUNNING RunTime=INVALID TimeLimit=01:00:00", "asked to stop"),
        ("JobId=7 JobState=RUNNING RunTime=00:59:00 TimeLimit=UNLIMITED", "asked to stop"),
        ("JobId=7 JobState=RUNNING RunTime=00:59:00 TimeLimit=Partition_Limit", "asked to stop"),
        ("JobId=7 JobState=RUNNING RunTime=00:59:30 TimeLimit=01:00:00", "time limit"),
        ("JobId=7 JobState=RUNNING PreemptTime=(null)", "asked to stop"),
        ("JobId=7 JobState=RUNNING PreemptTime=N/A SomethingNew=(a=b)", "asked to stop"),
        ("Mind the gap!\nJobId=7 JobState=RUNNING Comment=/x/ JobState=FAILED", "asked to stop"),
        ("JobId=7 JobState=ZEN", "Slurm ends this job itself (ZEN): cancelled, or requeued"),
        ("JobId=7 JobState=", "Slurm cannot be asked from here; submit again to go on"),
        ("", "Slurm cannot be asked from here; submit again to go on"),
        ("slurm_load_jobs error", "Slurm cannot be asked from here; submit again to go on"),
    ],
)
def test_what_slurm_does_not_say_of_a_job_is_unknown(
    ended: Callable[..., list[dict[str, Any]]], tmp_path: Path, said: str, reason: str
) -> None:
    (tmp_path / "works").touch()
    (tmp_path / "job").write_text(said + "\n")
    assert ended("a")[-1]["reason"] == reason


@pytest.mark.parametrize("count", ["", "many", "2"])
def test_a_number_of_restarts_that_is_none_counts_as_none(
    ended: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: str,
) -> None:
    (tmp_path / "works").touch()
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    assert ended("a")[0]["restart"] == (2 if count == "2" else 0)


def test_a_job_is_asked_for_again_when_slurm_is_busy(
    ended: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PAUSE", 0.0)
    (tmp_path / "works").touch()
    for action in ("--oneliner", "requeue"):
        (tmp_path / f"busy-{action}").touch()
    assert ended("a")[-1]["event"] == "requeue"
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert list(tmp_path.glob("busy-*")) == []
