"""What each setting of the exchange between ranks by data does to a step.

    python -m benchmarks.exchange [--pixels 250] [--turns 3] [--seconds 4]

Two ranks of one core divide the batch (`launch.division: data`) and add gradients of 288 MB. One
pair of them is as a training is; the other has one thing changed. They work by turns; told are
images a second over those of the first pair in the same turn. One pair at a time, for each has
6 GB at 250 px.
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import closing
from dataclasses import dataclass, field

from benchmarks.sides import LAYOUTS, Layout, Side
from benchmarks.table import Row, measured, ratios, tell

TWO = LAYOUTS["two ranks of one core"]


@dataclass(frozen=True)
class Change:
    """One thing that is otherwise than in a training."""

    what: str
    side: str = "ours"
    layout: Layout = TWO
    environment: dict[str, str] = field(default_factory=dict)


CHANGES = (
    Change("nothing changed"),
    Change("one thread for what TensorFlow runs side by side", side="ours_in_turn"),
    Change("launch.collectives: mpi", side="ours_by_mpi"),
    Change("ranks not kept on their cores", layout=Layout(TWO.name, 2, 2, 1, bound=False)),
    Change("Horovod looks every 0.1 ms", environment={"HOROVOD_CYCLE_TIME": "0.1"}),
    Change("Horovod looks every 10 ms", environment={"HOROVOD_CYCLE_TIME": "10"}),
    Change(
        "MPICH may not read another process's memory",
        environment={"MPIR_CVAR_CH4_CMA_ENABLE": "0"},
    ),
    Change(
        "glibc keeps what MPICH frees",
        environment={
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        },
    ),
)
"""Horovod looks every millisecond for tensors that all ranks have, as it comes. Containers often
forbid to read another process's memory. For each sum MPICH takes half as much memory as it adds and
gives it back, so the kernel has to clear it anew each time."""


def main(argv: list[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description=__doc__)
    parser.add_argument("--pixels", type=int, default=250)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    args = parser.parse_args(argv)
    if shutil.which("mpiexec") is None or not TWO.fits:
        tell(Row("exchange", why="left out: two cores and mpiexec are needed"))
        return
    with closing(Side("ours", args.pixels, TWO)) as usual:
        for change in CHANGES:
            usual.speeds.clear()
            side = Side(change.side, args.pixels, change.layout, environment=change.environment)
            with closing(side) as other:
                for _ in range(args.turns):
                    for each in (usual, other):
                        each.turn(args.seconds)
            label = f"{args.pixels} px, two ranks by data, {change.what} / as it is"
            tell(measured(label, ratios(other.speeds, usual.speeds)))


if __name__ == "__main__":
    main()
