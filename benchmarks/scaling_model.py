"""Time of one training step on N ranks, computed: data parallel, rows, and both.

    python -m benchmarks.scaling_model [--pixels 250] [--batch 80] [--measured FILE]

A model on paper, not a measurement. A step is computation, the update, and what travels:

- computation takes the longer of its arithmetic at a stated share of peak and its traffic to
  memory; both count the rows that neighbours compute twice under `rows`;
- the update of Adam is traffic alone: it reads weight, gradient and two moments, writes three;
- an allreduce takes the ring's 2 (N − 1)/N of the bytes at the bandwidth of the slowest link on its
  way and, for what is small, 2 ⌈log₂ N⌉ latencies.

Nothing overlaps, so the times of data parallel are upper bounds: at best the gradient travels while
the convolutions go backward. `--measured` takes the JSON of `benchmarks.training`: the speed of one
core there calibrates the processor's share of peak, and the model says what two ranks should do.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

FLOAT = 4
HALO = 4
"""rows of the first convolution's image that two neighbours both compute"""
DENSE, CHANNELS = 80, 16
ADAM = 7
"""times the weights pass through memory in an update"""
PRODUCTS = 3
"""times they do in the products forward and backward"""
PASSES = 8
"""times an activation passes through memory: products, bias, ReLU, forward and backward"""


@dataclass(frozen=True)
class Machine:
    """One kind of node; figures of data sheets, but for `share`."""

    name: str
    flops: float
    """float32 operations per second of a rank at its peak"""
    share: float
    """of it that the convolutions reach"""
    memory: float
    """bytes per second between a rank and its memory"""
    per_node: int
    """ranks of a node"""
    inside: float
    """bytes per second and direction between ranks of a node"""
    between: float
    """bytes per second and direction of a rank's part of its node's network cards"""
    latency_inside: float
    """seconds"""
    latency_between: float
    """seconds"""


CORE = Machine("one core of a processor", 100e9, 0.5, 12e9, 2, 2.5e9, 12e9, 2e-6, 5e-6)
MACHINES = (
    Machine("A100, 4 a node, 4 × 200 Gb/s", 19.5e12, 0.4, 2.0e12, 4, 300e9, 25e9, 10e-6, 20e-6),
    Machine("H100, 8 a node, 8 × 400 Gb/s", 67e12, 0.4, 3.35e12, 8, 450e9, 50e9, 10e-6, 20e-6),
    Machine("H100, 1 a node, 200 Gb/s", 67e12, 0.4, 3.35e12, 1, 450e9, 25e9, 10e-6, 20e-6),
    CORE,
)


@dataclass(frozen=True)
class Work:
    """What a step asks for."""

    pixels: int = 250
    batch: int = 80

    @property
    def rows(self) -> int:
        """Rows of the second convolution's image, which `rows` divides."""
        return self.pixels - 13

    @property
    def dense_bytes(self) -> int:
        """Of the dense layer's weights: almost all there are."""
        return self.rows**2 * CHANNELS * DENSE * FLOAT

    def arithmetic(self, rows: float) -> float:
        """Operations forward and backward for one image, of so many rows of it."""
        conv1 = (rows + HALO) * (self.pixels - 9) * 10 * 10 * 3 * 6
        conv2 = rows * self.rows * 5 * 5 * 6 * CHANNELS
        dense = rows * self.rows * CHANNELS * DENSE
        return 2.0 * (2 * conv1 + 3 * conv2 + 3 * dense)  # nobody asks for the images' gradient

    def traffic(self, rows: float) -> float:
        """Bytes of activations that pass through memory for one image."""
        conv1 = (rows + HALO) * (self.pixels - 9) * 6
        conv2 = rows * self.rows * CHANNELS
        return PASSES * FLOAT * (conv1 + conv2)


@dataclass(frozen=True)
class Step:
    """Seconds of one step, by what they are for."""

    computation: float
    update: float
    communication: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.computation + self.update + self.communication


def step(work: Work, machine: Machine, strips: int, groups: int) -> Step:
    """A step on `strips` × `groups` ranks.

    Each of `groups` takes its share of the batch; within one, `strips` ranks divide the rows of
    every image. strips = 1 is data parallel, groups = 1 rows alone. Ranks of a group are neighbours
    on their node as far as it holds them. Raises ValueError for more strips than rows, or more
    groups than examples.
    """
    if strips > work.rows or groups > work.batch:
        raise ValueError(f"{strips} strips of {work.rows} rows, {groups} groups of {work.batch}")
    images = math.ceil(work.batch / groups)
    rows = math.ceil(work.rows / strips)
    weights = work.dense_bytes * rows / work.rows
    busy = images * work.arithmetic(rows) / (machine.flops * machine.share)
    moving = images * work.traffic(rows) + PRODUCTS * weights
    computation = max(busy, moving / machine.memory)
    sums = images * DENSE * FLOAT  # of the dense layer, over the strips of a group
    communication = allreduce(sums, strips, min(strips, machine.per_node), machine)
    communication += allreduce(weights, groups, max(1, machine.per_node // strips), machine)
    small = (10 * 10 * 3 * 6 + 5 * 5 * 6 * CHANNELS + 3 * DENSE) * FLOAT
    communication += allreduce(small, strips * groups, machine.per_node, machine)
    return Step(computation, ADAM * weights / machine.memory, communication)


def allreduce(size: float, ranks: int, on_a_node: int, machine: Machine) -> float:
    """Seconds to sum `size` bytes over ranks, of which so many are on one node; 0 for one rank."""
    if ranks == 1:
        return 0.0
    apart = ranks > on_a_node
    # A sum that several ranks of a node take part in has the part of each in the node's cards.
    between = min(machine.inside, machine.between * on_a_node)
    bandwidth = between if apart else machine.inside
    latency = machine.latency_between if apart else machine.latency_inside
    ring = 2 * (ranks - 1) / ranks * size / bandwidth
    return ring + 2 * math.ceil(math.log2(ranks)) * latency


def divisions(work: Work, machine: Machine, ranks: int) -> dict[str, Step | None]:
    """Each way to divide a step over ranks; None where it cannot."""
    inside = math.gcd(ranks, machine.per_node)
    ways = {
        "data": (1, ranks),
        "rows": (ranks, 1),
        "rows in a node, data between": (inside, ranks // inside),
    }
    return {
        name: step(work, machine, strips, groups)
        if strips <= work.rows and groups <= work.batch
        else None
        for name, (strips, groups) in ways.items()
    }


def table(work: Work, machine: Machine, most: int) -> str:
    """Speed-up over one rank and milliseconds of a step, as Markdown."""
    one = step(work, machine, 1, 1)
    names = list(divisions(work, machine, 1))
    lines = [f"| ranks | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    ranks = 1
    while ranks <= most:
        cells = []
        for found in divisions(work, machine, ranks).values():
            if found is None:
                cells.append("–")
                continue
            travels = found.communication / found.seconds
            speed = one.seconds / found.seconds
            cells.append(f"{speed:.1f} × ({found.seconds * 1e3:.2f} ms, {travels:.0%} travels)")
        lines.append(f"| {ranks} | {' | '.join(cells)} |")
        ranks *= 2
    return "\n".join(lines)


def calibrated(work: Work, images_per_second: float) -> Machine:
    """The core whose one rank trains that fast."""
    wanted = work.batch / images_per_second
    one = step(work, CORE, 1, 1)
    left = wanted - one.update
    if left <= 0:
        raise ValueError(f"{images_per_second} images/s leaves no time for the convolutions")
    return replace(CORE, share=work.batch * work.arithmetic(work.rows) / CORE.flops / left)


def compare(path: Path) -> str:
    """Measured speeds of two ranks over one beside what the model says, as Markdown."""
    rows = json.loads(path.read_text())["rows"]
    speeds = {(r["pixels"], r["layout"], r["side"]): r["images_per_second"] for r in rows}
    lines = ["| two ranks over one | measured | computed |", "|---|---|---|"]
    for (pixels, layout, side), speed in speeds.items():
        one = speeds.get((pixels, "one core", "ours"))
        if "ranks" not in layout or one is None:
            continue
        work = Work(pixels)
        machine = calibrated(work, one)
        way = "rows" if "rows" in side else "data"
        found = divisions(work, machine, 2)[way]
        assert found is not None
        computed = work.batch / found.seconds / one
        lines.append(f"| {pixels} px, {way} | {speed / one:.2f} | {computed:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print a table for each machine."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pixels", type=int, default=Work.pixels)
    parser.add_argument("--batch", type=int, default=Work.batch)
    parser.add_argument("--ranks", type=int, default=1024, help="the most")
    parser.add_argument("--measured", type=Path, help="JSON of benchmarks.training")
    args = parser.parse_args(argv)
    work = Work(args.pixels, args.batch)
    print(f"computed, not measured: {work.pixels} px, global batch {work.batch}")
    for machine in MACHINES:
        print(f"\n### {machine.name}\n\n{table(work, machine, args.ranks)}")
    if args.measured:
        print(f"\n### Against {args.measured.name}\n\n{compare(args.measured)}")


if __name__ == "__main__":
    main()
