"""Names in a directory of checkpoints: the one place that makes and reads them.

    step-000001230/state.safetensors     every array of the state
    step-000001230/manifest.json         written last: step, settings, checksums, meta
    step-000001230.1/                    the same step, saved once more
    step-000001240.refused/              was found damaged; never used again
    best/manifest.json                   the optimal model of the newest checkpoint
    best/manifest-000000900.json         the same under its step, and those that
    best/state-000000900.safetensors     belong to the older checkpoints
    .tmp-*                               being written or removed; left by crashes
    .lock                                held by the one process that may write

This room loads in no time: batch scripts ask it for the newest step at every start and end.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from hpc.errors import StorageError

MANIFEST = "manifest.json"
STATE = "state.safetensors"
BEST = "best"
ASIDE = ".tmp-"
LOCK = ".lock"
REFUSED = ".refused"

_NAME = re.compile(r"step-(?P<step>\d{9,})(\.(?P<revision>\d+))?(?P<refused>\.refused(\.\d+)?)?")


class Saved(NamedTuple):
    """A checkpoint's directory; they sort from old to new."""

    step: int
    revision: int
    """a step may be saved again: once more at the end, or after going back"""
    path: Path


def saved(directory: Path, refused: bool = False, at_most: int | None = None) -> list[Saved]:
    """The checkpoints in use, or those refused earlier, from old to new.

    With `at_most`, those of that step or before. Raises StorageError.
    """
    try:
        paths = list(directory.iterdir()) if directory.is_dir() else []
    except OSError as error:
        raise StorageError(f"{directory}: cannot be read: {error.strerror}.") from error
    found = []
    for path in paths:
        name = _NAME.fullmatch(path.name)
        if name and bool(name["refused"]) == refused:
            found.append(Saved(int(name["step"]), int(name["revision"] or 0), path))
    return sorted(entry for entry in found if at_most is None or entry.step <= at_most)


def newest_step(directory: Path) -> int:
    """Step of the newest checkpoint in a directory, 0 without any; names alone are looked at."""
    return max((entry.step for entry in saved(directory)), default=0)


def named_step(path: Path) -> int | None:
    """The step that a directory's name says; None for a name that is no checkpoint's."""
    name = _NAME.fullmatch(path.name)
    return int(name["step"]) if name else None


def new_place(directory: Path, step: int) -> Path:
    """Where the next checkpoint of a step goes: beside one that is there, never over it."""
    revisions = [entry.revision + 1 for entry in saved(directory) if entry.step == step]
    return directory / (f"step-{step:09d}" + (f".{max(revisions)}" if revisions else ""))


def best_manifest(step: int) -> str:
    """Name of the manifest of the optimal model of a step."""
    return f"manifest-{step:09d}.json"


def best_state(step: int) -> str:
    """Name of the file of the optimal model of a step."""
    return f"state-{step:09d}.safetensors"


def free(path: Path) -> Path:
    """`path`, with a number behind its stem if that name is taken."""
    candidates = (path.with_stem(f"{path.stem}.{number}") for number in itertools.count(1))
    return path if not path.exists() else next(c for c in candidates if not c.exists())
