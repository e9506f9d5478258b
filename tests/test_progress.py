"""Progress: bars on a terminal, lines now and then in a log, and what they say of rates."""

from __future__ import annotations

import io
import itertools
import time

import pytest
from rich.console import Console

from hpc import progress
from hpc.progress import Bar, Display, Pace, counted, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock of one number that stands still until a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_rates_and_times_count_from_where_it_began(clock: list[float]) -> None:
    pace = Pace(done=40)
    assert pace.words(40, 100) == ""
    assert pace.left(40, 100) is None
    clock[0] += 10
    assert pace.rate(60) == 2.0
    assert pace.left(60, 100) == 20.0
    assert pace.words(60, 100) == "ETA 0:20"


def test_a_log_gets_a_line_now_and_then_and_ever_more_seldom(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """One look a second for two hours."""
    times: list[float] = []

    def bars() -> list[Bar]:
        times.append(clock[0] - 1000)
        return [Bar("a [b]", f"at {times[-1]:.0f}"), Bar("c", "too")]

    with Display(bars) as display:
        for _ in range(7200):
            clock[0] += 1
            display.refresh()
    assert times[:4] == [10, 20, 30, 40]
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert max(pauses) == progress.SELDOM
    assert capsys.readouterr().out.startswith("a [b]: at 10\nc: too\na [b]: at 20\n")


def test_a_terminal_gets_bars_that_go_away(clock: list[float]) -> None:
    console = terminal()
    with Display(
        lambda: [Bar("one", "3/4", 3, 4), Bar("two", "?")], lambda: "1 left", console
    ) as d:
        clock[0] += 1
        d.refresh()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(words in shown for words in ("one", "━━━", "3/4", "two", "1 left"))
    assert shown.rstrip().endswith("\x1b[2K"), "the lines are cleared at the end"


def test_bars_that_take_long_to_draw_are_drawn_seldom(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 ms of processor time for each look leave one in two seconds."""
    worked, looks = [0.0], []
    monkeypatch.setattr(time, "thread_time", lambda: worked[0])

    def bars() -> list[Bar]:
        worked[0] += 0.02
        looks.append(clock[0] - 1000)
        return [Bar("one", "3/4", 3, 4)]

    with Display(bars, console=terminal()) as display:
        for _ in range(60):
            clock[0] += 0.125
            display.refresh()
    assert looks == [0.25, 2.25, 4.25, 6.25]


def test_items_are_tracked_in_their_order(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for item in track("images", range(4)):
        seen.append(item)
        clock[0] += 6
    assert seen == [0, 1, 2, 3]
    assert capsys.readouterr().out == "images: 50%  ETA 0:12\nimages: 100%  ETA 0:00\n"


def test_what_is_counted_is_told_at_its_beginning_and_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = [3]
    with counted("simulating", "trajectory", 10, lambda: done[0]):
        time.sleep(0.1)
        done[0] = 10
    first, last = capsys.readouterr().out.splitlines()
    assert first == "simulating: 3 of 10 trajectories  0.00/s"
    assert last.startswith("simulating: 10 of 10 trajectories  ")
    assert last.endswith("/s  ETA 0:00")
