"""Copies of a run that differ from it by rounding alone: `rounding` of a run's settings."""

from __future__ import annotations

import numpy as np

from glass_cnn.streams import Stream, philox
from glass_cnn.training.engine import Engine
from glass_cnn.training.model import DENSE_WEIGHTS

ROUNDED_AWAY = DENSE_WEIGHTS
"""a weight of the dense layer moves one of many thousand terms of a sum, mostly without a trace"""


def move_if_due(engine: Engine, step: int) -> str | None:
    """Before update number `step`, move the weight of a copy where its time has come.

    Every rank moves its own; as all have the same weights, they still have after it. No checkpoint
    is made between this and the update, so a run that is started again moves it once. Returns what
    was moved, in words.
    """
    rounding = engine.settings.rounding
    if rounding is None or step != rounding.step:
        return None
    words = philox(Stream.ROUNDING, engine.settings.seed, rounding.number).random_raw(3)
    tensors = [name for name in engine.network.weights if name != ROUNDED_AWAY]
    name = tensors[int(words[0]) % len(tensors)]
    values = engine.network.parameters[name].numpy()
    place = int(words[1]) % values.size
    before = values.flat[place]
    values.flat[place] = np.nextafter(before, np.float32(np.inf if words[2] & 1 else -np.inf))
    engine.assign({f"model/{name}": values})
    return f"copy {rounding.number}: before step {step + 1} weight {place} of {name} was moved " + (
        f"from {before:.9g} to {values.flat[place]:.9g}"
    )
