"""Digests of the states that a run went through, chained, so that its training can be audited.

Each checkpoint leaves one record in digests.jsonl: its step and the SHA-256 of every tensor of its
state. The digests at regular steps, where every run of these settings has a checkpoint however it
was interrupted, are chained: the head of the chain stands in result.json and in the provenance of
every start. Whoever changes one of them changes the head.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from glass_cnn.records import DataIdentity, Start
from glass_cnn.settings import RunSettings
from hpc.errors import DataError
from hpc.records import append_record, keep_records, read_records


class StateDigest(msgspec.Struct, frozen=True):
    """One line of digests.jsonl."""

    step: int
    """optimizer updates done"""
    sha256: str
    """of names, types, shapes and bytes of all tensors; see `hpc.tensorfile.digest_tensors`"""
    regular: bool
    """whether every run of these settings has a checkpoint here; only such are in the chain"""


def read_digests(path: Path) -> list[StateDigest]:
    """The records of a run, in order; none where there is no file. Raises DataError."""
    try:
        return [msgspec.convert(record, StateDigest) for record in read_records(path)]
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: {error}.") from None


def add_digest(path: Path, settings: RunSettings, step: int, sha256: str) -> None:
    """Record a state unless it is recorded already; raises StorageError."""
    train, every = settings.train, settings.checkpoint.every_iterations
    due = step % (every * train.batches_per_iteration) == 0 or step == train.steps
    regular = due and step > 0  # one of step 0 is left only by a run that was stopped at once
    found = StateDigest(step, sha256, regular)
    if found not in read_digests(path):
        append_record(path, found)


def cut_back(path: Path, below: int) -> None:
    """Forget the states of step `below` and later: the run takes another way; StorageError."""
    keep_records(path, lambda record: record.get("step", below) < below)


def digest_at(path: Path, step: int) -> str | None:
    """The digest that was recorded for a step, the last one of several; None without any."""
    with contextlib.suppress(DataError):
        return next((d.sha256 for d in reversed(read_digests(path)) if d.step == step), None)
    return None


def head(settings: RunSettings, data: DataIdentity | None, digests: Iterable[StateDigest]) -> str:
    """Head of the chain: SHA-256 over settings and seed, the data, and each regular digest.

    It begins as the digest of the run's identity and of the data's fingerprint, and each record
    makes `sha256(head + " " + step + " " + digest)` of it, all as text.
    """
    fingerprint = data.fingerprint if data else ""
    chain = _sha256(f"{settings.run_digest()} {fingerprint}")
    for each in digests:
        if each.regular:
            chain = _sha256(f"{chain} {each.step} {each.sha256}")
    return chain


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def starts_of(starts: Sequence[Start], first: int, last: int) -> list[Start]:
    """The starts that made some of the steps after `first` up to `last`, as the run ended."""
    found: list[Start] = []
    end = last
    for start in reversed(starts):
        begun = start.resumed_step or 0
        if begun < end and end > first:
            found.append(start)
        end = min(end, begun)
    return found[::-1]
