"""Audit by replay: a run's digests, its checkpoints, and parts of it trained once more."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_cnn import lineage
from glass_cnn.lineage import StateDigest
from glass_cnn.paths import RunDir
from glass_cnn.records import DataIdentity, Start, read_starts
from glass_cnn.settings import load_run
from hpc import checkpoint
from hpc.checkpoint_names import saved
from hpc.checkpoint_writer import Checkpoints
from hpc.errors import EXIT_COMPLETE, EXIT_DATA, DataError
from hpc.files import read_json, write_json
from hpc.records import append_record, read_events, read_records
from hpc.tensorfile import digest_tensors
from jobs import verify
from tests import tiny

needs_mpi = pytest.mark.requires("mpi")
EVERY = {"every_iterations": 1, "keep": 9, "after_end": "all"}
STEPS = [3, 6, 9, 12]


# --- the chain -------------------------------------------------------------------------------


def test_the_head_follows_from_settings_data_and_every_regular_digest() -> None:
    settings, data = tiny.settings(), DataIdentity("x", "f" * 8)
    digests = [StateDigest(3, "a", True), StateDigest(4, "b", False), StateDigest(6, "c", True)]
    head = lineage.head(settings, data, digests)
    assert head == lineage.head(settings, data, [digests[0], digests[2]])
    others = [
        lineage.head(settings.model_copy(update={"seed": 1}), data, digests),
        lineage.head(settings, DataIdentity("x", "e" * 8), digests),
        lineage.head(settings, data, digests[:1]),
        lineage.head(settings, data, [StateDigest(3, "b", True), *digests[1:]]),
        lineage.head(settings, data, [digests[2], digests[0]]),
    ]
    assert len({head, *others}) == 6


def test_a_stop_at_once_leaves_the_chain_as_it_was(tmp_path: Path) -> None:
    settings, path = tiny.settings(checkpoint={"every_iterations": 2}), tmp_path / "digests.jsonl"
    for step in (0, 3, 6, 12, 12):
        lineage.add_digest(path, settings, step, f"digest of {step}")
    found = lineage.read_digests(path)
    assert [(each.step, each.regular) for each in found] == [
        (0, False), (3, False), (6, True), (12, True),
    ]  # fmt: skip


def test_the_starts_of_a_stretch_are_those_whose_steps_remained() -> None:
    first, second, third = (Start(resumed_step=step) for step in (0, 8, 6))
    starts = [first, second, third]
    assert lineage.starts_of(starts, 0, 4) == [first]
    assert lineage.starts_of(starts, 4, 9) == [first, third]  # 8 to … was trained again from 6
    assert lineage.starts_of(starts, 6, 9) == [third]


# --- a real run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_logs: Path, mpirun: Callable[..., Any], tmp_path_factory: Any) -> RunDir:
    """A whole tiny run that keeps every checkpoint."""
    place = tmp_path_factory.mktemp("verify")
    logs = tiny.share(tiny_logs, place / "logs")
    config = tiny.write_study(place / "study.yaml", tiny.tree(checkpoint=EVERY))
    done = mpirun(1, "jobs.train", config, "--logs", logs)
    assert done.returncode == EXIT_COMPLETE, done.stdout + done.stderr
    return tiny.only_run(logs)


@pytest.fixture
def copy(run: RunDir, tmp_path: Path) -> RunDir:
    """A copy of it that may be changed, beside the same data."""
    root = tiny.share(run.path.parents[2], tmp_path / "logs")
    place = root / "tiny" / "runs" / run.name
    shutil.copytree(run.path, place)
    return RunDir(place)


def examined(run: RunDir) -> verify.Audit:
    return verify.examine(words(run))


def words(run: RunDir, count: int = 1, best: bool = False) -> argparse.Namespace:
    return argparse.Namespace(run=run.path, count=count, seed=5, logs=None, best=best)


def forge(run: RunDir, step: int) -> None:
    """Put another state of the right shape in place of a checkpoint, all its checksums right."""
    (entry,) = [entry for entry in saved(run.checkpoints) if entry.step == step]
    found = checkpoint.read(entry.path)
    tensors = {name: np.asarray(tensor) + 1 for name, tensor in found.tensors.items()}
    aside = run.path / "aside"
    with Checkpoints(aside, found.identity, 1, None, 1, on_event=print) as checkpoints:
        checkpoints.save(step, tensors, found.meta)
    shutil.rmtree(entry.path)
    (aside / entry.path.name).rename(entry.path)


@needs_mpi
def test_every_checkpoint_leaves_its_digest_and_the_result_the_head(run: RunDir) -> None:
    digests = lineage.read_digests(run.digests)
    assert [digest.step for digest in digests] == STEPS
    for entry, digest in zip(saved(run.checkpoints), digests, strict=True):
        assert digest_tensors(checkpoint.read(entry.path).tensors) == digest.sha256
    settings, result = load_run(run.config), read_json(run.result)
    (start,) = read_starts(run.provenance)
    assert result["chain"] == lineage.head(settings, start.data, digests)
    assert start.chain == lineage.head(settings, start.data, [])


@needs_mpi
def test_all_of_a_run_is_trained_again_bit_by_bit(run: RunDir, mpirun: Callable[..., Any]) -> None:
    before = tiny.fingerprint(run.path)
    done = mpirun(1, "jobs.verify", run.path, "--count", "9")
    assert done.returncode == EXIT_COMPLETE, done.stdout + done.stderr
    assert "replaying 4 of 4 parts" in done.stdout
    assert done.stdout.count("every bit the same") == 4
    assert "steps 0 to 3, from the seed" in done.stdout
    assert tiny.fingerprint(run.path) == before


@needs_mpi
def test_records_that_were_changed_together_are_found_by_replay(
    copy: RunDir, mpirun: Callable[..., Any]
) -> None:
    """A forged state, with its digest and the chain made to fit, is not where training leads."""
    forge(copy, 6)
    state = checkpoint.read(copy.checkpoints / "step-000000006").tensors
    records = read_records(copy.digests)
    records[1]["sha256"] = digest_tensors(state)
    copy.digests.unlink()
    for record in records:
        append_record(copy.digests, record)
    digests, (start,) = lineage.read_digests(copy.digests), read_starts(copy.provenance)
    result = read_json(copy.result)
    result["chain"] = lineage.head(load_run(copy.config), start.data, digests)
    write_json(copy.result, result)
    assert len(examined(copy).stretches) == 4  # by what is written nothing is wrong
    done = mpirun(1, "jobs.verify", copy.path, "--count", "9")
    assert done.returncode == EXIT_DATA
    assert "steps 3 to 6" in done.stderr
    assert "was not made by these settings, data and libraries" in done.stderr


@needs_mpi
def test_a_checkpoint_of_another_lineage_is_refused(
    copy: RunDir, run: RunDir, mpirun: Callable[..., Any]
) -> None:
    forge(copy, 12)
    with pytest.raises(DataError, match="step-000000012: is of another lineage"):
        examined(copy)
    copy.result.unlink()  # so that the run goes on
    root = copy.path.parents[2]
    config = tiny.write_study(root / "study.yaml", tiny.tree(checkpoint=EVERY))
    done = mpirun(1, "jobs.train", config, "--logs", root)
    assert done.returncode == EXIT_COMPLETE, done.stdout + done.stderr
    (refused,) = [e for e in read_events(copy.events) if e.event == "checkpoint_refused"]
    assert "of another lineage" in str(refused.reason)
    assert tiny.outcome(copy) == tiny.outcome(run)
    assert lineage.read_digests(copy.digests) == lineage.read_digests(run.digests)
    assert len(examined(copy).stretches) == 4


@needs_mpi
def test_changed_records_are_named(copy: RunDir) -> None:
    kept = copy.digests.read_text().splitlines(keepends=True)
    copy.digests.write_text("".join(kept[:2] + kept[3:]))
    with pytest.raises(DataError, match=r"result\.json: says that the chain of digests ends in"):
        examined(copy)
    copy.digests.unlink()
    with pytest.raises(DataError, match="there is nothing to compare with"):
        examined(copy)


@needs_mpi
def test_other_numerics_are_told_not_compared(run: RunDir) -> None:
    audit = examined(run)
    (start,) = read_starts(run.provenance)
    assert start.numerics is not None
    assert len(verify.choose(audit, start.numerics, words(run, 2))) == 2
    assert verify.choose(audit, start.numerics, words(run, 2)) == verify.choose(
        audit, start.numerics, words(run, 2)
    )
    start.numerics.ranks = 2
    with pytest.raises(
        DataError, match=r"nothing of it can be trained again here .* ranks 1, now 2"
    ):
        verify.choose(audit, start.numerics, words(run, 2))
    assert verify.choose(audit, start.numerics, words(run, 0)) == []


@needs_mpi
def test_the_optimal_model_must_be_that_of_the_result_and_of_the_state_of_its_step(
    copy: RunDir,
) -> None:
    best = forge_best(copy)
    with pytest.raises(DataError, match=rf"best: its weights are not those of .*{best.step:09d}"):
        examined(copy)
    result = read_json(copy.result)
    result["optimal"]["iteration"] %= 4  # of four: another one
    result["optimal"]["iteration"] += 1
    write_json(copy.result, result)
    with pytest.raises(DataError, match=rf"best: is the model of step {best.step}, and result"):
        examined(copy)


@needs_mpi
def test_an_optimal_model_between_what_is_kept_is_trained_again(
    copy: RunDir, mpirun: Callable[..., Any]
) -> None:
    best = checkpoint.read(copy.checkpoints / "best")
    (state,) = [entry for entry in saved(copy.checkpoints) if entry.step == best.step]
    shutil.rmtree(state.path)
    done = mpirun(1, "jobs.verify", copy.path, "--count", "0", "--best")
    assert done.returncode == EXIT_COMPLETE, done.stdout + done.stderr
    assert f"steps {best.step - 3} to {best.step}, from " in done.stdout
    assert "every bit the same, those of the optimal model" in done.stdout
    right = examined(copy).best
    forge_best(copy)
    forged = examined(copy).best
    assert right
    assert forged
    with pytest.raises(DataError, match="and the optimal model has "):
        verify.tell(forged, right.sha256)


def forge_best(run: RunDir) -> checkpoint.Checkpoint:
    """Put other weights in place of the optimal model, all its checksums right."""
    found = checkpoint.read(run.checkpoints / "best")
    tensors = {name: np.asarray(tensor) + 1 for name, tensor in found.tensors.items()}
    aside = run.path / "aside"
    with Checkpoints(aside, found.identity, 1, None, 1, on_event=print) as checkpoints:
        checkpoints.save_best(found.step, tensors, found.meta)
        checkpoints.save(found.step, tensors, found.meta)
    shutil.rmtree(run.checkpoints / "best")
    (aside / "best").rename(run.checkpoints / "best")
    shutil.rmtree(aside)
    return found
