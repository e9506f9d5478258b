"""The Slurm launcher without a Slurm: profiles, job files, command lines, the requeue decision."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.paths import StudyDir
from glass_cnn.pipeline import SECTIONS
from hpc import batch, requeue, slurm
from hpc.batch import job_text, plan, resources
from hpc.checkpoint_names import newest_step
from hpc.errors import ConfigError
from hpc.files import write_json
from hpc.records import read_records
from hpc.requeue import JobState, decide
from hpc.site import Site, load_site, seconds
from hpc.slurm import Queued, SlurmError, active
from hpc.stages import Stage, Task

GOLDEN = Path(__file__).parent / "slurm" / "golden"
LOGS = Path("/scratch/o'hara & sons/100% $HOME/logs")


def task(name: str, module: str = "jobs.train", folder: Path = LOGS) -> Task:
    run = folder / "runs" / name
    words = (str(folder / "study.yaml"), name, "--logs", str(folder))
    return Task(
        name,
        module,
        words,
        run / "result.json",
        run / "output.log",
        run / "checkpoints",
    )


def study_stages(runs: int, ranks: int = 4) -> list[Stage]:
    data = Task(
        "endpoint-1234abcd",
        "jobs.dataset",
        ("study.yaml",),
        LOGS / "dataset.json",
        LOGS / "build.log",
    )
    report = Task(
        "report", "jobs.report", ("study.yaml",), LOGS / "report.html", LOGS / "report.log"
    )
    return [
        Stage("simulate", (data,), 8, 1),
        Stage(
            "train",
            tuple(task(f"base-s{i}-0123abcd") for i in range(runs)),
            ranks,
            2,
            needs="success",
            main=True,
        ),
        Stage("aggregate", (report,), 1, 1, sums_up=True),
    ]


# -- scripts and commands --------------------------------------------------------------------------


def submission(site: Site, runs: int = 3) -> str:
    """Every command and job file of a submission, as text."""
    parts: list[str] = []
    before: list[str] = []
    for chunks in plan(study_stages(runs), LOGS / "jobs" / "20260102-030405", site, 1001):
        for job in chunks:
            parts += [shlex.join(batch.command(job, "endpoint", before)), job.text]
        before = [f"<{job.file.stem}>" for job in chunks]
    return "\n".join(parts)


@pytest.mark.parametrize("name", ["dev", "cpu", "gpu"])
def test_submission_with_each_shipped_profile_is_as_it_was(name: str) -> None:
    over = {"launcher": "mpiexec", "min_nodes": 1, "ranks_per_node": 2} if name == "dev" else {}
    assert submission(load_site(name, over, SECTIONS)) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("stage", ["simulate", "train", "aggregate"])
def test_templates_are_complete_batch_scripts(root: Path, stage: str) -> None:
    text = (root / "slurm" / f"{stage}.sh").read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert f"sbatch slurm/{stage}.sh CONFIG" in text
    for option in ("--signal=B:USR2@", "--requeue", "--open-mode=append", "--time=", "--ntasks="):
        assert f"#SBATCH {option}" in text
    outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", f"slurm/{stage}.sh", "x"], cwd=root, env=outside, capture_output=True, text=True
    )
    assert done.returncode == 78
    assert "sbatch" in done.stderr


def test_arrays_are_chunked_and_hold_every_run_once() -> None:
    train = plan(study_stages(10_000), Path("/j"), Site(), 1001)[1]
    assert [len(job.stage.tasks) for job in train] == [1000] * 10
    assert len({task.name for job in train for task in job.stage.tasks}) == 10_000
    assert [job.file.name for job in train][:2] == ["train-1.tsv", "train-2.tsv"]
    assert all("--array=0-999" in batch.command(job, "x") for job in train)


def test_throttle_and_chunk_size_come_from_the_profile() -> None:
    site = Site(throttle=7, max_array_size=3)
    train = plan(study_stages(5), Path("/j"), site, 1001)[1]
    arrays = [word for job in train for word in batch.command(job, "x") if "--array" in word]
    assert arrays == ["--array=0-1%7", "--array=0-1%7", "--array=0-0"]


def test_stages_depend_on_the_one_before() -> None:
    jobs = plan(study_stages(1), Path("/j"), Site(ranks_per_node=8), 1001)
    assert [chunks[0].after for chunks in jobs] == ["", "afterok", "afterany"]
    words = batch.command(jobs[1][0], "x", ["7", "8"])
    assert "--dependency=afterok:7:8" in words
    assert "--kill-on-invalid-dep=yes" in words
    assert not [word for word in batch.command(jobs[1][0], "x") if "dependency" in word]


def test_own_options_of_the_profile_win() -> None:
    words = resources(
        study_stages(1)[1], Site(ranks_per_node=4, options=("--time=5", "--exclusive"))
    )
    assert words.index("--time=5") > words.index("--time=1:00:00")
    assert words[-1] == "--exclusive"


def test_nodes_of_the_profile_are_for_training_only() -> None:
    site = Site(nodes=4, min_nodes=2)
    assert "--nodes=2-4" in resources(study_stages(1)[1], site.of("train", main=True))
    assert "--nodes=1" in resources(study_stages(1)[2], site.of("aggregate"))


def test_gpus_are_for_training_only() -> None:
    site = load_site("gpu", {"gpus_per_node": "a100:4"}, SECTIONS)
    assert "--gpus-per-node=a100:4" in resources(study_stages(1)[1], site.of("train", main=True))
    for stage in (study_stages(1)[0], study_stages(1)[2]):
        assert not [w for w in resources(stage, site.of(stage.name)) if "gpu" in w]
    assert "16 GPU-hours" in batch.cost(study_stages(1)[1], site)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"nodes": 1, "ranks_per_node": 2}, "cannot be spread over"),
        ({"nodes": 9, "ranks_per_node": 2}, "cannot be spread over"),
        ({"nodes": 3, "ranks_per_node": 2, "min_nodes": 1}, "same number of ranks on each"),
        ({"nodes": 2, "ranks_per_node": 2, "min_nodes": 3}, "min_nodes 3"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resources(study_stages(1)[1], Site(**over))


# -- profiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"partion": "x"}, "did you mean 'partition'"),
        ({"time": 43200}, "in quotes"),
        ({"time": "soon"}, "hours:minutes:seconds"),
        ({"time": "0:30"}, "at least a minute"),
        ({"partition": "--wrap=x"}, "begin with '-'"),
        ({"account": "a\nb"}, "control characters"),
        ({"environment": {"A-B": "1"}}, "environment variable"),
        ({"environment": {"A": "1\n2"}}, "control characters"),
        ({"modules": ["gcc\tx"]}, "control characters"),
        ({"launcher": "prun"}, "srun"),
        ({"gpus_per_node": "a100"}, "gpus_per_node"),
        ({"memory": "lots"}, "memory"),
        ({"simulate": {"partion": "x"}}, "section 'simulate'"),
    ],
)
def test_mistakes_in_a_profile_are_named(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_site("dev", over, SECTIONS)


def test_unknown_site_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Known: cpu, dev, gpu"):
        load_site("devv", {})
    with pytest.raises(ConfigError, match="no such file"):
        load_site(str(tmp_path / "mine.yaml"), {})


def test_a_profile_of_ones_own_may_extend_a_shipped_one(tmp_path: Path, root: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {root}/slurm/sites/cpu.yaml\npartition: long\n")
    site = load_site(str(mine), {"time": "2-00:00:00"}, SECTIONS)
    assert (site.partition, site.bind, site.time) == ("long", "cores", "2-00:00:00")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("2-1", 176_400),
        ("1-0:30", 88_200),
        ("1-00:00:01", 86_401),
    ],
)
def test_time_limits_as_slurm_reads_them(text: str, length: int) -> None:
    assert seconds(text) == length


# -- nothing that a setting says is evaluated ------------------------------------------------------

HOSTILE = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED #",
    "a  b",
    "'\"\\",
    "*",
    "-n",
    "$HOME",
    "ü",
]


def test_job_files_reach_the_program_word_for_word(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "a b" / "$(touch PWNED).log"
    job = Task("r", "m", (*HOSTILE, ""), tmp_path / "`x`", log)
    site = Site(launcher_options=tuple(HOSTILE[:3]), environment={"GLASS_TEST": HOSTILE[0]})
    file = tmp_path / "jo'b $x.tsv"
    file.write_text(job_text(site, [task("other"), job]))
    script = f"""
        . {root}/slurm/common.sh
        python=false SLURM_ARRAY_TASK_ID=1
        read_job train --tasks "$1"
        printf '%s\\0' "$name" "$log" "$done_file" "$GLASS_TEST"
        printf '%s\\0' "${{options[@]}}" "${{arguments[@]}}"
    """
    done = subprocess.run(
        ["bash", "-uc", script, "bash", str(file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ["r", str(log), str(job.done), HOSTILE[0], *HOSTILE[:3], *HOSTILE, ""]
    assert done.stdout.split("\0")[:-1] == expected
    assert not (tmp_path / "PWNED").exists()


def test_control_characters_and_backslashes_are_refused() -> None:
    with pytest.raises(ConfigError, match="control characters"):
        job_text(Site(), [task("a\tb")])
    job = plan(study_stages(1), Path("/a\\b"), Site(), 1001)[0][0]
    with pytest.raises(ConfigError, match="backslash"):
        batch.command(job, "x")


def test_percent_signs_in_paths_are_no_patterns() -> None:
    job = plan(study_stages(1), Path("/50%a"), Site(), 1001)[0][0]
    assert "--output=/50%%a/simulate-1-%a.out" in batch.command(job, "x")


# -- what is in the queue --------------------------------------------------------------------------


def test_queue_is_matched_to_tasks_by_id_and_by_comment(tmp_path: Path) -> None:
    study = StudyDir(tmp_path / "study")
    folder = study.jobs / "20260102-030405"
    folder.mkdir(parents=True)
    tasks = [task(f"r{i}", folder=study.path) for i in range(3)]
    for name, some in (("train-1.tsv", tasks[:2]), ("train-2.tsv", tasks[2:])):
        (folder / name).write_text(job_text(Site(), some))
    record = {"id": "17", "stage": "train", "tasks": 2, "file": str(folder / "train-1.tsv")}
    write_json(folder / "submission.json", {"study": "study", "jobs": [record]})
    rows = [
        Queued("17", 1, "RUNNING", "None", "n1", ""),
        Queued("18", 0, "PENDING", "Resources", "", str(folder / "train-2.tsv")),
        Queued("19", 0, "PENDING", "Resources", "", "somebody's else"),
        Queued("17", 5, "PENDING", "Resources", "", ""),
    ]
    found = active(tmp_path, rows)
    assert {name: row.target for name, row in found.values()} == {"r1": "17_1", "r2": "18_0"}
    assert set(found) == {str(tasks[1].done), str(tasks[2].done)}
    assert slurm.active_in(study.path, rows) == found
    assert slurm.active_in(tmp_path / "other", rows) == {}


def test_a_job_without_a_file_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of somebody else; also where we stand in the logs themselves, which its "" might mean."""
    monkeypatch.chdir(tmp_path)
    assert active(tmp_path, [Queued("19", 0, "PENDING", "Resources", "", "")]) == {}


def test_a_link_to_the_logs_leads_to_the_same_tasks(tmp_path: Path) -> None:
    """Nothing is submitted twice because LOGS was given by another name."""
    study, link = StudyDir(tmp_path / "logs" / "study"), tmp_path / "link"
    link.symlink_to("logs")
    file = study.jobs / "20260102-030405" / "train-1.tsv"
    file.parent.mkdir(parents=True)
    run, data = task("r0", folder=study.path), study.path.parent / "datasets" / "dataset.json"
    file.write_text(job_text(Site(), [run, dataclasses.replace(run, name="data", done=data)]))
    rows = [Queued("17", i, "RUNNING", "None", "n1", str(file)) for i in range(2)]
    wanted = {str(link / path.relative_to(study.path.parent)) for path in (run.done, data)}
    assert set(active(link, rows)) == wanted
    assert set(slurm.active_in(link / "study", rows)) == wanted
    assert slurm.active_in(link / "other", rows) == {}


def test_runs_that_another_study_submitted_are_known(tmp_path: Path) -> None:
    first, second = StudyDir(tmp_path / "first"), StudyDir(tmp_path / "second")
    file = second.jobs / "20260102-030405" / "train-1.tsv"
    file.parent.mkdir(parents=True)
    needed = task("r0", folder=first.path)
    file.write_text(job_text(Site(), [needed]))
    rows = [Queued("17", 0, "RUNNING", "None", "n1", str(file))]
    for study in (first, second):
        assert set(slurm.active_in(study.path, rows)) == {str(needed.done)}


def test_dry_run_shows_commands_and_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    study = StudyDir(tmp_path / "study")
    assert (
        slurm.Slurm(study.path, "gpu", sections=SECTIONS).launch(study_stages(20), dry_run=True)
        == 0
    )
    shown = capsys.readouterr().out
    assert "sbatch --parsable" in shown
    assert "--dependency=afterok:<simulate-1>" in shown
    assert "base-s0-0123abcd" in shown
    assert "and 17 tasks more" in shown
    assert "#SBATCH --signal=B:USR2@120" in shown
    assert not study.path.exists()


def test_a_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.answers()
    with pytest.raises(slurm.SlurmError, match="LAUNCHER=local"):
        slurm.queue()


# -- the requeue decision --------------------------------------------------------------------------

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
        (255, RUNNING, {}, "ranks were killed (exit code 255) at step 40"),
        (75, JobState("RUNNING", 10, None), {"asked": True}, "asked to stop at step 40"),
        (75, RUNNING, {"requeues": 9, "bound": 10}, "asked to stop at step 40"),
        (75, RUNNING, {"starts": [0, 20]}, "asked to stop at step 40"),
        (75, RUNNING, {"starts": [20, 40]}, "asked to stop at step 40"),
        (75, RUNNING, {"starts": [None, None, None], "step": None}, "asked to stop"),
    ],
)
def test_goes_back_into_the_queue(
    status: int, job: JobState, facts: dict[str, Any], reason: str
) -> None:
    decision = decide(status, job, **{"starts": [0], "step": 40, **facts})
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
        (75, RUNNING, {"requeues": 10, "bound": 10}, "max_requeues"),
        (75, RUNNING, {"starts": [0, 40, 40]}, "no progress beyond step 40"),
        (75, PREEMPTED, {"starts": [0, 0], "step": 0}, "no progress beyond step 0"),
        (137, RUNNING, {"starts": [20, 40, 40]}, "no progress"),
    ],
)
def test_stays_out_of_the_queue(
    status: int, job: JobState | None, facts: dict[str, Any], reason: str
) -> None:
    decision = decide(status, job, **{"starts": [0], "step": 40, **facts})
    assert not decision.requeue
    assert reason in decision.reason


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
