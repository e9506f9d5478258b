"""Run on n ranks: what every way to add over ranks promises. Rank 0 writes answer.json to argv[1].

With a way after it the last rank ends in the middle of a sum; with `steps` there are only steps, of
64 px, for what Horovod notes of them in $HOROVOD_TIMELINE.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.tensorflow import tf
from glass_cnn.training.division import WAYS, DataParallel, Sent, Way
from glass_cnn.training.engine import Engine, set_up_tensorflow
from hpc.tensorfile import digest_tensors
from hpc.world import World, world
from tests import tiny

SHAPES = [(3, 5), (600_001,), (1,), (7, 64, 1024), (2,)]
"""small ones that travel together, and two of over a MiB"""
AGAIN = 5


Sum = Callable[[list[np.ndarray]], list[np.ndarray]]


def compiled(division: DataParallel) -> Sum:
    """Its sum inside a `tf.function`, as a step has it, from arrays to arrays."""
    add = tf.function(division.sum, autograph=False)
    return lambda arrays: [total.numpy() for total in add([tf.constant(a) for a in arrays])]


def drawn(rank: int) -> list[np.ndarray]:
    """What a rank adds: numbers of very different sizes, so that the order of additions shows."""
    rng = np.random.default_rng(rank)
    return [
        (rng.normal(size=s) * 10.0 ** rng.integers(-6, 6, size=s)).astype(np.float32)
        for s in SHAPES
    ]


def same_on_all(ranks: World, arrays: list[np.ndarray]) -> str:
    found = ranks.comm.allgather(digest_tensors({str(i): a for i, a in enumerate(arrays)}))
    assert len(set(found)) == 1, "ranks have different sums"
    return found[0]


def examine(name: Way, ranks: World, sent: Sent = "float32") -> dict[str, Any]:
    """Every promise but the last."""
    division = DataParallel(ranks, name, sent)
    add = compiled(division)
    whole = [np.full(s, 2**ranks.rank, np.float32) for s in SHAPES]
    exact = all((total == 2**ranks.size - 1).all() for total in add(whole))
    mine = drawn(ranks.rank)
    first = add(mine)
    digests = [same_on_all(ranks, first)]
    for _ in range(AGAIN):
        add(whole)
        digests.append(same_on_all(ranks, add(mine)))
    all_drawn = [drawn(rank) for rank in range(ranks.size)]
    error = 0.0
    for number, total in enumerate(first):
        terms = np.stack([each[number].astype(np.float64) for each in all_drawn])
        scale = np.abs(terms).sum(axis=0)
        error = max(error, float((np.abs(total - terms.sum(axis=0)) / scale).max()))
    broken = [a.copy() for a in whole]
    if ranks.rank == ranks.size - 1:
        broken[0][1, 2], broken[1][77] = np.nan, np.inf
    told = add(broken)
    return {
        "exact": exact,
        "digests": digests,
        "error": error,
        "not finite": [
            [np.argwhere(~np.isfinite(t)).tolist() for t in each]
            for each in ranks.comm.allgather(told)
        ],
        "broadcast": broadcast(division, ranks),
        "large": digest_tensors({str(i): t for i, t in enumerate(first) if t.nbytes > 1 << 20}),
        "trained": trained(name, ranks, sent),
    }


def broadcast(division: DataParallel, ranks: World) -> bool:
    """Whether every rank has rank 0's bits, those of -0 and of a NaN included."""
    rare = np.array([-0.0, np.nan, 1e-42, np.inf], np.float32)
    variables = [
        tf.Variable(rare if ranks.is_root else np.ones(4, np.float32)),
        tf.Variable(np.full((3, 400_000), ranks.rank + 0.5, np.float32)),
    ]
    division.broadcast(variables)
    mine = variables[0].numpy().tobytes() == rare.tobytes()
    mine &= bool((variables[1].numpy() == 0.5).all())
    return all(ranks.comm.allgather(mine))


def trained(
    name: Way, ranks: World, sent: Sent = "float32", pixels: int = 32, steps: int = 3
) -> dict[str, Any]:
    """Some steps of a training on random pictures, uneven shares: losses, digest of weights.

    32 px have a gradient that is large enough to travel alone.
    """
    settings = tiny.settings(
        render={"pixels": pixels},
        train={"batch_size": 25, "gradients": sent},
        launch={"division": "data", "collectives": name},
    )
    engine = Engine(settings, ranks)
    engine.broadcast()
    rng = np.random.default_rng(0)
    losses = []
    for step in range(steps):
        images = rng.integers(0, 256, (25, pixels, pixels, 3), dtype=np.uint8)
        labels = rng.integers(0, 2, 25)
        result = engine.train_step(images[engine.share], labels[engine.share], step, 1e-3)
        losses.append(result.sums.loss)
    weights = list(tiny.arrays(engine.snapshot("model/")).values())
    return {"losses": losses, "digest": same_on_all(ranks, weights)}


def die(name: Way, ranks: World) -> None:
    """The last rank ends while the others add."""
    add = compiled(DataParallel(ranks, name))
    add(drawn(ranks.rank))
    if ranks.rank == ranks.size - 1:
        os._exit(3)
    add(drawn(ranks.rank))
    print("went on alone", flush=True)


def main(out: Path, mode: str | None) -> None:
    ranks = world()
    set_up_tensorflow(1, ranks)
    if mode == "steps":
        trained("horovod", ranks, pixels=64, steps=12)
        return
    if mode:
        die({name: name for name in WAYS}[mode], ranks)  # type: ignore[index]
        return
    answer: dict[str, Any] = {name: examine(name, ranks) for name in WAYS}
    answer["bfloat16"] = {name: examine(name, ranks, "bfloat16") for name in WAYS}
    if ranks.is_root:
        (out / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
