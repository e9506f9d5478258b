"""Who works in turns: the engine of this project, Keras, PyTorch, bare products, bare reading.

Each side is a process that stays, is pinned to the same cores as those it is compared with, and is
asked in its turn to work for some seconds; the others sleep meanwhile. All train the 2017 network
(modern recipe, dropout 0.5, L2 0.01, Adam) on the same random images, or read what it would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

BATCH = 80
CONV1, CONV2, DENSE, OUTPUT = (10, 3, 6), (5, 6, 16), 80, 2  # side, channels in, channels out

IMAGES = "GLASS_BENCHMARK_IMAGES"
"""names the file, uint8 [images, pixels, pixels, 3], that `reading` reads"""

MAX_CPU_ISA = "GLASS_BENCHMARK_MAX_CPU_ISA"
"""names the highest instruction set that sides may use; see `limited`"""

Step = Callable[[], None]


# -- one side, in a process of its own -------------------------------------------------------------


def ours(
    pixels: int,
    threads: int,
    batch: int,
    division: str = "data",
    precision: str = "float32",
    gradients: str = "float32",
    collectives: str | None = None,
    in_turn: bool = False,
    evaluates: bool = False,
) -> Step:
    """The engine of this project; one rank of as many as it was started with.

    `in_turn` gives TensorFlow one thread for what it could run side by side.
    """
    from glass_cnn import numerics
    from glass_cnn.settings import Launch, build_run

    numerics.choose(Launch(max_cpu_isa=os.environ.get(MAX_CPU_ISA)), lambda _: None)  # type: ignore[arg-type]
    import numpy as np

    from glass_cnn.tensorflow import tf
    from glass_cnn.training.engine import Engine, set_up_tensorflow
    from hpc.world import world

    tree = {
        "render": {"pixels": pixels},
        "model": {"recipe": "modern"},
        "train": {"batch_size": batch, "precision": precision, "gradients": gradients},
        "launch": {"ranks": world().size, "division": division, "collectives": collectives},
    }
    settings = build_run(tree, "benchmark")
    set_up_tensorflow(threads, world(), settings.launch.collectives, settings.train.precision)
    if in_turn:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    engine = Engine(settings, world())
    images, labels = examples(pixels, batch)
    mine, classes = np.ascontiguousarray(images[engine.share, engine.strip]), labels[engine.share]
    step = iter(range(1 << 30))

    def train() -> None:
        last = engine.train_step(mine, classes, next(step), 1e-4)
        assert last.sums.loss  # a GPU is waited for

    def evaluate() -> None:
        engine.evaluate(mine, classes).numpy()

    return evaluate if evaluates else train


def ours_evaluating(pixels: int, threads: int, batch: int) -> Step:
    """The same, classifying images and no more."""
    return ours(pixels, threads, batch, evaluates=True)


def ours_rows(pixels: int, threads: int, batch: int) -> Step:
    """The same, ranks sharing the rows of images."""
    return ours(pixels, threads, batch, "rows")


def ours_sent_half(pixels: int, threads: int, batch: int) -> Step:
    """The same with train.gradients: bfloat16, which is what ranks send each other."""
    return ours(pixels, threads, batch, gradients="bfloat16")


def ours_in_turn(pixels: int, threads: int, batch: int) -> Step:
    """The same with one thread for what TensorFlow could run side by side."""
    return ours(pixels, threads, batch, in_turn=True)


def ours_by_mpi(pixels: int, threads: int, batch: int) -> Step:
    """The same with launch.collectives: mpi."""
    return ours(pixels, threads, batch, collectives="mpi")


def ours_bfloat16(pixels: int, threads: int, batch: int) -> Step:
    """The same with train.precision: bfloat16; ends with a message where it would be emulated."""
    return ours(pixels, threads, batch, precision="bfloat16")


def keras(pixels: int, threads: int, batch: int) -> Step:
    """Keras' own layers and `fit`, on the TensorFlow of this project with oneDNN on."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    from glass_cnn.tensorflow import tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    layers, l2 = tf.keras.layers, tf.keras.regularizers.L2(0.005)
    model = tf.keras.Sequential(
        [
            layers.Rescaling(1 / 255),
            layers.Conv2D(CONV1[2], CONV1[0], activation="relu", kernel_regularizer=l2),
            layers.Conv2D(CONV2[2], CONV2[0], activation="relu", kernel_regularizer=l2),
            layers.Flatten(),
            layers.Dense(DENSE, activation="relu", kernel_regularizer=l2),
            layers.Dropout(0.5),
            layers.Dense(OUTPUT, kernel_regularizer=l2),
        ]
    )
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.Adam(1e-4), loss, jit_compile=False)
    images, labels = examples(pixels, batch)

    def train() -> None:
        model.fit(images, labels, batch_size=batch, shuffle=False, verbose=0)

    return train


def pytorch(pixels: int, threads: int, batch: int, half: bool = False) -> Step:
    """PyTorch with channels-last tensors and its fused Adam; runs where PyTorch is installed."""
    import torch
    from torch.nn import functional as f

    torch.set_num_threads(threads)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(CONV1[1], CONV1[2], CONV1[0]),
        torch.nn.ReLU(),
        torch.nn.Conv2d(CONV2[1], CONV2[2], CONV2[0]),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(CONV2[2] * (pixels - 13) ** 2, DENSE),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(DENSE, OUTPUT),
    ).to(memory_format=torch.channels_last)
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    adam = torch.optim.Adam(groups, lr=1e-4, fused=True)
    raw, classes = examples(pixels, batch)
    images, labels = torch.from_numpy(raw).permute(0, 3, 1, 2), torch.from_numpy(classes).long()

    def train() -> None:
        adam.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = net(images.float() / 255)
        f.cross_entropy(logits.float(), labels).backward()
        adam.step()

    return train


def pytorch_bfloat16(pixels: int, threads: int, batch: int) -> Step:
    """The same under autocast."""
    return pytorch(pixels, threads, batch, half=True)


def matrix_product(pixels: int, threads: int, batch: int) -> Step:
    """Products of 2048×2048 matrices with the arithmetic of one batch."""
    from glass_cnn.tensorflow import tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    a = tf.random.stateless_uniform((2048, 2048), seed=(1, 2))
    multiply = tf.function(lambda x: x @ a)
    wanted = 3 * batch * forward(pixels) / 2048**3
    done = 0.0

    def train() -> None:
        nonlocal done
        done += wanted
        while done >= 1:
            multiply(a).numpy()
            done -= 1

    return train


def reading(pixels: int, threads: int, batch: int) -> Step:  # noqa: ARG001 - what a side is given
    """A training's batches and nothing else: shuffled for each batch, turned, mirrored, shifted."""
    from pathlib import Path

    import numpy as np

    from glass_cnn.data.batches import batches
    from glass_cnn.data.dataset import Dataset
    from glass_cnn.paths import DatasetDir
    from glass_cnn.train_settings import Augmentation

    path = Path(os.environ[IMAGES])
    images = np.load(path, mmap_mode="r").view(np.ndarray)
    numbers = np.arange(len(images))
    data = Dataset(DatasetDir(path.parent), {}, images, (numbers % 2).astype(np.uint8), numbers)
    moves = Augmentation(rotations=True, flips=True, translations=True)
    coming = batches(data, numbers, 0, batch, moves, kind="batch")

    def take() -> None:
        next(coming)

    return take


def forward(pixels: int) -> int:
    """Multiply-adds of the network for one image."""
    first, second = (pixels - 9) ** 2, (pixels - 13) ** 2
    return (
        first * CONV1[0] ** 2 * CONV1[1] * CONV1[2]
        + second * CONV2[0] ** 2 * CONV2[1] * CONV2[2]
        + second * CONV2[2] * DENSE
        + DENSE * OUTPUT
    )


def examples(pixels: int, batch: int):  # type: ignore[no-untyped-def]
    """One batch: uint8 [batch, pixels, pixels, 3] and int64 [batch]."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, pixels, pixels, 3), np.uint8), rng.integers(0, 2, batch)


SIDES: dict[str, Callable[[int, int, int], Step]] = {
    "ours": ours,
    "ours_rows": ours_rows,
    "ours_sent_half": ours_sent_half,
    "ours_in_turn": ours_in_turn,
    "ours_by_mpi": ours_by_mpi,
    "ours_evaluating": ours_evaluating,
    "ours_bfloat16": ours_bfloat16,
    "keras": keras,
    "pytorch": pytorch,
    "pytorch_bfloat16": pytorch_bfloat16,
    "matrix_product": matrix_product,
    "reading": reading,
}


def serve(name: str, pixels: int, threads: int, batch: int) -> None:
    """Train when asked: a line of seconds comes in, a line of what came of it goes out.

    That is images per second, and the most memory that a rank has had so far, in bytes.
    """
    train = SIDES[name](pixels, threads, batch)
    comm = None
    if name.startswith("ours"):
        from hpc.world import world

        comm = world().comm
    for _ in range(3):  # kernels are made, memory is touched
        train()
    root = comm is None or comm.Get_rank() == 0
    mine = [os.getpid()]
    mine = mine if comm is None else comm.allgather(mine[0])
    if root:
        print("ready", *mine, flush=True)
    while True:
        line = sys.stdin.readline() if root else ""
        line = line if comm is None else asked(comm, line)
        if not line:
            return
        began, steps = time.perf_counter(), 0
        going = True
        while going:
            train()
            steps += 1
            going = time.perf_counter() - began < float(line)
            going = going if comm is None else comm.bcast(going)
        if root:
            speed = steps * batch / (time.perf_counter() - began)
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = memory if comm is None else max(comm.allgather(memory))
        if root:
            print(json.dumps([speed, memory]), flush=True)


def asked(comm: Any, line: str) -> str:
    """Rank 0's line on all ranks, which sleep until it comes: in MPI they would wait at work."""
    if comm.rank == 0:
        for rank in range(1, comm.size):
            comm.send(line, rank)
    else:
        while not comm.Iprobe():
            time.sleep(0.002)
        line = comm.recv()
    comm.barrier()
    return line


def limited(isa: str | None) -> dict[str, str]:
    """Variables by which every side keeps to an instruction set: oneDNN, PyTorch's own, MKL's."""
    from glass_cnn import numerics

    if isa is None:
        return {}
    within = dict.fromkeys((MAX_CPU_ISA, numerics.CAP, "ATEN_CPU_CAPABILITY"), isa)
    return {**within, "MKL_ENABLE_INSTRUCTIONS": isa.upper()}


# -- those that take turns -------------------------------------------------------------------------


class Side:
    """One process at work, and its speeds so far; raises RuntimeError where it ends by itself."""

    def __init__(
        self,
        name: str,
        pixels: int,
        layout: Layout,
        python: str = sys.executable,
        batch: int = BATCH,
        environment: Mapping[str, str] = {},
    ) -> None:
        cores = ",".join(map(str, layout.cores))
        words = [python, "-m", "benchmarks.sides", name, str(pixels), str(layout.threads)]
        words.append(str(batch))
        if layout.ranks > 1:
            words = ["mpiexec", "-n", str(layout.ranks), "-bind-to", layout.bound_to, *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(layout.threads)} | dict(environment)
        # One that stands still sees nobody's end, so the kernel has to end it with this process.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", cores, *words],
            text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.name = f"{layout.name}: {name}"
        self.speeds: list[float] = []
        self.memory = 0
        """the most that a rank has had so far, bytes"""
        self.processes = [int(number) for number in self.expect("ready").split()[1:]]
        """process ids of its ranks"""
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        """To all ranks: between turns they stand still, for Horovod's threads wait at work."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # `expect` tells of one that has ended
                os.kill(process, number)

    def expect(self, what: str = "") -> str:
        """Its next line; raises RuntimeError with what it said where it ended."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line.startswith(what) or not line:
            raise RuntimeError(f"{self.name} ended:\n{self.process.stderr.read()}")
        return line

    def turn(self, seconds: float) -> None:
        """Let it train."""
        self.begin(seconds)
        self.end()

    def begin(self, seconds: float) -> None:
        """The first half of a turn, for sides that take it at the same time."""
        assert self.process.stdin is not None
        self._signal(signal.SIGCONT)
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """The second half: what came of it."""
        speed, self.memory = json.loads(self.expect())
        self.speeds.append(speed)
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


class Layout:
    """Cores, ranks and threads that a comparison takes; the first cores, or those after `first`.

    Ranks are bound to a core each unless not `bound`.
    """

    def __init__(
        self, name: str, cores: int, ranks: int, threads: int, first: int = 0, bound: bool = True
    ) -> None:
        self.bound_to = "core" if bound else "none"
        self.name, self.ranks, self.threads = name, ranks, threads
        self.cores = sorted(os.sched_getaffinity(0))[first : first + cores]

    @property
    def fits(self) -> bool:
        """Whether there are so many cores."""
        return len(self.cores) >= self.ranks * self.threads


LAYOUTS = {
    "one core": Layout("one core", 1, 1, 1),
    "one process, two threads": Layout("one process, two threads", 2, 1, 2),
    "two ranks of one core": Layout("two ranks of one core", 2, 2, 1),
}


def main() -> None:
    """Be one side."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sides", description="one side")
    parser.add_argument("name", choices=SIDES)
    for what in ("pixels", "threads", "batch"):
        parser.add_argument(what, type=int)
    args = parser.parse_args()
    serve(args.name, args.pixels, args.threads, args.batch)


if __name__ == "__main__":
    main()
