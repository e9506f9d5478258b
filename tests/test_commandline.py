"""Command lines: what jobs share, and that a mistake in one is told once and ends with 78."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc.commandline import Parser, assignments
from hpc.errors import ConfigError
from hpc.words import plural
from jobs import import_data
from jobs.__main__ import commands
from tests.conftest import ROOT, MpiRun

OF_RANKS = ("train", "dataset", "simulate", "import_data")


@pytest.mark.parametrize(("name", "module"), commands().items())
def test_a_wrong_command_line_is_a_configuration_error(name: str, module: str) -> None:
    """Named as people call it, whoever started it."""
    with pytest.raises(ConfigError, match=rf"see glass {name} --help") as caught:
        importlib.import_module(f"jobs.{module}").parse(["--nonsense", "a", "b", "c", "d", "e"])
    assert caught.value.exit_code == 78


@pytest.mark.requires("mpi")
@pytest.mark.parametrize("job", OF_RANKS)
def test_ranks_tell_a_mistake_once(mpirun: MpiRun, job: str) -> None:
    done = mpirun(2, f"jobs.{job}", "--nonsense")
    assert done.returncode == 78, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stderr
    assert "required: " in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.lasting
def test_a_mistake_is_one_line() -> None:
    command = [sys.executable, "-m", "jobs.report"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 78
    said = "error: the following arguments are required: CONFIG; see glass report --help.\n"
    assert done.stderr == said
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train.l2=0.5", ["train.l2=0.5"]),
        ("a.b=1  c.d=2 ", ["a.b=1", "c.d=2"]),
        (
            "train.learning_rate={kind: constant, initial: 1e-3} train.l2=0",
            ["train.learning_rate={kind: constant, initial: 1e-3}", "train.l2=0"],
        ),
        (
            "study.description='a few words' a=[1, 2]",
            ["study.description='a few words'", "a=[1, 2]"],
        ),
        ("nothing", ["nothing"]),
        ("study.description='a b=c d' a=1", ["study.description='a b=c d'", "a=1"]),
        ("d='it''s a=b' e=2", ["d='it''s a=b'", "e=2"]),
        ('d="a \\" b=c" e=2', ['d="a \\" b=c"', "e=2"]),
        ("d=it's a=b", ["d=it's", "a=b"]),
        ("d={x: 'p q=r', y: [s t=u]} e=3", ["d={x: 'p q=r', y: [s t=u]}", "e=3"]),
    ],
)
def test_one_set_holds_several_assignments(text: str, found: list[str]) -> None:
    assert assignments(text) == found


def test_shared_arguments() -> None:
    parser = Parser("some", None)
    parser.add_study()
    parser.add_run_name()
    parser.add_settings()
    parser.add_logs()
    args = parser.parse_args(["x.yaml", "base", "--set", "a=1 b=2", "--set", "c=3", "--logs", "/l"])
    wanted: dict[str, Any] = {"config": "x.yaml", "run": "base", "logs": "/l"}
    assert vars(args) == {**wanted, "set": ["a=1", "b=2", "c=3"]}
    assert vars(parser.parse_args(["y"]))["set"] == [], "options of one call are not another's"


def test_a_run_directory_is_a_path() -> None:
    parser = Parser("some", None)
    parser.add_run()
    assert parser.parse_args(["a b/c"]).run == Path("a b/c")


def test_nouns_follow_their_numbers() -> None:
    assert [plural(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert plural(1000, "trajectory") == "1,000 trajectories"
    assert plural(1, "trajectory") == "1 trajectory"


WORK = """
import argparse
from hpc.commandline import run_ranks
def work(args, ranks, stop):
    for number in range(3):
        print("line", number, flush=True)
    open(args.done, "w").close()
    return 75
def parse(argv):
    return argparse.Namespace(done=argv[0])
import sys
sys.exit(run_ranks(work, parse, sys.argv[1:]))
"""


@pytest.mark.parametrize("output", ["full", "pipe"])
def test_work_goes_on_when_nobody_hears_of_it(tmp_path: Path, output: str) -> None:
    words = [sys.executable, "-c", WORK, str(tmp_path / "done")]
    end, pipe = os.pipe()
    os.close(end)
    with open("/dev/full", "w") as full:
        heard = {"full": full.fileno(), "pipe": pipe}[output]
        done = subprocess.run(words, stdout=heard, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (75, "")
    assert (tmp_path / "done").exists()


def test_a_missing_source_is_named_not_the_study() -> None:
    """`make import CONFIG=x` passes an empty SOURCE."""
    with pytest.raises(ConfigError, match="argument SOURCE: is not given"):
        import_data.parse(["", "x.yaml"])
    assert import_data.parse(["a b", "x.yaml"]).source == Path("a b")
