"""What jobs took, as Slurm's accounting counts it: every attempt, those that were killed as well.

A job's own count (`hpc.provenance.spent`) is lost with the process. Slurm's holds the time that
each attempt had its cores, and the memory of its tasks as often as Slurm looked. Where there is no
accounting nothing is known and nothing said.
"""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Collection, Iterator

import msgspec

from hpc import slurm
from hpc.slurm import SlurmError

FIELDS = ("JobID", "State", "ElapsedRaw", "AllocCPUS", "MaxRSS")
MOST_IDS = 500
"""jobs that one call asks for; an array is one of them"""
SECONDS = 60.0
"""that a call may take: a database behind a network, and thousands of steps"""
_ID = re.compile(r"(\d+(?:_\d+)?)(\.\w+)?")
"""a job or array task, and its step; not what waits of an array ("7_[2-9]")"""
_DISABLED = re.compile(r"accounting storage is disabled", re.I)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Taken(msgspec.Struct, frozen=True):
    """What one job took, all its attempts together."""

    attempts: int = 0
    core_seconds: int = 0
    """time that it had its cores, by their number; of a job that runs, up to now"""
    peak_memory: int | None = None
    """the most that one task of a step was seen to hold, bytes; None where Slurm does not look"""
    over: bool = False
    """an attempt ended well: there will be no further one"""


def taken(jobs: Collection[str], since: datetime.datetime) -> dict[str, Taken]:
    """What jobs took, by their ids, of array tasks as ARRAY_INDEX; without what is not told.

    Jobs that ended before `since` are others, of a time when Slurm counted from 1. Raises
    SlurmError where there is accounting and it does not answer.
    """
    if shutil.which("sacct") is None:
        return {}
    ids = sorted({job.partition("_")[0] for job in jobs}, key=int)
    told: dict[str, Taken] = {}
    for first in range(0, len(ids), MOST_IDS):
        try:
            text = _ask(ids[first : first + MOST_IDS], since)
        except SlurmError as error:
            if _DISABLED.search(str(error)):
                return {}
            raise
        told |= read(text)
    return {job: told[job] for job in jobs if job in told}


def _ask(ids: list[str], since: datetime.datetime) -> str:
    # Without --duplicates, of a job that was requeued only the last attempt.
    return slurm.ask(
        *("sacct", "--duplicates", "--allusers", "--noheader", "--parsable2"),
        *(f"--jobs={','.join(ids)}", f"--starttime={since.astimezone():%Y-%m-%dT%H:%M:%S}"),
        f"--format={','.join(FIELDS)}",
        timeout=SECONDS,
        tries=1,
    )


def read(text: str) -> dict[str, Taken]:
    """What sacct's answer says of each job; nothing of one of whose attempts it does not say all.

    Lines that are none of sacct's are left out: sites print what they like.
    """
    jobs: dict[str, Taken] = {}
    unclear = set()
    for job, step, state, elapsed, cores, memory in _lines(text):
        before = jobs.get(job, Taken())
        if step:
            seen = [each for each in (before.peak_memory, _bytes(memory)) if each is not None]
            jobs[job] = msgspec.structs.replace(before, peak_memory=max(seen, default=None))
        elif elapsed.isdecimal() and cores.isdecimal():
            jobs[job] = msgspec.structs.replace(
                before,
                attempts=before.attempts + (int(elapsed) > 0),
                core_seconds=before.core_seconds + int(elapsed) * int(cores),
                over=before.over or state == "COMPLETED",
            )
        elif state != "PENDING":
            unclear.add(job)
    return {job: each for job, each in jobs.items() if each.attempts and job not in unclear}


def _lines(text: str) -> Iterator[tuple[str, str | None, str, str, str, str]]:
    """Job, step or None, state, seconds, cores, memory of each line of the answer."""
    for line in text.splitlines():
        name, *rest = line.strip().split("|")
        match = _ID.fullmatch(name)
        if match and len(rest) == len(FIELDS) - 1:
            state, elapsed, cores, memory = rest
            yield match[1], match[2], state.partition(" ")[0], elapsed, cores, memory


def _bytes(text: str) -> int | None:
    """An amount of memory as sacct writes it ("5336K", "1.50G"); None for nothing, and for 0.

    Slurm writes 0 for steps that ended before it looked.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip().upper())
    return round(float(match[1]) * _UNITS[match[2]]) or None if match else None
