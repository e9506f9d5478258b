"""Run directories to a table: every kind of directory, incremental reading, awkward files."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from glass_cnn.analysis import rows
from glass_cnn.analysis import table as module
from glass_cnn.analysis.table import Aggregation, aggregate, combine, find_study, write
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.records import read_metrics
from glass_cnn.study import Study
from hpc.errors import ConfigError, DataError
from hpc.records import append_record
from jobs.aggregate import main
from tests import synthetic

ARMS = {
    "high": {"train.learning_rate.initial": 1e-3},
    "low": {"train.learning_rate.initial": 1e-4},
}


@pytest.fixture
def study() -> Study:
    return synthetic.study(seeds=5, arms=ARMS)


@pytest.fixture
def place(study: Study, tmp_path: Path) -> StudyDir:
    return synthetic.directory(study, tmp_path)


def only(result: Aggregation, run: str) -> dict[str, Any]:
    return result.table.row(by_predicate=pl.col("run") == run, named=True)


def states(result: Aggregation) -> dict[str, str]:
    named = result.table.filter(pl.col("run").is_not_null())
    return dict(named.select("run", "state").iter_rows())


@pytest.mark.parametrize("kind", synthetic.COURSES)
def test_each_outcome_is_found(study: Study, place: StudyDir, kind: str) -> None:
    run = study.runs[0]
    synthetic.write_run(place, run, kind)
    row = only(aggregate(study, place), run.name)
    assert (row["state"], row["outcome"], row["counted"]) == ("complete", kind, True)
    assert row["collapsed"] == kind.endswith("collapse")


def test_a_row_holds_times_accuracies_diagnostics_and_provenance(
    study: Study, place: StudyDir
) -> None:
    run = study.runs[1]
    folder = synthetic.write_run(place, run, "permanent_collapse")
    append_record(folder.events, {"event": "rollback", "step": 10, "reason": "x"})
    append_record(folder.events, {"event": "checkpoint_refused", "step": 10, "reason": "x"})
    append_record(
        folder.provenance,
        {**synthetic.START, "hosts": ["node2"], "resumed_step": 200, "reason": "requeued",
         "lineage": {"run": "parent-s1-01234567", "step": 600, "which": "best"}},
    )  # fmt: skip
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    row = only(aggregate(study, place), run.name)
    good = [r["step"] for r in records if r["validation_accuracy"] >= 0.95]
    streak = [a for a, b, c in zip(good, good[1:], good[2:], strict=False) if c - a == 20]
    assert row["learned_step"] == streak[0] + 20
    assert (row["onset_after_step"], row["onset_before_step"]) == (390, 400)
    assert row["watched_steps"] == 400 - row["learned_step"]
    assert row["watched_samples"] == 80 * row["watched_steps"]
    best = max(records, key=lambda r: r["validation_accuracy"])
    assert row["optimal_iteration"] == best["iteration"]
    assert row["final_validation_accuracy"] == records[-1]["validation_accuracy"]
    norms = [r["diagnostics"]["weight_norm"]["conv1/weights"] for r in records]
    assert row["diagnostics.weight_norm.conv1/weights.last"] == norms[-1]
    assert row["diagnostics.weight_norm.conv1/weights.max"] == max(norms)
    bends = [r["diagnostics"]["curvature"] for r in records if r["diagnostics"]["curvature"]]
    assert row["diagnostics.curvature.last"] == bends[-1]
    assert (row["starts"], row["hosts"], row["commit"]) == (
        2,
        "node1 node2",
        "0123456789abcdef" * 2 + "01234567",
    )
    assert (row["lineage_run"], row["lineage_step"]) == ("parent-s1-01234567", 600)
    assert (row["rollbacks"], row["checkpoints_refused"]) == (1, 1)
    assert (row["train.learning_rate.initial"], row["train.batch_size"]) == (1e-3, 80)


@pytest.mark.parametrize(
    "files", [(), ("output.log",), ("output.log", "events.jsonl", ".config.yaml.x")]
)
def test_a_run_that_has_written_logs_alone_has_not_started(
    study: Study, place: StudyDir, files: tuple[str, ...]
) -> None:
    run, older = study.runs[0].name, "high-s0-deadbeef"
    for name in (run, older):
        (place.runs / name / "crashes").mkdir(parents=True)
        for file in files:
            (place.runs / name / file).write_text("")
        row = rows.read_run(place.runs / name)
        assert (row.state, row.reason) == ("missing", "not started yet")
    table = aggregate(study, place).table
    assert len(table) == len(study.runs), "one row each, whatever lies there"
    assert set(table["state"]) == {"missing"}
    (place.runs / run / "metrics.jsonl").write_text("")
    assert only(aggregate(study, place), run)["reason"] == "config.yaml is missing"


def test_only_complete_runs_of_the_study_are_counted(
    study: Study, place: StudyDir, tmp_path: Path
) -> None:
    high, low = study.runs[:5], study.runs[5:]
    for run in high[:3]:
        synthetic.write_run(place, run)
    synthetic.write_run(place, high[3], done=False, count=30)
    (place.runs / "notes").mkdir()
    (place.runs / "notes.txt").write_text("remember the milk")
    (place.runs / "other-s0-01234567" / "photos").mkdir(parents=True)
    shutil.copytree(place.runs / high[0].name, place.runs / f"{high[0].name}.bak")
    shutil.copytree(place.runs / high[0].name, place.runs / "high-s0-deadbeef")
    shutil.copytree(place.runs / high[0].name, place.runs / "high-s7-deadbeef")
    older = synthetic.study(seeds=5, arms=ARMS, train={"iterations": 50})
    synthetic.write_run(place, older.runs[0])
    more = synthetic.study(seeds=9, arms=ARMS)
    synthetic.write_run(place, more.find("high-s8"))
    gone = synthetic.study(seeds=1, arms={"gone": {"train.dropout": 0.1}})
    synthetic.write_run(place, gone.runs[0])
    broken = synthetic.write_run(place, low[0])
    broken.config.unlink()
    result = aggregate(study, place)
    assert states(result) == {
        **{run.name: "complete" for run in high[:3]},
        high[3].name: "unfinished",
        "notes": "foreign",
        "notes.txt": "foreign",
        "other-s0-01234567": "foreign",
        f"{high[0].name}.bak": "foreign",
        "high-s0-deadbeef": "duplicate",
        "high-s7-deadbeef": "damaged",
        older.runs[0].name: "superseded",
        more.find("high-s8").name: "superseded",
        gone.runs[0].name: "superseded",
        low[0].name: "damaged",
    }
    assert set(result.counted["run"]) == {run.name for run in high[:3]}
    aside = result.table.filter(~pl.col("counted"))
    assert aside["reason"].null_count() == 0
    assert (aside["outcome"] == "incomplete").all()
    assert not aside["collapsed"].any()
    missing = result.table.filter(pl.col("state") == "missing").select("label", "seed").rows()
    assert set(missing) == {("high", 4), ("low", 1), ("low", 2), ("low", 3), ("low", 4)}
    assert high[0].name in only(result, "high-s0-deadbeef")["reason"]


def test_of_copies_the_well_named_one_counts_and_else_the_complete_one(
    study: Study, place: StudyDir
) -> None:
    first, second, third = study.runs[:3]
    folder = synthetic.write_run(place, third)
    folder.path.rename(place.runs / "high-s2-00000000")
    synthetic.write_run(place, third, done=False)
    folder = synthetic.write_run(place, first)
    shutil.copytree(folder.path, place.runs / "high-s0-00000000")
    folder = synthetic.write_run(place, second, done=False)
    folder.path.rename(place.runs / "high-s1-00000000")
    complete = synthetic.write_run(place, second)
    complete.path.rename(place.runs / "high-s1-11111111")
    assert states(aggregate(study, place)) == {
        first.name: "complete",
        "high-s0-00000000": "duplicate",
        "high-s1-00000000": "duplicate",
        "high-s1-11111111": "complete",
        third.name: "unfinished",
        "high-s2-00000000": "duplicate",
    }


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.yaml", "train: [", "config.yaml"),
        ("config.yaml", "seed: 0\ntrain: {batch_sise: 80}\n", "batch_size"),
        ("config.yaml", b"\xff\xfe\x00", "codec"),
        ("result.json", '{"seed": 0, "steps": 60', "result.json"),
        ("result.json", "[]", "result.json"),
        ("metrics.jsonl", '{"iteration": 1, "step": "ten"}\n', "metrics.jsonl"),
        ("metrics.jsonl", '{"iteration": 1}\n', "metrics.jsonl"),
        ("metrics.jsonl", "", "metrics.jsonl ends at 0"),
        ("provenance.jsonl", '{"hosts": "node1"}\n', "provenance.jsonl"),
        ("events.jsonl", "[1]\n", "events.jsonl"),
    ],
)
def test_damage_is_named(
    study: Study, place: StudyDir, name: str, content: str | bytes, reason: str
) -> None:
    folder = synthetic.write_run(place, study.runs[0])
    data = content.encode() if isinstance(content, str) else content
    (folder.path / name).write_bytes(data)
    row = only(aggregate(study, place), folder.name)
    assert (row["state"], row["counted"]) == ("damaged", False)
    assert reason in row["reason"]


def test_other_seeds_within_are_damage(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0])
    result = json.loads(folder.result.read_text())
    folder.result.write_text(json.dumps({**result, "seed": 3}))
    assert only(aggregate(study, place), folder.name)["state"] == "damaged"


def test_an_unfinished_run_under_another_seeds_name_is_damage(
    study: Study, place: StudyDir
) -> None:
    folder = synthetic.write_run(place, study.runs[0], done=False, count=20)
    other = folder.path.rename(place.runs / study.runs[1].name)
    found = only(aggregate(study, place), other.name)
    assert found["state"] == "damaged"
    assert found["reason"] == "the name says seed 1, config.yaml says 0"


def test_the_best_accuracy_so_far_is_one_that_is_known(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0], done=False, count=3)
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for record, accuracy in zip(records, [0.5, None, 0.4], strict=True):
        record["validation_accuracy"] = accuracy
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = only(aggregate(study, place), folder.name)
    assert (found["optimal_iteration"], found["optimal_validation_accuracy"]) == (1, 0.5)


def test_a_result_without_its_metrics_is_damage(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0])
    lines = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[:-1]))
    reason = only(aggregate(study, place), folder.name)["reason"]
    assert reason == "result.json says 600 steps, metrics.jsonl ends at 590"


# --- files that are being written ------------------------------------------------------------


def test_a_line_without_its_end_is_left_for_the_next_time(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0], done=False, count=20)
    last = folder.metrics.read_text().splitlines()[-1]
    more = last.replace('"iteration": 20, "step": 200', '"iteration": 21, "step": 210')
    with folder.metrics.open("a") as file:
        file.write(more)
    assert only(aggregate(study, place), folder.name)["iteration"] == 20
    with folder.metrics.open("a") as file:
        file.write("\n")
    assert only(aggregate(study, place), folder.name)["iteration"] == 21


def test_lines_cut_short_by_a_crash_are_counted_and_left_out(tmp_path: Path) -> None:
    study = synthetic.study()
    records = synthetic.evaluations(synthetic.MadeUpCourse(), 5, 0, study.points[0].settings)
    lines = [json.dumps(r) for r in records]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines[:2], lines[2][:99], "", *lines[3:], ""]))
    metrics = read_metrics(path)
    assert metrics.iteration.tolist() == [1, 2, 4, 5]
    assert metrics.torn == 1


def test_where_a_run_went_back_the_later_evaluation_counts(tmp_path: Path) -> None:
    settings = synthetic.study().points[0].settings
    first = synthetic.evaluations(synthetic.MadeUpCourse(), 6, 0, settings)
    again = synthetic.evaluations(synthetic.MadeUpCourse(), 8, 1, settings)[3:]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*first, *again]))
    metrics = read_metrics(path)
    assert metrics.iteration.tolist() == list(range(1, 9))
    assert metrics.series["validation_accuracy"][3] == again[0]["validation_accuracy"]


@pytest.mark.parametrize(
    "change", [{"train_loss": None}, {"validation_loss": None}, {"finite": False}]
)
def test_each_sign_of_a_loss_that_is_not_finite_counts(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = synthetic.study().points[0].settings
    records = synthetic.evaluations(synthetic.MadeUpCourse(), 3, 0, settings)
    records[1].update(change)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_metrics(path).finite.tolist() == [True, False, True]


def test_an_evaluation_that_was_repeated_counts_once(tmp_path: Path) -> None:
    settings = synthetic.study().points[0].settings
    records = synthetic.evaluations(synthetic.MadeUpCourse(), 3, 0, settings)
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(record) + "\n" for record in [records[0], *records[1:2] * 2, records[2]]]
    path.write_text("\n".join(lines))
    metrics = read_metrics(path)
    assert (metrics.step.tolist(), metrics.torn) == ([10, 20, 30], 0)


def test_missing_metrics_are_no_evaluations(tmp_path: Path) -> None:
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 0


def test_odd_diagnostics_are_taken_as_they_come(tmp_path: Path) -> None:
    settings = synthetic.study().points[0].settings
    records = synthetic.evaluations(synthetic.MadeUpCourse(), 4, 0, settings)
    odd = [{"a": 1, "b": {"c": 2.0}}, {"b": {"c": None}, "a": 5}, {"a": "word", "h": [1, 2]}, None]
    for record, diagnostics in zip(records, odd, strict=True):
        record["diagnostics"] = diagnostics
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    names, last, largest = read_metrics(path).diagnostics
    found = {n: (a, b) for n, a, b in zip(names, last, largest, strict=True) if a == a}
    assert found == {"a": (5, 5), "b.c": (2, 2)}


def test_a_million_lines_do_not_hurt(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0], "permanent_collapse", done=False)
    record = json.loads(folder.metrics.read_text().splitlines()[-1])
    record.pop("diagnostics")
    head, tail = json.dumps(record).split('"iteration": 60, "step": 600')
    with folder.metrics.open("a") as file:
        for start in range(61, 1_000_001, 1000):
            file.writelines(
                f'{head}"iteration": {i}, "step": {10 * i}{tail}\n'
                for i in range(start, min(start + 1000, 1_000_001))
            )
    row = only(aggregate(study, place), folder.name)
    assert (row["evaluations"], row["step"]) == (1_000_000, 10_000_000)
    assert row["outcome_so_far"] == "permanent_collapse"


# --- incremental -----------------------------------------------------------------------------


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
    fewer = synthetic.study(seeds=2, arms=ARMS)
    assert set(aggregate(fewer, place).counted["seed"]) <= {0, 1}


def test_a_summary_of_another_form_of_the_study_is_not_used(
    study: Study, place: StudyDir, reads: list[str]
) -> None:
    for run in study.runs[:3]:
        synthetic.write_run(place, run)
    write(aggregate(study, place))
    fewer = synthetic.study(seeds=2, arms=ARMS)
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
    monkeypatch.setattr(module, "_code", lambda: "another")
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
    stern = synthetic.study(seeds=5, arms=ARMS, analysis={"learned_accuracy": 0.999})
    usual = synthetic.study(seeds=5, arms=ARMS)
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


# --- tables ----------------------------------------------------------------------------------


def test_settings_that_differ_become_columns(tmp_path: Path) -> None:
    levels = {"kind": "threshold", "initial": 1e-3, "levels": [{"above": 0.9, "rate": 1e-4}]}
    study = synthetic.study(
        arms={"flat": {}, "steps": {"train.learning_rate": levels}},
        grid={"train.dropout": [0.1, 0.5], "train.optimizer.clip_norm": [None, 1]},
    )
    result = aggregate(study, synthetic.directory(study, tmp_path))
    assert set(result.swept) == {
        "train.learning_rate.kind", "train.learning_rate.levels", "train.dropout",
        "train.optimizer.clip_norm",
    }  # fmt: skip
    table = result.table.unique("label")
    assert set(table["train.dropout"]) == {0.1, 0.5}
    assert set(table["train.optimizer.clip_norm"]) == {None, 1.0}
    told = [json.loads(text) for text in table["train.learning_rate.levels"].drop_nulls()]
    assert told == [levels["levels"]] * 4


def test_summaries_are_written_once(
    study: Study, place: StudyDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write_run(place, study.runs[0])
    result = aggregate(study, place)
    write(result)
    monkeypatch.setattr(module, "JUST_CHANGED", 0)
    write(aggregate(study, place))
    before = place.summary.stat().st_mtime_ns
    assert aggregate(study, place).table.equals(result.table)
    write(aggregate(study, place))
    assert place.summary.stat().st_mtime_ns == before
    place.summary_csv.unlink()
    write(aggregate(study, place))
    assert pl.read_parquet(place.summary).equals(result.table)
    assert pl.read_csv(place.summary_csv, infer_schema_length=None).height == 10
    synthetic.write_run(place, study.runs[1])
    write(aggregate(study, place))
    assert pl.read_parquet(place.summary)["counted"].sum() == 2


def test_a_study_without_runs_has_only_missing_ones(study: Study, tmp_path: Path) -> None:
    result = aggregate(study, StudyDir(tmp_path / "nothing"))
    assert (result.table["state"] == "missing").all()
    assert result.table.height == 10
    assert result.counted.is_empty()


def test_a_run_of_two_studies_is_counted_once(study: Study, place: StudyDir) -> None:
    other = synthetic.study("other", seeds=2, arms={"same": ARMS["high"], "x": {"train.l2": 0.1}})
    there = synthetic.directory(other, place.path.parent)
    for run in study.runs[:2]:
        synthetic.write_run(place, run)
    for run in other.runs:
        synthetic.write_run(there, run)
    table = combine([aggregate(study, place), aggregate(other, there)])
    assert table.filter("counted").select("study", "label").rows() == [
        ("synthetic", "high"), ("synthetic", "high"), ("other", "x"), ("other", "x"),
    ]  # fmt: skip
    assert table.filter(pl.col("state") == "duplicate")["study"].to_list() == ["other"] * 2


def test_the_command_line(
    study: Study, place: StudyDir, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, kind in zip(study.runs, [*synthetic.COURSES] * 2, strict=True):
        synthetic.write_run(place, run, kind)
    main([study.name, "--logs", str(place.path.parent)])
    shown = capsys.readouterr().out
    assert "high" in shown
    assert "10 runs counted" in shown
    assert str(place.summary) in shown
    assert place.summary_csv.exists()
    assert find_study(place.path)[1].path == place.path
    with pytest.raises(ConfigError, match="nor the name of a study"):
        main(["nothing", "--logs", str(place.path.parent)])


def test_wrong_types_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "step": true}\n')
    with pytest.raises(DataError, match="step"):
        read_metrics(path)
