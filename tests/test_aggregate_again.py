"""Aggregating again: only what changed is read anew, and nothing that changed is missed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from glass_cnn.analysis import rows, table
from glass_cnn.analysis import scan as module
from glass_cnn.analysis.table import aggregate, write
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.study import Study
from hpc.records import append_record
from tests import synthetic


@pytest.fixture
def study() -> Study:
    return synthetic.study(seeds=5, arms=synthetic.ARMS)


@pytest.fixture
def place(study: Study, tmp_path: Path) -> StudyDir:
    return synthetic.directory(study, tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the directories that are read, as they are."""
    seen: list[str] = []

    def watched(path: Path, *rest: Any) -> rows.Row:
        seen.append(path.name)
        return rows.read_run(path, *rest)

    monkeypatch.setattr(module, "read_run", watched)
    monkeypatch.setattr(module, "JUST_CHANGED", 0)
    return seen


def test_what_did_not_change_is_not_read_again(
    study: Study, place: StudyDir, reads: list[str]
) -> None:
    for run in study.runs[:4]:
        synthetic.write_run(place, run)
    (place.runs / "notes").mkdir()
    first = aggregate(study, place).table
    assert len(reads) == 5
    reads.clear()
    assert aggregate(study, place).table.equals(first)
    assert reads == []


def _append(folder: RunDir) -> None:
    with folder.metrics.open("a") as file:
        file.write("\n")


def _edit_in_place(folder: RunDir) -> None:
    """Same size, and the time of change set back."""
    before = folder.result.stat()
    text = folder.result.read_text()
    folder.result.write_text(text.replace('"restarts": 0', '"restarts": 7'))
    os.utime(folder.result, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "a line more": _append,
    "an edit in place": _edit_in_place,
    "a new file": lambda folder: append_record(folder.events, {"event": "rollback"}),
    "a file gone": lambda folder: folder.result.unlink(),
    "a file replaced": lambda folder: folder.config.write_text(folder.config.read_text() + "\n"),
    "a start": lambda folder: append_record(folder.provenance, synthetic.START),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_noticed(
    study: Study, place: StudyDir, reads: list[str], change: str
) -> None:
    folders = [synthetic.write_run(place, run) for run in study.runs[:3]]
    aggregate(study, place)
    reads.clear()
    time.sleep(0.02)  # a file system's clock ticks
    CHANGES[change](folders[1])
    changed = aggregate(study, place).table
    assert reads == [folders[1].name]
    (place.path / ".aggregate.parquet").unlink()
    assert aggregate(study, place).table.equals(changed)


@pytest.mark.parametrize("change", CHANGES)
def test_a_written_summary_is_used_only_for_the_state_it_was_made_of(
    study: Study, place: StudyDir, reads: list[str], change: str
) -> None:
    folders = [synthetic.write_run(place, run) for run in study.runs[:3]]
    write(aggregate(study, place))
    (place.path / ".aggregate.parquet").unlink()
    reads.clear()
    write(aggregate(study, place))
    assert reads == []
    time.sleep(0.02)
    CHANGES[change](folders[1])
    aggregate(study, place)
    assert len(reads) == 3
    reads.clear()
    fewer = synthetic.study(seeds=2, arms=synthetic.ARMS)
    assert set(aggregate(fewer, place).counted["seed"]) <= {0, 1}


def test_a_summary_of_another_form_of_the_study_is_not_used(
    study: Study, place: StudyDir, reads: list[str]
) -> None:
    for run in study.runs[:3]:
        synthetic.write_run(place, run)
    write(aggregate(study, place))
    fewer = synthetic.study(seeds=2, arms=synthetic.ARMS)
    assert aggregate(fewer, place).counted["seed"].to_list() == [0, 1]


@pytest.mark.parametrize("written", [True, False])
def test_what_another_version_of_the_code_found_is_not_used(
    study: Study,
    place: StudyDir,
    reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
    written: bool,
) -> None:
    synthetic.write_run(place, study.runs[0])
    result = aggregate(study, place)
    if written:
        write(result)
    for place_of_use in (module, table):
        monkeypatch.setattr(place_of_use, "code", lambda: "another")
    aggregate(study, place)
    assert len(reads) == 2


def test_directories_that_come_and_go(study: Study, place: StudyDir, reads: list[str]) -> None:
    folders = [synthetic.write_run(place, run) for run in study.runs[:3]]
    aggregate(study, place)
    reads.clear()
    shutil.rmtree(folders[0].path)
    synthetic.write_run(place, study.runs[3])
    result = aggregate(study, place)
    assert reads == [study.runs[3].name]
    assert set(result.counted["run"]) == {run.name for run in study.runs[1:4]}


def test_files_just_written_are_read_again(study: Study, place: StudyDir) -> None:
    synthetic.write_run(place, study.runs[0])
    aggregate(study, place)
    marks = pl.read_parquet(place.path / ".aggregate.parquet").select(module.MARKS)
    assert (marks.to_numpy() == -2).all()


def test_other_thresholds_judge_anew(place: StudyDir, reads: list[str]) -> None:
    stern = synthetic.study(seeds=5, arms=synthetic.ARMS, analysis={"learned_accuracy": 0.999})
    usual = synthetic.study(seeds=5, arms=synthetic.ARMS)
    synthetic.write_run(place, usual.runs[0])
    assert aggregate(usual, place).counted["outcome"].to_list() == ["survived"]
    assert aggregate(stern, place).counted["outcome"].to_list() == ["never_learned"]


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", None])
def test_a_damaged_cache_is_not_trusted(
    study: Study, place: StudyDir, reads: list[str], content: bytes | None
) -> None:
    synthetic.write_run(place, study.runs[0])
    first = aggregate(study, place).table
    cache = place.path / ".aggregate.parquet"
    if content is None:  # of another version of the code
        pl.read_parquet(cache).with_columns(outcome=pl.lit("x")).write_parquet(cache)
    else:
        cache.write_bytes(content)
    assert aggregate(study, place).table.equals(first)
    assert len(reads) == 2


def test_two_processes_find_the_same(
    study: Study, place: StudyDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, kind in zip(study.runs, [*synthetic.COURSES] * 2, strict=True):
        synthetic.write_run(place, run, kind)
    alone = aggregate(study, place).table
    (place.path / ".aggregate.parquet").unlink()
    monkeypatch.setattr(module, "PARALLEL_FROM", 1)
    assert aggregate(study, place).table.equals(alone)
