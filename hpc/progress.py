"""How far work is, as people see it: bars on a terminal, a line now and then in a log.

for block in track("images", blocks):        work that is done here, item by item
    draw(block)

with counted("simulating", "trajectory", 300, finished):     work whose results are counted:
    work()                                   `finished()` says how many there are

with Display(bars) as display:               several things under way, by whoever looks
    while working():                         at them often enough
        display.refresh()
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hpc.words import duration, plural

T = TypeVar("T")

BARS_EVERY = 0.25
"""least seconds between two looks on a terminal"""
SHARE = 0.01
"""of a core that these looks take at most: of many bars there are fewer"""
LINES_EVERY = 10.0
"""seconds between the first lines in a log"""
SELDOM = 600.0
"""most seconds between lines: a fifth of the time so far, so that long work does not fill a log"""


class Pace:
    """How fast something counts up from `done`, since this was made."""

    def __init__(self, done: int = 0) -> None:
        self.began, self.first = time.monotonic(), done

    def rate(self, done: int) -> float:
        """Per second; 0 as long as nothing was added."""
        return (done - self.first) / max(time.monotonic() - self.began, 1e-9)

    def left(self, done: int, total: int) -> float | None:
        """Seconds until `total`; None as long as nothing was added."""
        rate = self.rate(done)
        return (total - done) / rate if rate > 0 else None

    def words(self, done: int, total: int) -> str:
        """`ETA 1:02`; empty as long as nobody can tell."""
        left = self.left(done, total)
        return "" if left is None else f"ETA {duration(left)}"


@dataclass(frozen=True)
class Bar:
    """One thing under way."""

    name: str
    text: str
    """how far it is, in words"""
    done: int = 0
    total: int = 0
    """0 where nobody knows"""


class Display:
    """What `bars` returns, shown while inside the context and `refresh` is called.

    On a terminal bars, with the line `below()` under them; else a line for each bar every
    LINES_EVERY seconds, ever more seldom.
    """

    def __init__(
        self,
        bars: Callable[[], Sequence[Bar]],
        below: Callable[[], str] = str,
        console: Console | None = None,
    ) -> None:
        self.bars, self.below, self.console = bars, below, console or Console()
        self._live: Live | None = None
        self._began = self._looked = time.monotonic()
        self._took = 0.0

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Look again, if it is time."""
        now = time.monotonic()
        if now - self._looked >= self._pause(now):
            self._looked = now
            before = time.thread_time()
            self.draw()
            self._took = time.thread_time() - before

    def _pause(self, now: float) -> float:
        if self._live is not None:
            return max(BARS_EVERY, self._took / SHARE)
        return min(SELDOM, max(LINES_EVERY, (now - self._began) / 5))

    def draw(self) -> None:
        """Look again, now."""
        bars = self.bars()
        if self._live is not None:
            self._live.update(_drawn(bars, self.below()), refresh=True)
            return
        for bar in bars:
            line = f"{bar.name}: {bar.text}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _drawn(bars: Sequence[Bar], below: str) -> Group:
    table = Table.grid(padding=(0, 1))
    for bar in bars:
        left: Any = Spinner("dots")
        if bar.total:
            left = ProgressBar(total=bar.total, completed=bar.done, width=30)
        table.add_row(Text(bar.name), left, Text(bar.text))
    return Group(table, Text(below, style="dim")) if below else Group(table)


@contextlib.contextmanager
def counted(name: str, noun: str, total: int, finished: Callable[[], int]) -> Iterator[None]:
    """Show how many of `total` things `finished()` counts, from a thread of its own.

    `name` says what is done, `noun` to what, in the singular. An OSError of `finished` ends the
    display, not the work.
    """
    pace, over = Pace(finished()), threading.Event()

    def bars() -> list[Bar]:
        done = finished()
        words = [f"{done} of {plural(total, noun)}", f"{pace.rate(done):.2f}/s"]
        return [Bar(name, "  ".join([*words, pace.words(done, total)]).rstrip(), done, total)]

    def watch() -> None:
        with contextlib.suppress(OSError), Display(bars) as display:
            display.draw()
            while not over.wait(BARS_EVERY):
                display.refresh()
            display.draw()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def track(name: str, items: Sequence[T]) -> Iterator[T]:
    """The items, one after the other; shows how many are done."""
    pace, done = Pace(), 0

    def bars() -> list[Bar]:
        words = f"{done / len(items):.0%}  {pace.words(done, len(items))}"
        return [Bar(name, words.rstrip(), done, len(items))]

    with Display(bars) as display:
        for item in items:
            yield item
            done += 1
            display.refresh()
