"""Run on n ranks that share the batch: what must not depend on n.

Writes answer.json and arrays.npz into argv[2].
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from glass_cnn.data import dataset as data
from glass_cnn.data.batches import batches
from glass_cnn.settings import RunSettings
from glass_cnn.training.division import DataParallel, portions
from glass_cnn.training.engine import COUNTS, Engine, set_up_tensorflow
from hpc.errors import ConfigError, DataError, UserError
from hpc.world import World, world
from tests import tiny

STEPS = 6
BY_EXAMPLES = {"division": "data"}
CLIPPED = {"kind": "adam", "clip_norm": 0.1}
AGAIN = 10
"""steps after which two runs of the same process are compared: time for a race to show"""


def digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def feed(opened: data.Dataset, settings: RunSettings, rows: slice, first: int = 0) -> Any:
    train = settings.train
    part = data.split(opened, settings).train
    return batches(opened, part, settings.seed, train.batch_size, train.augmentation, rows, first)


def global_batches(opened: data.Dataset, settings: RunSettings, ranks: World, first: int) -> list:
    """Digests of whole batches put together from all ranks' rows, and the sizes of the shares."""
    own = feed(opened, settings, ranks.share(settings.train.batch_size), first)
    digests = []
    for _ in range(first, STEPS):
        parts = ranks.comm.allgather(next(own))
        images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        digests.append([digest(images, labels), [len(p[1]) for p in parts]])
    own.close()
    return digests


def steps(opened: data.Dataset, settings: RunSettings, ranks: World, count: int) -> dict:
    """Train for a few steps; results of each, first gradients, last weights."""
    engine = Engine(settings, ranks)
    if not ranks.is_root:  # else all begin alike, and a broadcast has nothing to do
        engine.assign({k: 0 * v for k, v in tiny.arrays(engine.snapshot()).items()})
    engine.broadcast()
    own = feed(opened, settings, engine.share)
    losses, corrects = [], []
    first: dict[str, np.ndarray] = {}
    for step in range(count):
        images, labels = next(own)
        result = engine.train_step(images, labels, step, 1e-3)
        losses.append(result.sums.loss)
        corrects.append(result.sums.correct)
        first = first or {k: g.numpy() for k, g in result.gradients.items()}
    own.close()
    weights = tiny.arrays(engine.snapshot("model/"))
    digests = ranks.comm.allgather(digest(*weights.values()))
    assert len(set(digests)) == 1, "ranks have different weights"
    return {
        "losses": losses, "corrects": corrects, "first": first, "weights": weights,
        "digest": digests[0], "engine": engine,
    }  # fmt: skip


def evaluations(opened: data.Dataset, engine: Engine, ranks: World) -> dict[str, Any]:
    """Counts of evaluations of awkward sizes, and the indices that were looked at."""
    found = {}
    for count, batch in ((41, 10), (42, 250), (41, 1), (3, 2), (2, 250), (1, 1)):
        sums, seen, slices = np.zeros(len(COUNTS)), [], 0
        for portion in portions(ranks, count, batch):
            chosen = np.arange(count)[portion]
            slices += 1
            seen += chosen.tolist()
            if len(chosen):
                sums += engine.evaluate(opened.images[chosen], opened.labels[chosen]).numpy()
        total = ranks.sum(sums)
        found[f"{count}/{batch}"] = {
            "sums": dict(zip(COUNTS, total.tolist(), strict=True)),
            "seen": sorted(itertools.chain(*ranks.comm.allgather(seen))),
            "slices": ranks.comm.allgather(slices),
        }
    return found


def agreements(ranks: World) -> dict[str, Any]:
    """What the world promises about flags, errors and values."""
    last = ranks.size - 1

    def attempt(action: Any) -> list[Any]:
        try:
            answer, told = action(), None
        except UserError as error:
            answer, told = str(error), error.told
        return [answer, told]

    def fail_on_last() -> int:
        if ranks.rank == last:
            raise DataError("only the last rank sees this")
        return ranks.rank

    def fail_on_root() -> None:
        raise ConfigError("only the first rank does this")

    found = {
        "agree": ranks.agree(7 if ranks.rank == last else 0),
        "none": ranks.agree(0),
        "everywhere": attempt(lambda: ranks.everywhere(fail_on_last)),
        "fine": attempt(lambda: ranks.everywhere(lambda: ranks.rank)),
        "on_root": attempt(lambda: ranks.on_root(fail_on_root)),
        "root_value": attempt(lambda: ranks.on_root(lambda: "here")),
        "broadcast": ranks.broadcast({"from": ranks.rank}),
        "sum": ranks.sum(np.array([ranks.rank, 1], dtype=np.int64)).tolist(),
        "local_rank": ranks.local_rank,
        "hosts": len(ranks.hosts),
        "other_order": other_order(ranks),
    }
    ranks.barrier()
    return found


def other_order(ranks: World) -> str:
    """What is said when Horovod numbers the ranks otherwise than the world does."""
    reversed_ranks = MPI.Intracomm(ranks.comm.Split(key=-ranks.rank))
    try:
        DataParallel(World(reversed_ranks))
    except RuntimeError as error:
        return str(error)
    return ""


def compare(opened: data.Dataset, ranks: World) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything that is compared between numbers of ranks."""
    answer: dict[str, Any] = {"world": ranks.comm.allgather(agreements(ranks))}
    arrays: dict[str, np.ndarray] = {}
    train = {"batch_size": 25, "optimizer": CLIPPED}
    clipped = tiny.settings(train=train, launch=BY_EXAMPLES)
    first = steps(opened, clipped, ranks, 1)["first"]
    arrays |= {f"clipped/gradient/{k}": v for k, v in first.items()}
    for batch in (24, 25):
        settings = tiny.settings(train={"batch_size": batch}, launch=BY_EXAMPLES)
        done = steps(opened, settings, ranks, STEPS)
        arrays |= {f"{batch}/gradient/{k}": v for k, v in done["first"].items()}
        arrays |= {f"{batch}/{k}": v for k, v in done["weights"].items()}
        answer[str(batch)] = {
            "losses": done["losses"],
            "corrects": done["corrects"],
            "batches": global_batches(opened, settings, ranks, 0),
            "restarted": global_batches(opened, settings, ranks, 2),
        }
    answer["evaluations"] = evaluations(opened, done["engine"], ranks)
    return answer, arrays


def main(logs: Path, out: Path, what: str) -> None:
    ranks = world()
    set_up_tensorflow(1, ranks)
    opened = data.load(tiny.settings(), logs)
    answer, arrays = compare(opened, ranks) if what == "everything" else ({}, {})
    again = tiny.settings(launch=BY_EXAMPLES)
    answer["long"] = [steps(opened, again, ranks, AGAIN)["digest"] for _ in range(2)]
    if ranks.is_root:
        np.savez(out / "arrays.npz", allow_pickle=False, **arrays)
        (out / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
