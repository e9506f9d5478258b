"""Requests to stop: signals set a flag, ranks agree on it, the loop acts at a step boundary."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # this room must load in no time: signals may come at once
    from hpc.errors import UserError

FAILED = 1 << 16
"""Flag of a rank that cannot go on: larger than any signal, so that it wins the agreement."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Agreement(Protocol):
    """What is needed of `hpc.world.World` here."""

    def agree(self, flag: int) -> int: ...


class StopFlag:
    """Whether somebody asked this process to stop; the handler sets the flag and nothing else.

    Install it before the slow imports: a signal that comes while the libraries load must not
    kill the process. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.error: UserError | None = None

    def install(self) -> StopFlag:
        """Catch STOP_SIGNALS from now on, and SIGHUP unless under nohup; returns itself."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(128 + number)
        self.signal = max(self.signal, number)

    def fail(self, error: UserError) -> None:
        """Stop every rank because this one cannot go on; `error` is for the caller to raise."""
        self.error = error
        self.signal = FAILED

    def agreed(self, world: Agreement) -> int:
        """The signal that any rank has caught, 0 for none: the same answer on every rank.

        Collective: every rank calls it at the same place of the program.
        """
        return world.agree(self.signal)


def signal_name(number: int) -> str:
    """SIGUSR2 for 12, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
