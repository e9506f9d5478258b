"""Losses of 50 steps on made-up images, on one rank, on whatever device there is: a JSON list."""

from __future__ import annotations

import json

import numpy as np

from glass_cnn import numerics
from tests import tiny

STEPS = 50


def main() -> None:
    batch = 20
    settings = tiny.settings(render={"pixels": 48}, train={"batch_size": batch})
    numerics.choose(settings.launch)
    from glass_cnn.training.engine import Engine, set_up_tensorflow
    from hpc.world import world

    found = set_up_tensorflow(1, world())
    engine = Engine(settings, world())
    rng = np.random.default_rng(0)
    shape = (batch, settings.render.pixels, settings.render.pixels, 3)
    losses = []
    for step in range(STEPS):
        labels = rng.integers(0, 2, batch)
        brightest = 200 + 55 * labels[:, None, None, None]
        images = (rng.random(shape) * brightest).astype(np.uint8)
        losses.append(engine.train_step(images, labels, step, 1e-4).sums.loss)
    print(json.dumps({"gpus": found.gpus, "losses": losses}))


if __name__ == "__main__":
    main()
