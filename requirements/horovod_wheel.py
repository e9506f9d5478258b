"""Horovod's wheel: compiled against one TensorFlow and one MPI, and kept for the next clone.

It lies in `$GLASS_CACHE/wheels` under a key that names everything it was compiled against, so that
no wheel is ever used with another TensorFlow, MPI, compiler or processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from requirements import cuda, steps
from requirements.steps import PYTHON, REQUIREMENTS, VENV, SetupError, pip, say

INSTALLED = VENV / ".horovod"  # which kept wheel is

CHOICES = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    # A kept wheel serves other clones: it looks for its libraries beside itself first, as seen
    # from .venv/lib/python3.x/site-packages/horovod/tensorflow: libmpi in .venv/lib, and NCCL.
    "LDFLAGS": "-Wl,-rpath,'$ORIGIN/../../../..:$ORIGIN/../../nvidia/nccl/lib'",
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # parts of Horovod ask for a CMake that is too old
}
# What TensorFlow has no more since Horovod was published: file, its words, others for them.
LEFT_OUT = "horovod/tensorflow/xla_mpi_ops.cc"  # serves XLA alone, which is not used here
XLA = "horovod/tensorflow/CMakeLists.txt", f'"${{PROJECT_SOURCE_DIR}}/{LEFT_OUT}"', ""
STREAM = (  # a function that gave a stream's handle; now the stream does
    "horovod/tensorflow/mpi_ops.cc",
    "GpuStreamHandle AsGpuStreamValue(Stream* stream);",
    "template <class S> GpuStreamHandle AsGpuStreamValue(S* stream) {\n"
    "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n}",
)


def install_horovod(toolkit: cuda.Toolkit | None, mpicc: str) -> None:
    """Install the kept wheel for exactly this environment, compiled first if there is none."""
    key = horovod_key(toolkit, mpicc)
    home = cache_root() / "wheels" / key_name(key)
    if INSTALLED.exists() and INSTALLED.read_text() == home.name:
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        with steps.locked(home / "lock", "another set-up compiles the same Horovod"):
            wheel = kept_wheel(home) or compile_horovod(home, key, toolkit)
    except OSError as error:
        text = f"the cache {home} cannot be used ({error}); set GLASS_CACHE=dir"
        raise SetupError(text) from None
    INSTALLED.unlink(missing_ok=True)
    pip("install", "--force-reinstall", "--no-deps", str(wheel), step="installing Horovod")
    INSTALLED.write_text(home.name)


def discard_wheel() -> None:
    """Keep the installed wheel no longer: it does not load, and would not the next time either."""
    if INSTALLED.exists():
        home = cache_root() / "wheels" / INSTALLED.read_text()
        for wheel in home.glob("horovod-*.whl"):
            wheel.unlink(missing_ok=True)
        INSTALLED.unlink()


def kept_wheel(home: Path) -> Path | None:
    """The finished wheel of an earlier set-up."""
    wheel = next(home.glob("horovod-*.whl"), None)
    if wheel is None or not zipfile.is_zipfile(wheel):
        return None
    say(f"Horovod {steps.pinned('horovod')}: compiled earlier ({wheel.parent})")
    return wheel


def compile_horovod(home: Path, key: Mapping[str, str], toolkit: cuda.Toolkit | None) -> Path:
    """Compile into a directory aside, then move the wheel to its place."""
    what = f"Horovod {steps.pinned('horovod')}: compiling for {key['tensorflow']} and {key['mpi']}"
    say(f"{what} ({'about ten' if toolkit else 'about three'} minutes on two cores)")
    jobs = os.environ.get("JOBS") or str(len(os.sched_getaffinity(0)))
    options = ("--no-deps", "--no-build-isolation", "--no-cache-dir")
    with tempfile.TemporaryDirectory(dir=home, prefix="build-") as name:
        aside = Path(name)
        variables = {**CHOICES, "MAKEFLAGS": f"-j{jobs}"}
        if toolkit:
            variables |= cuda.variables(toolkit, aside)
        source = sources(aside, options, (XLA, STREAM) if toolkit else (XLA,))
        pip(
            *("wheel", *options, f"--wheel-dir={aside}", str(source)),
            step="compiling Horovod",
            env=variables,
        )
        made = next(aside.glob("horovod-*.whl"))
        (home / "key.json").write_text(json.dumps(key, indent=1) + "\n")
        return made.replace(home / made.name)


def sources(aside: Path, options: Sequence[str], edits: Sequence[tuple[str, str, str]]) -> Path:
    """Horovod's sources as they are published, but for `edits`.

    Raises SetupError where they are not those that the edits are for.
    """
    pin = f"--requirement={REQUIREMENTS / 'horovod.txt'}"
    pip(
        *("download", *options, "--no-binary=horovod", f"--dest={aside}", "--require-hashes", pin),
        step="downloading Horovod",
    )
    shutil.unpack_archive(next(aside.glob("horovod-*.tar.gz")), aside)
    source = next(path for path in aside.glob("horovod-*") if path.is_dir())
    for name, words, others in edits:
        replace(source / name, words, others)
    return source


def replace(file: Path, words: str, others: str) -> None:
    """Put others for words of a file; raises SetupError unless they stand there once."""
    text = file.read_text()
    if text.count(words) != 1:
        raise SetupError(f"{file} does not name {words} once, but {text.count(words)} times")
    file.write_text(text.replace(words, others))


def horovod_key(toolkit: cuda.Toolkit | None, mpicc: str) -> dict[str, str]:
    """Everything that a compiled Horovod depends on."""
    tag = "import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform())"
    tensorflow = "tensorflow" if toolkit else "tensorflow-cpu"
    key = {
        "horovod": f"{steps.pinned('horovod')} without {LEFT_OUT}",
        "python": steps.output_of([str(PYTHON), "-c", tag]),
        "tensorflow": f"{tensorflow} {steps.pinned(tensorflow)}",
        "mpi": mpicc or f"mpich {steps.pinned('mpich')}",
        "machine": f"{platform.machine()} {' '.join(vector_instructions())}",
        "system": " ".join(platform.libc_ver()),
        "compiler": steps.output_of([compiler("CXX", "c++") or "c++", "--version"]).splitlines()[0],
        "options": json.dumps(CHOICES, sort_keys=True),
    }
    return {**key, "cuda": f"{toolkit}; {STREAM[2]}"} if toolkit else key


def key_name(key: Mapping[str, str]) -> str:
    """A directory name that tells people what is in it and differs whenever the key does."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    words = f"{key['python'].split()[0]}-{key['tensorflow']}-{key['mpi'].splitlines()[0]}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", words)[-80:].strip("-") + "-" + digest


def cache_root() -> Path:
    """Where compiled wheels are kept."""
    if home := os.environ.get("GLASS_CACHE"):
        return Path(home).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glass-cnn"


def compiler(variable: str, default: str) -> str | None:
    """Path of the compiler that a build will use."""
    return shutil.which(os.environ.get(variable, default).split()[0])


def vector_instructions() -> list[str]:
    """The instruction sets that Horovod's build looks for on the machine that compiles it."""
    present = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text().partition("\n\n")[0]))
    return sorted(present & {"avx", "f16c", "fma"})
