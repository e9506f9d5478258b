"""Torture the restart: faults injected into real trainings until `--count` of them were survived.

A tiny model is trained on a small simulated data set by the real command on real MPI ranks. It is
killed, stopped, paused and starved of disk space at random moments, its clocks are set while it
runs, its files are damaged between starts, and it is started again until it is complete. Then
weights and records must be, bit for bit, those of an undisturbed run on as many ranks. The choice
of faults follows from --seed; the instants at which they strike are those of a real machine.

Exit codes: 0 every run ended bit-identical, every hang was named and no process was left;
70 otherwise. The table goes to standard output and to <logs>/torture.md and torture.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from glass_cnn.paths import logs_root
from hpc.commandline import Parser
from hpc.errors import EXIT_COMPLETE, EXIT_INTERNAL, ConfigError, UserError
from hpc.files import make_directory, write_atomic, write_json
from hpc.records import read_records
from hpc.words import plural
from tests.torture import faults
from tests.torture.case import ROOT, STUDY, Case, outcome, prepare
from tests.torture.faults import (
    Clocks,
    SmallDisk,
    StartedRun,
)
from tests.torture.ledger import Ledger, as_tree, report
from tests.torture.strikes import PATIENCE, Strikes, say

ITERATIONS = 40
PER_RUN = 20
"""faults of one run at most"""
DISK = 64
"""megabytes of the small disk; a checkpoint has 6"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("torture", __doc__)
    parser.add_argument("--count", type=int, default=200, help="faults to inject (200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the choice of faults")
    parser.add_argument("--ranks", default="1,2,3,4", help="numbers of ranks, in turn (1,2,3,4)")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="length of each run")
    parser.add_logs("$GLASS_LOGS or logs; the work is done in torture/ there")
    options = parser.parse_args(argv)
    words = options.ranks.split(",")
    if not all(word.isdigit() and 1 <= int(word) <= 25 for word in words):
        parser.error(f"--ranks {options.ranks}: numbers from 1 to 25 with commas, such as 1,2,3")
    options.ranks = [int(word) for word in words]
    if options.count < 1 or options.iterations < 2:
        parser.error("--count must be at least 1, --iterations at least 2")
    return options


def main(argv: list[str]) -> int:
    """Inject, compare, print."""
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs `finally`
    place = empty_place(logs_root(options.logs) / "torture")
    began = time.monotonic()
    ledger = Torture(place, options).carry_out()
    text = report(ledger, options, time.monotonic() - began)
    write_atomic(place / "torture.md", text)
    write_json(place / "torture.json", as_tree(ledger))
    print(f"\n{text}\nalso in {place}/torture.md and torture.json")
    perfect = ledger.runs == ledger.identical and not ledger.complaints
    return EXIT_COMPLETE if perfect else EXIT_INTERNAL


def empty_place(place: Path) -> Path:
    """An empty directory where an earlier torture was; raises ConfigError where a study is."""
    if (place / "study.yaml").exists():
        raise ConfigError(f"{place}: holds a study of that name; choose another place with --logs.")
    shutil.rmtree(place, ignore_errors=True)
    return make_directory(place)


class Torture:
    """Runs one after the other, and the faults they have still to suffer."""

    def __init__(self, place: Path, options: argparse.Namespace) -> None:
        self.place, self.options = place, options
        self.rng = random.Random(options.seed)
        self.ledger = Ledger()
        self.mounts = faults.can_mount(place / "disk")
        self.library = place / "clock.so"
        self.clocks = faults.build_clock(self.library)
        self.strikes = Strikes(place, options, self.rng, self.ledger, self.mounts, self.clocks)
        self.references: dict[int, dict[str, Any]] = {}

    def carry_out(self) -> Ledger:
        """Torture runs until enough faults were injected."""
        for kinds, possible, needed in (
            ("full and read-only disks", self.mounts, "root, to mount file systems"),
            ("clocks that are set", self.clocks, "a C++ compiler, no space or colon in the path"),
        ):
            if not possible:
                say(f"left out: {kinds} (needs {needed})")
        self.make_data()
        for number in itertools.count():
            if self.ledger.injected >= self.options.count:
                return self.ledger
            ranks = self.options.ranks[number % len(self.options.ranks)]
            self.torture(number, ranks)
        raise AssertionError

    def logs(self, name: str) -> Path:
        """A logs directory with the study file and, once it is made, the data set."""
        place = make_directory(self.place / name)
        tree = {**STUDY, "train": {**STUDY["train"], "iterations": self.options.iterations}}
        (place / "study.yaml").write_text(yaml.safe_dump(tree))
        for part in ("datasets", "trajectories"):
            if (self.place / "data" / part).exists():
                (place / part).symlink_to(self.place / "data" / part)
        return place

    def make_data(self) -> None:
        """Simulate and render the data set, by the real command."""
        place = self.logs("data")
        words = [sys.executable, "-m", "jobs.dataset", str(place / "study.yaml")]
        run, _ = prepare(place, 1)
        log = place / "console.log"
        making = StartedRun([*words, "--logs", str(place)], "jobs.dataset", run, log, ROOT)
        try:
            if making.wait(PATIENCE) != EXIT_COMPLETE:
                raise UserError(f"the data set could not be made; see {log}.")
        finally:
            making.kill()

    def reference(self, ranks: int) -> dict[str, Any]:
        """What an undisturbed run ends with."""
        if ranks not in self.references:
            case = Case(0, ranks, self.logs(f"undisturbed-{ranks}"), self.rng)
            start = case.start()
            try:
                code = start.wait(PATIENCE)
            finally:
                start.kill()
            if code != EXIT_COMPLETE:
                raise UserError(f"an undisturbed run ended with {code}; see {case.console}.")
            assert start.restored is not None
            self.ledger.restored.append(start.restored)
            self.references[ranks] = outcome(case.run)
            where = f"undisturbed run on {plural(ranks, 'rank')}"
            say(f"{where}: first step after {start.restored:.1f} s")
        return self.references[ranks]

    def torture(self, number: int, ranks: int) -> None:
        """One run from its first start to its end."""
        wanted = self.reference(ranks)
        with self.case(number, ranks) as case:
            while len(case.suffered) < PER_RUN and self.ledger.injected < self.options.count:
                if self.strikes.strike_once(case):
                    break
            ended = case.run.result.exists() or self.go_to_the_end(case)
            identical = ended and outcome(case.run) == wanted
            self.close(case, ended, identical)

    @contextlib.contextmanager
    def case(self, number: int, ranks: int) -> Iterator[Case]:
        """A new run; every second one on a disk of its own."""
        name = f"run-{number:03d}-{ranks}"
        disk = SmallDisk(self.place / name, DISK) if self.mounts and number % 2 else None
        case = Case(number, ranks, self.logs(name), self.rng)
        case.disk = disk
        case.clocks = Clocks(case.place / "clocks", self.library, ranks) if self.clocks else None
        try:
            yield case
        finally:
            if disk is not None:
                disk.close()

    def go_to_the_end(self, case: Case) -> bool:
        """Let it run undisturbed; a second time if a signal came late."""
        for _ in range(2):
            start = self.strikes.begin(case)
            self.strikes.finish(case, start, None, 0.0)
            if case.run.result.exists():
                return True
        return False

    def close(self, case: Case, ended: bool, identical: bool) -> None:
        """Count what became of a run; keep the directory of one that went wrong."""
        ledger = self.ledger
        events = read_records(case.run.events)
        ledger.refused += sum(event["event"] == "checkpoint_refused" for event in events)
        ledger.runs, ledger.ended = ledger.runs + 1, ledger.ended + ended
        ledger.identical += identical
        for fault in case.suffered:
            ledger.of(fault).ended += ended
            ledger.of(fault).identical += identical
        words = "bit-identical" if identical else "DIFFERENT" if ended else "DID NOT END"
        say(
            f"run {case.number} on {plural(case.ranks, 'rank')}: "
            f"{plural(len(case.suffered), 'fault')}, {words}; "
            f"{ledger.injected} of {plural(self.options.count, 'fault')}"
        )
        if not identical:
            shutil.copytree(case.place, self.place / f"failed-{case.number:03d}", symlinks=True)
        if case.disk is None:
            shutil.rmtree(case.place)
