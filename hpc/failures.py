"""Why a task failed, as far as its log and this machine can tell."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""where ranks of one machine exchange their messages"""
ENOUGH = 64 << 20
"""bytes of it that a few ranks can do with; measured: two need 3 MiB, eight more than 8"""
_ERROR = re.compile(r"error|fatal|fail|abort|cannot|not found|denied|refused|no such", re.I)
_BUS = re.compile(r"bus error|segmentation fault|shared memory|/dev/shm|MPIDU_Init_shm", re.I)
_SIGNALS = (signal.SIGBUS, signal.SIGSEGV)


def said_since(log: Path, offset: int) -> list[str]:
    """Lines of a log from a place on, without empty ones; none where it cannot be read."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return []


def last_line(log: Path) -> str:
    """The last line of a log, at most 120 letters; only the end of the file is read."""
    with contextlib.suppress(OSError):
        lines = said_since(log, max(0, log.stat().st_size - 4096))
        return lines[-1][:120] if lines else ""
    return ""


def first_error(lines: list[str]) -> str:
    """The first line that speaks of an error, else the first one, else that nothing was said."""
    return next((line for line in lines if _ERROR.search(line)), [*lines, "they said nothing"][0])


def last_error(lines: list[str]) -> str:
    """The last message that begins with `error:`, else the last line."""
    told = (line for line in reversed(lines) if line.startswith("error:"))
    return next(told, lines[-1] if lines else "it said nothing")


def is_bus_error(status: int) -> bool:
    """Whether an exit code says that a rank was ended for memory that is not there.

    `status` is a shell's (128 + signal), Python's (- signal) or MPICH's mpiexec's (signal).
    """
    return any(status in (number, -number, 128 + number) for number in _SIGNALS)


def too_little_memory(status: int, lines: list[str]) -> str:
    """What to do where ranks died for want of shared memory; empty where they did not."""
    if not is_bus_error(status) and not any(_BUS.search(line) for line in lines):
        return ""
    with contextlib.suppress(OSError):
        there = os.statvfs(SHARED_MEMORY)
        size, free = (there.f_frsize * n >> 10 for n in (there.f_blocks, there.f_bavail))
        if free < ENOUGH >> 10:
            return (
                f"{SHARED_MEMORY} has {size:,} KiB, {free:,} of them free: too little for ranks "
                "that exchange messages there, which ends them with a bus error. Make it larger "
                f"(a container: --shm-size=1g; else mount -o remount,size=1g {SHARED_MEMORY}), or "
                "use RANKS=1."
            )
    return ""
