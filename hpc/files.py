"""Files that a crash at any moment leaves whole: atomic writes, appended records, durable renames.

A file whose existence means "done" is written aside and renamed; records are appended a line
at a time, so that a reader never sees half a file and loses at most a line to a crash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpc.errors import DataError, StorageError


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error of writing into one message naming path and remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "no space left; free some or move the output with LOGS=dir"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = "not writable; choose another place with LOGS=dir (or $GLASS_LOGS)"
        else:
            what = f"{error.strerror or error}; choose another place with LOGS=dir (or $GLASS_LOGS)"
        raise StorageError(f"{error.filename or path}: {what}.") from error


def make_directory(path: Path) -> Path:
    """Create a directory with its parents; raises StorageError."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def new_directory(path: Path) -> Path:
    """Create a directory that was not there, with a number behind its name if it was.

    Two that ask at the same moment never get the same one. Raises StorageError.
    """
    make_directory(path.parent)
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with storage_errors(place), contextlib.suppress(FileExistsError):
            place.mkdir()
            return place
    raise AssertionError("there is always a next number")


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `path` so that it holds its old or its whole new content; raises StorageError."""
    data = content.encode() if isinstance(content, str) else content
    with storage_errors(path):
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o666 & ~_umask())
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            raise
        fsync_directory(path.parent)


@contextlib.contextmanager
def locked(
    path: Path, waiting: Callable[[str, float], object], without: Callable[[OSError], object]
) -> Iterator[None]:
    """Hold the lock file `path`: one process at a time, over all machines that share the files.

    POSIX record locks: they reach over NFS, the kernel lets go when the process ends in whatever
    way, and no child inherits them. While another process holds it, `waiting(who, seconds)` is
    called ten times a second and raises to give up. Where the file system knows no locks,
    `without(error)` is told once, and work goes on. Raises StorageError.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            _wait_for_lock(descriptor, waiting)
        except OSError as error:
            without(error)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, waiting: Callable[[str, float], object]) -> None:
    """Return with the lock; raises OSError where there are none, or what `waiting` raises."""
    began = time.monotonic()
    while True:
        try:
            return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        waiting(holder or "another process", time.monotonic() - began)
        time.sleep(0.1)


@functools.cache  # asking means changing it for a moment, for all threads
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, tree: Any) -> None:
    """`write_atomic` of indented JSON; not-a-number and infinities become null."""
    write_atomic(path, json.dumps(finite(tree), indent=1) + "\n")


def finite(tree: Any) -> Any:
    """A tree for JSON, which has neither not-a-number nor infinities: they become null."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises DataError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it and run again.") from None
