"""Where a run begins: at its newest checkpoint that the records cover, another run's, or step 0."""

from __future__ import annotations

import contextlib
from pathlib import Path

from glass_cnn.paths import RunDir
from glass_cnn.records import covered
from glass_cnn.training.branch import Branch, open_branch
from glass_cnn.training.division import Kind
from glass_cnn.training.recorder import Recorder
from glass_cnn.training.state import State
from hpc.checkpoint import Checkpoint, InvalidCheckpoint, NoValidCheckpoint, read_manifest
from hpc.checkpoint_names import saved
from hpc.records import Event


def restore(state: State, recorder: Recorder, root: Path) -> tuple[str, Branch | None]:
    """Set the state; returns what it was set from, and the branch if it is one. Rank 0 only."""
    checkpoint = newest_covered(recorder)
    if checkpoint is not None:
        if change := state.restore(checkpoint):
            event = Event(event="numerics_changed", step=change.step, reason=change.what)
            recorder.event(event)
        return f"resumed after {recorder.stopped_by() or 'an end without notice'}", None
    branch = open_branch(state.settings, root, state.tensors())
    if branch is not None:
        state.begin_with(branch.tensors, branch.updates)
        return f"branched from {branch.lineage.checkpoint}", branch
    return "begun again without a checkpoint" if recorder.starts() else "new run", None


def division_before(run: RunDir, ranks: int) -> Kind | None:
    """By what so many ranks divided the steps up to the newest checkpoint; by its manifest alone.

    None where there is none, or other ranks made it: then nothing could go on with the same bits.
    """
    for entry in reversed(saved(run.checkpoints)):
        with contextlib.suppress(InvalidCheckpoint, OSError):  # refused when it is read whole
            made = read_manifest(entry.path)
            numerics = made["meta"].get("numerics") or {}  # older versions knew no other division
            kind: Kind = numerics.get("division", "data")
            return kind if made["ranks"] == ranks else None
    return None


def newest_covered(recorder: Recorder) -> Checkpoint | None:
    """The newest checkpoint whose evaluations all stand in metrics.jsonl; None without any.

    Those after it are removed, for the run takes their steps again. Where no checkpoint is that
    old, it is the newest of all: the run loses nothing but what its records have lost already.
    Both are told by an event.
    """
    checkpoints, there = recorder.checkpoints, covered(recorder.run.metrics)
    newest = found = checkpoints.latest()
    if newest is None or newest.meta["evaluated"] <= there:
        return newest
    with contextlib.suppress(NoValidCheckpoint):  # those that are left were refused before
        while found is not None and found.meta["evaluated"] > there:
            found = checkpoints.latest(at_most=found.step - 1)
    lacking = (
        f"metrics.jsonl lacks evaluation {there + 1}, and the checkpoint of step {newest.step} "
        f"counts on {newest.meta['evaluated']}: "
    )
    if found is not None and found.meta["evaluated"] <= there:
        checkpoints.drop_after(found.step)
        then = f"back to step {found.step}, from where on nothing is missing"
    else:
        found = checkpoints.latest()
        then = (
            "no checkpoint from before is kept, so the run goes on and stays damaged in all "
            "tables; --start-over trains it again"
        )
    step = None if found is None else found.step
    event = Event(event="records_missing", iteration=there + 1, step=step, reason=lacking + then)
    recorder.event(event)
    return found
