"""How set-up runs a step: a command into the log, signs of life, the cause when it fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
ROOT = REQUIREMENTS.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
HEARTBEAT_SECONDS = 30

# Variables that would let packages in from outside (cluster modules set them).
ELSEWHERE = {"PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}

# What a failing step's log says -> what the user can do about it.
CAUSES = {
    r"No space left on device|Disk quota exceeded": (
        "the disk is full: free some space, or point TMPDIR and GLASS_CACHE at a larger one"
    ),
    r"NewConnectionError|name resolution|Read timed out|ConnectTimeout|ProxyError|SSLError": (
        "PyPI does not answer: check the connection, or set HTTPS_PROXY or pip's index as your "
        "site documents; then `make setup`"
    ),
    r"No matching distribution|Could not find a version": (
        "PyPI (or the mirror that pip is set to) has no such file for this Python and machine"
    ),
    r"DO NOT MATCH THE HASHES": (
        "a file is not the one that is pinned: its download was damaged (`pip cache purge`, then "
        "`make setup`), or the mirror that pip is set to changes packages"
    ),
    r"Killed signal|Killed\b.*cc1plus|cannot allocate memory": (
        "memory ran out while compiling: `make setup JOBS=1`"
    ),
    r"Python\.h: No such file": (
        "Python's headers are missing: install this Python's -dev or -devel package"
    ),
    r"mpi\.h: No such file": (
        "mpicc does not work: load your site's MPI module, then `make setup MPI=site`"
    ),
    r"Could NOT find CUDA|Failed to find nvcc": (
        "the CUDA toolkit is incomplete: unset CUDA_HOME and `module unload` it, then `make setup "
        "GPU=1` takes one from PyPI"
    ),
}


class SetupError(Exception):
    """Something that the user can put right; its text says how."""


def install_pins(*names: str, step: str) -> None:
    """Install what files of pins list, each file checked against its hash: by uv if there is one.

    uv takes a quarter of pip's time, but does not know a mirror that only pip is set to.
    """
    pins = ["--require-hashes", *(f"--requirement={REQUIREMENTS / name}.txt" for name in names)]
    if uv := shutil.which("uv"):
        try:
            return run([uv, "pip", "install", f"--python={PYTHON}", *pins], f"{step} (uv)")
        except SetupError:
            say(f"uv cannot do it, see {LOG}; now with pip")
    # Not to bytecode, as uv: `byte_compile` does that on all cores.
    return pip("install", "--no-compile", *pins, step=step)


def byte_compile() -> None:
    """Compile all packages to bytecode that are not yet, on all cores.

    Python would do it where a package is first imported, but not where it is told to write none, as
    in most containers, or may not write: there every start of a rank would take 13 s of processor
    time in place of 3. What cannot be compiled (templates, tests of errors) is never imported.
    """
    for folder in VENV.glob("lib/python*/site-packages"):
        command = [str(PYTHON), "-m", "compileall", "-q", "-j", "0", str(folder)]
        with LOG.open("a") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            wait(child, "compiling to bytecode")


def pip(*arguments: str, step: str, env: Mapping[str, str] | None = None) -> None:
    """Run the environment's pip."""
    quiet = ("--no-input", "--disable-pip-version-check")
    run([str(PYTHON), "-m", "pip", *quiet, *arguments], step, env)


def run(command: list[str], step: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command into the log, with a sign of life when it takes long.

    `.venv` is first in its PATH. Raises SetupError if it fails, with what its log tells and, if it
    is known, the cause.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    path = f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}"
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        beginning = log.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**kept, **(env or {}), "PATH": path},
            cwd=ROOT,
            close_fds=False,  # it holds the locks as well, should it outlive this script
        )
        wait(child, step)
    if child.returncode:
        said = LOG.read_bytes()[beginning:].decode(errors="replace")
        raise SetupError(explain(step, child.returncode, said))


def wait(child: subprocess.Popen[bytes], step: str) -> None:
    """Wait for a child, which outlives this script only if that is killed outright."""
    started = time.monotonic()
    try:
        while child.poll() is None:
            try:
                child.wait(HEARTBEAT_SECONDS)
            except subprocess.TimeoutExpired:
                say(f"... {step}, {minutes(time.monotonic() - started)} so far")
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def explain(step: str, status: int, log: str) -> str:
    """The message for a failed step: its first errors, its last lines, and the likely cause."""
    lines = log.strip().splitlines()
    errors = [i for i, line in enumerate(lines) if re.search(r"(?i)\berror\b|could not", line)]
    telling = {*errors[:8], *(i + 1 for i in errors[:3]), *range(len(lines) - 5, len(lines))}
    shown = (f"  | {lines[i].strip()[:200]}\n" for i in sorted(telling) if 0 <= i < len(lines))
    cause = next((text for pattern, text in CAUSES.items() if re.search(pattern, log)), "not known")
    return (
        f"{step} failed (exit status {status}):\n{''.join(shown)}"
        f"  whole log: {LOG}\n  likely cause: {cause}"
    )


def output_of(command: list[str], errors: bool = False) -> str:
    """What a command prints, or says of errors; nothing if there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return (answer.stderr if errors else answer.stdout).strip()


@contextlib.contextmanager
def locked(path: Path, reason: str) -> Iterator[None]:
    """Hold a lock file, which the system releases once this process and its children ended."""
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{reason}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pinned(package: str) -> str:
    """The pinned version of a package."""
    line = re.compile(rf"^{re.escape(package)}==(\S+)", re.M | re.I)
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        if found := line.search(path.read_text()):
            return found[1]
    raise SetupError(f"requirements/*.txt pin no {package}")


def minutes(seconds: float) -> str:
    """A duration for people."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def say(text: str) -> None:
    """One line of progress."""
    print(f"setup: {text}", flush=True)
