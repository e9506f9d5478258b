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
from collections.abc import Mapping
from pathlib import Path

from requirements import steps
from requirements.steps import PYTHON, REQUIREMENTS, VENV, SetupError, pip, say

INSTALLED = VENV / ".horovod"  # which kept wheel is

CHOICES = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    # A kept wheel serves other clones: it looks for its libraries beside itself first, as seen
    # from .venv/lib/python3.x/site-packages/horovod/tensorflow: libmpi in .venv/lib.
    "LDFLAGS": "-Wl,-rpath,'$ORIGIN/../../../..'",
}
GPU_CHOICES = {
    **CHOICES,
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    "LDFLAGS": "-Wl,-rpath,'$ORIGIN/../../../..:$ORIGIN/../../nvidia/nccl/lib'",
}


def install_horovod(gpu: bool, mpicc: str) -> None:
    """Install the kept wheel for exactly this environment, compiled first if there is none."""
    key = horovod_key(gpu, mpicc)
    home = cache_root() / "wheels" / key_name(key)
    if INSTALLED.exists() and INSTALLED.read_text() == home.name:
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        with steps.locked(home / "lock", "another set-up compiles the same Horovod"):
            wheel = kept_wheel(home) or compile_horovod(home, key)
    except OSError as error:
        text = f"the cache {home} cannot be used ({error}); set GLASS_CACHE=dir"
        raise SetupError(text) from None
    INSTALLED.unlink(missing_ok=True)
    pip("install", "--force-reinstall", "--no-deps", str(wheel), step="installing Horovod")
    INSTALLED.write_text(home.name)


def kept_wheel(home: Path) -> Path | None:
    """The finished wheel of an earlier set-up."""
    wheel = next(home.glob("horovod-*.whl"), None)
    if wheel is None or not zipfile.is_zipfile(wheel):
        return None
    say(f"Horovod {steps.pinned('horovod')}: compiled earlier ({wheel.parent})")
    return wheel


def compile_horovod(home: Path, key: Mapping[str, str]) -> Path:
    """Compile into a directory aside, then move the wheel to its place."""
    what = f"Horovod {steps.pinned('horovod')}: compiling for {key['tensorflow']} and {key['mpi']}"
    say(f"{what} (about three minutes)")
    jobs = os.environ.get("JOBS") or str(len(os.sched_getaffinity(0)))
    variables = {**json.loads(key["options"]), "MAKEFLAGS": f"-j{jobs}"}
    with tempfile.TemporaryDirectory(dir=home, prefix="build-") as aside:
        pip(
            *(
                "wheel",
                "--no-deps",
                "--no-build-isolation",
                "--no-cache-dir",
                f"--wheel-dir={aside}",
            ),
            *("--require-hashes", f"--requirement={REQUIREMENTS / 'horovod.txt'}"),
            step="compiling Horovod",
            env=variables | (nccl_variables() if "cuda" in key else {}),
        )
        made = next(Path(aside).glob("horovod-*.whl"))
        (home / "key.json").write_text(json.dumps(key, indent=1) + "\n")
        return made.replace(home / made.name)


def nccl_variables() -> dict[str, str]:
    """Point Horovod's build at the NCCL that TensorFlow brings, so that both load the same one."""
    home = next(VENV.glob("lib/python3.*/site-packages/nvidia/nccl"))
    link = VENV / "lib" / "nccl" / "libnccl.so"  # the linker's name, which the wheel leaves out
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(home / "lib" / "libnccl.so.2")
    return {"HOROVOD_NCCL_INCLUDE": str(home / "include"), "HOROVOD_NCCL_LIB": str(link.parent)}


def horovod_key(gpu: bool, mpicc: str) -> dict[str, str]:
    """Everything that a compiled Horovod depends on."""
    tag = "import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform())"
    tensorflow = "tensorflow" if gpu else "tensorflow-cpu"
    key = {
        "horovod": steps.pinned("horovod"),
        "python": steps.output_of([str(PYTHON), "-c", tag]),
        "tensorflow": f"{tensorflow} {steps.pinned(tensorflow)}",
        "mpi": mpicc or f"mpich {steps.pinned('mpich')}",
        "machine": f"{platform.machine()} {' '.join(vector_instructions())}",
        "system": " ".join(platform.libc_ver()),
        "compiler": steps.output_of([compiler("CXX", "c++") or "c++", "--version"]).splitlines()[0],
        "options": json.dumps(GPU_CHOICES if gpu else CHOICES, sort_keys=True),
    }
    if gpu:
        nccl = steps.pinned("nvidia-nccl-cu12")
        key["cuda"] = f"{steps.output_of(['nvcc', '--version'])} nccl {nccl}"
    return key


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
