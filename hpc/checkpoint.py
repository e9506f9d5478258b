"""Checkpoints that a crash at any moment cannot spoil: snapshot, background writer, commit, verify.

    checkpoints/step-000001230/state.safetensors     every array of the state
    checkpoints/step-000001230/manifest.json         written last: step, settings, checksums, meta
    checkpoints/step-000001240.refused/              was found damaged; never used again
    checkpoints/best/manifest.json                   the optimal model of the newest checkpoint
    checkpoints/best/manifest-000000900.json         the same under its step, and those that
    checkpoints/best/state-000000900.safetensors     belong to the older checkpoints
    checkpoints/.tmp-*                               being written or removed; left by crashes
    checkpoints/.lock                                held by the one process that may write

`save` copies the arrays and returns; one thread writes. Everything it does at length (hashing,
writing, fsync) releases the interpreter lock and, past the page cache, takes about 0.1 s of
processor time per GB, so that a process of its own would gain nothing. A checkpoint is complete
from the moment its directory has its final name. Its manifest names the optimal model of that
moment, which is on disk before and stays as long: whichever checkpoint a run returns to, it finds
the best model that belongs to it. Order is by step; the clock plays no part.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash

from hpc import tensorfile
from hpc.errors import DataError, StorageError
from hpc.files import fsync_directory, make_directory, storage_errors, write_atomic
from hpc.tensorfile import digest_tensors

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "DirectoryInUse",
    "InvalidCheckpoint",
    "NoValidCheckpoint",
    "digest_tensors",
    "newest",
    "read",
]

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.safetensors"
BEST = "best"
ASIDE = ".tmp-"
LOCK = ".lock"

_NAME = re.compile(r"step-(?P<step>\d{9,})(\.(?P<revision>\d+))?(?P<refused>\.refused(\.\d+)?)?")

Event = dict[str, Any]


class InvalidCheckpoint(DataError):
    """A checkpoint that cannot be used; `reason` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # what it is built from again on other ranks
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is no usable checkpoint: {self.reason}."


class NoValidCheckpoint(DataError):
    """There are checkpoints, but none can be used."""


class DirectoryInUse(StorageError):
    """Another process writes checkpoints here."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. The arrays are memory-mapped and read-only."""

    path: Path
    step: int
    identity: str
    ranks: int
    best: int | None
    """step of the optimal model at that time; None without one, and in the optimal model itself"""
    meta: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read(path: Path, identity: str | None = None) -> Checkpoint:
    """Read and verify one checkpoint directory, every byte of it.

    With `identity`, one made under other settings is refused. Raises InvalidCheckpoint when it
    is missing, damaged, of another identity or of a future format, StorageError when the system
    cannot read it for another reason (no permission, too many open files).
    """
    return _read(path, MANIFEST, identity)


def _read(path: Path, name: str, identity: str | None) -> Checkpoint:
    try:
        if not path.is_dir():
            raise InvalidCheckpoint(path, "there is no such directory")
        manifest, tensors = _read_parts(path, name, identity)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EISDIR):
            raise InvalidCheckpoint(path, f"{Path(error.filename).name} is missing") from None
        if error.errno == errno.EIO:
            raise InvalidCheckpoint(path, "the disk cannot read it") from None
        raise _unreadable(path, error) from error
    return Checkpoint(
        path,
        manifest["step"],
        manifest["identity"],
        manifest["ranks"],
        manifest.get("best"),
        manifest["meta"],
        tensors,
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be read: {error.strerror}.")


def _read_parts(
    path: Path, name: str, identity: str | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    manifest = _read_manifest(path, name)
    if identity is not None and manifest["identity"] != identity:
        raise InvalidCheckpoint(
            path, f"made under other settings ({manifest['identity'][:8]}, not {identity[:8]})"
        )
    file, entry = path / manifest["file"]["name"], manifest["file"]
    try:
        tensorfile.verify(file, entry["size"], entry["block"], entry["checksums"])
        return manifest, tensorfile.load(file)
    except tensorfile.DamagedFile as damage:
        raise InvalidCheckpoint(path, f"{file.name} {damage}") from None
    except FileNotFoundError:
        if _read_manifest(path, name) == manifest:
            raise
    return _read_parts(path, name, identity)  # a running training has replaced its best model


def _manifest_text(content: Mapping[str, Any]) -> bytes:
    checksum = xxhash.xxh3_128_hexdigest(_json(content))
    return _json({**content, "checksum": checksum})


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, sort_keys=True).encode() + b"\n"


def _read_manifest(path: Path, name: str = MANIFEST) -> dict[str, Any]:
    data = (path / name).read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InvalidCheckpoint(path, f"{name} is damaged")
    _check_format(path, content.get("format"))
    content.pop("checksum", None)
    # Text for text: a change that leaves the meaning of the JSON alone is found as well.
    if _manifest_text(content) != data:
        raise InvalidCheckpoint(path, f"{name} is damaged")
    directory = _NAME.fullmatch(path.name)
    if directory and int(directory["step"]) != content["step"]:
        raise InvalidCheckpoint(path, f"holds step {content['step']}: the directory was renamed")
    return content


def _check_format(path: Path, version: object) -> None:
    if isinstance(version, int) and version > FORMAT:
        raise InvalidCheckpoint(
            path,
            f"written by a newer version of this program (checkpoint format {version}, this one "
            f"reads up to {FORMAT}); update the program to use it",
        )


def newest(
    directory: Path,
    identity: str | None = None,
    on_refused: Callable[[InvalidCheckpoint], None] | None = None,
    at_most: int | None = None,
) -> Checkpoint | None:
    """The newest checkpoint of a directory, verified; for reading another run's, too.

    With `at_most`, the newest of that step or before.
    One that cannot be used is handed to `on_refused` and the next older one is taken; without
    `on_refused` it is raised. None if there is no checkpoint at all; raises NoValidCheckpoint if
    there are, but none can be used.
    """
    remedy = "Train that run again, or use another one."
    return _newest(directory, lambda path: read(path, identity), on_refused, at_most, remedy)


def _newest(
    directory: Path,
    read_one: Callable[[Path], Checkpoint],
    on_refused: Callable[[InvalidCheckpoint], None] | None,
    at_most: int | None,
    remedy: str,
) -> Checkpoint | None:
    reasons = []
    for entry in _listing(directory, at_most=at_most)[::-1]:
        try:
            return read_one(entry.path)
        except InvalidCheckpoint as refused:
            if on_refused is None:
                raise
            on_refused(refused)
            reasons.append(f"{entry.path.name}: {refused.reason}")
    if not reasons:
        earlier = _listing(directory, refused=True, at_most=at_most)
        reasons = [f"{entry.path.name}: refused before" for entry in earlier]
    if not reasons:
        return None
    raise NoValidCheckpoint(
        f"{directory}: none of the checkpoints can be used ({'; '.join(reasons)}). {remedy}"
    )


class _Entry(NamedTuple):
    """A checkpoint directory; entries sort from old to new."""

    step: int
    revision: int  # a step may be saved again: once more at the end, or after going back
    path: Path


def _listing(directory: Path, refused: bool = False, at_most: int | None = None) -> list[_Entry]:
    """The checkpoints in use, or those refused earlier, from old to new."""
    try:
        paths = list(directory.iterdir()) if directory.is_dir() else []
    except OSError as error:
        raise _unreadable(directory, error) from error
    found = []
    for path in paths:
        name = _NAME.fullmatch(path.name)
        if name and bool(name["refused"]) == refused:
            found.append(_Entry(int(name["step"]), int(name["revision"] or 0), path))
    return sorted(entry for entry in found if at_most is None or entry.step <= at_most)


class _Memory:
    """Memory for one copy of some arrays, used again and again."""

    def __init__(self) -> None:
        self._snapshot: tensorfile.Snapshot | None = None

    def reserve(self, layout: tensorfile.Layout) -> tensorfile.Snapshot:
        """Memory for arrays of this layout; the same as before if that fits."""
        if self._snapshot is None or self._snapshot.layout != layout:
            self._snapshot = None
            self._snapshot = _allocate(layout)
        return self._snapshot

    def copy(self, tensors: Mapping[str, np.ndarray]) -> tensorfile.Snapshot:
        """A copy of the arrays, valid until the next one."""
        snapshot = self.reserve(tensorfile.lay_out(tensors))
        snapshot.fill(tensors)
        return snapshot


def _allocate(layout: tensorfile.Layout) -> tensorfile.Snapshot:
    try:
        return tensorfile.Snapshot(layout)
    except OSError as error:
        raise StorageError(
            f"no memory for a copy of the state ({layout.size / 1e6:.0f} MB): {error.strerror}. "
            "Ask for more memory on rank 0's node."
        ) from error


class Checkpoints:
    """The checkpoints of one run; for its one writer, rank 0. Other ranks use `read`.

    `identity` names the settings a checkpoint is valid for. The newest `keep` (at least 1) are
    kept, and those whose step `milestone` approves. `on_event` gets a dict with key `event` for
    everything out of the ordinary, always in the caller's thread. Waits up to `patience` seconds
    for a process that is about to end, then raises DirectoryInUse; raises StorageError when the
    directory cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        identity: str,
        keep: int,
        milestone: Callable[[int], bool] | None,
        ranks: int,
        on_event: Callable[[Event], None],
        patience: float = 10.0,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint has to be kept")
        self.directory = make_directory(directory)
        self.identity, self.keep, self.ranks = identity, keep, ranks
        self.milestone = milestone or (lambda _: False)
        self.on_event = on_event
        self._lock = _lock(directory / LOCK, patience, on_event)
        self._state_memory, self._best_memory = _Memory(), _Memory()
        self._best: int | None = None  # step of the optimal model up to now
        self._held: tuple[tensorfile.Snapshot, Event] | None = None  # it, while not on disk
        self._pending: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        with storage_errors(directory):
            fsync_directory(directory.parent)
            self._remove_leftovers()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def prepare(
        self, tensors: Mapping[str, np.ndarray], best: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Get the memory for copies in the background, so that the first is as fast as the rest."""
        self._settle()
        self._pending = self._writer.submit(self._reserve, tensors, best or {})

    def save(self, step: int, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Copy the state and return; it becomes durable in the background.

        The arrays may change as soon as this returns. `meta` holds JSON values; its floats come
        back exactly. While an earlier save is still being written, this waits for it. Raises
        StorageError if that one failed; the checkpoints before it are untouched.
        """
        self._settle()
        content = {**self._content(step, meta), "best": self._best}
        snapshot = self._state_memory.copy(tensors)
        self._pending = self._writer.submit(self._commit, snapshot, content)

    def save_best(
        self, step: int, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> None:
        """Copy the optimal model and return; the next `save` writes it, before its checkpoint.

        Written any earlier, it could be newer than every checkpoint, and a run that returns to
        one of them would find its own best model gone.
        """
        self._settle()
        self._best, self._held = step, (self._best_memory.copy(tensors), self._content(step, meta))

    def check(self) -> None:
        """Raise the error of a write that failed since the last call; costs nothing."""
        if self._pending is not None and self._pending.done():
            self._settle()

    def flush(self) -> None:
        """Wait until every checkpoint is durable; raises StorageError if it cannot be."""
        self._settle()

    def close(self) -> None:
        """Flush, end the writer and let go of the directory, even if the flush raises."""
        try:
            self.flush()
        finally:
            self._writer.shutdown()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint (of step `at_most` or before) that verifies, None without any.

        Those passed over are reported as `checkpoint_refused` and renamed to `*.refused`; so is
        one whose best model is damaged. `best/` is then the model that belongs to it. Raises
        NoValidCheckpoint if there are checkpoints but none can be used.
        """
        self.flush()
        remedy = "Remove that directory, or pass --start-over, to begin again from step 0."
        found = _newest(self.directory, self._read_with_best, self._refuse, at_most, remedy)
        if found is not None:
            self._best, self._held = found.best, None
            with storage_errors(self.directory):
                self._show_best(found.best)
        return found

    def best(self) -> Checkpoint | None:
        """The optimal model up to now, verified; None without one. Raises InvalidCheckpoint."""
        self.flush()
        if self._best is None:
            return None
        return _read(self.directory / BEST, _best_manifest(self._best), self.identity)

    def drop_after(self, step: int) -> None:
        """Remove all checkpoints after `step`, for a run that goes back and takes another way.

        The way back: `latest(at_most=…)`, `drop_after` its step, and `save` that step again with
        what is to be different.
        """
        self.flush()
        with storage_errors(self.directory):
            for entry in reversed(_listing(self.directory) + _listing(self.directory, True)):
                if entry.step > step:
                    self._remove(entry.path)

    def clear(self) -> None:
        """Remove all checkpoints and the best model, to start over."""
        self.drop_after(-1)
        self._best = self._held = None
        with storage_errors(self.directory):
            if (self.directory / BEST).exists():
                self._remove(self.directory / BEST)

    def retire(self, after_end: Literal["all", "last", "best"]) -> None:
        """Remove what a complete run needs no more; milestones and the optimal model stay.

        `last` leaves the newest checkpoint, `best` none: only for a run that never goes on.
        """
        self.flush()
        if after_end == "all":
            return
        with storage_errors(self.directory):
            self._prune(1 if after_end == "last" else 0)

    def _reserve(self, tensors: Mapping[str, np.ndarray], best: Mapping[str, np.ndarray]) -> None:
        self._state_memory.reserve(tensorfile.lay_out(tensors))
        if best:
            self._best_memory.reserve(tensorfile.lay_out(best))

    def _settle(self) -> None:
        """Wait for the work under way and raise its error, once."""
        if self._pending is None:
            return
        wait_for([self._pending])  # an interrupt here must leave the snapshot to the writer
        pending, self._pending = self._pending, None
        pending.result()

    def _content(self, step: int, meta: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": step,
            "identity": self.identity,
            "ranks": self.ranks,
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "meta": json.loads(json.dumps(dict(meta))),
        }

    def _commit(self, snapshot: tensorfile.Snapshot, content: dict[str, Any]) -> None:
        """The writer's work: the optimal model, then the checkpoint that counts on it."""
        with storage_errors(self.directory):
            if self._held is not None:
                self._write_best(*self._held)
                self._held = None
            self._write_step(snapshot, content)
            self._show_best(content["best"])
            self._prune(self.keep)

    def _write_step(self, snapshot: tensorfile.Snapshot, content: dict[str, Any]) -> None:
        path = self._place(content["step"])
        aside = path.with_name(ASIDE + path.name)
        try:
            aside.mkdir(exist_ok=True)
            _write_parts(aside, STATE, MANIFEST, snapshot, content)
            aside.rename(path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        fsync_directory(self.directory)

    def _write_best(self, snapshot: tensorfile.Snapshot, content: dict[str, Any]) -> None:
        folder, step = self.directory / BEST, content["step"]
        folder.mkdir(exist_ok=True)
        file = _free(folder / f"state-{step:09d}.safetensors")
        try:
            _write_parts(folder, file.name, _best_manifest(step), snapshot, content)
        finally:
            _remove_unnamed(folder)
        fsync_directory(self.directory)

    def _read_with_best(self, path: Path) -> Checkpoint:
        found = read(path, self.identity)
        if found.best is not None:
            try:
                _read(self.directory / BEST, _best_manifest(found.best), self.identity)
            except InvalidCheckpoint as damage:
                raise InvalidCheckpoint(path, f"its best model: {damage.reason}") from None
        return found

    def _show_best(self, step: int | None) -> None:
        """Let `best/` be the optimal model of this step."""
        folder = self.directory / BEST
        shown = folder / MANIFEST
        if step is None:
            shown.unlink(missing_ok=True)
            return
        text = (folder / _best_manifest(step)).read_bytes()
        if not shown.exists() or shown.read_bytes() != text:
            write_atomic(shown, text)

    def _place(self, step: int) -> Path:
        """Where the next checkpoint of a step goes: beside one that is there, never over it."""
        revisions = [e.revision + 1 for e in _listing(self.directory) if e.step == step]
        name = f"step-{step:09d}" + (f".{max(revisions)}" if revisions else "")
        return self.directory / name

    def _prune(self, keep: int) -> None:
        """Remove what is neither among the newest nor a milestone, once a new one is safe."""
        entries = _listing(self.directory)
        steps = sorted({entry.step for entry in entries})
        recent = steps[len(steps) - min(keep, len(steps)) :]
        latest = {entry.step: entry for entry in entries}
        for entry in entries:
            wanted = entry.step in recent or self.milestone(entry.step)
            if not wanted or entry is not latest[entry.step]:
                self._remove(entry.path)
        for entry in _listing(self.directory, refused=True):
            if not recent or entry.step < recent[0]:
                self._remove(entry.path)
        self._prune_best()

    def _prune_best(self) -> None:
        """Remove the optimal models that no checkpoint counts on, but for the one in use."""
        folder = self.directory / BEST
        wanted = {_named_best(entry.path) for entry in _listing(self.directory)}
        with contextlib.suppress(FileNotFoundError, InvalidCheckpoint):
            wanted.add(_read_manifest(folder)["step"])
        for path in folder.glob("manifest-*.json"):
            if path.name not in {_best_manifest(step) for step in wanted if step is not None}:
                path.unlink()
        _remove_unnamed(folder)

    def _remove(self, path: Path) -> None:
        """Remove a directory so that a crash half-way leaves nothing that looks complete."""
        aside = _free(path.with_name(ASIDE + "removed-" + path.name))
        path.rename(aside)
        fsync_directory(path.parent)
        # Over NFS a file that somebody still reads cannot go yet; the next start removes it.
        shutil.rmtree(aside, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self.directory.glob(ASIDE + "*"):
            shutil.rmtree(path, ignore_errors=True)
            self.on_event({"event": "checkpoint_leftover_removed", "path": str(path)})
        self._prune_best()

    def _refuse(self, refused: InvalidCheckpoint) -> None:
        path, reason = refused.path, refused.reason
        self.on_event({"event": "checkpoint_refused", "path": str(path), "reason": reason})
        with storage_errors(self.directory):
            path.rename(_free(path.with_name(path.name + ".refused")))
            fsync_directory(self.directory)


def _write_parts(
    folder: Path,
    name: str,
    manifest: str,
    snapshot: tensorfile.Snapshot,
    content: Mapping[str, Any],
) -> None:
    """Write the state, then the manifest that makes it count; raises OSError, StorageError."""
    checksums = tensorfile.write(folder / name, snapshot)
    entry = {
        "name": name,
        "size": snapshot.layout.size,
        "algorithm": "xxh3-128",
        "block": tensorfile.BLOCK,
        "checksums": checksums,
    }
    write_atomic(folder / manifest, _manifest_text({**content, "file": entry}))


def _best_manifest(step: int) -> str:
    return f"manifest-{step:09d}.json"


def _named_best(path: Path) -> int | None:
    """Step of the best model that a checkpoint counts on; None also if that cannot be read."""
    try:
        return _read_manifest(path).get("best")
    except (OSError, InvalidCheckpoint):
        return None


def _remove_unnamed(folder: Path) -> None:
    """Remove the states in `best/` that no manifest names: replaced or half-written."""
    named = set()
    for manifest in (*folder.glob("manifest-*.json"), *folder.glob(MANIFEST)):
        try:
            named.add(_read_manifest(folder, manifest.name)["file"]["name"])
        except InvalidCheckpoint:
            return
    for path in (*folder.glob("state-*"), *folder.glob(".manifest*")):
        if path.name not in named:
            path.unlink()


def _free(path: Path) -> Path:
    """`path`, with a number behind its stem if that name is taken."""
    candidates = (path.with_stem(f"{path.stem}.{number}") for number in itertools.count(1))
    return path if not path.exists() else next(c for c in candidates if not c.exists())


def _lock(path: Path, patience: float, on_event: Callable[[Event], None]) -> int | None:
    """Lock a file for this process; None where the file system knows no locks.

    The kernel lets go of it when the process ends in whatever way, also over NFS.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _wait_for_lock(descriptor, path, patience)
    except OSError as error:
        os.close(descriptor)
        on_event(
            {"event": "checkpoint_lock_unsupported", "path": str(path)} | {"reason": str(error)}
        )
        return None
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _wait_for_lock(descriptor: int, path: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        if time.monotonic() >= deadline:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise DirectoryInUse(
                f"{path.parent}: {holder or 'another process'} is writing this run's checkpoints; "
                "wait until it has ended, or end it, and run the command again."
            )
        time.sleep(0.1)
