"""How often to save, where failures come without notice: what loses the least time."""

from __future__ import annotations

import math
import time

import psutil


def best(save: float, between_failures: float, restart: float) -> float:
    """Seconds between two checkpoints that lose the least time, all arguments in seconds too.

    `save` Ts is what one takes from the work, `restart` Tr what passes from a failure to the first
    new step. An interval T holds T − Ts of work, and takes T and, for each of its T/Tf failures,
    Tr + T/2 on top; the share of work is greatest at Ts + √(2 (Tf + Tr) Ts + Ts²) (arXiv
    2410.18124).
    """
    return save + math.sqrt(2 * (between_failures + restart) * save + save**2)


class Interval:
    """Whether a checkpoint is due, by what those of this process have cost so far.

    Args:
        between_failures: expected seconds; None: none is ever due.

    A restart is taken to last as long as this process has: make it when work begins.
    """

    def __init__(self, between_failures: float | None) -> None:
        self._between = between_failures
        self._restart = time.time() - psutil.Process().create_time()
        self._last = time.monotonic()
        self._costs: list[float] = []

    def due(self) -> bool:
        """At once where none was made yet, for its cost is not known."""
        if self._between is None:
            return False
        if not self._costs:
            return True
        cost = sum(self._costs) / len(self._costs)
        return time.monotonic() - self._last >= best(cost, self._between, self._restart)

    def saved(self, cost: float) -> None:
        """One was made, and took `cost` seconds from the work."""
        self._costs.append(cost)
        self._last = time.monotonic()
