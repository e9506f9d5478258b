"""Pins: exact versions with hashes, for every Python and processor, and no address."""

from __future__ import annotations

import re
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.clones import run


def pins(root: Path) -> dict[Requirement, list[str]]:
    """Every pin of every file, with its hashes."""
    texts = [file.read_text() for file in sorted((root / "requirements").rglob("*.txt"))]
    text = "".join(texts).replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    split = [line.partition("--hash=") for line in lines]
    return {Requirement(pin): re.findall(r"sha256:[0-9a-f]{64}", rest) for pin, _, rest in split}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pin_is_one_exact_version_with_hashes(root: Path) -> None:
    versions: dict[str, set[str]] = {}
    for pin, hashes in pins(root).items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
        assert not pin.url, pin
        assert hashes, pin
        versions.setdefault(canonical(pin.name), set()).add(str(pin.specifier))
    assert [name for name, found in versions.items() if len(found) > 1] == []


def test_pins_are_what_the_project_file_asks_for(root: Path) -> None:
    """A version that was changed in pyproject.toml alone would change nothing."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    asked = [project["project"]["dependencies"], *project["dependency-groups"].values()]
    pinned = {(canonical(pin.name), str(pin.specifier)) for pin in pins(root)}
    for wanted in (Requirement(line) for lines in asked for line in lines):
        assert (canonical(wanted.name), str(wanted.specifier)) in pinned, wanted


@pytest.mark.parametrize("python", ["3.11.0", "3.12.9", "3.13.9"])
def test_pins_serve_every_python_and_processor(root: Path, python: str) -> None:
    """Nothing is left out by a marker."""
    machine = {"python_full_version": python, "python_version": python[:4], "sys_platform": "linux"}
    left_out = {
        pin.name
        for pin in pins(root)
        for processor in ("x86_64", "aarch64")
        if pin.marker and not pin.marker.evaluate({**machine, "platform_machine": processor})
    }
    assert left_out == set()


def test_everything_installed_is_pinned(root: Path) -> None:
    pinned = {canonical(pin.name): pin for pin in pins(root)}
    # The environment's own packages: setuptools, once imported, also shows the copies it carries.
    site = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    found = metadata.distributions(path=site)
    installed = {canonical(p.metadata["Name"]): p.version for p in found}
    for name in installed.keys() - {"pip"}:
        assert name in pinned, f"{name} {installed[name]} is in no file of requirements/"
        assert installed[name] in pinned[name].specifier, f"{name} {installed[name]}"


@pytest.mark.lasting
def test_a_file_that_is_not_the_pinned_one_is_refused(clone: Path, tmp_path: Path) -> None:
    """Another wheel under the same name and version, as a mirror might serve it."""
    with zipfile.ZipFile(tmp_path / "other-1-py3-none-any.whl", "w") as archive:
        for name in ("METADATA", "WHEEL", "RECORD"):
            archive.writestr(f"other-1.dist-info/{name}", "Name: other\nVersion: 1\n")
    pin = f"other==1 --hash=sha256:{'0' * 64}\n"
    for file in (clone / "requirements").glob("*.txt"):
        file.write_text(pin)
    mirror = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "UV_OFFLINE": "1"}
    answer = run("make", "setup", cwd=clone, env={**mirror, "PYTHON": sys.executable})
    assert answer.returncode != 0
    assert "a file is not the one that is pinned" in answer.stderr
    assert not (clone / ".venv/.ready").exists()


def test_no_file_names_a_place_to_download_from(root: Path) -> None:
    for file in (root / "requirements").iterdir():
        assert file.is_dir() or not re.search(r"https?:|--index|--find-links", file.read_text())
