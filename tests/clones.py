"""Clones with an environment that is not there, or claims to be complete."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def run(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, apart from any make that runs these tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **(env or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def make_clone(root: Path, place: Path) -> Path:
    """The parts of a clone that set-up is made of."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "requirements", place / "requirements", ignore=ignored)
    shutil.copy(root / "Makefile", place)
    return place


def install_of(clone: Path) -> ModuleType:
    """The set-up script of a clone, as a module."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "requirements"]:
        del sys.modules[name]
    sys.path.insert(0, str(clone))
    try:
        return importlib.import_module("requirements.install")
    finally:
        sys.path.remove(str(clone))


def pretend_complete(clone: Path, install: ModuleType) -> dict[str, Any]:
    """Give it an environment that claims to be complete; what its stamp says."""
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    show = "import json, sys; print(json.dumps(sys.argv))"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        f"exec {sys.executable} -c '{show}' \"$@\"\n"
    )
    python.chmod(0o755)
    install.write_command()
    stamp = {
        "root": str(clone),
        "python": install.interpreter(),
        "pins": install.pins_digest(),
        "gpu": False,
        "mpi": "wheel",
        "mpicc": "",
        "horovod": True,
    }
    (clone / ".venv/.ready").write_text(json.dumps(stamp, indent=1))
    return stamp
