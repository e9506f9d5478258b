"""The README and the documents say what is so: commands run, targets and files exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glass_cnn.study import build_study, load_study
from hpc.yaml_files import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
STUDIES = ROOT / "docs" / "studies.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
STAGES = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if not path.stem.startswith("_"))


def blocks(document: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)


def first_commands() -> list[str]:
    """The README's first block of shell commands, a line each."""
    return blocks(README, "sh")[0].strip().splitlines()


def test_the_first_two_commands_are_the_main_job_and_the_tests() -> None:
    assert first_commands() == ["make submit CONFIG=jobs/quickstart.yaml", "make test"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.requires("mpi")
def test_the_main_job(tmp_path: Path) -> None:
    """The README's first command, on data simulated here: both seeds learn; again does nothing."""
    command = first_commands()[0].split()
    environment = {**os.environ, "LOGS": str(tmp_path), "LAUNCHER": "local"}

    first = run(command, environment)
    assert first.returncode == 0, first.stdout + first.stderr
    results = [json.loads(p.read_text()) for p in tmp_path.glob("quickstart/runs/*/result.json")]
    assert len(results) == 2
    assert min(result["optimal"]["validation_accuracy"] for result in results) >= 0.95
    starts = tmp_path.glob("quickstart/runs/*/provenance.jsonl")
    assert [json.loads(p.read_text())["ranks"] for p in starts] == [2, 2]
    report = tmp_path / "quickstart" / "report.html"
    assert str(report) in first.stdout
    assert report.stat().st_size > 100_000

    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    second = run(command, environment)
    assert second.returncode == 0
    assert "nothing to do" in second.stdout
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == made


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the README in the repository, without standard input."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_page_is_in_the_menu_of_the_site() -> None:
    """`make docs` refuses a page that its menu leaves out; that stage comes late in the check."""
    site = parse_yaml((ROOT / "mkdocs.yml").read_text(), "mkdocs.yml")
    menu = [path for entry in site["nav"] for path in entry.values()]
    assert len(set(menu)) == len(menu)
    pages = {str(path.relative_to(ROOT / "docs")) for path in DOCUMENTS[1:]}
    assert set(menu) == {page for page in pages if not page.endswith("results_log.md")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    code = " ".join(re.findall(r"`([^`\n]+)`", document.read_text()) + blocks(document, "sh"))
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", code))
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    rooms = r"`((?:hpc|glass_cnn|jobs|slurm|tests|benchmarks|docs)/[\w./-]+\.(?:py|yaml|sh|md))`"
    named = re.findall(rooms, document.read_text())
    assert [name for name in named if not (ROOT / name).exists() and name != "jobs/x.yaml"] == []


def test_the_example_study_is_one() -> None:
    study = build_study(parse_yaml(blocks(README, "yaml")[0], "README.md"), "README.md")
    assert len(study.runs) == 24


def test_the_example_with_all_keys_is_a_study(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    (tmp_path / "study.yaml").write_text(blocks(STUDIES, "yaml")[0])
    assert len(load_study(tmp_path / "study.yaml").runs) == 2 * 3 * 2 * 12


def test_every_study_file_is_named() -> None:
    named = set(re.findall(r"`(?:jobs/(?:full|small|scan)/)?(\w+\.yaml)`", STUDIES.read_text()))
    files = {
        path.name
        for size in ("full", "small", "scan")
        for path in (ROOT / "jobs" / size).glob("*.yaml")
    }
    assert files == named


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_versions_that_are_named_are_the_pinned_ones(document: Path) -> None:
    pinned = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"[\w-]+==[\w.]*\w", document.read_text())
    assert [name for name in named if f'"{name}"' not in pinned] == []


@pytest.mark.lasting
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_help(stage: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", f"jobs.{stage}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.startswith("usage: ")
