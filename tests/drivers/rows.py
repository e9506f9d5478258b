"""Run on 4 ranks: steps divided by rows of images, on 2 to 4 of them, beside undivided ones.

Rank 0 writes answer.json and arrays.npz into argv[1].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from glass_cnn.settings import RunSettings
from glass_cnn.training.diagnostics import Diagnostics
from glass_cnn.training.engine import COUNTS, Engine, set_up_tensorflow
from glass_cnn.training.rounding import move_if_due
from hpc.errors import DataError
from hpc.shards import Shards
from hpc.tensorfile import digest_tensors
from hpc.world import World, share, world
from tests import tiny

PIXELS, BATCH, STEPS = 32, 10, 4
CASES: dict[str, dict[str, Any]] = {
    "swanson2017": {
        "model": {"recipe": "swanson2017"},
        "train": {
            "dropout": 0.3,
            "l2": 1e-3,
            "optimizer": {"kind": "adam", "clip_norm": 0.5, "epsilon": 1e-3},
        },
    },
    "modern": {
        "model": {"recipe": "modern"},
        "train": {"optimizer": {"kind": "sgd", "momentum": 0.9, "weight_decay": 1e-3}},
    },
}
MOVED = {"copy": 3, "step": STEPS}


class Counting(World):
    """Ranks that count the bytes which each of them adds."""

    added = 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        self.added += values.nbytes
        return super().sum(values)


def settings(case: str, division: str, collectives: str | None) -> RunSettings:
    tree = CASES[case]
    train = {"batch_size": BATCH, "evaluation_batch": 7, **tree["train"]}
    launch = {"division": division, "collectives": collectives}
    own: dict[str, Any] = {"render": {"pixels": PIXELS}, "rounding": MOVED, "model": tree["model"]}
    return tiny.settings(train=train, launch=launch, **own)


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The upper half darker than the lower one, so that no two strips are alike."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, PIXELS, PIXELS, 3), dtype=np.uint8)
    images[:, : PIXELS // 2] //= 4
    return images, rng.integers(0, 2, count).astype(np.uint8)


def whole(engine: Engine, ranks: World, prefix: str = "") -> dict[str, np.ndarray]:
    """The state as a checkpoint has it; on rank 0, elsewhere nothing."""
    with engine.gathering():
        if not ranks.is_root:
            return {}
        tensors = engine.snapshot(prefix)
        copies = tiny.arrays(tensors)
        assert digest_tensors(tensors) == digest_tensors(copies)
    return copies


def gathered(engine: Engine, ranks: World, gradients: dict[str, Any]) -> dict[str, np.ndarray]:
    """Gradients of the whole network from those of what ranks have."""
    found = {}
    for name, gradient in gradients.items():
        parts = ranks.comm.allgather(gradient.numpy())
        divided = engine.division.shards.divided(name)
        found[name] = np.concatenate(parts) if divided else parts[0]
        assert divided or all((part == parts[0]).all() for part in parts), f"{name} differs"
    return found


def trained(
    settings: RunSettings, ranks: World, begin: dict[str, np.ndarray] | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Some steps, an evaluation, measurements; from `begin` of rank 0, or the initial weights."""
    engine = Engine(settings, ranks)
    if begin is not None:
        if ranks.is_root:
            engine.assign(begin)
        engine.broadcast()
        engine.optimizer.count = STEPS
    strip = engine.strip
    answer: dict[str, Any] = {"losses": [], "corrects": []}
    arrays: dict[str, np.ndarray] = {}
    before = getattr(ranks, "added", 0)
    for step in range(STEPS):
        images, labels = pictures(BATCH, step)
        result = engine.train_step(images[engine.share][:, strip], labels[engine.share], step, 1e-3)
        answer["losses"].append(result.sums.loss)
        answer["corrects"].append(result.sums.correct)
        if step in (0, STEPS - 1):
            found = gathered(engine, ranks, result.gradients)
            arrays |= {f"gradient {step}/{k}": g for k, g in found.items()}
    answer["bytes"] = (getattr(ranks, "added", 0) - before) / STEPS
    arrays |= {f"state/{k}": v for k, v in whole(engine, ranks).items()}
    images, labels = pictures(9, 100)
    if engine.division.measures:
        diagnostics = Diagnostics(engine.network, engine.optimizer, images[:, strip])
        answer["measured"] = diagnostics.measure(result.gradients, 1e-3)
        if settings.train.optimizer.kind == "adam":
            answer["measured"] |= diagnostics.curvature(labels, 1e-3, 1e-3)
    answer["l2"] = float(engine.network.l2())
    sums = np.zeros(len(COUNTS))
    for portion in engine.division.portions(len(images), settings.train.evaluation_batch):
        if portion.stop > portion.start:
            sums += engine.evaluate(images[portion][:, strip], labels[portion]).numpy()
    answer["counts"] = engine.division.counted(sums).tolist()
    told = move_if_due(engine, STEPS)
    assert told is not None
    answer["moved"] = ranks.broadcast(told)
    changed = whole(engine, ranks)
    answer["changed"] = sum(int((changed[k] != arrays[f"state/{k}"]).sum()) for k in changed)
    return answer, arrays


def handed_over(ranks: World) -> dict[str, Any]:
    """Arrays in parts that come to rank 0 and go back; what becomes of an error on it."""
    bounds = [share(10, rank, ranks.size) for rank in range(ranks.size)]
    table = np.arange(30, dtype=np.float64).reshape(10, 3)
    shards = Shards(ranks, lambda name: name == "table", bounds)
    got: dict[str, np.ndarray] = {}
    if ranks.is_root:
        got["table"] = shards.own("table", table)
    shards.scatter(got.__setitem__)
    mine = bool((got["table"] == table[bounds[ranks.rank]]).all())
    failed = 0
    try:
        with shards.answered(got.__getitem__):
            if ranks.is_root:
                raise DataError("before anything was read")
    except DataError:
        failed = 1
    back = np.zeros_like(table)
    with shards.answered(got.__getitem__):
        if ranks.is_root:
            seen = shards.whole("table", got["table"])
            assert not isinstance(seen, np.ndarray)
            seen.copy_to(back)
            parts = np.concatenate([part.copy() for part in seen.parts()])
            mine &= bool((parts == table).all() and (back == table).all())
            mine &= (seen.shape, seen.nbytes) == (table.shape, table.nbytes)
    wrong = ""
    try:
        shards.own("table", table[1:])
    except ValueError as error:
        wrong = str(error)
    return {"right": ranks.comm.allgather(mine), "failed": ranks.agree(failed), "wrong": wrong}


def gather_all(ranks: World) -> None:
    """Wait for all ranks, and leave the processor to those that still work."""
    reached = ranks.comm.Ibarrier()
    while not reached.Test():
        time.sleep(0.05)


def main(out: Path) -> None:
    everyone = world()
    set_up_tensorflow(1, everyone)
    answer: dict[str, Any] = {"handed over": handed_over(everyone)}
    arrays: dict[str, np.ndarray] = {}

    def train(
        name: str, size: int, settings: RunSettings, begin: dict[str, np.ndarray] | None = None
    ) -> None:
        """On the first `size` ranks; Horovod knows the world of all ranks alone."""
        few = everyone.comm.Split(everyone.rank < size)
        if everyone.rank < size:
            ranks = everyone if size == everyone.size else Counting(MPI.Intracomm(few))
            found = trained(settings, ranks, begin)
            answer[name] = found[0]
            arrays.update({f"{name}/{key}": value for key, value in found[1].items()})
        gather_all(everyone)

    for case, sizes in {"swanson2017": (2, 3, 4), "modern": (3,)}.items():
        train(f"{case}/data", 1, settings(case, "data", None))
        for size in sizes:
            way = "horovod" if size == everyone.size else "mpi"
            train(f"{case}/{size}", size, settings(case, "rows", way))
    train("data of 2", 2, settings("swanson2017", "data", "mpi"))
    # What one division leaves, the other goes on with.
    start = "swanson2017/2/state/"
    left = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
    train("goes on/data", 1, settings("swanson2017", "data", None), left)
    train("goes on/4", 4, settings("swanson2017", "rows", "horovod"), left)
    if everyone.is_root:
        np.savez(out / "arrays.npz", allow_pickle=False, **arrays)
        (out / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
