"""Speed of training against Keras, PyTorch and this processor's matrix products, by turns.

    python -m benchmarks.training [--pixels 48 250] [--turns 5] [--seconds 4] [--json FILE]
                                  [--max-cpu-isa avx2]

Each side is a process that stays, is pinned to the same cores as the side it is compared with, and
is asked in its turn to train for about `--seconds`; the others sleep meanwhile. Printed are medians
of images per second of wall time, and ratios within a turn with their range. Other work on the
machine shows as a wide range.

Sides train the 2017 network (modern recipe, dropout 0.5, L2 0.01, Adam) on the same random images,
batch 80. Keras: `fit` on the same TensorFlow. PyTorch: channels-last, fused Adam, in float32 and
under bfloat16 autocast. It is not a package of this project: where the interpreter that
`--peers` or GLASS_PEERS names (default: .venv/peers/bin/python) does not have it, it is installed.
`matrix product` is a float32 product of 2048×2048 matrices, in images that its arithmetic would
make, at 3 × 2 multiply-adds forward and backward: what no convolution exceeds.

`--max-cpu-isa` keeps all sides to an instruction set, as on a processor that has no more.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.sides import BATCH, LAYOUTS, MAX_CPU_ISA, Side, limited
from benchmarks.table import Row, measured, ratios, tell

PEERS = Path(os.environ.get("GLASS_PEERS") or Path(sys.prefix) / "peers" / "bin" / "python")
TORCH = "torch==2.13.0"

TOGETHER = (("one core",), ("one process, two threads", "two ranks of one core"))
"""layouts that are measured by turns; one after the other, for each side has 2 GB at 250 px"""


ALONE = ("ours", "ours_bfloat16", "keras", "pytorch", "pytorch_bfloat16", "matrix_product")
"""sides that one process is"""
OF_RANKS = ("ours", "ours_rows")
"""sides that several ranks are"""


@contextmanager
def sides(
    pixels: int, layouts: Sequence[str], peers: str | None
) -> Iterator[dict[tuple[str, str], Side]]:
    """The processes of some layouts, ended in the end."""
    with ExitStack() as stack:
        found = {}
        for layout in map(LAYOUTS.__getitem__, layouts):
            if not layout.fits:
                tell(Row(f"{pixels} px, {layout.name}", why="left out: there is one core"))
                continue
            alone = [name for name in ALONE if not emulated(name)]
            for name in OF_RANKS if layout.ranks > 1 else alone:
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
        tell(Row(name.replace("_", " "), why=f"left out: {error}"))
        return True
    return False


def measure(pixels: int, turns: int, seconds: float, peers: str | None) -> list[dict[str, object]]:
    """Speeds and ratios to those of the same turn; the rows of the table are told."""
    rows = []
    for layouts in TOGETHER:
        with sides(pixels, layouts, peers) as found:
            for _ in range(turns):
                for side in found.values():
                    side.turn(seconds)
            rows += [row(pixels, key, found) for key in found]
            for layout, name in found:
                if name.startswith("ours"):
                    tell(*rows_of(pixels, layout, name, found))
    return rows


Found = dict[tuple[str, str], Side]
OTHERS = ("keras", "pytorch", "matrix_product", "ours")
GOALS = {
    (250, "one core", "ours", "pytorch"): 2.2,
    (48, "one core", "ours", "pytorch"): 1.6,
    (250, "one core", "ours", "matrix_product"): 0.65,
    (250, "one process, two threads", "ours", "pytorch"): 2.0,
    (250, "two ranks of one core", "ours_rows", "ours"): 1.05,
}
"""least ratios: size, layout, side, whom it is set against"""


def speeds_of(layout: str, name: str, found: Found) -> dict[str, list[float]]:
    """Whom a side is set against -> their speeds; of two ranks one process with two threads."""
    base = "one process, two threads" if "ranks" in layout else layout
    return {
        other: found[base, other].speeds
        for other in OTHERS
        if (base, other) in found and (base, other) != (layout, name)
    }


def rows_of(pixels: int, layout: str, name: str, found: Found) -> list[Row]:
    """Rows of the table of one side of ours."""
    limit = os.environ.get(MAX_CPU_ISA)
    within = f"{pixels} px within {limit.upper()}" if limit else f"{pixels} px"
    who = f"{within}, {layout}: {name.replace('_', ' ')}"
    speeds = found[layout, name].speeds
    rows = [measured(who, speeds, "img/s")]
    for other, theirs in speeds_of(layout, name, found).items():
        goal = GOALS.get((pixels, layout, name, other))
        what = "one process, two threads" if other == "ours" and "ranks" in layout else other
        over = f"{who} / {what.replace('_', ' ')}"
        rows.append(measured(over, ratios(speeds, theirs), at_least=goal))
    return rows


def row(pixels: int, key: tuple[str, str], found: Found) -> dict[str, object]:
    """What is printed of one side."""
    layout, name = key
    speeds = found[key].speeds
    over = {
        other: (statistics.median(each), min(each), max(each))
        for other, theirs in speeds_of(layout, name, found).items()
        for each in [ratios(speeds, theirs)]
    }
    return {
        "pixels": pixels, "layout": layout, "side": name,
        "images_per_second": statistics.median(speeds), "over": over,
    }  # fmt: skip


def shown(rows: list[dict[str, object]]) -> str:
    """Rows of one size as a Markdown table."""
    head = ["", "img/s", *(f"over {other.replace('_', ' ')}" for other in OTHERS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for found in rows:
        ratios = found["over"]
        assert isinstance(ratios, dict)
        cells = [f"{found['layout']}: {str(found['side']).replace('_', ' ')}"]
        cells.append(f"{found['images_per_second']:.1f}")
        for other in OTHERS:
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
        tell(Row("PyTorch", why=f"left out: {TORCH} cannot be installed here"))
        return None
    return str(python)


def main(argv: list[str] | None = None) -> None:
    """Measure every size and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pixels", type=int, nargs="+", default=[48, 250])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--peers", type=Path, default=PEERS, help="an interpreter with PyTorch")
    parser.add_argument("--max-cpu-isa", choices=["avx2"], help="what all sides keep to")
    parser.add_argument("--json", type=Path, help="also write what was measured there")
    args = parser.parse_args(argv)
    if shutil.which("taskset") is None:
        raise SystemExit("taskset (util-linux) is needed: all sides are pinned to the same cores")
    from glass_cnn import numerics
    from glass_cnn.settings import Launch

    numerics.choose(Launch(max_cpu_isa=args.max_cpu_isa))
    os.environ.update(limited(args.max_cpu_isa))
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
