"""The Makefile: what commands are given, and the jobs that they call."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clones import run

NASTY = "a b;$(touch pwned)`touch pwned`$(shell touch pwned)$$(touch pwned)&'\"#\\ é"


# --- what commands are given ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["submit"], 78, "make submit: CONFIG is not given; name a study file"),
        (["submit", "CONFIG=jobs/oen.yaml"], 78, "jobs/oen.yaml: no such file. Did you mean"),
        (["watch", "CONFIG=jobs/none.yml"], 78, "jobs/none.yml: no such file."),
        (["submit", "CONFIG=jobs"], 78, "CONFIG=jobs: is a directory without a study.yaml"),
        (["cancel", "CONFIG=nothing"], 78, "is neither a study file nor the name of a study in"),
        (["submit", "CONFIG=jobs/picture.yaml"], 78, "jobs/picture.yaml: is not a text file"),
        (["submit", "CONFIG=jobs/tab.yaml"], 78, "jobs/tab.yaml, line 2: begins with a tab"),
        (["submit", "CONFIG=jobs/part.yaml"], 78, "jobs/part.yaml: has no 'study:' section"),
        (["import", "CONFIG=jobs/one.yaml"], 78, "make import: SOURCE is not given"),
        (["import", "SOURCE=.", "CONFIG="], 78, "make import: CONFIG is not given"),
        (["import", "SOURCE=x", "CONFIG=jobs/one.yaml"], 65, "x: is no directory; SOURCE names"),
        (["report", "CONFIG=jobs/one.yaml jobs/oen.yaml"], 78, "jobs/oen.yaml: no such file."),
        (["data-report"], 78, "make data-report: DATA is not given; name one of logs/datasets/"),
        (["data-report", "DATA=nothing"], 78, "is neither a study file nor the name of a study in"),
        (["evaluate", "RUN=jobs"], 78, "RUN=jobs: is no run's directory"),
        (["predict", "RUN=logs/run"], 78, "make predict: SOURCE is not given"),
        (["predict", "RUN=logs/run", "SOURCE=x"], 65, "x: no such file or directory"),
    ],
)
def test_a_slip_is_told_before_anything_is_set_up(
    clone: Path, command: list[str], status: int, message: str
) -> None:
    fill_jobs(clone)
    offline = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}  # should it go on to set-up after all
    answer = run("make", *command, cwd=clone, env=offline)
    first, last = answer.stderr.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert last.endswith(f"Error {status}")
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"CONFIG": "jobs/one.yaml"},
        {"CONFIG": "jobs/longer.json"},
        {"CONFIG": "logs/known"},
        {"CONFIG": "known"},
        {"CONFIG": "elsewhere", "GLASS_LOGS": "other logs"},
    ],
)
def test_what_may_be_a_study_goes_on_to_set_up(clone: Path, given: dict[str, str]) -> None:
    fill_jobs(clone)
    command = [sys.executable, "-m", "requirements.inputs", "submit"]
    answer = run(*command, cwd=clone, env=given)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_every_study_file_is_let_through(root: Path) -> None:
    studies = [path for name in ("", "full/", "small/") for path in root.glob(f"jobs/{name}*.yaml")]
    assert len(studies) > 10
    command = [sys.executable, "-m", "requirements.inputs", "submit"]
    for path in studies:
        answer = run(*command, cwd=root, env={"CONFIG": str(path)})
        assert answer.returncode == 0, answer.stderr


def fill_jobs(clone: Path) -> None:
    """Files that are studies, and some that are none."""
    for folder in ("jobs", "logs/known", "other logs/elsewhere"):
        (clone / folder).mkdir(parents=True)
    for study in ("jobs/one.yaml", "logs/known/study.yaml", "other logs/elsewhere/study.yaml"):
        (clone / study).write_text("study:\n  name: known\n")
    (clone / "jobs/longer.json").write_text('{"extends": "one.yaml", "train": {}}\n')
    (clone / "jobs/part.yaml").write_text("train: {batch_size: 80}\n")
    (clone / "jobs/tab.yaml").write_text("study:\n\tname: x\n")
    (clone / "jobs/picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff")


# --- the Makefile ---------------------------------------------------------------------------------


def words(answer: subprocess.CompletedProcess[str]) -> list[str]:
    """The arguments that the job was given."""
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)[1:]


@pytest.mark.parametrize("by", ["command line", "environment"])
def test_values_are_never_evaluated(clone: Path, complete: dict[str, Any], by: str) -> None:
    values = dict.fromkeys(["CONFIG", "LAUNCHER", "RANKS", "SET", "LOGS", "RUN", "SOURCE"], NASTY)
    if by == "environment":
        answer = run("make", "submit", cwd=clone, env=values)
    else:
        typed = [f"{name}={value}" for name, value in values.items()]
        answer = run("make", "submit", *typed, cwd=clone)
    flags = [word for name in ("launcher", "ranks", "set") for word in (f"--{name}", NASTY)]
    assert words(answer) == ["-m", "jobs", "submit", NASTY, *flags]
    assert not list(clone.rglob("pwned"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["submit", "CONFIG=jobs/a b.yaml"], ["submit", "jobs/a b.yaml"]),
        (["submit", "CONFIG=x", "DRY_RUN=1"], ["submit", "x", "--dry-run"]),
        (["submit", "CONFIG=x", "DRY_RUN=0"], ["submit", "x"]),
        (
            ["submit", "CONFIG=x", "LAUNCHER=local", "RANKS=2", "SET=a.b=1 c='d e'"],
            ["submit", "x", "--launcher", "local", "--ranks", "2", "--set", "a.b=1 c='d e'"],
        ),
        (["status"], ["status"]),
        (["watch", "CONFIG=x"], ["status", "x", "--watch"]),
        (["cancel", "CONFIG=x"], ["cancel", "x"]),
        (["aggregate", "CONFIG=x"], ["aggregate", "x"]),
        (["report", "CONFIG=x"], ["report", "x"]),
        (["data-report", "DATA=d", "SET=a.b=1"], ["data-report", "d", "--set", "a.b=1"]),
        (["baselines", "CONFIG=x"], ["baselines", "x"]),
        (["evaluate", "RUN=logs/s/runs/r"], ["evaluate", "logs/s/runs/r"]),
        (["evaluate", "RUN=r", "DATA=d"], ["evaluate", "r", "--data", "d"]),
        (["visualize", "RUN=r"], ["visualize", "r"]),
        (["verify", "RUN=r", "COUNT=3"], ["verify", "r", "--count", "3"]),
        (["verify", "RUN=r", "BEST=1"], ["verify", "r", "--best"]),
        (["schema"], ["schema"]),
        (["export-frames", "CONFIG=x", "FRAMES=5"], ["export-frames", "x", "--frames", "5"]),
        (["export", "RUN=r", "FORMAT=onnx"], ["export", "r", "--format", "onnx"]),
        (
            ["predict", "RUN=r", "SOURCE=a b", "FIT=crop", "TEMPERATURES=2:1"],
            ["predict", "r", "a b", "--fit", "crop", "--temperatures", "2:1"],
        ),
        (["import", "SOURCE=d", "CONFIG=x"], ["import", "d", "x"]),
        (["import", "CONFIG=x"], ["import", "", "x"]),
        (
            ["import", "SOURCE=d", "CONFIG=x", "SET=a.b=1 c=2"],
            ["import", "d", "x", "--set", "a.b=1 c=2"],
        ),
        (["report", "CONFIG=x", "SET=a.b=1"], ["report", "x", "--set", "a.b=1"]),
    ],
)
def test_targets_call_the_one_command(
    clone: Path, complete: dict[str, Any], command: list[str], expected: list[str]
) -> None:
    assert words(run("make", *command, cwd=clone)) == ["-m", "jobs", *expected]


def test_torture_is_a_module_of_the_tests(clone: Path, complete: dict[str, Any]) -> None:
    answer = run("make", "torture", "COUNT=3", cwd=clone)
    assert words(answer) == ["-m", "tests.torture", "--count", "3"]


def test_logs_reach_every_job(clone: Path, complete: dict[str, Any]) -> None:
    (clone / ".venv/bin/python").write_text('#!/bin/sh\nprintf "%s" "$GLASS_LOGS"\n')
    assert run("make", "report", "LOGS=/scratch/my logs", cwd=clone).stdout == "/scratch/my logs"
    inherited = run("make", "report", cwd=clone, env={"GLASS_LOGS": "/from/profile"})
    assert inherited.stdout == "/from/profile"


def test_help_lists_every_target(clone: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (clone / "Makefile").read_text(), re.M)
    listed = re.findall(r"^  make ([a-z-]+) ", run("make", cwd=clone).stdout, re.M)
    assert listed == targets
    assert {"setup", "submit", "status", "test", "slurm-up"} <= set(listed)
