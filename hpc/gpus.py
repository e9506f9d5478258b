"""GPUs: which there are here, who is lent which, and that every rank has its own.

Asked is nvidia-smi, which starts none. A process takes GPUs by CUDA_VISIBLE_DEVICES; numbers in it
count as nvidia-smi does, and what is handed on are UUIDs, which mean the same in every order.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hpc.environment import GPUS
from hpc.errors import ConfigError
from hpc.words import plural

VISIBLE = "CUDA_VISIBLE_DEVICES"
PATIENCE = 60.0
"""seconds that nvidia-smi may take; it is slow on nodes that keep no driver loaded"""
NO_GPU = "No devices were found"
"""what it says, and fails, where there is nothing wrong: on login nodes"""


class Found(NamedTuple):
    """What nvidia-smi says of this machine."""

    uuids: tuple[str, ...] = ()
    """of the GPUs that this process may use"""
    complaint: str = ""
    """why it cannot tell, in its words; the driver does not answer, mostly"""


@functools.cache
def here() -> Found:
    """The GPUs of this machine, asked for once; none where there is no nvidia-smi.

    Starts that program: call it first before MPI is initialised.
    """
    choice, program = os.environ.get(VISIBLE), shutil.which("nvidia-smi")
    if program is None or choice == "":
        return Found()
    try:
        answer = subprocess.run(
            [program, "-L"], capture_output=True, text=True, errors="replace", timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Found(complaint=str(error))
    if answer.returncode:
        said = " ".join((answer.stdout + answer.stderr).split())
        return Found(complaint="" if NO_GPU in said else said or f"code {answer.returncode}")
    return Found(chosen(listed(answer.stdout), choice))


def listed(text: str) -> tuple[str, ...]:
    """UUIDs in an answer of `nvidia-smi -L`; those of its MIG parts for a GPU that is cut up."""
    found: list[str] = []
    for line in text.splitlines():
        match = re.search(r"\(UUID: ((GPU|MIG)-[\w./-]+)\)", line)
        if match and match[2] == "MIG" and found and found[-1].startswith("GPU"):
            found.pop()
        found += [match[1]] if match else []
    return tuple(found)


def chosen(uuids: Sequence[str], choice: str | None) -> tuple[str, ...]:
    """Those of `uuids` that a value of CUDA_VISIBLE_DEVICES leaves, in its order; None leaves all.

    As CUDA reads it: numbers, or beginnings of UUIDs, up to the first that is none.
    """
    if choice is None:
        return tuple(uuids)
    found: list[str] = []
    for word in map(str.strip, choice.split(",")):
        number = [uuids[int(word)]] if word.isdecimal() and int(word) < len(uuids) else []
        fitting = number or [uuid for uuid in uuids if word and uuid.startswith(word)]
        if len(fitting) != 1:
            break
        found += fitting
    return tuple(found)


class Loans:
    """GPUs that tasks borrow: several for one task, each lent to at most `sharing` at a time."""

    def __init__(self, uuids: Sequence[str], sharing: int) -> None:
        self._borrowers = dict.fromkeys(uuids, 0)
        self._sharing = sharing

    def take(self, count: int) -> list[str] | None:
        """So many different GPUs, those with the fewest borrowers; None while they are not free."""
        free = [uuid for uuid, tasks in self._borrowers.items() if tasks < self._sharing]
        taken = sorted(free, key=self._borrowers.__getitem__)[:count]
        if len(taken) < count:
            return None
        for uuid in taken:
            self._borrowers[uuid] += 1
        return taken

    def give_back(self, uuids: Sequence[str]) -> None:
        """What `take` has lent."""
        for uuid in uuids:
            self._borrowers[uuid] -= 1


class Sight(NamedTuple):
    """What one rank sees."""

    host: str
    gpu: str | None
    """UUID of the GPU that it takes; None: it sees none"""
    listed: int
    """GPUs that nvidia-smi shows it"""
    promised: bool
    """whether its launcher has given it one"""


def sight(number: int, count: int) -> Sight:
    """What this rank sees; it takes number `number` of the `count` GPUs that its program sees."""
    uuids = here().uuids
    promised = os.environ.get(GPUS, "0") != "0"
    gpu = None
    if count:
        # Where nvidia-smi does not tell the same, none is known to be another rank's.
        gpu = uuids[number] if len(uuids) == count else f"GPU {number} of process {os.getpid()}"
    return Sight(socket.gethostname(), gpu, len(uuids), promised)


def check(ranks: Sequence[Sight]) -> None:
    """Raise ConfigError where ranks do without a promised GPU, or share one; `ranks` in order."""
    blind = [rank for rank, seen in enumerate(ranks) if seen.gpu is None]
    if promised := [rank for rank in blind if ranks[rank].promised]:
        host, _, listed, _ = ranks[promised[0]]
        remedy = (
            "the environment was set up for processors, or its CUDA does not load: make doctor, "
            "make clean setup GPU=1"
            if listed
            else "the driver there does not answer, or the job has asked for none"
        )
        raise ConfigError(
            f"rank {promised[0]} on {host} was to have a GPU and sees none; nvidia-smi shows it "
            f"{listed}: {remedy}. Nothing is trained on a processor in its place."
        )
    if 0 < len(blind) < len(ranks):
        other = next(rank for rank, seen in enumerate(ranks) if seen.gpu is not None)
        raise ConfigError(
            f"rank {blind[0]} on {ranks[blind[0]].host} sees no GPU, and rank {other} on "
            f"{ranks[other].host} does: ask for one for each rank."
        )
    owners: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, seen in enumerate(ranks):
        if seen.gpu is not None:
            owners[seen.host, seen.gpu].append(rank)
    if len(owners) < len(ranks) and owners:
        (host, gpu), sharing = max(owners.items(), key=lambda each: len(each[1]))
        raise ConfigError(
            f"{plural(len(ranks), 'rank')} see {plural(len(owners), 'GPU')}, and each needs its "
            f"own: ranks {', '.join(map(str, sharing))} on {host} would share {gpu}. Start "
            f"RANKS={len(owners)} (launch.ranks), or ask for {len(ranks)} GPUs."
        )
