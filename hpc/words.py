"""Numbers, times and paths as people read them."""

from __future__ import annotations

from pathlib import Path

COMMAND = "glass"
"""the program that people call, `.venv/bin/glass`; modules are started by launchers alone"""


def command(job: str) -> str:
    """How people call a job: `glass report`."""
    return f"{COMMAND} {job}"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `1,000 trajectories`."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def shown(path: Path) -> Path:
    """`path` as people would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def duration(seconds: float) -> str:
    """75 s as 1:15, 3675 s as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
