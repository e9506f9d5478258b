"""What a torture counts, and the table it ends with."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc.words import plural
from tests.torture import faults
from tests.torture.case import STEPS
from tests.torture.faults import Fault


@dataclass
class Tally:
    """What became of the faults of one kind."""

    injected: int = 0
    ended: int = 0
    identical: int = 0
    lost: list[int] = field(default_factory=list)
    """steps made again because of it, at most"""
    durable: list[float] = field(default_factory=list)
    """seconds from the signal to the checkpoint on a real disk"""


@dataclass
class Ledger:
    """Everything that is counted."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    runs: int = 0
    starts: int = 0
    ended: int = 0
    identical: int = 0
    refused: int = 0
    """damaged checkpoints that were found and passed over"""
    restored: list[float] = field(default_factory=list)
    evaluated: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """what was not as promised"""

    @property
    def injected(self) -> int:
        return sum(tally.injected for tally in self.tallies.values())

    def of(self, fault: Fault) -> Tally:
        return self.tallies.setdefault(str(fault), Tally())


# -- the table ----------------------------------------------------------------------------------


def report(ledger: Ledger, options: argparse.Namespace, seconds: float) -> str:
    """Markdown, as it stands in docs/restart.md."""
    ranks = ",".join(map(str, options.ranks))
    words = f"--count {options.count} --seed {options.seed} --ranks {ranks}"
    lines = [
        f"`python -m tests.torture {words} --iterations {options.iterations}`",
        f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Linux {platform.release()}, "
        f"{seconds / 60:.0f} min):",
        f"**{plural(ledger.injected, 'fault')} in {plural(ledger.runs, 'run')} with "
        f"{plural(ledger.starts, 'start')}; {plural(ledger.ended, 'run')} ended, "
        f"{ledger.identical} of them bit-identical.**",
        "",
        "| fault | injected | its run ended | bit-identical | steps lost, median (max) "
        "| signal to durable checkpoint, s, median (max) |",
        "|---|---|---|---|---|---|",
    ]
    for name, tally in sorted(ledger.tallies.items()):
        lines.append(
            f"| {name} | {tally.injected} | {tally.ended} | {tally.identical} "
            f"| {middle(tally.lost, '.0f')} | {middle(tally.durable, '.2f')} |"
        )
    return "\n".join([*lines, "", *figures(ledger), *complaints(ledger), ""])


def figures(ledger: Ledger) -> list[str]:
    """The five that nobody else publishes."""
    durable = [value for tally in ledger.tallies.values() for value in tally.durable]
    lost = [value for tally in ledger.tallies.values() for value in tally.lost]
    damages = sum(ledger.of(fault).injected for fault in faults.DAMAGE)
    return [
        "| figure | measured |",
        "|---|---|",
        f"| signal to durable checkpoint, s, median (max) | {middle(durable, '.2f')} |",
        f"| steps lost per fault, median (max), {STEPS} between checkpoints "
        f"| {middle(lost, '.0f')} |",
        f"| bit-identical ends | {ledger.identical} of {plural(ledger.runs, 'run')} |",
        f"| damaged checkpoints survived | {ledger.refused} refused of {damages} damaged |",
        f"| start to the first step, s, median (max) | {middle(ledger.restored, '.1f')}; with the "
        f"compilation of the step and {STEPS} steps, to the first evaluation: "
        f"{middle(ledger.evaluated, '.1f')} |",
    ]


def complaints(ledger: Ledger) -> list[str]:
    """A list of what was not as promised, if there was any."""
    found = [f"- {complaint}" for complaint in ledger.complaints]
    return ["", "Not as promised:", "", *found] if found else []


def middle(values: Sequence[float], form: str) -> str:
    """Median and maximum."""
    return f"{statistics.median(values):{form}} ({max(values):{form}})" if values else "–"


def as_tree(ledger: Ledger) -> dict[str, Any]:
    """For programs that read it."""
    return json.loads(json.dumps(ledger, default=vars)) | {"injected": ledger.injected}
