"""Every command in one, and what a shell is told of how a line goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs import __main__ as glass
from tests import clones


def call(
    *words: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(glass.__file__).parents[1]), **(env or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def completions(line: str, cwd: Path, logs: Path) -> set[str]:
    """What a shell would offer at the end of a line, as argcomplete and the shell agree on it."""
    said = cwd / "completions"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(said),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "GLASS_LOGS": str(logs),
    }
    call(cwd=cwd, env=environment)
    return {word.strip() for word in said.read_text().split("\n")}


@pytest.fixture
def place(tmp_path: Path, root: Path) -> Path:
    """A directory with study files, and a study that has run."""
    (tmp_path / "jobs").symlink_to(root / "jobs")
    run = tmp_path / "logs/my_rates/runs/base-s0-12345678"
    run.mkdir(parents=True)
    (tmp_path / "logs/my_rates/study.yaml").touch()
    return tmp_path


def test_help_names_every_command_within_80_columns(root: Path) -> None:
    text = glass.overview(glass.commands())
    for name in glass.commands():
        assert f"\n  {name:<14}" in text
    assert max(map(len, text.splitlines())) <= 80
    targets = set(clones.run("make", "help", cwd=root).stdout.split())
    inner = set(glass.INNER)
    assert set(glass.commands()) - inner <= targets, "every command is a target of make"


def test_a_slip_in_a_command_is_told(tmp_path: Path) -> None:
    answer = call("sumbit", "x.yaml", cwd=tmp_path)
    assert answer.returncode == 78
    assert answer.stderr == (
        "error: glass sumbit: there is no such command; did you mean submit? See glass --help.\n"
    )
    answer = call("submit", cwd=tmp_path)
    assert answer.returncode == 78
    assert "see glass submit --help" in answer.stderr


def test_a_command_is_called_with_its_own_words_from_anywhere(tmp_path: Path) -> None:
    answer = call("schema", cwd=tmp_path)
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["type"] == "object"
    assert call("import", "--help", cwd=tmp_path).stdout.startswith("usage: glass import ")


@pytest.mark.parametrize(
    ("line", "wanted", "unwanted"),
    [
        ("glass su", {"submit"}, "status"),
        ("glass status --w", {"--watch"}, "--all"),
        ("glass submit jobs/q", {"jobs/quickstart.yaml"}, "jobs/own_images.yaml"),
        ("glass submit jobs/small/coll", {"jobs/small/collapse.yaml"}, "jobs/quickstart.yaml"),
        ("glass report my_", {"my_rates"}, "jobs/quickstart.yaml"),
        ("glass evaluate logs/my", {"logs/my_rates/runs/base-s0-12345678"}, ""),
        ("glass submit jobs/quickstart.yaml --launcher l", {"local"}, "slurm"),
    ],
)
def test_a_line_goes_on(place: Path, line: str, wanted: set[str], unwanted: str) -> None:
    found = completions(line, place, place / "logs")
    assert wanted <= found
    assert unwanted not in found or not unwanted


@pytest.mark.parametrize("shell", glass.SHELLS)
def test_shells_are_told_how_to_ask(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    glass.main(["completion", shell])
    assert "glass" in capsys.readouterr().out


def test_set_up_writes_the_command(
    install: ModuleType, clone: Path, complete: dict[str, Any], tmp_path: Path
) -> None:
    assert complete
    (clone / ".venv/bin/glass").unlink()  # as after an update from a version without it
    made = clones.run("make", "status", cwd=clone, env={"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"})
    assert json.loads(made.stdout.splitlines()[-1])[1:] == ["-m", "jobs", "status"], made
    answer = clones.run(clone / ".venv/bin/glass", "status", "a b", cwd=tmp_path)
    assert json.loads(answer.stdout)[1:] == ["-m", "jobs", "status", "a b"]
