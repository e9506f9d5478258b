"""All benchmarks as one command: its table, what fails, what is left out."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import numerics, packing, training
from benchmarks.__main__ import Part
from benchmarks.sides import LAYOUTS, limited
from benchmarks.table import Row, markdown, measured, ratios
from glass_cnn.numerics import CAP, LEVELS, highest

TELLS = "from benchmarks.table import measured, tell; tell(measured('{}', [{}], at_least=2)); {}"


def part(name: str, value: float = 3.0, then: str = "pass") -> Part:
    """A benchmark that tells one row and goes on with `then`."""
    code = TELLS.format(name, value, then)
    return Part(name, f'-c "{code}"', f'-c "{code}"')


def test_a_row_is_a_median_with_its_range_and_whether_the_goal_is_reached() -> None:
    rows = [
        measured("ours / theirs", [2.5, 1.0, 2.0], at_least=2),
        measured("seconds", [1234.4], "s", at_most=1000),
        Row("ranks", why="left out: there is one core", at_least=1.5),
        Row("a|b", 0.5, command="python -m benchmarks.x"),
    ]
    assert markdown(rows).splitlines()[2:] == [
        "| ours / theirs | 2 | 1–2.5 of 3 | ≥ 2: reached |  |",
        "| seconds | 1,234 s |  | ≤ 1,000: **not reached** |  |",
        "| ranks | – (left out: there is one core) |  | ≥ 1.5 |  |",
        "| a\\|b | 0.5 |  |  | `python -m benchmarks.x` |",
    ]
    assert [row.reached for row in rows] == [True, False, None, None]
    assert ratios([4, 9], [2, 3]) == [2, 3]


def test_what_fails_or_is_left_out_is_a_line_and_the_others_are_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new" / "found.json"
    parts = [
        part("broken", then="raise SystemExit('no disk')"),
        Part("silent", "-c pass", "-c pass"),
        Part("long", "-c pass"),
        Part("wide", "-c pass", "-c pass", cores=10**6),
        part("slow", value=1.5),
        Part("set-up", "-c pass", "-c pass", asked_for=True),
    ]
    assert bench.main(["--quick", "--json", str(place)], parts) == 1
    said = capfd.readouterr()
    found = json.loads(place.read_text())
    lines = {row["measure"]: (row["value"], row["why"]) for row in found["rows"]}
    whys = {
        "silent": "failed: measured nothing",
        "long": "left out: not in the quick form",
        "set-up": "left out: --set-up asks for it",
    }
    assert lines["slow"] == (1.5, "")
    assert whys.items() <= {name: why for name, (_, why) in lines.items()}.items()
    assert lines["wide"][1].startswith("left out: needs 1,000,000 cores, and this process has")
    broken = [row for row in found["rows"] if row["measure"] == "broken"]
    assert [(row["value"], row["why"]) for row in broken] == [
        (3.0, ""), (None, "failed: exit code 1: no disk"),
    ]  # fmt: skip
    assert "1 of 2 goals reached." in said.out
    assert "Not reached: slow." in said.out
    assert found["processor"] in said.out.splitlines()[0]
    assert found["instruction_set"] in said.out.splitlines()[0]
    assert "failed: broken, silent" in said.err


def test_where_all_goes_well_the_exit_code_is_0_even_if_a_goal_is_missed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "found.json")
    parts = [part("slow", value=1.0), part("never", then="raise SystemExit(1)")]
    assert bench.main(["--only", "slow", "--json", place], parts) == 0
    out = capfd.readouterr().out
    assert "`python -c" in out
    assert "never" not in out


def test_what_takes_too_long_is_ended_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "MOST_SECONDS", 1.0)
    parts = [part("endless", then="import time; time.sleep(60)")]
    assert bench.main(["--json", str(tmp_path / "found.json")], parts) == 1
    assert "failed: took longer than 1 s" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "trainig"], "--only trainig: no such benchmark; there are training-48, "),
        (["--json", "/dev/null/x.json"], "--json /dev/null/x.json: cannot be written"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.main(words)
    assert message in capfd.readouterr().err


def test_names_of_parts_are_their_own_and_their_commands_are_there(root: Path) -> None:
    names = [one.name for one in bench.PARTS]
    assert len(set(names)) == len(names)
    used = {words.split()[1] for one in bench.PARTS for words in (one.words, one.quick) if words}
    there = {f"benchmarks.{path.stem}" for path in (root / "benchmarks").glob("[!_]*.py")}
    assert used == there - {"benchmarks.table", "benchmarks.sides", "benchmarks.scaling_model"}


def test_programs_of_the_environment_are_found_whatever_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    then = "import shutil, sys; sys.exit(not shutil.which('mpiexec').startswith(sys.prefix))"
    assert bench.main(["--json", str(tmp_path / "found.json")], [part("ranks", then=then)]) == 0


def test_bits_are_compared_with_emulated_processors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SandyBridge, which has no AVX2, ends otherwise under that cap."""
    started: list[list[str]] = []

    def train(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(words)
        cap = words[words.index("--one") + 1]
        digest = "other" if "SandyBridge,check=off" in words and "avx2" in cap else cap
        found = {"speed": 1.0, "digest": digest}
        return subprocess.CompletedProcess(words, 0, f"noise\n{json.dumps(found)}\n")

    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/qemu-x86_64")
    monkeypatch.setattr(subprocess, "run", train)
    sizes = ["--pixels", "24", "--batch", "4", "--steps", "1"]
    numerics.main(["--emulated", "EPYC", "SandyBridge", *sizes])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 24 px | here | EPYC | SandyBridge |",
        "|---|---|---|---|",
        "| max_cpu_isa: sse41 | A | A | A |",
        "| max_cpu_isa: avx | B | B | B |",
        "| max_cpu_isa: avx2 | C | C | D |",
        "| max_cpu_isa: avx2, onednn: false | E | E | D |",
    ]
    python = [sys.executable, "-m", "benchmarks.numerics", "--one", "max_cpu_isa: sse41", *sizes]
    assert started[:2] == [python, ["qemu-x86_64", "-cpu", "EPYC,check=off", *python]]


def test_emulation_that_is_not_there_or_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        numerics.main(["--emulated", "EPYC"])
    assert "--emulated needs qemu-x86_64, which is not here" in capsys.readouterr().err
    (tmp_path / "qemu-x86_64").write_text("#!/bin/sh\nexit 132\n")
    (tmp_path / "qemu-x86_64").chmod(0o755)
    args = argparse.Namespace(batch=4, steps=1)
    with pytest.raises(SystemExit, match=r"^qemu-x86_64 -cpu Nehalem,check=off .*: exit code 132$"):
        numerics.measure("max_cpu_isa: sse41", 24, args, "Nehalem")


WAITING = """
import time
from benchmarks.sides import LAYOUTS, Side
print(*Side("matrix_product", 24, LAYOUTS["one core"]).processes, flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_a_side_that_stands_still_ends_with_its_benchmark(root: Path) -> None:
    """However that ends: it sees no end of a pipe."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=root, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        (side,) = owner.stdout.readline().split()
        process = Path("/proc", side, "stat")

        def state() -> str:
            return process.read_text().rpartition(")")[2].split()[0]

        try:
            # A signal reaches a thread that computes when the kernel next takes the core from it.
            assert within(30, lambda: state() == "T")
        finally:
            owner.kill()
    assert within(30, lambda: not process.exists())


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether it becomes true in this time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_sides_keep_to_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows say so, so that they are not taken for what the processor can."""
    assert limited(None) == {}
    within = limited("avx2")
    assert within["ONEDNN_MAX_CPU_ISA"] == within["ATEN_CPU_CAPABILITY"] == "avx2"
    for name, value in within.items():
        monkeypatch.setenv(name, value)
    side = type("Done", (), {"speeds": [2.0]})()
    layout = "one core"
    found: training.Found = {(layout, "ours"): side, (layout, "pytorch"): side}
    assert [row.measure for row in training.rows_of(250, layout, "ours", found)] == [
        "250 px within AVX2, one core: ours",
        "250 px within AVX2, one core: ours / pytorch",
    ]
    every = set().union(*LEVELS.values())
    assert highest(every, within[CAP]) == "avx2"


def test_ways_to_use_two_cores_use_both() -> None:
    for each in packing.WAYS.values():
        cores = [core for _, layout in each for core in layout.cores]
        assert sorted(cores) == LAYOUTS["two ranks of one core"].cores
        assert sum(layout.ranks * layout.threads for _, layout in each) == packing.CORES
