"""What Slurm prints is believed only where it looks like what was asked for (slurm/pretend.py)."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from glass_cnn.paths import RunDir
from glass_cnn.pipeline import SECTIONS, Pipeline
from hpc import batch, slurm
from hpc.errors import EXIT_COMPLETE
from hpc.slurm import SlurmError, SlurmTimeout
from hpc.stages import Stage
from jobs import cancel, doctor, status, submit
from tests import synthetic
from tests.conftest import ROOT
from tests.slurm.pretend import FIRST, Pretend
from tests.slurm.stages import study_stages

pytestmark = pytest.mark.lasting

OUTER = {
    "SLURM_JOB_ID": "77", "SLURM_NODELIST": "far[1-2]", "SLURM_CPU_BIND": "verbose",
    "SLURM_MEM_PER_CPU": "1", "SLURM_TRES_PER_TASK": "gres/gpu:9", "SBATCH_WAIT": "1",
    "SQUEUE_STATES": "RUNNING", "PMI_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
}  # fmt: skip
"""variables of a shell in somebody's job"""


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """A Slurm that answers as a test wants it, in place of any other."""
    there = Pretend(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{there.bin}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "PAUSE", 0.0)
    return there


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The directory of a study."""
    place = tmp_path / "logs" / "study"
    place.mkdir(parents=True)
    return place


def launch(study: Path, runs: int = 3, **over: object) -> int:
    stages = study_stages(runs, ranks=1, folder=study)
    return slurm.Slurm(study, "dev", {"ranks": 1, **over}, SECTIONS).launch(stages)


def job_files(study: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name}" for path in study.glob("jobs/*/*.tsv"))


# Variables of an outer job


@pytest.mark.parametrize(
    "variable",
    [
        {"SQUEUE_STATES": "RUNNING"},
        {"SQUEUE_PARTITION": "other"},
        {"SQUEUE_ACCOUNT": "other"},
        {"SLURM_CLUSTERS": "elsewhere"},
    ],
    ids=str,
)
def test_options_in_the_environment_hide_nothing_of_the_queue(
    pretend: Pretend, study: Path, variable: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    launch(study)
    before = pretend.queue
    assert len(before) == 5
    launch(study)
    assert pretend.queue == before, "submitted a second time"
    assert len(slurm.active_in(study, slurm.queue())) == 5


def test_nothing_of_an_outer_job_passes_into_a_new_one(
    pretend: Pretend, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in {**OUTER, "SLURM_CONF": "/site/slurm.conf"}.items():
        monkeypatch.setenv(name, value)
    launch(study)
    slurm.cancel(study)
    for command in ("sbatch", "squeue", "scontrol", "scancel"):
        given = pretend.variables(command)
        assert given
        assert all(each == {"SLURM_CONF": "/site/slurm.conf"} for each in given), command
    assert "note: SBATCH_WAIT of the environment: not passed on" in capsys.readouterr().out


# Job ids


@pytest.mark.parametrize(
    ("banner", "answer"),
    [
        ("*** Maintenance on 2026-12-01 ***", "ID"),
        ("Welcome to the cluster!\n\n 3 jobs of yours run", "ID;cluster-1"),
        ("", "ID\nsbatch: a word on quotas"),
        ("", "  ID  "),
        ("", "Submitted batch job ID"),
    ],
)
def test_the_job_id_is_what_looks_like_one(
    pretend: Pretend, study: Path, banner: str, answer: str
) -> None:
    pretend.set(banner=banner, answer=answer)
    assert launch(study) == EXIT_COMPLETE
    words = [word for call in pretend.calls("sbatch") for word in call if "dependency" in word]
    assert words == [f"--dependency=afterok:{FIRST}", f"--dependency=afterany:{FIRST + 1}"]
    (record,) = slurm._records(study.parent)
    assert [job["id"] for job in record["jobs"]] == [str(FIRST + n) for n in range(3)]


@pytest.mark.parametrize("answer", ["Job accepted, have fun", "", "12 34", "ID\n4711", "1e3"])
def test_an_answer_without_one_is_quoted_and_nothing_is_submitted_twice(
    pretend: Pretend, study: Path, answer: str
) -> None:
    pretend.set(banner="Hello", answer=answer)
    said = repr(answer.replace("ID", str(FIRST))).strip("'")
    with pytest.raises(SlurmError, match="printed .*" + re.escape(said)):
        launch(study)
    assert len(pretend.calls("sbatch")) == 1, "nothing more is submitted that depends on it"
    pretend.set(answer="ID")
    launch(study)
    files = [line.rsplit("|", 1)[1] + line.split("|")[1] for line in pretend.queue]
    assert len(files) == len(set(files)) == 5, "the first job is known by its comment"


# Arrays


@pytest.mark.parametrize("limit", ["0", "1"])
def test_where_arrays_are_off_each_task_is_a_job(
    pretend: Pretend, study: Path, limit: str, capsys: pytest.CaptureFixture
) -> None:
    pretend.set(limit=limit)
    assert launch(study, throttle=2) == EXIT_COMPLETE
    assert "note: job arrays are off here, so more than 2 (throttle)" in capsys.readouterr().out
    calls = pretend.calls("sbatch")
    assert len(calls) == 5
    assert not [word for call in calls for word in call if word.startswith("--array")]
    last = next(word for word in calls[-1] if word.startswith("--dependency"))
    assert last == "--dependency=afterany:102:103:104"
    found = slurm.active_in(study, slurm.queue())
    assert sorted(row.target for _, row in found.values()) == [str(FIRST + n) for n in range(5)]
    launch(study)
    assert len(pretend.calls("sbatch")) == 5
    assert slurm.cancel(study) == (5, 0)
    (words,) = pretend.calls("scancel")
    assert words[-5:] == [str(FIRST + n) for n in range(5)]


@pytest.mark.parametrize("limit", ["", "unlimited", "-1"])
def test_a_limit_that_cannot_be_read_is_slurms_default(
    pretend: Pretend, study: Path, limit: str
) -> None:
    pretend.set(limit=limit)
    launch(study)
    assert "--array=0-2" in pretend.calls("sbatch")[1]


def test_pending_runs_of_throttled_arrays_are_not_lost(pretend: Pretend, study: Path) -> None:
    """However squeue writes them; with lines of other arrays, banners and nonsense between."""
    launch(study, runs=12)
    file = next(line for line in pretend.queue if "train" in line).rsplit("|", 1)[1]
    others = [line for line in pretend.queue if file not in line]
    for form in ("[0-11%4]", "0-11%4", "[0-3,4-11]", "[0-10:2,1-11:2%1]", "0-2,4,...", "?"):
        (pretend.folder / "queue").write_text("")
        pretend.put(
            "*** a | banner | with | some | bars | in it ***",
            "900|[0-4000000%7]|PENDING|JobArrayTaskLimit||of somebody else",
            "901|[0-99999999999%7]|PENDING|JobArrayTaskLimit||",
            *others,
            f"{FIRST + 1}|{form}|PENDING|JobArrayTaskLimit||{file}",
            "904|half a line",
        )
        rows = slurm.queue()
        assert {row.job for row in rows} <= {"900", "901", "101", "102", "103"}, form
        found = slurm.active_in(study, rows)
        assert len(found) == 14, form
        launch(study, runs=12)
        assert len(pretend.calls("sbatch")) == 3, form


def test_of_an_array_that_waits_in_part_the_rest_is_missing(pretend: Pretend, study: Path) -> None:
    launch(study, runs=12)
    file = next(line for line in pretend.queue if "train" in line).rsplit("|", 1)[1]
    (pretend.folder / "queue").write_text("")
    pretend.put(
        f"{FIRST + 1}|1|RUNNING|None|n1|{file}",
        f"{FIRST + 1}|[3,6-10:2%4]|PENDING|JobArrayTaskLimit||{file}",
    )
    found = slurm.active_in(study, slurm.queue())
    names = sorted(int(re.sub(r"base-s(\d+)-.*", r"\1", name)) for name, _ in found.values())
    assert names == [1, 3, 6, 8, 10]


@pytest.mark.parametrize("state", ["PENDING", "SUSPENDED", "REQUEUE_HOLD", "ÜNKNOWN", "", "42"])
def test_states_that_nobody_knows_are_shown_as_they_come(
    pretend: Pretend, study: Path, state: str
) -> None:
    launch(study)
    lines = [line.replace("PENDING", state) for line in pretend.queue]
    (pretend.folder / "queue").write_text("\n".join(lines))
    rows = slurm.active_in(study, slurm.queue())
    assert {row.state for _, row in rows.values()} == {state or "UNKNOWN"}
    launch(study)
    assert len(pretend.calls("sbatch")) == 3
    facts = {"state": "missing", "starts": 0, "reason": None}
    run = RunDir(study / "runs" / "x")
    shown, _ = status.state_of(run, facts, next(iter(rows.values()))[1])
    assert shown == (state.lower() or "unknown")


def test_missing_tasks_without_a_job_are_an_error(
    pretend: Pretend, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "plan", lambda stages, *_: [[] for _ in stages])
    with pytest.raises(SlurmError, match="tasks are missing, and no job was made of them"):
        launch(study)


def test_all_in_the_queue_is_said_so(
    pretend: Pretend, study: Path, capsys: pytest.CaptureFixture
) -> None:
    launch(study)
    capsys.readouterr()
    assert launch(study) == EXIT_COMPLETE
    said = capsys.readouterr().out
    assert "train: 3 tasks in the queue already" in said
    assert "nothing more to be submitted" in said
    assert len(list((study / "jobs").iterdir())) == 1, "no empty directories"


# Time-outs


def test_a_busy_slurm_is_asked_again(pretend: Pretend, study: Path) -> None:
    pretend.set(busy={"squeue": slurm.TRIES - 1, "scontrol": 1, "sinfo": 1})
    assert slurm.answers()
    assert launch(study) == EXIT_COMPLETE
    assert len(pretend.calls("sbatch")) == 3


def test_a_slurm_that_stays_busy_gets_nothing_submitted(pretend: Pretend, study: Path) -> None:
    pretend.set(busy={"squeue": 99, "sinfo": 99})
    with pytest.raises(SlurmTimeout, match="Socket timed out"):
        slurm.answers()
    with pytest.raises(SlurmTimeout, match="Socket timed out"):
        launch(study)
    assert pretend.calls("sbatch") == []


def test_a_submission_that_times_out_is_not_repeated_blindly(pretend: Pretend, study: Path) -> None:
    pretend.set(busy={"sbatch": 1})
    with pytest.raises(SlurmTimeout, match="the same command submits only what is not there"):
        launch(study)
    assert len(pretend.calls("sbatch")) == 1
    launch(study)
    assert len(pretend.queue) == 5


def test_what_hangs_is_given_up(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    (pretend.bin / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(slurm, "ask", lambda *words, **_: slurm.call(*words, timeout=0.2))
    with pytest.raises(SlurmTimeout, match="squeue did not answer"):
        slurm.queue()


def test_status_shows_what_is_on_disk_while_slurm_is_busy(
    pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time and again, as `make watch` does; a pending run is not said to be lost."""
    found = synthetic.study(seeds=3)
    place = synthetic.directory(found, tmp_path / "logs")
    synthetic.write_run(place, found.runs[0])
    synthetic.write_run(place, found.runs[1], count=30, done=False)

    def look() -> str:
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(status.page(None, tmp_path / "logs", None, tries=1))
        return console.export_text()

    assert "not submitted" in look()
    pretend.set(busy={"squeue": 99})
    for _ in range(2):
        said = look()
        assert "this is what is on disk" in said
        assert "Socket timed out" in said
        assert said.count("Slurm does not answer") == 2
        assert "1 complete" in said
        assert "not submitted" not in said


def test_auto_does_not_take_this_machine_for_a_slurm_that_is_busy(
    pretend: Pretend, tmp_path: Path
) -> None:
    found = synthetic.study(seeds=1)
    whole = Pipeline((found,), tmp_path, ())
    place = found.directory(tmp_path)
    assert not submit.choose("auto", whole, place)[1]
    pretend.set(busy={"sinfo": 99})
    with pytest.raises(SlurmTimeout):
        submit.choose("auto", whole, place)


def test_cancel_stops_what_runs_here_although_slurm_is_busy(
    pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = synthetic.directory(synthetic.study(seeds=1), tmp_path / "logs")
    monkeypatch.setattr(cancel, "stop_here", lambda _: 1)
    pretend.set(busy={"squeue": 99})
    with pytest.raises(SlurmError, match=r"1 run of synthetic on this machine asked to stop.*"):
        cancel.main([str(place.path), "--logs", str(tmp_path / "logs")])


def test_the_doctor_says_that_slurm_is_busy(pretend: Pretend) -> None:
    (finding,) = doctor.examine_slurm()
    assert finding.state == "ok"
    pretend.set(busy={"sinfo": 99})
    (finding,) = doctor.examine_slurm()
    assert finding.state == "problem"
    assert "Socket timed out" in finding.text


# Users and other submissions


def test_a_user_without_a_name_is_asked_for_by_number(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert slurm.queue() == []
    assert "--user=54321" in pretend.calls("squeue")[0]


def test_submissions_of_one_second_have_directories_of_their_own(
    pretend: Pretend, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102-030405")
    for runs in (1, 2, 3):
        launch(study, runs)
    folders = [Path(name).parent.name for name in job_files(study) if "train" in name]
    assert sorted(folders) == [f"20260102-030405{end}" for end in ("", "-2", "-3")]
    tasks = [line for file in study.glob("jobs/*/train-1.tsv") for line in tasks_of(file)]
    assert len(tasks) == len(set(tasks)) == 3


def tasks_of(file: Path) -> list[str]:
    return [task.name for task in batch.read_job_file(file).tasks]


SUBMIT = """
import sys
from pathlib import Path
from tests.test_slurm_answers import launch
sys.exit(launch(Path(sys.argv[1])))
"""


def test_submissions_at_one_moment_wait_for_each_other(
    pretend: Pretend, study: Path, make_slow: Callable[[], None]
) -> None:
    """Also those of another study under the same logs, which may need the same runs."""
    make_slow()
    words = [sys.executable, "-c", SUBMIT, str(study)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    said = [each.communicate(timeout=100)[0].decode() for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert sorted("nothing more" in text for text in said) == [False, True], said
    assert len(pretend.queue) == 5


@pytest.fixture
def make_slow(pretend: Pretend) -> Callable[[], None]:
    """Have every sbatch take a while, so that two submissions meet."""

    def slow() -> None:
        file = pretend.bin / "sbatch"
        file.write_text(file.read_text().replace("exec", "sleep 0.5\nexec"))

    return slow


def test_nobody_waits_for_ever_for_another_submission(
    pretend: Pretend, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE", 0.3)
    hold = (
        "import fcntl, os, sys\n"
        "file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(file, fcntl.LOCK_EX); os.write(file, b'process 7 on far')\n"
        "print(flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", hold, str(study.parent / slurm.LOCK)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as other:  # type: ignore[call-overload]
        other.stdout.readline()
        with pytest.raises(SlurmError, match="process 7 on far is submitting studies there"):
            launch(study)
        other.stdin.close()
    assert launch(study) == EXIT_COMPLETE


def test_a_stage_without_tasks_makes_no_jobs(pretend: Pretend, study: Path) -> None:
    empty = [Stage("train", (), 1, 1, main=True)]
    assert slurm.Slurm(study, "dev", {}, SECTIONS).launch(empty) == EXIT_COMPLETE
    assert pretend.calls("sbatch") == []
