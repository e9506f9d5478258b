"""Stand-ins for Slurm's commands, for what a real cluster shows only now and then.

    slurm = Pretend(folder)          its `bin` goes to the head of PATH
    slurm.set(limit="0")             what it calls MaxArraySize
    slurm.set(banner="Welcome!")     printed before every answer
    slurm.set(answer="job ID")       what sbatch prints
    slurm.set(busy={"squeue": 2})    calls of a command that time out
    slurm.set(accounting="7|…")      what sacct prints; None, as at first: no accounting
    slurm.set(broken={"sacct": "…"}) what a command says that fails
    slurm.calls("sbatch")            how each was called

Run as a program it is one of the commands: `python pretend.py FOLDER COMMAND WORD…`. It keeps what
it is asked to submit in a queue, and takes variables for options as the real ones do.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct")
TOLD = ("SLURM", "SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "PMI", "OMPI_")
"""variables that are written down with each call"""
FIRST = 101
DISABLED = "Slurm accounting storage is disabled"
BUSY = "slurm_load_jobs error: Socket timed out on send/recv operation"


class Pretend:
    """A Slurm of one user, whose queue is a file of lines as squeue prints them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for command in COMMANDS:
            file = self.bin / command
            words = f'"{sys.executable}" -SE "{__file__}" "{folder}" {command} "$@"'
            file.write_text(f"#!/bin/sh\nexec {words}\n")
            file.chmod(0o755)
        self.set(limit="1001", banner="", answer="ID", busy={}, job="", accounting=None, broken={})

    def set(self, **facts: Any) -> None:
        """What it is to do from now on: limit, banner, answer, busy, job, accounting, broken."""
        file = self.folder / "state.json"
        state = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**state, **facts}))

    @property
    def queue(self) -> list[str]:
        """Lines of the queue."""
        file = self.folder / "queue"
        return file.read_text().splitlines() if file.exists() else []

    def put(self, *lines: str) -> None:
        """Have so much more in the queue."""
        with (self.folder / "queue").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def calls(self, command: str) -> list[list[str]]:
        """Words of every call of a command."""
        return [words for words, _ in self._told(command)]

    def variables(self, command: str) -> list[dict[str, str]]:
        """What Slurm's variables were at every call."""
        return [variables for _, variables in self._told(command)]

    def _told(self, command: str) -> list[tuple[list[str], dict[str, str]]]:
        file = self.folder / f"{command}.calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(words, variables) for words, variables in map(json.loads, lines)]


def main(folder: Path, command: str, words: list[str]) -> int:
    state = json.loads((folder / "state.json").read_text())
    told = {k: v for k, v in os.environ.items() if k.startswith(TOLD)}
    calls = folder / f"{command}.calls"
    number = len(calls.read_text().splitlines()) if calls.exists() else 0
    with calls.open("a") as file:
        file.write(json.dumps([words, told]) + "\n")
    if number < state["busy"].get(command, 0):
        print(BUSY, file=sys.stderr)
        return 1
    broken = state["broken"].get(command)
    if command == "sacct" and state["accounting"] is None:
        broken = broken or DISABLED
    if broken:
        print(broken, file=sys.stderr)
        return 1
    if state["banner"]:
        print(state["banner"])
    answer = {"sbatch": sbatch, "squeue": squeue, "scontrol": scontrol, "sinfo": lambda *_: "low"}
    answer["sacct"] = lambda *_: state["accounting"]
    said = answer.get(command, lambda *_: "")(folder, words, state)
    if said:
        print(said)
    return 0


def sbatch(folder: Path, words: list[str], state: dict[str, Any]) -> str:
    options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    queue = folder / "queue"
    lines = queue.read_text().splitlines() if queue.exists() else []
    mine = [int(line.split("|")[0]) for line in lines if line.split("|")[0].isdigit()]
    job, last = max([FIRST - 1, *mine]) + 1, re.match(r"0-(\d+)", options.get("--array", ""))
    indices: list[object] = list(range(int(last[1]) + 1)) if last else ["N/A"]
    with queue.open("a") as file:
        for index in indices:
            file.write(f"{job}|{index}|PENDING|Priority||{options['--comment']}\n")
    return str(state["answer"]).replace("ID", str(job))


def squeue(folder: Path, words: list[str], _state: dict[str, Any]) -> str:
    queue = folder / "queue"
    lines = queue.read_text().splitlines() if queue.exists() else []
    only = os.environ.get("SQUEUE_STATES")
    if only and not any(word.startswith("--states") for word in words):
        lines = [line for line in lines if f"|{only}|" in line]
    if {"SQUEUE_PARTITION", "SQUEUE_ACCOUNT", "SLURM_CLUSTERS"} & os.environ.keys():
        lines = []
    return "\n".join(lines)


def scontrol(_folder: Path, words: list[str], state: dict[str, Any]) -> str:
    if "config" in words:
        return f"MaxArraySize            = {state['limit']}" if state["limit"] else "no more"
    return str(state["job"]) if "job" in words else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
