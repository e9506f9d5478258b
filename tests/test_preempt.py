"""Requests to stop: caught from the first moment, agreed on by the largest number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hpc.errors import DataError
from hpc.preempt import FAILED, STOP_SIGNALS, StopFlag, signal_name
from tests.conftest import ROOT


class Alone:
    """A world of one rank."""

    def agree(self, flag: int) -> int:
        return flag


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)}
    yield StopFlag().install()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=signal_name)
def test_a_signal_sets_the_flag_and_nothing_else(stop: StopFlag, number: int) -> None:
    assert stop.agreed(Alone()) == 0
    os.kill(os.getpid(), number)
    assert stop.agreed(Alone()) == number


def test_what_another_rank_has_caught_counts(stop: StopFlag) -> None:
    class Two(Alone):
        def agree(self, flag: int) -> int:
            return max(flag, signal.SIGUSR2)

    assert stop.agreed(Two()) == signal.SIGUSR2
    assert stop.signal == 0


def test_a_failure_outranks_every_signal(stop: StopFlag) -> None:
    stop.fail(DataError("no"))
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.agreed(Alone()) == FAILED > max(STOP_SIGNALS)
    assert str(stop.error) == "no"


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    script = (
        "import os, signal\n"
        "from hpc.preempt import StopFlag\n"
        "stop = StopFlag().install()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('once', stop.signal, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('twice', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "once 2\n"
    assert done.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize(("program", "caught"), [((), "1"), (("nohup",), "0")])
def test_a_lost_terminal_is_a_request_to_stop_but_under_nohup(
    program: tuple[str, ...], caught: str
) -> None:
    script = (
        "import os, signal\n"
        "from hpc.preempt import StopFlag\n"
        "stop = StopFlag().install()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "print(stop.signal)\n"
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    command = [*program, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    signal.signal(signal.SIGHUP, before)
    assert done.stdout.strip() == caught


def test_signals_are_named() -> None:
    assert signal_name(signal.SIGUSR2) == "SIGUSR2"
    assert signal_name(FAILED) == f"signal {FAILED}"


def test_the_room_loads_at_once() -> None:
    """It is imported before anything slow: a signal in between would kill the process."""
    slow = "('numpy', 'pydantic', 'mpi4py')"
    script = f"import sys, hpc.preempt; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
