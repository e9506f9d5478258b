"""The CUDA toolkit that Horovod's kernels are compiled with: the site's, else one from PyPI.

PyPI has a compiler from CUDA 13 on only. The runtime becomes part of the wheel, so that nodes need
no toolkit, but a driver that knows it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from requirements import steps
from requirements.steps import REQUIREMENTS, VENV, SetupError, pip, say

CAPABILITIES = "75,80,90"  # T4, A100, H100: 7.5 and all that is newer, as machine code or as PTX
NEEDED = ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart_static.a")
DRIVERS = {"12": 525, "13": 580}  # CUDA's major version -> the oldest driver that runs it


@dataclass(frozen=True)
class Toolkit:
    """A toolkit that is complete, or PyPI's where there is none (`home` is None)."""

    version: str
    home: Path | None = None

    def __str__(self) -> str:
        """What a compiled Horovod depends on, and what it asks of the nodes."""
        return (
            f"CUDA {self.version}, NCCL {steps.pinned('nvidia-nccl-cu12')}, compute capabilities "
            f"{capabilities()}, NVIDIA driver {DRIVERS[self.version.partition('.')[0]]} or newer"
        )


def toolkit() -> Toolkit:
    """The toolkit that the environment names, else the one in PATH, else that of PyPI.

    Raises SetupError where one that is named cannot serve; one in PATH is then passed over.
    """
    named = next((v for v in ("HOROVOD_CUDA_HOME", "CUDA_HOME") if os.environ.get(v)), None)
    home = Path(os.environ[named]) if named else home_in_path()
    if home is None:
        return Toolkit(steps.pinned("nvidia-cuda-nvcc"))
    version = re.search(r"\bV([\d.]+)", steps.output_of([f"{home}/bin/nvcc", "--version"]))
    missing = [name for name in NEEDED if not (home / name).exists()]
    if version and version[1].partition(".")[0] in DRIVERS and not missing:
        return Toolkit(version[1], home)
    wrong = f"has no {', no '.join(missing)}" if missing else "is not CUDA 12 or 13"
    if named:
        raise SetupError(f"{named}={home} {wrong}; without it, CUDA comes from PyPI")
    say(f"the CUDA toolkit in {home} {wrong}, so it comes from PyPI")
    return Toolkit(steps.pinned("nvidia-cuda-nvcc"))


def home_in_path() -> Path | None:
    """Where the toolkit lies whose `nvcc` is in PATH, which may be a script that calls another."""
    program = shutil.which("nvcc")
    plan = steps.output_of([program, "--dryrun", "x.cu"], errors=True) if program else ""
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.M)
    return Path(top[1]).resolve() if top else None


def capabilities() -> str:
    """The compute capabilities that are compiled for, tenfold."""
    return os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST") or CAPABILITIES


def variables(chosen: Toolkit, aside: Path) -> dict[str, str]:
    """What Horovod's build is told; `aside` takes what is needed until it is compiled."""
    nccl = next(VENV.glob("lib/python3.*/site-packages/nvidia/nccl"))
    (aside / "libnccl.so").symlink_to(nccl / "lib" / "libnccl.so.2")  # the linker's name for it
    return {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_NCCL_INCLUDE": str(nccl / "include"),  # TensorFlow's, so that both load the same
        "HOROVOD_NCCL_LIB": str(aside),
        "HOROVOD_CUDA_HOME": str(chosen.home or unpack(aside)),
        "HOROVOD_BUILD_CUDA_CC_LIST": capabilities(),
    }


def unpack(aside: Path) -> Path:
    """PyPI's toolkit as one tree, with the names that CMake looks for."""
    pins = ("--require-hashes", f"--requirement={REQUIREMENTS / 'cuda.txt'}")
    options = ("--no-deps", "--no-compile", f"--target={aside}")
    pip("install", *options, *pins, step="unpacking the CUDA toolkit")
    home = aside / "nvidia" / "cu13"
    (home / "lib64").symlink_to("lib")
    (home / "lib" / "libcudart.so").symlink_to("libcudart.so.13")
    return home
