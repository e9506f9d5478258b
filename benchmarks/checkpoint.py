"""Seconds that a checkpoint costs, beside the ways that others save the same arrays.

python -m benchmarks.checkpoint [--megabytes 863] [--rounds 5] [--directory DIR]

Every method saves weights and both moments of Adam so that they survive a power cut (fsync), then
reads them back into the arrays that training would use. Methods take turns, so that whatever else
happens on the machine happens to all. What is read back comes from the disk, not from memory.

python -m benchmarks.checkpoint --train [--pixels 250] [--pairs 8] [--threads 2] [--examples 3000]
mpiexec -n 2 python -m benchmarks.checkpoint --train --threads 1

trains the 2017 model on synthetic images, by turns one iteration with a checkpoint at its beginning
(and all that its writing costs) and one without. An iteration is what it is in a run: ten steps,
then the validation set of the log; `--examples 0` leaves that out, and a checkpoint weighs more.

blocked: training stands still; durable: until a power cut would do no harm; processor: user and
system time of all threads; restore: from the file to arrays in place,
the project's verified.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pickle
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from benchmarks.table import Row, measured, ratios, tell
from glass_cnn.settings import RunSettings, build_run
from glass_cnn.tensorflow import tf
from glass_cnn.training.engine import Engine, set_up_tensorflow
from hpc.checkpoint_writer import Checkpoints
from hpc.words import plural
from hpc.world import World, world

Tensors = dict[str, np.ndarray]
SHARES = {"dense/kernel": 0.9999, "rest": 0.0001}  # of the parameters, as in swanson2017
CHANGING = "model/rest"
PROJECT = "this project"


@dataclass(frozen=True)
class Cost:
    """Seconds of one save and one restore."""

    blocked: float
    durable: float
    processor: float
    restore: float


def make_state(megabytes: float) -> Tensors:
    """Weights and two Adam moments of a model like the 2017 one, `megabytes` in all."""
    parameters = int(megabytes * 1e6 / 4 / 3)
    random = np.random.default_rng(0)
    return {
        f"{group}/{name}": random.random(max(1, int(parameters * share)), dtype=np.float32)
        for group in ("model", "adam/m", "adam/v")
        for name, share in SHARES.items()
    }


@dataclass(frozen=True)
class Method:
    """One way to save: `save` may go on in the background until `finish` returns."""

    name: str
    save: Callable[[Tensors], None]
    load: Callable[[], Mapping[str, Any]]
    folder: Path
    finish: Callable[[], None] = lambda: None


def project(checkpoints: Checkpoints) -> Method:
    """`hpc.checkpoint`: asynchronous, checksummed, atomic; restoring verifies every byte."""
    steps = itertools.count(1)

    def load() -> Mapping[str, np.ndarray]:
        found = checkpoints.latest()
        assert found is not None
        return found.tensors

    return Method(
        PROJECT,
        lambda state: checkpoints.save(next(steps), state, {}),
        load,
        checkpoints.directory,
        checkpoints.flush,
    )


def peer(
    folder: Path,
    write: Callable[[Path, Tensors], object],
    read: Callable[[Path], Mapping[str, Any]],
) -> Method:
    """A library's call, made durable with fsync; nothing is verified."""

    def save(state: Tensors) -> None:
        aside = folder.with_suffix(".new")
        aside.mkdir()
        write(aside / "state", state)
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)

    return Method(folder.name, save, lambda: read(folder / "state"), folder)


def savez(path: Path, state: Tensors) -> None:
    """Uncompressed .npz."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **state)


def pickle_dump(path: Path, state: Tensors) -> None:
    """The newest protocol."""
    with path.open("wb") as file:
        pickle.dump(state, file, protocol=5)


def unpickle(path: Path) -> Mapping[str, Any]:
    """The other way."""
    with path.open("rb") as file:
        return dict(pickle.load(file))


def tensorflow_checkpoint(folder: Path, state: Tensors) -> Method:
    """`tf.train.Checkpoint` of variables; restoring assigns them."""
    variables = {name: tf.Variable(tensor) for name, tensor in state.items()}
    tracked = tf.train.Checkpoint(**{n.replace("/", "_"): v for n, v in variables.items()})

    def write(path: Path, state: Tensors) -> None:
        variables[CHANGING].assign(state[CHANGING])
        tracked.write(str(path))

    def read(path: Path) -> Mapping[str, Any]:
        tracked.read(str(path)).assert_consumed()
        return variables

    return peer(folder, write, read)


def peers(directory: Path, state: Tensors) -> list[Method]:
    """NumPy, safetensors, pickle and TensorFlow, each as its documentation shows it."""
    load = safetensors.numpy.load_file
    return [
        peer(directory / "numpy.savez", savez, np.load),
        peer(directory / "safetensors", lambda p, s: safetensors.numpy.save_file(s, p), load),
        peer(directory / "pickle", pickle_dump, unpickle),
        tensorflow_checkpoint(directory / "tf.train.Checkpoint", state),
    ]


def rows(megabytes: float, costs: Mapping[str, list[Cost]]) -> list[Row]:
    """What goes into the table of all benchmarks: seconds, and against the best of the peers."""
    found = []
    for column, what in (("blocked", "training stands still"), ("durable", "until it is durable"),
                         ("restore", "restart, verified")):  # fmt: skip
        seconds = {name: [getattr(cost, column) for cost in each] for name, each in costs.items()}
        own = seconds.pop(PROJECT)
        best = min(seconds, key=lambda name: statistics.median(seconds[name]))
        label = f"checkpoint of {megabytes:.0f} MB: {what}"
        found.append(measured(label, own, "s"))
        found.append(measured(f"{label} / {best}, the fastest peer", ratios(own, seconds[best])))
    return found


def processor_seconds() -> float:
    """User and system time of this process, all threads."""
    times = os.times()
    return times.user + times.system


def forget(path: Path) -> None:
    """Drop a file from the page cache, so that reading it means reading the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(method: Method, state: Tensors, target: Tensors) -> Cost:
    """One save and one restore into `target`; asserts that every bit came back."""
    processor, start = processor_seconds(), time.perf_counter()
    method.save(state)
    blocked = time.perf_counter() - start
    method.finish()
    durable = time.perf_counter() - start
    processor = processor_seconds() - processor
    for path in method.folder.rglob("*"):
        if path.is_file():
            forget(path)
    start = time.perf_counter()
    loaded = method.load()
    for name, array in target.items():
        np.copyto(array, loaded[name])
    restore = time.perf_counter() - start
    assert all(np.array_equal(target[name], tensor) for name, tensor in state.items())
    return Cost(blocked, durable, processor, restore)


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A directory that goes away with everything in it."""
    path = Path(tempfile.mkdtemp(prefix="checkpoint-benchmark-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def compare(megabytes: float, rounds: int, directory: Path) -> dict[str, list[Cost]]:
    """Costs of every method, `rounds` times in turn after one round that does not count."""
    state = make_state(megabytes)
    target = {name: np.zeros_like(tensor) for name, tensor in state.items()}
    with Checkpoints(directory / "project", "benchmark", 2, None, 1, print) as checkpoints:
        checkpoints.prepare(state)
        methods = [project(checkpoints), *peers(directory, state)]
        costs: dict[str, list[Cost]] = {method.name: [] for method in methods}
        for counts in [False] + rounds * [True]:
            for method in methods:
                state[CHANGING] += 1
                cost = measure(method, state, target)
                if counts:
                    costs[method.name].append(cost)
    return costs


def table(costs: Mapping[str, list[Cost]]) -> str:
    """Medians, and how many times the project's each is."""
    columns = ("blocked", "durable", "processor", "restore")
    middle = {
        name: [statistics.median(getattr(cost, c) for cost in found) for c in columns]
        for name, found in costs.items()
    }
    own = middle[PROJECT]
    lines = ["| seconds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in middle.items():
        cells = [f"{v:.3f} ({v / o:.1f}×)" for v, o in zip(values, own, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# -- what it costs a training -------------------------------------------------------------------


class Training:
    """Iterations of the 2017 model on this process's share of random images."""

    def __init__(self, settings: RunSettings, ranks: World, examples: int) -> None:
        self.settings, self.ranks, self.examples, self.step = settings, ranks, examples, 0
        self.engine = Engine(settings, ranks)
        self.engine.broadcast()
        rng = np.random.default_rng(0)
        share = range(settings.train.batch_size)[self.engine.share]
        pixels = settings.render.pixels
        self.images = rng.integers(0, 256, (len(share), pixels, pixels, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 2, len(share))

    def iterate(self, checkpoints: Checkpoints | None) -> float:
        """Seconds of one iteration, with a checkpoint at its beginning or without.

        The next iteration's checkpoint would wait for this one, so that belongs to it as well.
        """
        self.ranks.barrier()
        start = time.perf_counter()
        if checkpoints is not None:
            checkpoints.save(self.step, self.engine.snapshot(), {})
        for _ in range(self.settings.train.batches_per_iteration):
            self.engine.train_step(self.images, self.labels, self.step, 1e-4)
            self.step += 1
        self.evaluate()
        if checkpoints is not None:
            checkpoints.flush()
        self.ranks.barrier()
        return time.perf_counter() - start

    def evaluate(self) -> None:
        """As a run does after every iteration, its images over and over again."""
        batch = self.settings.train.evaluation_batch
        for portion in self.engine.division.portions(self.examples, batch):
            rows = np.arange(portion.start, portion.stop) % len(self.images)
            if len(rows):
                self.engine.evaluate(self.images[rows], self.labels[rows])


def overhead(pixels: int, pairs: int, threads: int, examples: int, directory: Path) -> None:
    """Print how much longer iterations with a checkpoint are."""
    ranks = world()
    set_up_tensorflow(threads, ranks)
    tree = {"render": {"pixels": pixels}, "launch": {"division": "data"}}
    training = Training(build_run(tree, "benchmark"), ranks, examples)
    with contextlib.ExitStack() as open_:
        checkpoints = None
        if ranks.is_root:
            place = directory / "training"
            checkpoints = open_.enter_context(Checkpoints(place, "benchmark", 2, None, 1, print))
            checkpoints.prepare(training.engine.snapshot())
        times: dict[bool, list[float]] = {True: [], False: []}
        training.iterate(None)  # compiles
        for pair in range(pairs):
            for saves in (True, False) if pair % 2 else (False, True):
                times[saves].append(training.iterate(checkpoints if saves else None))
    if ranks.is_root:
        megabytes = sum(array.nbytes for array in training.engine.snapshot().values()) / 1e6
        size = f"{plural(ranks.size, 'rank')} of {plural(threads, 'thread')}"
        print(f"{megabytes:.0f} MB every iteration of 10 steps and {examples:,} examples, {size},")
        print(overhead_text(times[True], times[False]))
        longer = [100 * (ratio - 1) for ratio in ratios(times[True], times[False])]
        what = f"{pixels} px, {size}: a checkpoint of {megabytes:.0f} MB an iteration makes it"
        tell(measured(f"{what} longer by", longer, "%", at_most=2 if pixels == 250 else None))


def overhead_text(saving: list[float], plain: list[float]) -> str:
    """Ratio of the pairs, with an interval from resampling them."""
    ratios = np.array(saving) / np.array(plain)
    chosen = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(chosen, axis=1), [0.05, 0.95])
    return (
        f"{len(ratios)} pairs of iterations: {statistics.median(saving):.3f} s with, "
        f"{statistics.median(plain):.3f} s without a checkpoint;\n"
        f"median ratio {np.median(ratios):.4f} (90 % interval {low:.4f} to {high:.4f}), "
        f"ratio of the sums {sum(saving) / sum(plain):.4f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=863, help="size of the state")
    parser.add_argument("--rounds", type=int, default=5, help="saves and restores of each method")
    parser.add_argument("--directory", type=Path, help="where to write (a temporary directory)")
    parser.add_argument("--train", action="store_true", help="what it costs a training instead")
    parser.add_argument("--pixels", type=int, default=250, help="side of its images (250: 863 MB)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of its iterations")
    parser.add_argument("--threads", type=int, default=2, help="its threads on each rank")
    parser.add_argument("--examples", type=int, default=3000, help="evaluated after an iteration")
    options = parser.parse_args()
    with scratch(options.directory) as directory:
        if options.train:
            overhead(options.pixels, options.pairs, options.threads, options.examples, directory)
            return
        costs = compare(options.megabytes, options.rounds, directory)
    print(f"{options.megabytes:.0f} MB, median of {options.rounds}, {os.cpu_count()} cores,")
    print(f"load {os.getloadavg()[0]:.1f}, Linux {platform.release()}; (n×): n times the first row")
    print(table(costs))
    tell(*rows(options.megabytes, costs))


if __name__ == "__main__":
    main()
