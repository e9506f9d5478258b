"""One checkpoint on disk: its format, and reading and verifying it; the newest of a directory.

A checkpoint is complete from the moment its directory has its final name. Its manifest, written
last, holds step, identity of the settings, checksums and `meta`, and names the optimal model of
that moment, which is on disk before and stays as long: whichever checkpoint a run returns to, it
finds the best model that belongs to it. Order is by step; the clock plays no part. The names are
those of `hpc.checkpoint_names`; `hpc.checkpoint_writer` writes.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hpc import tensorfile
from hpc.checkpoint_names import MANIFEST, named_step, saved
from hpc.errors import DataError, StorageError
from hpc.files import write_atomic

FORMAT = 1


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
    return read_named(path, MANIFEST, identity)


def read_named(path: Path, name: str, identity: str | None) -> Checkpoint:
    """`read` by a manifest of another name."""
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
    manifest = read_manifest(path, name)
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
        if read_manifest(path, name) == manifest:
            raise
    return _read_parts(path, name, identity)  # a running training has replaced its best model


def manifest_text(content: Mapping[str, Any]) -> bytes:
    """A manifest with its own checksum, as it is written."""
    checksum = xxhash.xxh3_128_hexdigest(_json(content))
    return _json({**content, "checksum": checksum})


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, sort_keys=True).encode() + b"\n"


def read_manifest(path: Path, name: str = MANIFEST) -> dict[str, Any]:
    """A manifest whose checksum is right; raises InvalidCheckpoint, OSError."""
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
    if manifest_text(content) != data:
        raise InvalidCheckpoint(path, f"{name} is damaged")
    if named_step(path) not in (None, content["step"]):
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
    return newest_of(directory, lambda path: read(path, identity), on_refused, at_most, remedy)


def newest_of(
    directory: Path,
    read_one: Callable[[Path], Checkpoint],
    on_refused: Callable[[InvalidCheckpoint], None] | None,
    at_most: int | None,
    remedy: str,
) -> Checkpoint | None:
    """`newest`, with a reader and a remedy of one's own."""
    reasons = []
    for entry in saved(directory, at_most=at_most)[::-1]:
        try:
            return read_one(entry.path)
        except InvalidCheckpoint as refused:
            if on_refused is None:
                raise
            on_refused(refused)
            reasons.append(f"{entry.path.name}: {refused.reason}")
    if not reasons:
        earlier = saved(directory, refused=True, at_most=at_most)
        reasons = [f"{entry.path.name}: refused before" for entry in earlier]
    if not reasons:
        return None
    raise NoValidCheckpoint(
        f"{directory}: none of the checkpoints can be used ({'; '.join(reasons)}). {remedy}"
    )


def write_parts(
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
    write_atomic(folder / manifest, manifest_text({**content, "file": entry}))
