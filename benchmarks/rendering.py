"""Images per second of both styles, beside matplotlib drawing the same pictures.

python -m benchmarks.rendering [--pixels 250] [--particles 400]
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import EllipseCollection

from benchmarks.table import measured, tell
from glass_cnn.configuration import Configuration
from glass_cnn.data.render import RADII, render
from glass_cnn.mixture import TYPE_A, TYPE_B
from glass_cnn.settings import Render

DENSITY = 1.2
DPI = 100
SECONDS = 2.0


class Matplotlib:
    """The picture drawn with one figure that is used again: the fastest way that it offers."""

    def __init__(self, pixels: int, box: float) -> None:
        self.figure = plt.figure(figsize=(pixels / DPI, pixels / DPI), dpi=DPI)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.box = box

    def scatter2017(self, positions: np.ndarray, types: np.ndarray) -> np.ndarray:
        """Dots of `scatter(s=1)`."""
        self._clear()
        for kind, colour in ((TYPE_A, "C1"), (TYPE_B, "C0")):
            x, y = positions[types == kind].T
            self.axes.scatter(x, y, s=1, c=colour)
        return self._draw()

    def disc(self, positions: np.ndarray, types: np.ndarray) -> np.ndarray:
        """Discs to scale."""
        self._clear()
        for kind, colour in ((TYPE_A, "C1"), (TYPE_B, "C0")):
            sizes = np.full((types == kind).sum(), 2 * RADII[kind])
            self.axes.add_collection(
                EllipseCollection(
                    sizes,
                    sizes,
                    np.zeros_like(sizes),
                    units="xy",
                    offsets=positions[types == kind],
                    offset_transform=self.axes.transData,
                    facecolors=colour,
                    edgecolors="none",
                )
            )
        return self._draw()

    def _clear(self) -> None:
        self.axes.clear()
        self.axes.set(xlim=(0, self.box), ylim=(0, self.box))
        self.axes.axis("off")

    def _draw(self) -> np.ndarray:
        self.figure.canvas.draw()
        return np.asarray(self.figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def rate(draw: Callable[[], object]) -> float:
    """Calls of `draw` per second of processor time, over SECONDS after a first one."""
    draw()
    count, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < SECONDS:
        draw()
        count += 1
    return count / elapsed


def main() -> None:
    """Measure each style and its peer in turn and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rendering", description=__doc__)
    parser.add_argument("--pixels", type=int, default=250)
    parser.add_argument("--particles", type=int, default=400)
    args = parser.parse_args()
    box = (args.particles / DENSITY) ** 0.5
    generator = np.random.default_rng(1)
    positions = generator.uniform(0, box, (args.particles, 2))
    types = np.where(np.arange(args.particles) % 20 < 13, TYPE_A, TYPE_B)
    configuration = Configuration(positions, types, np.array([box, box]))
    peer = Matplotlib(args.pixels, box)
    print(f"{args.particles} particles, {args.pixels} px, one core (processor time)")
    peers = {"scatter2017": peer.scatter2017, "disc": peer.disc}
    for style, draw in peers.items():
        settings = Render(style=style, pixels=args.pixels)  # type: ignore[arg-type]
        ours = rate(functools.partial(render, configuration, settings))
        theirs = rate(functools.partial(draw, positions, types))
        print(
            f"{style:12s} {ours:7.0f} images/s   matplotlib {theirs:5.0f} images/s   "
            f"ratio {ours / theirs:5.1f}"
        )
        what = f"pictures of {args.particles} particles, {args.pixels} px, {style}, one core"
        tell(measured(what, [ours], "img/s"), measured(f"{what} / Matplotlib", [ours / theirs]))


if __name__ == "__main__":
    main()
