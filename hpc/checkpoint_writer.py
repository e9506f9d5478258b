"""Saving checkpoints beside the training: snapshot, background writer, retention.

`save` copies the arrays and returns; one thread writes. Everything it does at length (hashing,
writing, fsync) releases the interpreter lock and, past the page cache, takes about 0.1 s of
processor time per GB, so that a process of its own would gain nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpc import tensorfile
from hpc.checkpoint import FORMAT, Checkpoint, DirectoryInUse, InvalidCheckpoint, newest_of
from hpc.checkpoint_folder import Content, Folder
from hpc.checkpoint_names import LOCK
from hpc.errors import StorageError
from hpc.files import fsync_directory, locked, make_directory, storage_errors
from hpc.records import Event


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

    def copy(self, tensors: tensorfile.Tensors) -> tensorfile.Snapshot:
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
    kept, and those whose step `milestone` approves. `on_event` gets an Event for
    everything out of the ordinary, `on_saved` the step and the digest of each state that has
    become durable, both always in the caller's thread. `accept` raises InvalidCheckpoint for one
    that is whole and still not to be gone on from. Waits up to `patience` seconds
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
        on_saved: Callable[[int, str], None] | None = None,
        accept: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint has to be kept")
        self.directory = make_directory(directory)
        self.identity, self.keep, self.ranks = identity, keep, ranks
        self.on_event, self.on_saved, self.accept = on_event, on_saved, accept
        self._state_memory, self._best_memory = _Memory(), _Memory()
        self._best: int | None = None  # step of the optimal model up to now
        self._held: tuple[tensorfile.Snapshot, Content] | None = None  # it, while not on disk
        self._pending: Future[tuple[int, str] | None] | None = None
        self._folder = Folder(directory, identity, milestone or (lambda _: False))
        self._lock = ExitStack()
        self._lock.enter_context(self._sole_writer(patience))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        with storage_errors(directory):
            fsync_directory(directory.parent)
            for path in self._folder.remove_leftovers():
                on_event(Event(event="checkpoint_leftover_removed", path=str(path)))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def prepare(self, tensors: tensorfile.Tensors, best: tensorfile.Tensors | None = None) -> None:
        """Get the memory for copies in the background, so that the first is as fast as the rest."""
        self._settle()
        self._pending = self._writer.submit(self._reserve, tensors, best or {})

    def save(self, step: int, tensors: tensorfile.Tensors, meta: Mapping[str, Any]) -> None:
        """Copy the state and return; it becomes durable in the background.

        The arrays may change as soon as this returns. `meta` holds JSON values; its floats come
        back exactly. While an earlier save is still being written, this waits for it. Raises
        StorageError if that one failed; the checkpoints before it are untouched.
        """
        self._settle()
        content = {**self._content(step, meta), "best": self._best}
        snapshot = self._state_memory.copy(tensors)
        self._pending = self._writer.submit(self._commit, snapshot, content)

    def save_best(self, step: int, tensors: tensorfile.Tensors, meta: Mapping[str, Any]) -> None:
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
            self._lock.close()

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint (of step `at_most` or before) that verifies, None without any.

        Those passed over are reported as `checkpoint_refused` and renamed to `*.refused`; so is
        one whose best model is damaged. `best/` is then the model that belongs to it. Raises
        NoValidCheckpoint if there are checkpoints but none can be used.
        """
        self.flush()
        remedy = "Remove that directory, or pass --start-over, to begin again from step 0."
        found = newest_of(self.directory, self._read, self._refuse, at_most, remedy)
        if found is not None:
            self._best, self._held = found.best, None
            with storage_errors(self.directory):
                self._folder.show_best(found.best)
        return found

    def best(self) -> Checkpoint | None:
        """The optimal model up to now, verified; None without one. Raises InvalidCheckpoint."""
        self.flush()
        if self._best is None:
            return None
        return self._folder.read_best(self._best)

    def drop_after(self, step: int) -> None:
        """Remove all checkpoints after `step`, for a run that goes back and takes another way.

        The way back: `latest(at_most=…)`, `drop_after` its step, and `save` that step again with
        what is to be different.
        """
        self.flush()
        with storage_errors(self.directory):
            self._folder.drop_after(step)

    def clear(self) -> None:
        """Remove all checkpoints and the best model, to start over."""
        self.drop_after(-1)
        self._best = self._held = None
        with storage_errors(self.directory):
            self._folder.drop_best()

    def retire(self, after_end: Literal["all", "last", "best"]) -> None:
        """Remove what a complete run needs no more; milestones and the optimal model stay.

        `last` leaves the newest checkpoint, `best` none: only for a run that never goes on.
        """
        self.flush()
        if after_end == "all":
            return
        with storage_errors(self.directory):
            self._folder.prune(1 if after_end == "last" else 0)

    def _read(self, path: Path) -> Checkpoint:
        """One that can be gone on from; raises InvalidCheckpoint."""
        found = self._folder.read_with_best(path)
        if self.accept is not None:
            self.accept(found)
        return found

    def _reserve(self, tensors: tensorfile.Tensors, best: tensorfile.Tensors) -> None:
        self._state_memory.reserve(tensorfile.lay_out(tensors))
        if best:
            self._best_memory.reserve(tensorfile.lay_out(best))

    def _settle(self) -> None:
        """Wait for the work under way and raise its error, once."""
        if self._pending is None:
            return
        wait_for([self._pending])  # an interrupt here must leave the snapshot to the writer
        pending, self._pending = self._pending, None
        saved = pending.result()
        if saved is not None and self.on_saved is not None:
            self.on_saved(*saved)

    def _content(self, step: int, meta: Mapping[str, Any]) -> Content:
        return {
            "format": FORMAT,
            "step": step,
            "identity": self.identity,
            "ranks": self.ranks,
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "meta": json.loads(json.dumps(dict(meta))),
        }

    def _commit(self, snapshot: tensorfile.Snapshot, content: Content) -> tuple[int, str] | None:
        """The writer's work: the optimal model, then the checkpoint that counts on it.

        Returns its step and digest where somebody wants to know.
        """
        with storage_errors(self.directory):
            if self._held is not None:
                self._folder.write_best(*self._held)
                self._held = None
            self._folder.write_step(snapshot, content)
            self._folder.show_best(content["best"])
            self._folder.prune(self.keep)
        if self.on_saved is None:
            return None
        return content["step"], tensorfile.digest_tensors(snapshot.tensors)

    def _refuse(self, refused: InvalidCheckpoint) -> None:
        path, reason = str(refused.path), refused.reason
        self.on_event(Event(event="checkpoint_refused", path=path, reason=reason))
        with storage_errors(self.directory):
            self._folder.refuse(refused)

    def _sole_writer(self, patience: float) -> AbstractContextManager[None]:
        """The lock of the directory; one that is in use after `patience` seconds is refused."""
        path = self.directory / LOCK

        def waiting(holder: str, seconds: float) -> None:
            if seconds >= patience:
                raise DirectoryInUse(
                    f"{self.directory}: {holder} is writing this run's checkpoints; "
                    "wait until it has ended, or end it, and run the command again."
                )

        def without(error: OSError) -> None:
            unsupported = "checkpoint_lock_unsupported"
            self.on_event(Event(event=unsupported, path=str(path), reason=str(error)))

        return locked(path, waiting, without)
