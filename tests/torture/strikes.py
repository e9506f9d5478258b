"""Faults for one start of a run: which, at which moment, and what they must lead to."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from hpc.checkpoint_names import saved
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE
from tests.torture import faults
from tests.torture.case import STEPS, Case
from tests.torture.faults import DISK_FULL, FILE_LIMIT, HANG, READ_ONLY, TIMES, Fault, StartedRun
from tests.torture.ledger import Ledger, Tally

HANG_SECONDS = 8.0
"""at least; on a busy machine as long as a start takes"""
EXPECTED = {
    FILE_LIMIT: ("error: ", "File too large"),
    DISK_FULL: ("error: ", "no space left"),
    READ_ONLY: ("error: ", "not writable"),
    HANG: ("error: no progress for", "fell behind"),
}
"""what a start must have said that such a fault ended"""
PATIENCE = 240.0
"""seconds that a start may take; one that takes longer has not ended"""


class Strikes:
    """The faults that are still to be dealt, and what they did to one start after the other."""

    def __init__(
        self,
        place: Path,
        options: argparse.Namespace,
        rng: random.Random,
        ledger: Ledger,
        mounts: bool,
        clocks: bool,
    ) -> None:
        self.place, self.options, self.rng, self.ledger = place, options, rng, ledger
        self.mounts, self.clocks = mounts, clocks
        self.cards: list[Fault] = []

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
        return case.run.result.exists()

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
        return case.run.result.exists()

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
        if missing and not case.run.result.exists():
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
