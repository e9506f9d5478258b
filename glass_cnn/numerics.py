"""What decides how a training rounds: chosen before TensorFlow loads, described, compared.

Settings, data and seed give the same bits only under the same numerics. oneDNN takes other kernels
for another instruction set; other threads, ranks, devices and libraries add in another order.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from glass_cnn.records import Numerics
from glass_cnn.settings import Launch
from glass_cnn.train_settings import Precision
from hpc.errors import ConfigError

SWITCH = "TF_ENABLE_ONEDNN_OPTS"
CAP, FORMER_CAP = "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"

LEVELS = {
    "sse41": {"sse4_1"},
    "avx": {"avx"},
    "avx2": {"avx2"},
    "avx512_core": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
}
"""oneDNN's instruction sets that differ in float32, lowest first, and the flags of each"""

BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""what a processor multiplies bfloat16 with, as its flags say, in the order of oneDNN's choice"""
AMPERE = (8, 0)
"""the first compute capability with tf32 and bfloat16"""

VARIABLES = (
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE",
    "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS", "TF_XLA_FLAGS", "XLA_FLAGS",
    "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO", "HOROVOD_CPU_OPERATIONS",
    "HOROVOD_GPU_OPERATIONS", "HOROVOD_HIERARCHICAL_ALLREDUCE",
    "MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM", "MPIR_CVAR_ALLREDUCE_INTER_ALGORITHM",
)  # fmt: skip
"""variables of the environment that change kernels or the order of sums where they are set"""

CUDA = {
    "cuda": "nvidia-cuda-runtime-cu12", "cublas": "nvidia-cublas-cu12",
    "cudnn": "nvidia-cudnn-cu12", "nccl": "nvidia-nccl-cu12",
}  # fmt: skip
"""libraries that choose kernels on GPUs, or the order of sums over them, and the package of each"""
DRIVER = Path("/sys/module/nvidia/version")

UNKNOWN = "unknown before: the checkpoint was made by a version that did not record them"


def choose(launch: Launch, tell: Callable[[str], None] = print) -> None:
    """Set what TensorFlow and oneDNN read from the environment; before TensorFlow is loaded.

    Settings decide, not what a shell happens to export: a variable that says otherwise is overruled
    and told. Raises RuntimeError where TensorFlow is loaded with another choice.
    """
    wanted = {SWITCH: str(int(launch.onednn)), CAP: launch.max_cpu_isa, FORMER_CAP: None}
    overruled = []
    for name, value in wanted.items():
        found = os.environ.get(name)
        if found == value or (found and value and found.lower() == value):
            continue
        if "tensorflow" in sys.modules:
            raise RuntimeError(f"TensorFlow is loaded with {name}={found}, not {value}")
        if found is not None:
            overruled.append(f"{name}={found}")
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if overruled:
        tell(
            f"{', '.join(overruled)} in the environment is not heeded: the settings launch.onednn "
            "and launch.max_cpu_isa decide."
        )


def processor() -> str:
    """Kind of this machine's processor, in words."""
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [facts[key] for key in ("cpu family", "model") if key in facts]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def instruction_set(precision: Precision = "float32") -> str:
    """The set that oneDNN's kernels use on this processor, under the cap that is chosen."""
    flags = _flags()
    extension = next((each for each in BFLOAT16 if each in flags), None)
    if precision == "bfloat16" and extension:
        return extension
    return highest(flags, os.environ.get(CAP)) or platform.machine()


def highest(flags: set[str], cap: str | None) -> str | None:
    """The highest of LEVELS that a processor with `flags` has, up to `cap`; None without any."""
    names = list(LEVELS)
    allowed = names[: names.index(cap) + 1] if cap in LEVELS else names
    return next((name for name in reversed(allowed) if flags >= LEVELS[name]), None)


def check(precision: Precision, gpu: Sequence[int] | None) -> None:
    """Raise ConfigError where this rank's device would emulate a precision, or has none of it.

    Args:
        precision: that of the settings.
        gpu: compute capability of the rank's GPU; None on a processor.
    """
    if precision == "float32":
        return
    lacking = None
    if gpu is not None:
        if tuple(gpu) < AMPERE:
            has = ".".join(map(str, gpu)) or "unknown"
            lacking = f"a GPU of compute capability {has}, and 8.0 is the first that has it"
    elif precision == "tf32":
        lacking = "a processor: only NVIDIA GPUs have it"
    elif os.environ.get(SWITCH) == "0":
        lacking = "launch.onednn: false, and TensorFlow alone would emulate it"
    elif (cap := os.environ.get(CAP)) is not None:
        lacking = f"launch.max_cpu_isa {cap}, which leaves it out"
    elif _flags().isdisjoint(BFLOAT16):
        lacking = f"{processor()}, which has none of {', '.join(BFLOAT16)} and would emulate it"
    if lacking:
        raise ConfigError(
            f"train.precision {precision}: this rank has {lacking}. Train it where it is "
            "computed for real, or with train.precision: float32."
        )


def _flags() -> set[str]:
    return set(_cpuinfo().get("flags", "").split())


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def variables() -> dict[str, str]:
    """Those of VARIABLES that are set."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def driver() -> str:
    """Version of NVIDIA's driver, which compiles kernels for cards newer than their code."""
    try:
        return DRIVER.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "unknown"


def cuda(several: bool) -> dict[str, str]:
    """Versions of CUDA's libraries, NCCL's for several ranks only; without those not installed."""
    found = {}
    for name, package in CUDA.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found if several else {name: found[name] for name in found if name != "nccl"}


def changes(old: Numerics | None, new: Numerics) -> str | None:
    """What differs between two starts, in words; None where they round alike."""
    if old is None:
        return UNKNOWN
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    differing = [name for name in Numerics.__struct_fields__ if before.get(name) != after.get(name)]
    words = (
        f"{name} {_shown(before.get(name))}, now {_shown(after.get(name))}" for name in differing
    )
    return "; ".join(words) or None


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
