"""L2 and Adam for the dense weights, as every training computes them, beside one pass through XLA.

    python -m benchmarks.update [--pixels 250] [--turns 5]

On one core, by turns; times are of the processor. What no L2 would take is how much there is to
gain from fusing it into the update. With XLA weights and moments have other bits.
"""

from __future__ import annotations

import argparse
import functools

from benchmarks.convolutions import taken
from benchmarks.table import measured, ratios, tell
from glass_cnn import numerics
from glass_cnn.settings import Launch, build_run


def main() -> None:
    """Measure the three and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update", description=__doc__)
    parser.add_argument("--pixels", type=int, default=250)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    numerics.choose(Launch())
    from glass_cnn.tensorflow import tf
    from glass_cnn.training.engine import Engine, set_up_tensorflow
    from glass_cnn.training.model import DENSE_WEIGHTS
    from hpc.world import world

    set_up_tensorflow(1, world())
    settings = build_run(
        {"render": {"pixels": args.pixels}, "model": {"recipe": "modern"}}, "benchmark"
    )
    engine = Engine(settings, world())
    weights = engine.network.weights[DENSE_WEIGHTS]
    gradient = tf.random.stateless_normal(weights.shape, (1, 2))
    powers = tf.constant([0.9, 0.999])

    def update(l2: float, scale: tf.Tensor) -> None:
        mine = gradient * scale  # a new tensor, as a step has one
        mine = mine + l2 * weights if l2 else mine
        engine.optimizer.apply({DENSE_WEIGHTS: mine}, tf.constant(1e-3), powers)

    ours = functools.partial(update, settings.train.l2)
    sides = {
        "L2 and Adam": tf.function(ours, autograph=False),
        "Adam without L2": tf.function(functools.partial(update, 0.0), autograph=False),
        "both through XLA": tf.function(ours, autograph=False, jit_compile=True),
    }
    scale = tf.constant(1.0)
    for side in sides.values():
        side(scale)  # it is compiled, memory is touched
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.turns):
        for name, side in sides.items():
            times[name].append(taken(functools.partial(side, scale)))
    for name, found in times.items():
        tell(measured(f"{args.pixels} px, dense weights: {name}", [t * 1e3 for t in found], "ms"))
    plain, *others = times
    for name in others:
        what = f"{args.pixels} px, dense weights: {name} / {plain}"
        tell(measured(what, ratios(times[name], times[plain])))


if __name__ == "__main__":
    main()
