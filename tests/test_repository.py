"""What a clone holds and what a package of it holds: licence, citation, types, the top level."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

PACKAGES = ("hpc", "glass_cnn", "jobs")
TOP = {"hpc", "jobs", "glass_cnn", "slurm", "logs", "tests", "Makefile"}


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[str]:
    """Names of all files that a clone has."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(root: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that a clone builds, without what lies about in the work tree."""
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked:
        kept = name.startswith((*(f"{p}/" for p in PACKAGES), "requirements/"))
        if kept or "/" not in name:
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, clone / name)
    build = "import setuptools.build_meta as b; b.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, check=True)
    return next(clone.glob("*.whl"))


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


def test_a_package_holds_every_module_template_licence_and_mark_of_types(
    wheel: Path, tracked: list[str]
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    kinds = (".py", ".j2", ".js", ".css", "py.typed")
    wanted = {n for n in tracked if n.split("/")[0] in PACKAGES and n.endswith(kinds)}
    assert wanted <= names
    assert {"hpc/py.typed", "glass_cnn/py.typed"} <= names
    info = next(n for n in names if n.endswith(".dist-info/METADATA"))
    assert "License-Expression: BSD-3-Clause" in zipfile.ZipFile(wheel).read(info).decode()
    assert info.replace("METADATA", "licenses/LICENSE") in names


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
