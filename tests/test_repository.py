"""What a clone holds: licence, citation, types, the top level; that there is no package of it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

TOP = {"hpc", "jobs", "glass_cnn", "slurm", "logs", "tests", "Makefile"}


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[str]:
    """Names of all files that a clone has."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def version(root: Path) -> str:
    found = re.search(r'^version = "([^"]+)"', (root / "pyproject.toml").read_text(), re.M)
    assert found is not None
    return found[1]


def test_a_clone_has_the_promised_top_level(tracked: list[str]) -> None:
    assert {name.split("/")[0] for name in tracked} >= TOP


def test_outputs_stay_out_of_git_but_for_their_description(root: Path, tracked: list[str]) -> None:
    assert [name for name in tracked if name.startswith("logs/")] == ["logs/README.md"]
    asked = ["git", "check-ignore", "-q", "logs/study/study.yaml"]
    assert subprocess.run(asked, cwd=root).returncode == 0


HOOKS = [f"{p}build_{k}" for p in ("", "get_requires_for_") for k in ("wheel", "sdist", "editable")]


@pytest.mark.parametrize("hook", HOOKS)
def test_whoever_asks_for_a_package_is_told_that_an_installation_is_a_clone(
    root: Path, hook: str
) -> None:
    system = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]
    assert system["requires"] == [], "nothing is downloaded for a message"
    build = f"import {system['build-backend']} as backend; backend.{hook}('.')"
    place = root / system["backend-path"][0]
    answer = subprocess.run(
        [sys.executable, "-c", build], cwd=place, capture_output=True, text=True
    )
    assert answer.returncode == 1
    (said,) = answer.stderr.splitlines()
    assert said.startswith("error: glass-cnn is not installed as a package")
    assert "make setup" in said


def test_a_clone_brings_its_licence_and_its_types(root: Path, tracked: list[str]) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["license"] == "BSD-3-Clause"
    assert {*project["license-files"], "hpc/py.typed", "glass_cnn/py.typed"} <= set(tracked)


def test_the_citation_names_this_version_and_licence(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["version"] == version(root)
    assert citation["license"] == "BSD-3-Clause"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_change_log_says_what_each_version_added_changed_and_fixed(root: Path) -> None:
    text = (root / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\S+)", text, re.M)
    assert version(root) in versions
    assert versions == sorted(versions, key=lambda v: [*map(int, v.split("."))], reverse=True)
    parts = re.findall(r"^### (.+)$", text, re.M)
    assert set(parts) == {"Added", "Changed", "Fixed"}


def test_kept_results_hold_figures_of_studies_not_of_single_runs(tracked: list[str]) -> None:
    figures = [Path(name).name for name in tracked if re.match(r"docs/results/.*/figures/", name)]
    assert "study-runs.svg" in figures
    assert [name for name in figures if not name.startswith("study-")] == []
