"""Two cores given to two runs of one rank, or to one run of two ranks, or of two threads.

    python -m benchmarks.packing [--pixels 48 250] [--turns 3] [--seconds 4]

What `launch.ranks: auto` goes by (`glass_cnn/placement.py`). Each way has both cores in its turn;
told are images a second of all that runs, and ratios within a turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from benchmarks.sides import LAYOUTS, Layout, Side
from benchmarks.table import Row, measured, ratios, tell

CORES = 2
WAYS = {
    "two runs of one rank": [("ours", Layout("one core", 1, 1, 1, core)) for core in range(CORES)],
    "one run of two ranks by rows": [("ours_rows", LAYOUTS["two ranks of one core"])],
    "one run of two ranks by data": [("ours", LAYOUTS["two ranks of one core"])],
    "one run of two threads": [("ours", LAYOUTS["one process, two threads"])],
}
FIRST, *OTHERS = WAYS


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--pixels", type=int, nargs="+", default=[48, 250])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    args = parser.parse_args(argv)
    if not LAYOUTS["two ranks of one core"].fits:
        tell(Row("packing", why="left out: two cores are needed"))
        return
    for pixels in args.pixels:
        measure(pixels, args.turns, args.seconds)


def measure(pixels: int, turns: int, seconds: float) -> None:
    """The first way against each other one by turns; no more at a time, for memory's sake."""
    with at_work(FIRST, pixels) as first:
        for way in OTHERS:
            speeds: dict[str, list[float]] = {FIRST: [], way: []}
            with at_work(way, pixels) as other:
                for _ in range(turns):
                    speeds[FIRST].append(turn(first, seconds))
                    speeds[way].append(turn(other, seconds))
            tell(
                measured(f"{pixels} px, {way}", speeds[way], "img/s"),
                measured(f"{pixels} px, {FIRST} / {way}", ratios(speeds[FIRST], speeds[way])),
            )


@contextmanager
def at_work(way: str, pixels: int) -> Iterator[list[Side]]:
    """The processes of one way, ended in the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Side(name, pixels, lay))) for name, lay in WAYS[way]]


def turn(sides: list[Side], seconds: float) -> float:
    """Images a second of sides at the same time."""
    for side in sides:
        side.begin(seconds)
    for side in sides:
        side.end()
    return sum(side.speeds[-1] for side in sides)


if __name__ == "__main__":
    main()
