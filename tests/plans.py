"""Plans: starts of runs in one MPI world, with faults at exact moments (drivers/training.py)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glass_cnn.paths import RunDir
from tests import tiny

DRIVER = Path(__file__).parent / "drivers" / "training.py"

Fault = dict[str, Any]


@dataclass
class Plan:
    """Starts of runs in one MPI world; each case has a logs directory of its own."""

    place: Path
    data: Path
    ranks: int
    launch: dict[str, Any] = field(default_factory=dict)
    """settings of `launch` in the study files of all cases"""
    items: list[dict[str, Any]] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    """case of each start"""
    codes: dict[str, list[list[int]]] = field(default_factory=dict)
    """exit codes of each start of a case, rank by rank"""
    said: dict[str, list[list[str]]] = field(default_factory=dict)
    """what was said at each start of a case, rank by rank"""
    errors: str = ""
    """what mpiexec handed on besides"""

    def logs(self, case: str) -> Path:
        return self.place / case

    def study(self, case: str, **sections: Any) -> Path:
        """The study file of a case, and its logs directory with the data."""
        if not self.logs(case).exists():
            tiny.share(self.data, self.logs(case))
        if self.launch:
            sections = {"launch": self.launch, **sections}
        return tiny.write_study(self.place / f"{case}.yaml", tiny.tree(**sections))

    def add(
        self, case: str, fault: Fault | None = None, *words: str, config: Path | None = None
    ) -> None:
        """One start."""
        own = self.place / f"{case}.yaml"
        if not own.exists():
            self.study(case)
        arguments = [str(config or own), "--logs", str(self.logs(case)), *words]
        self.items.append({"train": arguments, "fault": fault})
        self.cases.append(case)

    def verify(self, case: str, run: str, *words: str) -> None:
        """An audit of a run of that case, named by a pattern, on all ranks."""
        arguments = [str(self.logs(case) / run), "--logs", str(self.logs(case)), *words]
        self.items.append({"verify": arguments})
        self.cases.append(case)

    def shell(self, *words: object) -> None:
        """A command between two starts."""
        self.items.append({"shell": [str(word) for word in words]})

    def carry_out(
        self, mpirun: Callable[..., Any], code: int | None = 0, env: Mapping[str, str] | None = None
    ) -> Plan:
        """Start the world; `code` is mpiexec's, None for any but 0."""
        plan, number = self.place / "plan.json", len(list(self.place.glob("out-*")))
        out = self.place / f"out-{number}"
        out.mkdir()
        plan.write_text(json.dumps(self.items))
        done = mpirun(self.ranks, DRIVER, plan, out, timeout=400, env=env)
        self.errors = done.stdout + done.stderr
        assert done.returncode == code or (code is None and done.returncode), self.errors
        file = out / "codes.json"  # not there when the first start was the end of all ranks
        codes = json.loads(file.read_text()) if file.exists() else []
        for start, case in enumerate(self.cases):
            self.codes.setdefault(case, []).extend(codes[start : start + 1])
            said = [out / f"start-{start}-rank-{rank}.txt" for rank in range(self.ranks)]
            self.said.setdefault(case, []).append([path.read_text() for path in said])
        self.items, self.cases = [], []
        # mpiexec may be gone a moment before the last rank that it killed is.
        patience = time.monotonic() + 20
        while processes(str(plan)) and time.monotonic() < patience:
            time.sleep(0.1)
        assert not processes(str(plan)), "processes are left"
        return self

    def run(self, case: str) -> RunDir:
        return tiny.only_run(self.logs(case))


def processes(word: str) -> list[str]:
    """Command lines of living processes that contain a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = path.with_name("stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue  # it has just ended
        if word in line and state != "Z":
            found.append(line)
    return found


def fault(rank: int, before: str, call: int, do: str) -> Fault:
    return {"rank": rank, "before": before, "call": call, "do": do}
