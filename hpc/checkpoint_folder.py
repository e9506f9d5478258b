"""The directory of a run's checkpoints: commit, retention, refusal. For its one writer.

Everything here is done at once and in the caller's thread; a crash between any two lines leaves
checkpoints that are whole, or leftovers that the next start removes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc import tensorfile
from hpc.checkpoint import (
    Checkpoint,
    InvalidCheckpoint,
    read,
    read_manifest,
    read_named,
    write_parts,
)
from hpc.checkpoint_names import (
    ASIDE,
    BEST,
    MANIFEST,
    REFUSED,
    STATE,
    best_manifest,
    best_state,
    free,
    new_place,
    saved,
)
from hpc.files import fsync_directory, write_atomic

Content = dict[str, Any]
"""what a manifest says but for the file"""


class Folder:
    """Checkpoints on disk, and the optimal models they count on. Methods raise OSError.

    `milestone` says of a step whether its checkpoint stays.
    """

    def __init__(self, path: Path, identity: str, milestone: Callable[[int], bool]) -> None:
        self.path, self.identity, self.milestone = path, identity, milestone
        self.best_folder = path / BEST

    def write_step(self, snapshot: tensorfile.Snapshot, content: Content) -> None:
        """Write a checkpoint aside and give it its name, which makes it count."""
        place = new_place(self.path, content["step"])
        aside = place.with_name(ASIDE + place.name)
        try:
            aside.mkdir(exist_ok=True)
            write_parts(aside, STATE, MANIFEST, snapshot, content)
            aside.rename(place)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        fsync_directory(self.path)

    def write_best(self, snapshot: tensorfile.Snapshot, content: Content) -> None:
        """Write an optimal model beside those of older checkpoints."""
        folder, step = self.best_folder, content["step"]
        folder.mkdir(exist_ok=True)
        file = free(folder / best_state(step))
        try:
            write_parts(folder, file.name, best_manifest(step), snapshot, content)
        finally:
            _remove_unnamed(folder)
        fsync_directory(self.path)

    def show_best(self, step: int | None) -> None:
        """Let `best/manifest.json` be the optimal model of this step, or nothing."""
        shown = self.best_folder / MANIFEST
        if step is None:
            shown.unlink(missing_ok=True)
            return
        text = (self.best_folder / best_manifest(step)).read_bytes()
        if not shown.exists() or shown.read_bytes() != text:
            write_atomic(shown, text)

    def read_with_best(self, path: Path) -> Checkpoint:
        """A checkpoint whose optimal model is usable, too; raises InvalidCheckpoint."""
        found = read(path, self.identity)
        if found.best is not None:
            try:
                self.read_best(found.best)
            except InvalidCheckpoint as damage:
                raise InvalidCheckpoint(path, f"its best model: {damage.reason}") from None
        return found

    def read_best(self, step: int) -> Checkpoint:
        """The optimal model of a step, verified; raises InvalidCheckpoint."""
        return read_named(self.best_folder, best_manifest(step), self.identity)

    def refuse(self, refused: InvalidCheckpoint) -> None:
        """Rename a checkpoint that cannot be used, so that it is never tried again."""
        refused.path.rename(free(refused.path.with_name(refused.path.name + REFUSED)))
        fsync_directory(self.path)

    def drop_after(self, step: int) -> None:
        """Remove all checkpoints after `step`, the newest first."""
        for entry in reversed(saved(self.path) + saved(self.path, refused=True)):
            if entry.step > step:
                self._remove(entry.path)

    def drop_best(self) -> None:
        """Remove all optimal models."""
        if self.best_folder.exists():
            self._remove(self.best_folder)

    def prune(self, keep: int) -> None:
        """Remove what is neither among the newest `keep` nor a milestone."""
        entries = saved(self.path)
        steps = sorted({entry.step for entry in entries})
        recent = steps[len(steps) - min(keep, len(steps)) :]
        latest = {entry.step: entry for entry in entries}
        for entry in entries:
            wanted = entry.step in recent or self.milestone(entry.step)
            if not wanted or entry is not latest[entry.step]:
                self._remove(entry.path)
        for entry in saved(self.path, refused=True):
            if not recent or entry.step < recent[0]:
                self._remove(entry.path)
        self._prune_best()

    def remove_leftovers(self) -> list[Path]:
        """Remove what a crash left half-written or half-removed; returns what it was."""
        leftovers = list(self.path.glob(ASIDE + "*"))
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
        self._prune_best()
        return leftovers

    def _prune_best(self) -> None:
        """Remove the optimal models that no checkpoint counts on, but for the one in use."""
        folder = self.best_folder
        wanted = {_best_of(entry.path) for entry in saved(self.path)}
        with contextlib.suppress(FileNotFoundError, InvalidCheckpoint):
            wanted.add(read_manifest(folder)["step"])
        for path in folder.glob("manifest-*.json"):
            if path.name not in {best_manifest(step) for step in wanted if step is not None}:
                path.unlink()
        _remove_unnamed(folder)

    def _remove(self, path: Path) -> None:
        """Remove a directory so that a crash half-way leaves nothing that looks complete."""
        aside = free(path.with_name(ASIDE + "removed-" + path.name))
        path.rename(aside)
        fsync_directory(path.parent)
        # Over NFS a file that somebody still reads cannot go yet; the next start removes it.
        shutil.rmtree(aside, ignore_errors=True)


def _best_of(path: Path) -> int | None:
    """Step of the best model that a checkpoint counts on; None also if that cannot be read."""
    try:
        return read_manifest(path).get("best")
    except (OSError, InvalidCheckpoint):
        return None


def _remove_unnamed(folder: Path) -> None:
    """Remove the states in `best/` that no manifest names: replaced or half-written."""
    named = set()
    for manifest in (*folder.glob("manifest-*.json"), *folder.glob(MANIFEST)):
        try:
            named.add(read_manifest(folder, manifest.name)["file"]["name"])
        except InvalidCheckpoint:
            return
    for path in (*folder.glob("state-*"), *folder.glob(".manifest*")):
        if path.name not in named:
            path.unlink()
