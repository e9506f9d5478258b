"""What is wrong in a run's directory is named, and the run is not counted: in every table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glass_cnn.analysis.table import aggregate
from glass_cnn.paths import StudyDir
from glass_cnn.study import Study
from tests import synthetic


@pytest.fixture
def study() -> Study:
    return synthetic.study(seeds=5, arms=synthetic.ARMS)


@pytest.fixture
def place(study: Study, tmp_path: Path) -> StudyDir:
    return synthetic.directory(study, tmp_path)


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
    row = synthetic.row_of(aggregate(study, place), folder.name)
    assert (row["state"], row["counted"]) == ("damaged", False)
    assert reason in row["reason"]


def test_other_seeds_within_are_damage(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0])
    result = json.loads(folder.result.read_text())
    folder.result.write_text(json.dumps({**result, "seed": 3}))
    assert synthetic.row_of(aggregate(study, place), folder.name)["state"] == "damaged"


def test_an_unfinished_run_under_another_seeds_name_is_damage(
    study: Study, place: StudyDir
) -> None:
    folder = synthetic.write_run(place, study.runs[0], done=False, count=20)
    other = folder.path.rename(place.runs / study.runs[1].name)
    found = synthetic.row_of(aggregate(study, place), other.name)
    assert found["state"] == "damaged"
    assert found["reason"] == "the name says seed 1, config.yaml says 0"


def test_the_best_accuracy_so_far_is_one_that_is_known(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0], done=False, count=3)
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for record, accuracy in zip(records, [0.5, None, 0.4], strict=True):
        record["validation_accuracy"] = accuracy
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = synthetic.row_of(aggregate(study, place), folder.name)
    assert (found["optimal_iteration"], found["optimal_validation_accuracy"]) == (1, 0.5)


def test_a_result_without_its_metrics_is_damage(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0])
    lines = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[:-1]))
    reason = synthetic.row_of(aggregate(study, place), folder.name)["reason"]
    assert reason == "result.json says 600 steps, metrics.jsonl ends at 590"
