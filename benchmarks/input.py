"""How fast a training's images come, beside how fast it can use them.

    python -m benchmarks.input [--pixels 250] [--images 2000] [--turns 5] [--seconds 3]

Input alone is `glass_cnn.data.batches` as a run asks it: batches of 80, shuffled for each, every
image turned, mirrored and shifted. By turns: it on one core, the training on the same core, it on
every core at a time, a process each, as ranks of a node read. The images are random bytes in one
file that lies in the system's page cache, so what a disk would add is not in it. Memory is what
the process holds beside that cache, after the first batches and after `--images` images more.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.sides import BATCH, IMAGES, Layout, Side, reading
from benchmarks.table import measured, ratios, tell
from hpc.words import plural

WARM = 10
"""batches after which memory is looked at"""


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input", description=__doc__)
    parser.add_argument("--pixels", type=int, default=250)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="input-") as folder:
        path = Path(folder) / "images.npy"
        write(path, args.images, args.pixels)
        os.environ[IMAGES] = str(path)
        compare(args.pixels, args.turns, args.seconds)
        grown = growth(args.pixels, args.images)
    what = f"{args.pixels} px: memory that {args.images:,} more images take"
    tell(measured(what, [grown / 1e6], "MB", at_most=5))


def write(path: Path, count: int, pixels: int) -> None:
    """Random images, a block at a time."""
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, pixels, pixels, 3))
    for first in range(0, count, BATCH):
        some = images[first : first + BATCH]
        some[...] = rng.integers(0, 256, some.shape, np.uint8)
    images.flush()


def compare(pixels: int, turns: int, seconds: float) -> None:
    """One core against training, then all cores."""
    cores = len(os.sched_getaffinity(0))
    one = Layout("one core", 1, 1, 1)
    with ExitStack() as stack:

        def side(name: str, layout: Layout) -> Side:
            made = Side(name, pixels, layout)
            stack.callback(made.close)
            return made

        alone, training = side("reading", one), side("ours", one)
        every = [side("reading", Layout("each core", 1, 1, 1, first)) for first in range(cores)]
        together = []
        for _ in range(turns):
            alone.turn(seconds)
            training.turn(seconds)
            for each in every:
                each.begin(seconds)
            for each in every:
                each.end()
            together.append(sum(each.speeds[-1] for each in every))
    what = f"{pixels} px: input alone"
    tell(
        measured(f"{what}, one core", alone.speeds, "img/s"),
        measured(
            f"{what} / training, one core", ratios(alone.speeds, training.speeds), at_least=10
        ),
        measured(f"{what}, {plural(cores, 'core')}", together, "img/s", at_least=10_000),
    )


def growth(pixels: int, images: int) -> float:
    """Bytes that this process holds more after so many more images."""
    take = reading(pixels, 1, BATCH)
    for _ in range(WARM):
        take()
    before = held()
    for _ in range(-(-images // BATCH)):
        take()
    return held() - before


def held() -> int:
    """Bytes of this process that are no file's."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells this since 4.5"
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
