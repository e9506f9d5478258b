"""Speed and bits of training under each choice of how it rounds.

python -m benchmarks.numerics [--pixels 48 250] [--rounds 3] [--steps 6] [--batch 20]

Trains the 2017 network on one thread, every choice in processes of its own and all by turns, from
the same weights on the same images. Speeds are images per second of processor time, so that other
work on the machine counts little; ratios are to `default` of the same turn, their median and range.
Choices with the same letter ended with the same bits. ONEDNN_VERBOSE=1 before the command of one
choice (`--one`) shows the kernels.

python -m benchmarks.numerics --emulated Haswell EPYC [--pixels 24] [--steps 1] [--batch 4]

asks instead whether the same cap gives the same bits on other kinds of processor: it trains here
and on each that is named, as QEMU emulates it (`qemu-x86_64 -cpu help` lists them). That has no
AVX-512, reads `/proc/cpuinfo` of this machine, and is tens of times slower; so only choices that
are capped at AVX2 or below are compared, and no speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time

from benchmarks.table import measured, ratios, tell
from glass_cnn import numerics
from glass_cnn.settings import Launch, build_run

CHOICES: dict[str, Launch] = {
    "default": Launch(),
    **{f"max_cpu_isa: {name}": Launch(max_cpu_isa=name) for name in numerics.LEVELS},  # type: ignore[arg-type]
    "onednn: false": Launch(onednn=False),
    "default, not deterministic": Launch(),
}
CAPPED: dict[str, Launch] = {
    "max_cpu_isa: sse41": Launch(max_cpu_isa="sse41"),
    "max_cpu_isa: avx": Launch(max_cpu_isa="avx"),
    "max_cpu_isa: avx2": Launch(max_cpu_isa="avx2"),
    "max_cpu_isa: avx2, onednn: false": Launch(max_cpu_isa="avx2", onednn=False),
}
"""choices that take no more than the emulated processors have"""

QEMU = "qemu-x86_64"


def main(argv: list[str] | None = None) -> None:
    """Measure all choices and print a Markdown table for each size of image."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pixels", type=int, nargs="+", default=[48, 250])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--one", choices=CHOICES | CAPPED, help="train so, in this process")
    parser.add_argument("--emulated", nargs="+", metavar="CPU", help="compare bits with these")
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(train(args.one, args.pixels[0], args.batch, args.steps)))
        return
    if args.emulated and not shutil.which(QEMU):
        parser.error(f"--emulated needs {QEMU}, which is not here: it is in Debian's qemu-user")
    print(f"{numerics.processor()}, {numerics.instruction_set()}; one thread, batch {args.batch}")
    kind = compare_emulated if args.emulated else compare
    for pixels in args.pixels:
        kind(pixels, args)


def compare(pixels: int, args: argparse.Namespace) -> None:
    """All choices by turns, and their table."""
    speeds: dict[str, list[float]] = {name: [] for name in CHOICES}
    letters: dict[str, str] = {}
    ends: dict[str, str] = {}
    for _ in range(args.rounds):
        for name in CHOICES:
            speed, ends[name] = measure(name, pixels, args)
            speeds[name].append(speed)
            letters.setdefault(ends[name], chr(ord("A") + len(letters)))
    print(f"\n| {pixels} px | img/s | ratio to default (range) | bits |\n|---|---|---|---|")
    for name, found in speeds.items():
        to_default = ratios(found, speeds["default"])
        middle, low, high = statistics.median(to_default), min(to_default), max(to_default)
        speed = statistics.median(found)
        shown = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {speed:.1f} | {shown} | {letters[ends[name]]} |", flush=True)
    for name in ("max_cpu_isa: avx2", "onednn: false"):
        tell(measured(f"{pixels} px, {name} / default", ratios(speeds[name], speeds["default"])))


def compare_emulated(pixels: int, args: argparse.Namespace) -> None:
    """Bits of each capped choice here and on each emulated processor, as a table."""
    letters: dict[str, str] = {}
    print(f"\n| {pixels} px | here | {' | '.join(args.emulated)} |")
    print("|---|" + "---|" * (1 + len(args.emulated)))
    for name in CAPPED:
        cells = []
        for cpu in (None, *args.emulated):
            _, end = measure(name, pixels, args, cpu)
            cells.append(letters.setdefault(end, chr(ord("A") + len(letters))))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure(
    name: str, pixels: int, args: argparse.Namespace, cpu: str | None = None
) -> tuple[float, str]:
    """Images per second of processor time, and the digest of the weights at the end."""
    words = command(name, pixels, args, cpu)
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)}: exit code {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["speed"], found["digest"]


def command(name: str, pixels: int, args: argparse.Namespace, cpu: str | None) -> list[str]:
    """What trains with this choice in a process of its own; on the emulated `cpu` if not None."""
    words = ["--one", name, "--pixels", pixels, "--batch", args.batch, "--steps", args.steps]
    # check=off: what a processor has and QEMU has not is left out without a word.
    emulator = [QEMU, "-cpu", f"{cpu},check=off"] if cpu else []
    return [*emulator, sys.executable, "-m", "benchmarks.numerics", *map(str, words)]


def train(name: str, pixels: int, batch: int, steps: int) -> dict[str, object]:
    """Some steps in this process; the first two, in which kernels are made, do not count."""
    numerics.choose((CHOICES | CAPPED)[name], lambda _: None)
    import numpy as np

    from glass_cnn.tensorflow import tf
    from glass_cnn.training.engine import Engine, set_up_tensorflow
    from hpc.tensorfile import digest_tensors
    from hpc.world import world

    if "not deterministic" in name:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    else:
        set_up_tensorflow(1, world())
    tree = {"render": {"pixels": pixels}, "train": {"batch_size": batch}, "launch": {"ranks": 1}}
    engine = Engine(build_run(tree, name), world())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, pixels, pixels, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, batch)
    seconds = []
    for step in range(steps + 2):
        began = time.process_time()
        engine.train_step(images, labels, step, 1e-4)
        seconds.append(time.process_time() - began)
    digest = digest_tensors(engine.snapshot("model/"))
    return {"speed": batch / statistics.median(seconds[2:]), "digest": digest}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
