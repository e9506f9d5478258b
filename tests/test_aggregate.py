"""Run directories to a table: every kind of directory, and what the study says of them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from msgspec.structs import replace

from glass_cnn.analysis import rows
from glass_cnn.analysis import scan as module
from glass_cnn.analysis.table import Aggregation, aggregate, combine, find_study, write
from glass_cnn.paths import StudyDir
from glass_cnn.records import Lineage
from glass_cnn.report import tables
from glass_cnn.study import Study
from hpc.errors import ConfigError
from hpc.files import read_json, write_json
from hpc.records import append_record
from jobs.aggregate import main
from tests import synthetic


@pytest.fixture
def study() -> Study:
    return synthetic.study(seeds=5, arms=synthetic.ARMS)


@pytest.fixture
def place(study: Study, tmp_path: Path) -> StudyDir:
    return synthetic.directory(study, tmp_path)


def states(result: Aggregation) -> dict[str, str]:
    named = result.table.filter(pl.col("run").is_not_null())
    return dict(named.select("run", "state").iter_rows())


@pytest.mark.parametrize("kind", synthetic.COURSES)
def test_each_outcome_is_found(study: Study, place: StudyDir, kind: str) -> None:
    run = study.runs[0]
    synthetic.write_run(place, run, kind)
    row = synthetic.row_of(aggregate(study, place), run.name)
    assert (row["state"], row["outcome"], row["counted"]) == ("complete", kind, True)
    assert row["collapsed"] == kind.endswith("collapse")


@pytest.mark.parametrize(
    "records",
    [
        [{"a": {"x": 1.0}, "b": 2.0}, {"a": 3.0, "b": {"x": 4.0}}],
        [{"a": {"x": 1.0, "y": 2.0}, "b": {}}, {"a": {"x": 3.0}, "b": {"y": 4.0}}],
        [{"a": {"x": 5.0}, "b": 1.0}, {"a": {"x": 2.0}, "b": None}, {"a": {"x": None}, "b": "?"}],
        [{"a": {"x": None}, "b": None}] * 3,
    ],
    ids=["a group or a number", "groups of other names", "none at the end", "none at all"],
)
def test_diagnostics_of_any_shape_are_those_of_a_plain_reading(
    study: Study, place: StudyDir, records: list[dict[str, Any]]
) -> None:
    """The last number that each has, and the largest; what was never measured is none."""
    folder = synthetic.write_run(place, study.runs[0])
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line, diagnostics in zip(lines, itertools.cycle(records), strict=False):
        line["diagnostics"] = diagnostics
    lines[len(records) :] = [{**line, "diagnostics": None} for line in lines[len(records) :]]
    folder.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    wanted: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.items():
            named = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {}
            for name, number in (named or {key: value}).items():
                found = wanted.setdefault(name, [])
                found += [number] if isinstance(number, float) else []
    row = synthetic.row_of(aggregate(study, place), study.runs[0].name)
    for name, numbers in wanted.items():
        assert row.get(f"diagnostics.{name}.last") == (numbers[-1] if numbers else None), name
        assert row.get(f"diagnostics.{name}.max") == max(numbers, default=None), name


def test_a_row_holds_times_accuracies_diagnostics_and_provenance(
    study: Study, place: StudyDir
) -> None:
    run = study.runs[1]
    folder = synthetic.write_run(place, run, "permanent_collapse")
    append_record(folder.events, {"event": "rollback", "step": 10, "reason": "x"})
    append_record(folder.events, {"event": "checkpoint_refused", "step": 10, "reason": "x"})
    lineage = Lineage("parent-s1-01234567", step=600, which="best")
    again = replace(synthetic.START, hosts=["node2"], resumed_step=200, lineage=lineage)
    append_record(folder.provenance, again)
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    row = synthetic.row_of(aggregate(study, place), run.name)
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
    dead = {r["step"]: r["diagnostics"]["dead_fraction"]["dense"] for r in records}
    assert (dead[390], dead[400]) == (0.2, 0.9)
    assert (row["dead_before_onset"], row["dead_at_onset"]) == (dead[390], dead[400])
    assert row["dead_at_end"] == records[-1]["diagnostics"]["dead_fraction"]["dense"]
    channels = {r["step"]: r["diagnostics"]["dead_fraction"]["conv2"] for r in records}
    assert (channels[390], channels[400]) == (0.1, 0.8)
    assert row["dead_channels_before_onset"] == channels[390]
    assert row["dead_channels_at_onset"] == channels[400]
    assert row["dead_channels_at_end"] == channels[records[-1]["step"]]
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


def test_what_runs_took_of_the_machine_is_summed(study: Study, place: StudyDir) -> None:
    first, second = (synthetic.write_run(place, run) for run in study.runs[:2])
    result = read_json(first.result)
    taken = {"cores": 4, "wall_seconds": 100, "processor_seconds": 300, "peak_memory": 3 << 29}
    write_json(first.result, result | {"wall_seconds": 1800, "usage": taken})
    found = aggregate(study, place)
    row = synthetic.row_of(found, first.name)
    assert (row["core_hours"], row["peak_memory"], row["useful_share"]) == (2, 3 << 29, 0.75)
    row = synthetic.row_of(found, second.name)
    assert (row["core_hours"], row["peak_memory"], row["useful_share"]) == (None, None, None)
    told = dict(tables.provenance(found))
    assert told["Core-hours"] == "2 (1 of 2 runs)"
    assert told["Largest memory of a rank"] == "1.50 GiB"
    assert told["Use of the cores"] == "75 % (median)"


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
    assert synthetic.row_of(aggregate(study, place), run)["reason"] == "config.yaml is missing"


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
    older = synthetic.study(seeds=5, arms=synthetic.ARMS, train={"iterations": 50})
    synthetic.write_run(place, older.runs[0])
    more = synthetic.study(seeds=9, arms=synthetic.ARMS)
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
    assert high[0].name in synthetic.row_of(result, "high-s0-deadbeef")["reason"]


def test_of_copies_the_well_named_one_counts_and_else_none(study: Study, place: StudyDir) -> None:
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
    result = aggregate(study, place)
    assert states(result) == {
        first.name: "complete",
        "high-s0-00000000": "duplicate",
        "high-s1-00000000": "duplicate",
        "high-s1-11111111": "superseded",
        third.name: "unfinished",
        "high-s2-00000000": "duplicate",
    }
    aside = result.table.row(by_predicate=pl.col("state") == "superseded", named=True)
    assert "its name is not that of its settings" in aside["reason"]


# --- tables ----------------------------------------------------------------------------------


def test_settings_that_differ_become_columns(tmp_path: Path) -> None:
    levels = {
        "kind": "threshold",
        "initial": 1e-3,
        "levels": [{"above": 0.9, "at_least": None, "rate": 1e-4}],
    }
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
    other = synthetic.study(
        "other", seeds=2, arms={"same": synthetic.ARMS["high"], "x": {"train.l2": 0.1}}
    )
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
