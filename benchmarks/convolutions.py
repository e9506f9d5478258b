"""Convolutional layers in pairs beside plain ones, on one core, by turns.

    python -m benchmarks.convolutions [--pixels 48 250] [--turns 5] [--max-cpu-isa avx2]

Ratios are of processor time. `--max-cpu-isa` asks how it would be on a processor that has no more
than that instruction set, where trainings take plain ones. Both kinds compute the same sums.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

from benchmarks.table import measured, ratios, tell
from glass_cnn import numerics
from glass_cnn.settings import Launch

IMAGES = 20
LAYERS = {"first": (10, 10, 3, 6), "second": (5, 5, 6, 16)}


def main() -> None:
    """Measure both layers, forward alone and with all gradients that a training needs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolutions", description=__doc__)
    parser.add_argument("--pixels", type=int, nargs="+", default=[48, 250])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--max-cpu-isa", choices=numerics.LEVELS)
    args = parser.parse_args()
    numerics.choose(Launch(max_cpu_isa=args.max_cpu_isa))
    from glass_cnn.tensorflow import tf
    from glass_cnn.training.engine import set_up_tensorflow
    from hpc.world import world

    found = set_up_tensorflow(1, world())
    print(f"{found.processors[0]}, {found.isa[0]}: a training takes {found.convolutions[0]}")
    for pixels in args.pixels:
        for name, shape in LAYERS.items():
            side = pixels if name == "first" else pixels - 9
            shapes = (IMAGES, side, side, shape[2]), shape, shape[3:]
            parts = [tf.random.stateless_uniform(each, (1, 2), -1.0) for each in shapes]
            wanted = parts[1:] if name == "first" else parts  # pixels have no gradient
            compare(f"{pixels} px, {name} convolution, forward", forward, parts, args.turns)
            compare(
                f"{pixels} px, {name} convolution, forward and backward",
                lambda layer, of=wanted: backward(layer, of),
                parts,
                args.turns,
            )


def forward(layer):  # type: ignore[no-untyped-def]
    """What computes a layer."""
    return lambda *parts: layer(*parts)


def backward(layer, of):  # type: ignore[no-untyped-def]
    """What computes a layer and the gradients of as many of its last arguments as `of` has."""
    from glass_cnn.tensorflow import tf

    def work(*parts):  # type: ignore[no-untyped-def]
        wanted = parts[-len(of) :]
        with tf.GradientTape() as tape:
            tape.watch(wanted)
            result = layer(*parts)
        return tape.gradient(result, wanted)

    return work


def compare(what, work, parts, turns):  # type: ignore[no-untyped-def]
    """Tell how many times as fast pairs are."""
    from glass_cnn.tensorflow import tf
    from glass_cnn.training.convolution import KINDS

    sides = {kind: tf.function(work(layer), autograph=False) for kind, layer in KINDS.items()}
    times: dict[str, list[float]] = {kind: [] for kind in sides}
    for side in sides.values():
        side(*parts)  # it is compiled, memory is touched
    for _ in range(turns):
        for kind, side in sides.items():
            times[kind].append(taken(functools.partial(side, *parts)))
    tell(measured(f"{what}: plain / in pairs", ratios(times["plain"], times["in pairs"])))


def taken(work: Callable[[], object]) -> float:
    """Seconds of processor time of one call."""
    began = time.process_time()
    count = 0
    while (passed := time.process_time() - began) < 0.2 or not count:
        work()
        count += 1
    return passed / count


if __name__ == "__main__":
    main()
