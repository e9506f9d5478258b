"""Speed of training against Keras, PyTorch and this processor's matrix products, by turns.

    python -m benchmarks.training [--pixels 48 250] [--turns 5] [--seconds 4] [--json FILE]

Each side is a process that stays, is pinned to the same cores as the side it is compared with, and
is asked in its turn to train for about `--seconds`; the others sleep meanwhile. Printed are medians
of images per second of wall time, and ratios within a turn with their range. Other work on the
machine shows as a wide range.

Sides train the 2017 network (modern recipe, dropout 0.5, L2 0.01, Adam) on the same random images,
batch 80. Keras: `fit` on the same TensorFlow. PyTorch: channels-last, fused Adam, in float32 and
under bfloat16 autocast. It is not a package of this project: where the interpreter that
`--peers` names (default: .venv/peers/bin/python) does not have it, it is installed there.
`matrix product` is a float32 product of 2048×2048 matrices, in images that its arithmetic would
make, at 3 × 2 multiply-adds forward and backward: what no convolution exceeds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

BATCH = 80
PEERS = Path(sys.prefix) / "peers" / "bin" / "python"
TORCH = "torch==2.13.0"
CONV1, CONV2, DENSE, OUTPUT = (10, 3, 6), (5, 6, 16), 80, 2  # side, channels in, channels out

Step = Callable[[], None]


# -- one side, in a process of its own -------------------------------------------------------------


def ours(pixels: int, threads: int, division: str = "data", precision: str = "float32") -> Step:
    """The engine of this project; one rank of as many as it was started with."""
    from glass_cnn import numerics
    from glass_cnn.settings import Launch, build_run

    numerics.choose(Launch(), lambda _: None)
    import numpy as np

    from glass_cnn.training.engine import Engine, set_up_tensorflow
    from hpc.world import world

    tree = {
        "render": {"pixels": pixels},
        "model": {"recipe": "modern"},
        "train": {"batch_size": BATCH, "precision": precision},
        "launch": {"ranks": world().size, "division": division},
    }
    settings = build_run(tree, "benchmark")
    set_up_tensorflow(threads, world(), None, settings.launch.division, settings.train.precision)
    engine = Engine(settings, world())
    images, labels = examples(pixels)
    mine, classes = np.ascontiguousarray(images[engine.share, engine.strip]), labels[engine.share]
    step = iter(range(1 << 30))

    def train() -> None:
        last = engine.train_step(mine, classes, next(step), 1e-4)
        assert last.sums.loss  # a GPU is waited for

    return train


def ours_rows(pixels: int, threads: int) -> Step:
    """The same, ranks sharing the rows of images."""
    return ours(pixels, threads, "rows")


def ours_bfloat16(pixels: int, threads: int) -> Step:
    """The same with train.precision: bfloat16; ends with a message where it would be emulated."""
    return ours(pixels, threads, precision="bfloat16")


def keras(pixels: int, threads: int) -> Step:
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
    images, labels = examples(pixels)

    def train() -> None:
        model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)

    return train


def pytorch(pixels: int, threads: int, half: bool = False) -> Step:
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
    raw, classes = examples(pixels)
    images, labels = torch.from_numpy(raw).permute(0, 3, 1, 2), torch.from_numpy(classes).long()

    def train() -> None:
        adam.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = net(images.float() / 255)
        f.cross_entropy(logits.float(), labels).backward()
        adam.step()

    return train


def pytorch_bfloat16(pixels: int, threads: int) -> Step:
    """The same under autocast."""
    return pytorch(pixels, threads, half=True)


def matrix_product(pixels: int, threads: int) -> Step:
    """Products of 2048×2048 matrices with the arithmetic of one batch."""
    from glass_cnn.tensorflow import tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    a = tf.random.stateless_uniform((2048, 2048), seed=(1, 2))
    multiply = tf.function(lambda x: x @ a)
    wanted = 3 * BATCH * forward(pixels) / 2048**3
    done = 0.0

    def train() -> None:
        nonlocal done
        done += wanted
        while done >= 1:
            multiply(a).numpy()
            done -= 1

    return train


def forward(pixels: int) -> int:
    """Multiply-adds of the network for one image."""
    first, second = (pixels - 9) ** 2, (pixels - 13) ** 2
    return (
        first * CONV1[0] ** 2 * CONV1[1] * CONV1[2]
        + second * CONV2[0] ** 2 * CONV2[1] * CONV2[2]
        + second * CONV2[2] * DENSE
        + DENSE * OUTPUT
    )


def examples(pixels: int):  # type: ignore[no-untyped-def]
    """One batch: uint8 [80, pixels, pixels, 3] and int64 [80]."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, pixels, pixels, 3), np.uint8), rng.integers(0, 2, BATCH)


SIDES: dict[str, Callable[[int, int], Step]] = {
    "ours": ours,
    "ours_rows": ours_rows,
    "ours_bfloat16": ours_bfloat16,
    "keras": keras,
    "pytorch": pytorch,
    "pytorch_bfloat16": pytorch_bfloat16,
    "matrix_product": matrix_product,
}


def serve(name: str, pixels: int, threads: int) -> None:
    """Train when asked: a line of seconds comes in, a line of images per second goes out."""
    train = SIDES[name](pixels, threads)
    comm = None
    if name.startswith("ours"):
        from hpc.world import world

        comm = world().comm
    for _ in range(3):  # kernels are made, memory is touched
        train()
    root = comm is None or comm.Get_rank() == 0
    if root:
        print("ready", flush=True)
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
            print(json.dumps(steps * BATCH / (time.perf_counter() - began)), flush=True)


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


# -- all sides by turns ----------------------------------------------------------------------------


class Side:
    """One process at work, and its speeds so far."""

    def __init__(self, name: str, pixels: int, layout: Layout, python: str) -> None:
        cores = ",".join(map(str, layout.cores))
        words = [python, "-m", "benchmarks.training", "--serve", name]
        words += ["--pixels", str(pixels), "--threads", str(layout.threads)]
        if layout.ranks > 1:
            words = ["mpiexec", "-n", str(layout.ranks), "-bind-to", "core", *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(layout.threads)}
        self.process = subprocess.Popen(
            ["taskset", "-c", cores, *words], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.name = f"{layout.name}: {name}"
        self.speeds: list[float] = []
        self.expect("ready")

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
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        self.speeds.append(float(self.expect()))

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Layout:
    """Cores, ranks and threads that a comparison takes."""

    def __init__(self, name: str, cores: int, ranks: int, threads: int) -> None:
        self.name, self.ranks, self.threads = name, ranks, threads
        self.cores = sorted(os.sched_getaffinity(0))[:cores]


LAYOUTS = {
    "one core": Layout("one core", 1, 1, 1),
    "one process, two threads": Layout("one process, two threads", 2, 1, 2),
    "two ranks of one core": Layout("two ranks of one core", 2, 2, 1),
}


TOGETHER = (("one core",), ("one process, two threads", "two ranks of one core"))
"""layouts that are measured by turns; one after the other, for each side has 2 GB at 250 px"""


@contextmanager
def sides(
    pixels: int, layouts: Sequence[str], peers: str | None
) -> Iterator[dict[tuple[str, str], Side]]:
    """The processes of some layouts, ended in the end."""
    with ExitStack() as stack:
        found = {}
        for layout in map(LAYOUTS.__getitem__, layouts):
            if len(layout.cores) < layout.ranks * layout.threads:
                continue
            of_ranks = ("ours", "ours_rows")
            alone = [name for name in SIDES if name != "ours_rows" and not emulated(name)]
            for name in of_ranks if layout.ranks > 1 else alone:
                outside = name.startswith("pytorch")
                if outside and peers is None:
                    continue
                side = Side(name, pixels, layout, str(peers) if outside else sys.executable)
                stack.callback(side.close)
                found[layout.name, name] = side
        yield found


@functools.cache
def emulated(name: str) -> bool:
    """Whether this processor would emulate a side of ours, which then refuses to train; told."""
    from glass_cnn import numerics
    from hpc.errors import ConfigError

    try:
        numerics.check("bfloat16" if name == "ours_bfloat16" else "float32", None)
    except ConfigError as error:
        print(f"left out: {name}: {error}", file=sys.stderr)
        return True
    return False


def measure(pixels: int, turns: int, seconds: float, peers: str | None) -> list[dict[str, object]]:
    """Medians of speeds and of ratios to PyTorch's and the matrix product's of the same turn."""
    rows = []
    for layouts in TOGETHER:
        with sides(pixels, layouts, peers) as found:
            for _ in range(turns):
                for side in found.values():
                    side.turn(seconds)
            rows += [row(pixels, key, found) for key in found]
    return rows


def row(pixels: int, key: tuple[str, str], found: dict[tuple[str, str], Side]) -> dict[str, object]:
    """What is printed of one side."""
    layout, name = key
    speeds = found[key].speeds
    base = "one process, two threads" if "ranks" in layout else layout
    ratios = {
        other: _ratio(speeds, found[base, other].speeds)
        for other in ("ours", "keras", "pytorch", "matrix_product")
        if (base, other) in found and (base, other) != key
    }
    return {
        "pixels": pixels, "layout": layout, "side": name,
        "images_per_second": statistics.median(speeds), "over": ratios,
    }  # fmt: skip


def _ratio(speeds: list[float], others: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest ratio within a turn."""
    ratios = [a / b for a, b in zip(speeds, others, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def shown(rows: list[dict[str, object]]) -> str:
    """Rows of one size as a Markdown table."""
    others = ("keras", "pytorch", "matrix_product", "ours")
    head = ["", "img/s", *(f"over {other.replace('_', ' ')}" for other in others)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for found in rows:
        ratios = found["over"]
        assert isinstance(ratios, dict)
        cells = [f"{found['layout']}: {str(found['side']).replace('_', ' ')}"]
        cells.append(f"{found['images_per_second']:.1f}")
        for other in others:
            middle, low, high = ratios.get(other, (0.0, 0.0, 0.0))
            cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})" if middle else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peers(python: Path) -> str | None:
    """An interpreter that has PyTorch, made where there is none; None where it cannot be had."""
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    if subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0:
        return str(python)
    print(f"installing {TORCH} beside this project, in {python.parent.parent}", file=sys.stderr)
    words = [str(python), "-m", "pip", "install", "--quiet", TORCH, "numpy"]
    if subprocess.run(words, check=False).returncode:
        print("without PyTorch: it cannot be installed here", file=sys.stderr)
        return None
    return str(python)


def main(argv: list[str] | None = None) -> None:
    """Measure every size and print its table."""
    quick = os.environ.get("QUICK", "0") not in ("", "0")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pixels", type=int, nargs="+", default=[48] if quick else [48, 250])
    parser.add_argument("--turns", type=int, default=3 if quick else 5)
    parser.add_argument("--seconds", type=float, default=2 if quick else 4)
    parser.add_argument("--peers", type=Path, default=PEERS, help="an interpreter with PyTorch")
    parser.add_argument("--json", type=Path, help="also write what was measured there")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.serve, args.pixels[0], args.threads)
        return
    if shutil.which("taskset") is None:
        raise SystemExit("taskset (util-linux) is needed: all sides are pinned to the same cores")
    from glass_cnn import numerics

    python = peers(args.peers)
    processor = f"{numerics.processor()}, {numerics.instruction_set()}"
    print(f"{processor}; batch {BATCH}, {args.turns} turns of {args.seconds:g} s")
    found = []
    for pixels in args.pixels:
        rows = measure(pixels, args.turns, args.seconds, python)
        found += rows
        print(f"\n### {pixels} px\n\n{shown(rows)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"processor": processor, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
