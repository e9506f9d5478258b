"""What Slurm's accounting says that runs took: sacct's answers, and their place in the table."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from glass_cnn.analysis.table import Aggregation, accounted, aggregate, write
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.report import tables
from glass_cnn.study import Study
from hpc import accounting, slurm
from hpc.accounting import Taken
from hpc.files import read_json, write_json
from hpc.records import Event, append_event
from tests import synthetic
from tests.slurm.pretend import Pretend

MIB = 1 << 20

# Two attempts of an array task, the first killed with its node; one that ran out of memory, and its
# requeue that waits; a job that was cancelled before it began; another user's banner between.
ANSWER = """\
Welcome to the cluster | maintenance on Monday | bring cake | and | tea
101_0|NODE_FAIL|3600|4|
101_0.batch|CANCELLED|3600|4|512M
101_0.0|CANCELLED by 0|3590|4|2.50G
101_0|COMPLETED|1800|4|
101_0.batch|COMPLETED|1800|4|1024K
101_0.extern|COMPLETED|1800|4|0
101_0.0|COMPLETED|1790|4|700.25M
101_1|OUT_OF_MEMORY|60|2|
101_1.batch|OUT_OF_MEMORY|60|2|5G
101_1|PENDING|0|2|
101_[2-9]|PENDING|0|2|
102|CANCELLED by 1000|0|0|
103|RUNNING|100|8|
103.0|RUNNING|100|8|
104|FAILED|Unknown|8|
104.batch|FAILED|Unknown|8|1G
"""


def test_every_attempt_of_a_job_is_counted_and_the_largest_of_its_steps() -> None:
    assert accounting.read(ANSWER) == {
        "101_0": Taken(2, 4 * 5400, 2560 * MIB, True),
        "101_1": Taken(1, 2 * 60, 5120 * MIB, False),
        "103": Taken(1, 800, None, False),
    }


@pytest.mark.parametrize(
    "text", ["", "\n\n", "sacct: error: nothing\n", "7|COMPLETED|1\n", "|||||\n"]
)
def test_what_is_no_answer_of_sacct_says_nothing(text: str) -> None:
    assert accounting.read(text) == {}


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """A Slurm with accounting, in place of any other."""
    there = Pretend(tmp_path / "slurm")
    there.set(accounting=ANSWER)
    monkeypatch.setenv("PATH", f"{there.bin}:/usr/bin:/bin")
    return there


@pytest.fixture
def study() -> Study:
    return synthetic.study(seeds=3)


@pytest.fixture
def place(tmp_path: Path, study: Study) -> StudyDir:
    """Three runs: one that was killed and went on, one that was killed, one outside Slurm."""
    place = synthetic.directory(study, tmp_path)
    first, second, third = (synthetic.write_run(place, run) for run in study.runs)
    for run, job in ((first, "101_0"), (second, "101_1")):
        append_event(run.events, Event(event="job_start", job=job))
        started_in(run, job)
    second.result.unlink()
    for run in (first, third):
        taken = {"cores": 4, "wall_seconds": 9, "processor_seconds": 9, "peak_memory": 3 * MIB}
        write_json(run.result, read_json(run.result) | {"wall_seconds": 900, "usage": taken})
    return place


def started_in(run: RunDir, job: str, **more: str) -> None:
    array, _, index = job.partition("_")
    starts = [json.loads(line) for line in run.provenance.read_text().splitlines()]
    told = {"job": "999", "array_job": array, "array_task": index, **more}
    run.provenance.write_text("".join(json.dumps({**s, "slurm": told}) + "\n" for s in starts))


def rows(result: Aggregation) -> list[tuple[object, ...]]:
    columns = ["core_hours", "core_hours_by", "peak_memory", "peak_memory_by"]
    return result.table.sort("seed").select(columns).rows()


BY_SLURM = [
    (6, "slurm", 2560 * MIB, "slurm"),
    (2 * 60 / 3600, "slurm", 5120 * MIB, "slurm"),
    (1, "run", 3 * MIB, "run"),
]
BY_RUNS = [(1, "run", 3 * MIB, "run"), (None, None, None, None), (1, "run", 3 * MIB, "run")]


def test_killed_attempts_and_runs_without_an_end_are_counted_by_slurm(
    pretend: Pretend, study: Study, place: StudyDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = accounted(aggregate(study, place))
    assert rows(result) == BY_SLURM
    (words,) = pretend.calls("sacct")
    assert "--jobs=101" in words, "one call, arrays as one"
    assert "--duplicates" in words
    told = dict(tables.provenance(result))
    assert told["Core-hours"].startswith("7.03")
    assert "of 2 runs by Slurm's accounting" in told["Core-hours"]
    assert told["Largest memory of a rank"] == "5.00 GiB (of a task, by Slurm's accounting)"
    write(result)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # elsewhere, or years later
    assert rows(accounted(aggregate(study, place))) == BY_SLURM


def test_runs_that_share_a_job_share_its_cores_and_count_their_own_memory(
    pretend: Pretend, study: Study, place: StudyDir
) -> None:
    third = RunDir(place.runs / study.runs[2].name)
    for run in (RunDir(place.runs / study.runs[0].name), third):
        started_in(run, "101_0", tasks="2")
    append_event(third.events, Event(event="job_start", job="101_0"))
    found = rows(accounted(aggregate(study, place)))
    assert found[0] == found[2] == (3, "slurm", 3 * MIB, "run")
    assert found[1] == BY_SLURM[1]


def test_jobs_that_are_over_are_not_asked_for_again(
    pretend: Pretend, study: Study, place: StudyDir
) -> None:
    accounted(aggregate(study, place))
    pretend.set(accounting=ANSWER + "101_1|COMPLETED|3540|2|\n")
    result = accounted(aggregate(study, place))
    assert rows(result)[1][:2] == (2, "slurm")
    accounted(result)
    assert len(pretend.calls("sacct")) == 2


def test_a_run_of_which_slurm_knows_a_part_keeps_its_own_count(
    pretend: Pretend, study: Study, place: StudyDir
) -> None:
    pretend.set(accounting="101_0|COMPLETED|1800|4|\n")
    run = RunDir(place.runs / study.runs[0].name)
    append_event(run.events, Event(event="job_start", job="77"))
    assert rows(accounted(aggregate(study, place))) == BY_RUNS


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"accounting": None}, ""),
        ({"accounting": ""}, ""),
        (
            {"broken": {"sacct": "sacct: error: Problem talking to the database: refused"}},
            "refused",
        ),
        ({"busy": {"sacct": 9}}, "timed out"),
    ],
    ids=["none", "nothing", "down", "busy"],
)
def test_without_an_answer_runs_keep_their_own_count(
    pretend: Pretend, study: Study, place: StudyDir, facts: dict[str, object], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where there is no accounting nothing is said of it; where it does not answer, one line."""
    monkeypatch.setattr(slurm, "PAUSE", 0.0)
    pretend.set(**facts)
    with redirect_stderr(io.StringIO()) as errors:
        assert rows(accounted(aggregate(study, place))) == BY_RUNS
    assert errors.getvalue().count("\n") == bool(said)
    assert said in errors.getvalue()
    assert not place.accounting.exists()
    assert "Slurm" not in dict(tables.provenance(aggregate(study, place)))["Core-hours"]
