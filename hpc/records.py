"""Records: one JSON object a line, appended durably, read while the file grows; one clock.

A reader never sees half a record: a last line without its end waits until it is whole, and a line
that a crash cut short is ended by the next append and left out. Times in all files are UTC.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hpc.errors import DataError
from hpc.files import finite, storage_errors, write_atomic

EVENTS = "events.jsonl"
"""name of the file of events, beside the log of what they happened to"""


def now() -> str:
    """The time as all files write it: UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Event(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line of events.jsonl: something out of the ordinary, without facts that do not apply."""

    time: str = ""
    """when it was written; see `now`"""
    event: str
    """what happened: stopped, rollback, checkpoint_refused, job_start, requeue, no_requeue, …"""
    job: str | None = None
    """batch job, of an array task as ARRAY_INDEX"""
    task: str | None = None
    """task of that job"""
    by: str | None = None
    """signal that stopped it"""
    iteration: int | None = None
    step: int | None = None
    """optimizer updates done"""
    start: int | None = None
    """number of the start, from 1"""
    restart: int | None = None
    """how often the batch job was requeued"""
    nodes: str | None = None
    status: int | None = None
    """exit code of the ranks"""
    action: str | None = None
    """what a rollback changed"""
    path: str | None = None
    reason: str | None = None
    abandoned: list[dict[str, Any]] | None = None
    """evaluations that a rollback took out of the record"""


class Growing:
    """A record file that may still grow, read once: each look takes only what is new.

    A file that was cut, replaced or removed is read from its beginning again: what was read last
    no longer stands where it stood.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._end = b""
        self.count = 0
        """whole records so far"""
        self.last: dict[str, Any] | None = None
        """the newest one"""

    def look(self) -> Growing:
        """Take in what was appended since; returns itself. A missing file holds no records."""
        new = self._new()
        if new is None:
            self._offset, self._end, self.count, self.last = 0, b"", 0, None
            new = self._new() or b""
        whole = new[: new.rfind(b"\n") + 1]
        if whole:
            self._offset += len(whole)
            self._end = whole[whole[:-1].rfind(b"\n") + 1 :]
        for record in parsed(whole):
            self.count, self.last = self.count + 1, record
        return self

    def _new(self) -> bytes | None:
        """What stands behind the last line that was read; None where that line is not there."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb", buffering=0) as file:
            file.seek(self._offset - len(self._end))
            found = file.readall()
            return found[len(self._end) :] if found.startswith(self._end) else None
        return None


def parsed(lines: bytes) -> list[dict[str, Any]]:
    """The JSON objects among lines; what a crash cut short is left out."""
    records = []
    for line in lines.split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def as_dict(record: msgspec.Struct | Mapping[str, Any]) -> dict[str, Any]:
    """A record as plain values, ready to be written."""
    return msgspec.to_builtins(record) if isinstance(record, msgspec.Struct) else dict(record)


def as_line(record: msgspec.Struct | Mapping[str, Any]) -> str:
    """A record as it stands in a file; not-a-number and infinities become null."""
    return json.dumps(finite(as_dict(record)), separators=(",", ":")) + "\n"


def append_record(path: Path, record: msgspec.Struct | Mapping[str, Any]) -> None:
    """Append one record as a line of JSON and make it durable; raises StorageError.

    A line that a crash cut short is ended first, so that it spoils only itself.
    """
    line = as_line(record)
    with storage_errors(path), open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        rest = line.encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)  # half a record would only take the last space
            raise


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole JSON objects of a record file, in order; lines cut short by a crash are left out.

    A file that does not exist holds no records.
    """
    try:
        return parsed(path.read_bytes())
    except FileNotFoundError:
        return []


def append_event(path: Path, event: Event) -> Event:
    """Append an event with the present time, and return it so; raises StorageError."""
    stamped = msgspec.structs.replace(event, time=now())
    append_record(path, stamped)
    return stamped


def read_events(path: Path) -> list[Event]:
    """All events of a file, in order; raises DataError for a record of another form."""
    try:
        return [msgspec.convert(record, Event) for record in read_records(path)]
    except msgspec.ValidationError as error:
        raise DataError(f"{path.name}: {error}.") from None


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Cut a record file down to the records that `keep` accepts; returns how many went."""
    records = read_records(path)
    kept = [record for record in records if keep(record)]
    text = "".join(map(as_line, kept))
    if path.exists() and path.read_bytes() != text.encode():
        write_atomic(path, text)
    return len(records) - len(kept)
