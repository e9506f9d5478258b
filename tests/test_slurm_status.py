"""`make status` and `make cancel`: run directories and the queue merged into what one sees."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from msgspec.structs import replace
from rich.console import Console

from glass_cnn.analysis.table import aggregate
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.records import read_evaluations
from glass_cnn.report import terminal
from glass_cnn.report.run_table import RunLine
from glass_cnn.study import Study
from hpc.batch import job_text
from hpc.environment import BATCH_JOB
from hpc.records import Event, append_event, append_record, read_records
from hpc.site import Site
from hpc.slurm import Queued
from hpc.stages import Task
from hpc.words import duration
from jobs import cancel, status
from jobs.task import choose
from tests import synthetic


@pytest.fixture
def study() -> Study:
    return synthetic.study(seeds=6)


@pytest.fixture
def place(study: Study, tmp_path: Path) -> StudyDir:
    """Run 0 is complete, 1 and 2 are half-way, 3 failed, 4 has just begun, 5 is not there."""
    place = synthetic.directory(study, tmp_path)
    synthetic.write_run(place, study.runs[0])
    for run in study.runs[1:4]:
        synthetic.write_run(place, run, count=30, done=False)
    failed = place.runs / study.runs[3].name
    (place.runs / study.runs[4].name).mkdir()
    append_record(
        failed / "events.jsonl",
        {"event": "no_requeue", "status": 65, "reason": "exit code 65: bad data"},
    )
    begun = {"event": "job_start", "job": "7_4"}
    append_record(place.runs / study.runs[4].name / "events.jsonl", begun)
    return place


def rows_of(study: Study, place: StudyDir) -> list[Queued]:
    """Run 1 runs, run 2 waits after a requeue, run 4 is starting, the report waits for them."""
    folder = place.jobs / "20260102-030405"
    folder.mkdir(parents=True)
    tasks = [task(RunDir(place.runs / run.name)) for run in study.runs]
    report = Task("report", "jobs.report", (), place.report, place.path / "report.log")
    for name, some in (("train-1.tsv", tasks), ("aggregate-1.tsv", [report])):
        (folder / name).write_text(job_text(Site(), some))
    train, last = str(folder / "train-1.tsv"), str(folder / "aggregate-1.tsv")
    return [
        Queued("7", 1, "RUNNING", "None", "n[1-2]", train),
        Queued("7", 2, "PENDING", "BeginTime", "", train),
        Queued("7", 4, "RUNNING", "None", "n3", train),
        Queued("8", 0, "PENDING", "Dependency", "", last),
    ]


def task(run: RunDir) -> Task:
    return Task(run.name, "jobs.train", (), run.result, run.path / "output.log", run.metrics)


def test_states_come_from_directories_and_queue(study: Study, place: StudyDir) -> None:
    rows = rows_of(study, place)
    names = {run.name: number for number, run in enumerate(study.runs)}
    shown = {names[run.facts["run"]]: run for run in status.states(study, place, rows)}
    assert {number: run.state for number, run in shown.items()} == {
        0: "complete", 1: "running", 2: "requeued", 3: "failed", 4: "running", 5: "waiting",
    }  # fmt: skip
    assert shown[1].detail == "n[1-2], job 7_1"
    assert shown[2].detail == "BeginTime, job 7_2"
    assert shown[3].detail == "exit code 65: bad data"
    assert status.waiting(place, rows) == ["report: pending, Dependency, job 8_0"]


def test_a_run_whose_turn_has_not_come_waits_in_its_job(study: Study, place: StudyDir) -> None:
    """Several share a job, and not all of them run at a time."""
    run = RunDir(place.runs / "new")
    facts = {"state": "missing", "reason": None, "starts": 0}
    row = Queued("7", 1, "RUNNING", "None", "n1", "")
    waits, runs = ("waiting", "for its turn, n1, job 7_1"), ("running", "n1, job 7_1")
    assert status.state_of(run, facts, row) == waits
    run.path.mkdir()
    for event, state in (("job_start", runs), ("requeue", waits), ("job_start", runs)):
        append_event(run.events, Event(event=event, job="7_1"))
        append_event(run.events, Event(event="stopped"))
        assert status.state_of(run, facts, row) == state


def test_a_run_with_a_fresh_heartbeat_runs_on_this_machine(study: Study, place: StudyDir) -> None:
    run = RunDir(place.runs / study.runs[1].name)
    run.heartbeats.mkdir(exist_ok=True)
    beat = run.heartbeats / "rank-0.json"
    beat.write_text("{}")
    facts = {"state": "unfinished", "reason": None, "starts": 1}
    assert status.state_of(run, facts, None) == ("running", "on this machine")
    for age in (2 * status.ALIVE, -2 * status.ALIVE):  # the clock was set back since
        then = time.time() - age
        os.utime(beat, (then, then))
        assert status.state_of(run, facts, None)[0] == "stopped"


def test_time_left_is_the_pace_of_late_times_what_is_to_do(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1)
    run = synthetic.write_run(
        synthetic.directory(study, tmp_path), study.runs[0], done=False, count=30
    )
    early = [replace(e, seconds=1e-3 * e.iteration) for e in read_evaluations(run.metrics)[:10]]
    synthetic.write_metrics(run.metrics, [*early, *read_evaluations(run.metrics)[10:]])
    with run.metrics.open("a") as file:
        file.write('{"iteration": 31, "sec')
    (facts,) = aggregate(study, StudyDir(tmp_path / study.name)).table.to_dicts()
    assert facts["seconds_per_iteration"] == 2.5
    assert status.time_left(facts) == 2.5 * 30
    assert status.time_left({**facts, "seconds_per_iteration": None}) is None
    assert duration(3675) == "1:01:15"


def test_a_damaged_run_that_runs_is_called_both(study: Study, place: StudyDir) -> None:
    rows, run = rows_of(study, place), RunDir(place.runs / study.runs[1].name)
    synthetic.write_metrics(run.metrics, read_evaluations(run.metrics)[4:])
    text = Console(width=200, record=True, file=io.StringIO())
    text.print(status.study_part(study, place, rows, None))
    (line,) = [line for line in text.export_text().splitlines() if line.startswith(run.name)]
    assert "running" in line
    assert "damaged: metrics.jsonl lacks the evaluations of iterations 1–4" in line


def test_table_is_readable_and_long_ones_are_cut(
    study: Study,
    place: StudyDir,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", os.devnull)  # no Slurm
    status.main(["--logs", str(place.path.parent)])
    shown = capsys.readouterr().out
    assert "synthetic  6 runs:" in shown
    assert all(run.name in shown for run in study.runs)
    rows = rows_of(study, place)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(status.study_part(study, place, rows, 2))
    text = console.export_text()
    assert "4 more" in text
    assert [run.name in text for run in study.runs] == [False, True, False, False, True, False]


REASON = "exit code 65: the data set endpoint-0123abcd is damaged; remove it and submit again"


@pytest.mark.parametrize("width", [80, 60, 200])
def test_a_narrow_terminal_cuts_no_reason(tmp_path: Path, width: int) -> None:
    long = {f"a-very-long-name-of-an-arm-number-{i}": {"train.dropout": 0.1 * i} for i in (1, 2)}
    study = synthetic.study(seeds=2, arms=long)
    place = synthetic.directory(study, tmp_path)
    synthetic.write_run(place, study.runs[0])
    synthetic.write_run(place, study.runs[1], count=30, done=False)
    append_record(
        place.runs / study.runs[1].name / "events.jsonl",
        {"event": "no_requeue", "status": 65, "reason": REASON},
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(status.study_part(study, place, [], None))
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert REASON in " ".join(text.split())
    table = next(i for i, shown in enumerate(lines) if shown.startswith("run "))
    above = [shown.split(":")[0].strip() for shown in lines[:table]]
    assert [name for name in above if name in long] == list(long)
    assert "1 failed, 1 complete; 0 collapsed" in " ".join(text.split())
    failed = next(i for i, shown in enumerate(lines) if i > table and "failed" in shown)
    complete = next(i for i, shown in enumerate(lines) if i > table and "complete" in shown)
    assert failed < complete
    seeds = [shown for shown in lines[table:] if f"-s1-{study.runs[1].digest[:8]}" in shown]
    assert len(seeds) == 1, "the end of a name says which seed it is"


def test_the_time_left_of_a_study_counts_what_waits(study: Study, place: StudyDir) -> None:
    facts = {"seconds_per_iteration": 2.0, "train.iterations": 60}
    running = RunLine("running", "", facts, 40.0)
    waits = RunLine("waiting", "", {"seconds_per_iteration": None})
    assert status.study_left([running, running]) == 40
    assert status.study_left([running, running, waits, waits]) == (80 + 2 * 120) / 2
    assert status.study_left([waits]) is None


def test_names_of_arms_are_folded_between_words() -> None:
    assert terminal.folded("with-augmentation-and_more", 20) == "with-augmentation-\nand_more"
    assert terminal.folded("short", 20) == "short"
    assert terminal.folded("x" * 25, 10) == "x" * 10 + "\n" + "x" * 10 + "\n" + "x" * 5


def test_runs_of_one_state_stand_in_the_order_of_the_study(tmp_path: Path) -> None:
    study = synthetic.study(seeds=11)
    place = synthetic.directory(study, tmp_path)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(status.study_part(study, place, [], None))
    lines = [line.split()[0] for line in console.export_text().splitlines() if "waiting  " in line]
    assert lines == [run.name for run in study.runs], "seed 10 after seed 9"


def test_runs_of_a_hand_submitted_job_are_named_or_numbered(study: Study) -> None:
    assert choose(study, study.runs[2].name[:8], None) == study.runs[2]
    assert choose(study, None, "3") == study.runs[3]
    assert choose(synthetic.study(seeds=1), None, None).seed == 0
    for name, index in ((None, None), (None, "6"), ("nothing", None)):
        with pytest.raises(Exception, match=r"runs|no run"):
            choose(study, name, index)


@pytest.mark.slow
def test_cancel_asks_the_launcher_above_the_ranks(
    root: Path, tmp_path: Path, wait_for: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    config = tmp_path / "long.yaml"
    tree = {
        "study": {"name": "long", "seeds": 2},
        "simulation": {"trajectories": 20, "particles": 100, "cooling_steps": 400},
        "data": {"name": "long"},
        "render": {"style": "disc", "pixels": 24},
        "train": {"batch_size": 16, "iterations": 100_000},
        "launch": {"ranks": 2, "side_by_side": 1},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(tree))
    logs = tmp_path / "logs"
    words = [
        sys.executable,
        "-m",
        "jobs.submit",
        str(config),
        "--launcher",
        "local",
        "--logs",
        str(logs),
    ]
    # In a shell of somebody's job: what is started here is none of Slurm's all the same.
    env = {**os.environ, "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "far", BATCH_JOB: "77"}
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True, env=env) as submit:
        place = StudyDir(logs / "long")
        wait_for(lambda: any(place.runs.glob("*/metrics.jsonl")), 180)
        (tmp_path / "link").symlink_to(logs)
        assert cancel.stop_here(StudyDir(tmp_path / "link" / "long")) == 1
        assert submit.wait(60) == 75
    assert len(list(place.runs.glob("*/metrics.jsonl"))) == 1, "the second run was not started"
    stops = [r for run in place.runs.iterdir() for r in read_records(run / "events.jsonl")]
    assert [record["event"] for record in stops] == ["stopped"], "it wrote its checkpoint"


class Process:
    """What psutil says of a process."""

    def __init__(self, *words: str, **variables: str) -> None:
        self.info, self.variables = {"cmdline": list(words)}, variables

    def environ(self) -> dict[str, str]:
        if "hidden" in self.variables:
            raise psutil.AccessDenied
        return self.variables


def test_whose_a_training_is_who_started_it_says(place: StudyDir) -> None:
    rank = ("python", "-m", "jobs.train", str(place.study), "base-s0")

    def ours(*words: str, **variables: str) -> bool:
        return cancel.trains(Process(*words, **variables), place)  # type: ignore[arg-type]

    assert ours(*rank)
    assert ours(*rank, SLURM_JOB_ID="7", SLURM_PROCID="0"), "by hand, within an allocation"
    assert not ours(*rank, **{"SLURM_JOB_ID": "7", BATCH_JOB: "7"}), "of a batch script"
    assert not ours("python", "-m", "jobs.train", "other/study.yaml", "base-s0")
    assert not ours("python", "-m", "jobs.report", str(place.study))
    assert not ours(*rank, hidden="of another user")


def test_a_rank_that_ends_meanwhile_is_no_error(
    place: StudyDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        process = psutil.Process(ended.pid)
        process.info = {"cmdline": ["python", "-m", "jobs.train", "x"]}
    monkeypatch.setattr(psutil, "process_iter", lambda _: [process])
    monkeypatch.setattr(cancel, "trains", lambda *_: True)
    assert cancel.stop_here(place) == 1


@pytest.fixture
def wait_for() -> Callable[..., None]:
    def wait(done: Callable[[], object], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not done():
            assert time.monotonic() < end, f"nothing in {timeout} s"
            time.sleep(0.1)

    return wait
