"""What is wrong in a run's directory is named, and the run is not counted: in every table."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

import jobs.aggregate
import jobs.report
import jobs.status
from glass_cnn import numerics
from glass_cnn.analysis.table import aggregate
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.pipeline import pipeline
from glass_cnn.records import Evaluation, read_evaluations
from glass_cnn.study import Study
from hpc.preempt import StopFlag
from hpc.world import world
from jobs import submit, task, train
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
    assert found["reason"] == "the name says seed 1, config.yaml says seed 0"


def test_the_best_accuracy_so_far_is_one_that_is_known(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0], done=False, count=3)
    there = zip(read_evaluations(folder.metrics), [0.5, None, 0.4], strict=True)
    synthetic.write_metrics(folder.metrics, [replace(e, validation_accuracy=a) for e, a in there])
    found = synthetic.row_of(aggregate(study, place), folder.name)
    assert (found["optimal_iteration"], found["optimal_validation_accuracy"]) == (1, 0.5)


def test_a_result_without_its_metrics_is_damage(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0])
    synthetic.write_metrics(folder.metrics, read_evaluations(folder.metrics)[:-1])
    reason = synthetic.row_of(aggregate(study, place), folder.name)["reason"]
    assert reason == "result.json says 600 steps, metrics.jsonl ends at 590"


def test_a_result_of_other_metrics_is_damage(study: Study, place: StudyDir) -> None:
    folder = synthetic.write_run(place, study.runs[0])
    *others, last = read_evaluations(folder.metrics)
    synthetic.write_metrics(folder.metrics, [*others, replace(last, validation_accuracy=0.25)])
    reason = synthetic.row_of(aggregate(study, place), folder.name)["reason"]
    assert reason.endswith("at iteration 60, metrics.jsonl 0.25")


def test_more_evaluations_than_the_settings_ask_for_are_damage(
    study: Study, place: StudyDir
) -> None:
    folder = synthetic.write_run(place, study.runs[0], done=False, count=61)
    reason = synthetic.row_of(aggregate(study, place), folder.name)["reason"]
    assert reason == "metrics.jsonl goes to iteration 61, config.yaml says 60"


# --- in every table --------------------------------------------------------------------------

HARM: dict[str, tuple[Callable[[list[Evaluation]], list[Evaluation]], str]] = {
    "a hole": (lambda e: e[:4] + e[9:], "metrics.jsonl lacks the evaluations of iterations 5–9"),
    "no beginning": (lambda e: e[20:], "metrics.jsonl lacks the evaluations of iterations 1–20"),
    "a value": (
        lambda e: [*e[:7], replace(e[7], validation_accuracy=7.0), *e[8:]],
        "metrics.jsonl line 8: validation_accuracy is 7.0: expected a number <= 1.0",
    ),
}


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_record_is_named_in_every_table(
    study: Study, place: StudyDir, harm: str, done: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in study.runs[1:]:
        synthetic.write_run(place, run)
    name = synthetic.write_run(place, study.runs[0], done=done, count=60 if done else 40).name
    change, told = HARM[harm]
    metrics = RunDir(place.runs / name).metrics
    synthetic.write_metrics(metrics, change(read_evaluations(metrics)))
    row = synthetic.row_of(aggregate(study, place), name)
    assert (row["state"], row["counted"], row["outcome"]) == ("damaged", False, "incomplete")
    assert row["reason"] == told
    assert row["outcome_so_far"] is None
    words = [study.name, "--logs", str(place.path.parent)]
    for job in (jobs.aggregate, jobs.report, jobs.status):
        job.main(words)
        said = capsys.readouterr().out
        assert any(name in line and told in line for line in said.splitlines()), said
    for page in (place.report, place.results_log, place.summary_csv):
        text = html.unescape(page.read_text()).replace("\\_", "_").replace("\\<", "<")
        assert told in text, page
    assert "9/10" in place.results_log.read_text() or "4/5" in place.results_log.read_text()


def test_submit_does_not_call_a_damaged_run_complete(
    study: Study, place: StudyDir, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in study.runs:
        synthetic.write_run(place, run)
    submit.summarize(whole := pipeline(study.name, (), place.path.parent), place, 0)
    assert "10 of 10 runs complete" in capsys.readouterr().out
    metrics = RunDir(place.runs / study.runs[3].name).metrics
    synthetic.write_metrics(metrics, read_evaluations(metrics)[7:])
    submit.summarize(whole, place, 0)
    said = capsys.readouterr().out
    assert "9 of 10 runs complete" in said
    assert f"{study.runs[3].name} is damaged and not counted: metrics.jsonl lacks" in said


# --- seeds that are one ----------------------------------------------------------------------


def test_runs_of_different_seeds_with_the_same_weights_are_told(
    study: Study, place: StudyDir, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seeds of one arm are never the same run; the same seed in two arms may be."""
    for run in study.runs:
        synthetic.write_run(place, run)
    assert aggregate(study, place).warnings == []
    one, other = (RunDir(place.runs / study.runs[i].name) for i in (1, 3))
    other.metrics.write_bytes(one.metrics.read_bytes())
    other.result.write_text(one.result.read_text().replace('"seed": 1', '"seed": 3'))
    result = aggregate(study, place)
    # Seeds 1 and 3 of the other arm are the same runs as those of this one.
    (told,) = [each for each in result.warnings if "curve" in each]
    assert told.startswith(f"{one.name}, ")
    assert other.name in told
    assert len(result.counted) == 10
    jobs.report.main([study.name, "--logs", str(place.path.parent)])
    assert told in capsys.readouterr().out
    assert told in html.unescape(place.report.read_text())


def test_arms_that_end_alike_at_every_seed_are_told(study: Study, place: StudyDir) -> None:
    """What they differ in did nothing; a seed of several may well end alike by itself."""
    folders = [synthetic.write_run(place, run) for run in study.runs]
    assert len(folders) == 10
    for i in range(5):
        assert aggregate(study, place).warnings == []
        folders[i + 5].result.write_bytes(folders[i].result.read_bytes())
    (told,) = aggregate(study, place).warnings
    first, second = (point.label for point in study.points)
    assert told.startswith(f"{first}, {second} have the same weights, seed by seed: what differs")
    (change,) = study.points[0].changes
    assert f"({change}) changed nothing" in told


def test_unfinished_runs_of_one_curve_are_told_and_losses_that_are_not_finite_are_no_curve(
    study: Study, place: StudyDir
) -> None:
    folders = [synthetic.write_run(place, run, done=False, count=9) for run in study.runs[:4]]
    lost = [replace(e, train_loss=None, validation_loss=None, validation_accuracy=0.5)
            for e in read_evaluations(folders[0].metrics)]  # fmt: skip
    for folder in folders[:2]:
        synthetic.write_metrics(folder.metrics, lost)
    assert aggregate(study, place).warnings == []
    folders[3].metrics.write_bytes(folders[2].metrics.read_bytes())
    (told,) = aggregate(study, place).warnings
    assert told.startswith(f"{folders[2].name}, {folders[3].name} have the same curve though")


# --- results that are none, by whatever way one starts a run ---------------------------------


@pytest.mark.parametrize("content", ["", "{}", '{"seed": 0, "steps": 60', "of another seed", None])
def test_a_start_by_hand_finishes_a_run_whose_result_is_none(
    study: Study,
    place: StudyDir,
    content: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (synthetic.write_run(place, run) for run in study.runs[:2])
    if content is not None:
        one.result.write_text(content if content[:1] != "o" else other.result.read_text())
    trained: list[str] = []
    loop = SimpleNamespace(train=lambda _, run, *_rest: trained.append(run.name), start_over=None)
    monkeypatch.setitem(sys.modules, "glass_cnn.training.loop", loop)
    monkeypatch.setattr(numerics, "choose", lambda *_: None)
    words = [study.name, one.name, "--logs", str(place.path.parent)]
    train.train_one(train.parse(words), world(), StopFlag(), {})
    assert trained == ([] if content is None else [one.name])
    assert ("complete; nothing to do" in capsys.readouterr().out) == (content is None)
    task.find(task.parse(["train", *words]), study, place.path.parent)
    assert one.result.exists() == (content is None), "a batch script looks for it alone"
    assert (f"{one.result} is damaged" in capsys.readouterr().err) == (content is not None)
