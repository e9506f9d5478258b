"""Named moments of a program. Nobody watches them but tests, which let faults happen there, and a
benchmark with a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

watchers: list[Callable[[str, Any], None]] = []
"""called with the name of each moment and what the program has in hand"""


def reached(moment: str, what: Any = None) -> None:
    """Say that the program is about to do what `moment` names."""
    for watcher in watchers:
        watcher(moment, what)
