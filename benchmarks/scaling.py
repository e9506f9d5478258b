"""What a second rank gives: strong and weak scaling, memory, bytes that travel, equal results.

    python -m benchmarks.scaling [--pixels 250] [--turns 5] [--seconds 4]

Strong: the same global batch of 80, on one rank and on two, of one core each, by examples
(`data`), also with `train.gradients: bfloat16`, and by rows. Weak: twice the batch on two ranks
(without bfloat16). All by turns; ratios are of images a second to one rank's of the same turn, so
two is all that two ranks can give. Memory is the most that a rank had in these turns, TensorFlow
included. Bytes are counted where MPI itself adds, which each rank does with as many numbers as
through Horovod. Three and four ranks, for which there may be no cores, only have to agree with
one: the loss after some steps at 48 px.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.sides import BATCH, LAYOUTS, Side, examples
from benchmarks.table import Row, measured, ratios, tell
from hpc.words import plural
from hpc.world import World, world

ONE, TWO = LAYOUTS["one core"], LAYOUTS["two ranks of one core"]
DIVISIONS = {
    "data": ("ours", "data", "float32"),
    "data in bfloat16": ("ours_sent_half", "data", "bfloat16"),
    "rows": ("ours_rows", "rows", "float32"),
}
"""side that is timed, launch.division and train.gradients"""
STRONG = {"data": 1.7, "rows": 1.95}
"""least speed-up of two ranks at 250 px"""
STEPS = 5
SMALL = 48


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--pixels", type=int, default=250)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--agree", type=int, nargs="*", default=[3, 4], help="with so many ranks")
    parser.add_argument("--count", choices=DIVISIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.count:
        found = counted(args.count, args.pixels)
        if world().is_root:
            print(json.dumps(found))
        return
    if shutil.which("mpiexec") is None:
        tell(Row("scaling", why="left out: no mpiexec in PATH"))
        return
    if TWO.fits:
        for batch in (BATCH, 2 * BATCH):
            compare(args.pixels, batch, args.turns, args.seconds)
    else:
        tell(Row("two ranks / one rank", why="left out: there is one core"))
    travels(args.pixels)
    agree(args.agree)


def compare(pixels: int, batch: int, turns: int, seconds: float) -> None:
    """Two ranks with so many examples a step against one with BATCH."""
    strong = batch == BATCH
    with ExitStack() as stack:
        alone = Side("ours", pixels, ONE)
        stack.callback(alone.close)
        pairs = {
            name: Side(side, pixels, TWO, batch=batch)
            for name, (side, _, sent) in DIVISIONS.items()
            if strong or sent == "float32"  # all at once would take 25 GB
        }
        for side in pairs.values():
            stack.callback(side.close)
        for _ in range(turns):
            for side in (alone, *pairs.values()):
                side.turn(seconds)
    if strong:
        tell(measured(f"{pixels} px: memory of one rank alone", [alone.memory / 1e6], "MB"))
    for name, side in pairs.items():
        what = f"{pixels} px, two ranks by {name} / one rank"
        goal = STRONG.get(name) if strong and pixels == 250 else None
        label = f"{what}, same global batch" if strong else f"{what}, batch twice as large"
        tell(measured(label, ratios(side.speeds, alone.speeds), at_least=goal))
        if strong:
            label = f"{pixels} px: memory of each of two ranks by {name}"
            tell(measured(label, [side.memory / 1e6], "MB"))


def travels(pixels: int) -> None:
    """Bytes that each of two ranks adds in a step."""
    for name in DIVISIONS:
        size = asked(name, 2, pixels)["bytes"]
        what = f"{pixels} px: each of two ranks by {name} adds in a step"
        tell(measured(what, [size / 1e6], "MB", at_most=0.1 if name == "rows" else None))


def agree(numbers: Sequence[int]) -> None:
    """Losses of these numbers of ranks against those of one."""
    alone = asked("data", 1, SMALL)["losses"]
    for name in DIVISIONS:
        for ranks in numbers:
            losses = asked(name, ranks, SMALL)["losses"]
            off = max(abs(a - b) / b for a, b in zip(losses, alone, strict=True))
            most = 1e-2 if "bfloat16" in name else 1e-3
            what = f"{SMALL} px, {plural(ranks, 'rank')} by {name}: losses of {STEPS} steps off by"
            tell(measured(what, [off], at_most=most))


def asked(division: str, ranks: int, pixels: int) -> dict[str, Any]:
    """What `counted` finds on so many ranks."""
    words = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "benchmarks.scaling"]
    words += ["--count", division, "--pixels", str(pixels)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class Counting(World):
    """Ranks that count the bytes which each of them adds."""

    added = 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Count, and add."""
        self.added += values.nbytes
        return super().sum(values)

    def exchange(self, rows: np.ndarray) -> np.ndarray:
        """Count, and exchange: half of what adding as many bytes would send."""
        self.added += rows.nbytes // 2
        return super().exchange(rows)

    def joined(self, part: np.ndarray) -> np.ndarray:
        """Count, and join: the other half."""
        self.added += part.nbytes * self.size // 2
        return super().joined(part)


def counted(name: str, pixels: int) -> dict[str, object]:
    """Bytes that this rank adds in a step, and the losses of some steps."""
    from mpi4py import MPI

    from glass_cnn.settings import build_run
    from glass_cnn.training.engine import Engine, set_up_tensorflow

    ranks = Counting(MPI.COMM_WORLD)
    _, division, gradients = DIVISIONS[name]
    tree = {
        "render": {"pixels": pixels},
        "model": {"recipe": "modern"},
        "train": {"batch_size": BATCH, "gradients": gradients},
        "launch": {"ranks": ranks.size, "division": division, "collectives": "mpi"},
    }
    settings = build_run(tree, "benchmark")
    set_up_tensorflow(1, ranks, settings.launch.collectives)
    engine = Engine(settings, ranks)
    images, labels = examples(pixels, BATCH)
    mine, classes = images[engine.share, engine.strip], labels[engine.share]
    before = ranks.added
    steps = range(STEPS if pixels == SMALL else 1)
    losses = [engine.train_step(mine, classes, step, 1e-4).sums.loss for step in steps]
    return {"bytes": (ranks.added - before) / len(steps), "losses": losses}


if __name__ == "__main__":
    main()
