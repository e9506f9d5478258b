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
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from glass_cnn.paths import logs_root
from hpc.checkpoint_names import saved
from hpc.commandline import Parser
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE, EXIT_INTERNAL, ConfigError, UserError
from hpc.files import make_directory, write_atomic, write_json
from hpc.records import read_records
from hpc.words import plural
from tests.torture import faults
from tests.torture.case import ROOT, STEPS, STUDY, Case, outcome, prepare
from tests.torture.faults import (
    DISK_FULL,
    FILE_LIMIT,
    HANG,
    READ_ONLY,
    TIMES,
    Clocks,
    Fault,
    SmallDisk,
    StartedRun,
)
from tests.torture.ledger import Ledger, Tally, as_tree, report

ITERATIONS = 40
PER_RUN = 20
"""faults of one run at most"""
PATIENCE = 240.0
"""seconds that a start may take; one that takes longer has not ended"""
HANG_SECONDS = 8.0
"""at least; on a busy machine as long as a start takes"""
DISK = 64
"""megabytes of the small disk; a checkpoint has 6"""
EXPECTED = {
    FILE_LIMIT: ("error: ", "File too large"),
    DISK_FULL: ("error: ", "no space left"),
    READ_ONLY: ("error: ", "not writable"),
    HANG: ("error: no progress for", "fell behind"),
}
"""what a start must have said that such a fault ended"""


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
        self.cards: list[Fault] = []
        self.mounts = faults.can_mount(place / "disk")
        self.library = place / "clock.so"
        self.clocks = faults.build_clock(self.library)
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
                if self.strike_once(case):
                    break
            ended = case.run.is_done() or self.go_to_the_end(case)
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
            start = self.begin(case)
            self.finish(case, start, None, 0.0)
            if case.run.is_done():
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

    # -- one start ------------------------------------------------------------------------------

    def deal(self, case: Case, wanted: Iterable[Fault] | None = None) -> Fault:
        """The next fault that is possible now; the others stay for later."""
        while True:
            for position, card in enumerate(self.cards):
                if self.possible(case, card) and (wanted is None or card in wanted):
                    return self.cards.pop(position)
            fresh = faults.deck(self.mounts, self.clocks, max(self.options.ranks) > 1)
            self.rng.shuffle(fresh)
            self.cards += fresh

    def possible(self, case: Case, fault: Fault) -> bool:
        """Whether this run can suffer that at all."""
        if fault in (DISK_FULL, READ_ONLY):
            return case.disk is not None
        return case.ranks > 1 if fault == HANG else True

    def strike_once(self, case: Case) -> bool:
        """Faults between starts, pauses and jumps, as they come, up to one that ends a start.

        Returns whether the run came to its end before that.
        """
        harmless: list[Fault] = []
        damaged = False
        while True:
            fault = self.deal(case)
            if fault in faults.DAMAGE and (damaged or not self.injure(case, fault)):
                self.cards.append(fault)
                fault = self.deal(case, [*faults.STRIKES, *faults.PAUSES])
            if fault in faults.DAMAGE:
                damaged = True
            elif fault == TIMES:
                faults.move_times(case.run.path, self.rng)
                self.count(case, fault)
            elif fault in faults.PAUSES or fault in faults.JUMPS:
                harmless.append(fault)
            else:
                return self.start_and_strike(case, harmless, fault)

    def injure(self, case: Case, fault: Fault) -> bool:
        """Damage a checkpoint, if the run has another one."""
        if not faults.damage(case.run, fault.kind, self.rng):
            return False
        steps = faults.steps_on_disk(case.run)
        self.count(case, fault).lost.append(steps[-1] - steps[-2])
        return True

    @property
    def usual_start(self) -> float:
        """Seconds that starts take here."""
        return statistics.median(self.ledger.restored)

    def begin(self, case: Case, *settings: str, console: Path | None = None) -> StartedRun:
        self.ledger.starts += 1
        return case.start(*settings, console=console)

    def start_and_strike(self, case: Case, harmless: list[Fault], fault: Fault) -> bool:
        """One start with its faults, those first that end none; whether the run is complete."""
        if fault == READ_ONLY:
            self.cards += harmless
            return self.start_read_only(case)
        limit = max(HANG_SECONDS, self.usual_start)
        hang = [f"launch.hang_seconds={limit:.0f}"] if fault == HANG else []
        since = case.said()
        start = self.begin(case, *hang)
        try:
            for each in harmless:
                reached = faults.reach(start, each.moment, self.rng, self.usual_start, PATIENCE)
                if reached and self.disturb(case, start, each):
                    self.count(case, each).lost.append(0)
                else:
                    self.cards.append(each)
            struck = faults.reach(start, fault.moment, self.rng, self.usual_start, PATIENCE)
            sent = time.time()
            culprit = self.hit(case, start, fault) if struck else None
            if culprit is None:
                self.cards.append(fault)
            else:
                self.count(case, fault)
            self.finish(case, start, fault if culprit is not None else None, sent)
            if culprit:
                self.check_words(case, fault, case.says(since), culprit)
        finally:
            start.kill()
            if case.disk is not None:
                case.disk.empty()
        return case.run.is_done()

    def disturb(self, case: Case, start: StartedRun, fault: Fault) -> bool:
        """Inject what ends no start; False if that was not possible."""
        if fault in faults.PAUSES:
            return faults.pause(start, self.rng)
        assert case.clocks is not None
        case.clocks.jump(fault.kind, self.rng)
        return bool(start.ranks())

    def hit(self, case: Case, start: StartedRun, fault: Fault) -> int | None:
        """Inject it; None if that was not possible, else the process that hangs, or 0."""
        if fault == HANG:
            return faults.hang(start, self.rng)
        if fault == FILE_LIMIT:
            return 0 if faults.limit_files(start) else None
        if fault == DISK_FULL:
            assert case.disk is not None
            case.disk.fill()
            return 0
        return 0 if faults.strike(start, fault.kind, self.rng) else None

    def start_read_only(self, case: Case) -> bool:
        """A start that cannot write anything."""
        assert case.disk is not None
        console = self.place / "read-only.log"  # the case's own cannot be written either
        with case.disk.read_only():
            start = self.begin(case, console=console)
            try:
                self.count(case, READ_ONLY)
                self.finish(case, start, READ_ONLY, 0.0)
            finally:
                start.kill()
        self.check_words(case, READ_ONLY, console.read_text(errors="replace"), 0)
        console.unlink()
        return case.run.is_done()

    def finish(self, case: Case, start: StartedRun, fault: Fault | None, sent: float) -> None:
        """Wait for a start's end, and measure what it leaves."""
        before = faults.steps_on_disk(case.run)
        code = start.wait(PATIENCE)
        if code is None:
            self.complain(f"run {case.number}: a start did not end within {PATIENCE:.0f} s")
            start.kill()
        left = start.survivors()
        if left:
            self.complain(f"run {case.number}: processes {left} were left after {fault}")
        if start.restored is not None:
            self.ledger.restored.append(start.restored)
        if start.evaluated is not None:
            self.ledger.evaluated.append(start.evaluated)
        if fault is not None:
            self.measure(case, start, fault, code, sent, before)

    def measure(
        self,
        case: Case,
        start: StartedRun,
        fault: Fault,
        code: int | None,
        sent: float,
        before: list[int],
    ) -> None:
        """Steps lost, and the time until the checkpoint that a signal asked for was complete."""
        tally = self.ledger.of(fault)
        steps = faults.steps_on_disk(case.run) or [0]
        if code in (EXIT_AGAIN, EXIT_COMPLETE) or not start.begun():
            tally.lost.append(0)
        else:  # it made at most the steps up to the next evaluation
            reached = faults.last_step(case.run) + STEPS - 1
            tally.lost.append(max(0, min(reached, STEPS * self.options.iterations) - steps[-1]))
        if code == EXIT_AGAIN and case.disk is None and steps[-1:] != before[-1:]:
            newest = max(
                (entry.path for entry in saved(case.run.checkpoints)),
                key=lambda p: p.stat().st_ctime,
            )
            tally.durable.append(max(0.0, newest.stat().st_ctime - sent))

    def check_words(self, case: Case, fault: Fault, said: str, culprit: int) -> None:
        """Complain where a start that such a fault ended did not say so."""
        wanted = EXPECTED.get(fault, ())
        missing = [word for word in wanted if word not in said]
        if fault == HANG and f"(process {culprit} " not in said:
            missing.append(f"process {culprit}")
        if missing and not case.run.is_done():
            self.complain(f"run {case.number}: after {fault} nothing was said of {missing}")

    def count(self, case: Case, fault: Fault) -> Tally:
        case.suffered.append(fault)
        tally = self.ledger.of(fault)
        tally.injected += 1
        return tally

    def complain(self, text: str) -> None:
        self.ledger.complaints.append(text)
        say(text)


def say(text: str) -> None:
    """A line as soon as it is known."""
    print(text, flush=True)
