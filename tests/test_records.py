"""Records of a run: written as they always were, read while they grow, checked line by line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from glass_cnn import outcomes, records
from glass_cnn.analysis.table import aggregate
from glass_cnn.metrics import read_metrics
from glass_cnn.paths import RunDir
from glass_cnn.pipeline import SHOWN
from glass_cnn.records import Evaluation
from hpc.errors import DataError
from hpc.records import Growing, append_record, as_dict, as_line, keep_records, read_records
from tests import synthetic


def made(count: int, seed: int = 0) -> list[Evaluation]:
    settings = synthetic.study().points[0].settings
    return synthetic.evaluations(synthetic.MadeUpCourse(), count, seed, settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


# --- how they are written --------------------------------------------------------------------


def test_an_evaluation_has_all_keys_in_the_order_of_the_version_before(root: Path) -> None:
    fixture = root / "tests" / "fixtures"
    found = sorted(fixture.rglob("metrics.jsonl"))
    assert found
    for old in found:
        lines = [as_line(evaluation) for evaluation in records.read_evaluations(old)]
        assert "".join(lines) == old.read_text()


def test_records_of_older_versions_that_lack_keys_are_read(path: Path) -> None:
    old = as_dict(made(1)[0])
    for key in ("epoch", "l2_loss", "seconds", "finite", "diagnostics"):
        del old[key]
    append_record(path, old)
    (evaluation,) = records.read_evaluations(path)
    assert (evaluation.finite, evaluation.seconds, evaluation.l2_loss) == (True, None, None)
    assert len(read_metrics(path)) == 1


def test_what_is_shown_and_drawn_are_keys_of_an_evaluation() -> None:
    assert {*records.SERIES, *SHOWN} <= set(Evaluation.__struct_fields__)
    assert set(SHOWN) <= set(records.SERIES)


# --- files that are being written ------------------------------------------------------------


def test_a_line_without_its_end_is_left_for_the_next_time(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1)
    place = synthetic.directory(study, tmp_path)
    folder = synthetic.write_run(place, study.runs[0], done=False, count=20)
    with folder.metrics.open("a") as file:
        file.write(as_line(made(21)[-1]).rstrip())
    assert synthetic.row_of(aggregate(study, place), folder.name)["iteration"] == 20
    with folder.metrics.open("a") as file:
        file.write("\n")
    assert synthetic.row_of(aggregate(study, place), folder.name)["iteration"] == 21


def test_lines_cut_short_by_a_crash_are_counted_and_left_out(path: Path) -> None:
    lines = [as_line(record).rstrip() for record in made(5)]
    path.write_text("\n".join([*lines[:2], lines[2][:99], "", *lines[3:], ""]))
    metrics = read_metrics(path)
    assert metrics.iteration.tolist() == [1, 2, 4, 5]
    assert metrics.torn == 1


def test_where_a_run_went_back_the_later_evaluation_counts(path: Path) -> None:
    again = made(8, seed=1)[3:]
    synthetic.write_metrics(path, [*made(6), *again])
    metrics = read_metrics(path)
    assert metrics.iteration.tolist() == list(range(1, 9))
    assert metrics.series["validation_accuracy"][3] == again[0].validation_accuracy
    assert metrics.missing() == ""


@pytest.mark.parametrize(
    "change", [{"train_loss": None}, {"validation_loss": None}, {"finite": False}]
)
def test_each_sign_of_a_loss_that_is_not_finite_counts(path: Path, change: dict[str, Any]) -> None:
    first, second, third = made(3)
    synthetic.write_metrics(path, [first, replace(second, **change), third])
    assert read_metrics(path).finite.tolist() == [True, False, True]


def test_an_evaluation_that_was_repeated_counts_once(path: Path) -> None:
    first, second, third = map(as_line, made(3))
    path.write_text("\n".join([first, second, second, third]))
    metrics = read_metrics(path)
    assert (metrics.step.tolist(), metrics.torn) == ([10, 20, 30], 0)


def test_missing_metrics_are_no_evaluations(path: Path) -> None:
    metrics = read_metrics(path)
    assert (len(metrics), metrics.missing(), records.covered(path)) == (0, "", 0)


def test_odd_diagnostics_are_taken_as_they_come(path: Path) -> None:
    odd = [{"a": 1, "b": {"c": 2.0}}, {"b": {"c": None}, "a": 5}, {"a": "word", "h": [1, 2]}, None]
    pairs = zip(made(4), odd, strict=True)
    synthetic.write_metrics(path, [replace(r, diagnostics=d) for r, d in pairs])
    names, last, largest = read_metrics(path).diagnostics
    found = {n: (a, b) for n, a, b in zip(names, last, largest, strict=True) if a == a}
    assert found == {"a": (5, 5), "b.c": (2, 2)}


@pytest.mark.lasting
def test_a_million_lines_do_not_hurt(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1, train={"iterations": 1_000_000})
    place = synthetic.directory(study, tmp_path)
    run = study.runs[0]
    folder = synthetic.write_run(place, run, "permanent_collapse", done=False, count=60)
    record = replace(records.read_evaluations(folder.metrics)[-1], diagnostics=None, seconds=150)
    head, tail = as_line(record).split('"iteration":60,"step":600')
    with folder.metrics.open("a") as file:
        for start in range(61, 1_000_001, 1000):
            file.writelines(
                f'{head}"iteration":{i},"step":{10 * i}{tail}'
                for i in range(start, min(start + 1000, 1_000_001))
            )
    row = synthetic.row_of(aggregate(study, place), folder.name)
    assert (row["evaluations"], row["step"]) == (1_000_000, 10_000_000)
    assert row["outcome_so_far"] == "permanent_collapse"


# --- a file that grows -----------------------------------------------------------------------


def test_a_growing_file_is_read_once_and_a_torn_line_waits(path: Path) -> None:
    growing = Growing(path)
    assert (growing.look().count, growing.last) == (0, None)
    append_record(path, {"n": 1})
    append_record(path, {"n": 2})
    with path.open("a") as file:
        file.write('{"n":')
    assert (growing.look().count, growing.last) == (2, {"n": 2})
    with path.open("a") as file:
        file.write("3}\n")
    assert (growing.look().count, growing.last) == (3, {"n": 3})
    assert (growing.look().count, growing.last) == (3, {"n": 3})


def test_a_look_reads_no_more_than_the_last_line_and_what_is_new(path: Path) -> None:
    for n in range(1000):
        append_record(path, {"n": n})
    growing = Growing(path).look()
    with path.open("r+b") as file:  # what was read before is not looked at again
        file.write(b"#" * 100)
    append_record(path, {"n": 1000})
    assert (growing.look().count, growing.last) == (1001, {"n": 1000})


@pytest.mark.parametrize("change", ["cut", "replaced", "replaced twice", "in place", "removed"])
def test_a_growing_file_that_was_cut_or_replaced_is_read_anew(path: Path, change: str) -> None:
    for n in range(9):
        append_record(path, {"n": n})
    growing = Growing(path).look()
    expected = 3
    match change:
        case "cut":
            os.truncate(path, 3 * len('{"n":0}\n'))
        case "replaced":
            keep_records(path, lambda record: record["n"] < 3)
        case "replaced twice":  # the second may get the number of the first, and be as long
            keep_records(path, lambda record: record["n"] < 3)
            keep_records(path, lambda record: record["n"] < 1)
            for n in range(20, 40):
                append_record(path, {"n": n})
            expected = 21
        case "in place":
            path.write_text('{"n":9}\n' * 12)
            expected = 12
        case "removed":
            path.unlink()
            expected = 0
    assert growing.look().count == expected
    assert growing.last == next(reversed(read_records(path)), None)


# --- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"validation_accuracy": 1.7}, "validation_accuracy is 1.7: expected a number"),
        ({"train_accuracy": -0.1}, "train_accuracy is -0.1"),
        ({"predicted_glass_fraction": 1.01}, "predicted_glass_fraction is 1.01"),
        ({"validation_loss": -0.5}, "validation_loss is -0.5"),
        ({"train_loss": -1}, "train_loss is -1"),
        ({"l2_loss": -1e-3}, "l2_loss is -0.001"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"epoch": -1}, "epoch is -1"),
        ({"seconds": -2}, "seconds is -2"),
        ({"seconds": 1.0}, "seconds is 1, before it 7.5"),
        ({"iteration": 0}, "iteration is 0"),
        ({"step": -40}, "step is -40"),
        ({"step": 41}, "step is 41: iteration 4 of 10 steps each ends elsewhere"),
        ({"iteration": 7}, "step is 40: iteration 7 of 10 steps each ends elsewhere"),
        ({"step": 10**9}, "step is 1000000000"),
        ({"validation_examples": 0}, "validation_examples is 0"),
        ({"validation_glass": -1}, "validation_glass is -1"),
        ({"validation_glass": 2961}, "2960 validation examples, 2961 of them glass: more than"),
        ({"validation_examples": 2959}, "2959 validation examples, 1457 of them glass: before it"),
        ({"validation_glass": 1456}, "2960 validation examples, 1456 of them glass: before"),
        ({"validation_accuracy": "high"}, 'validation_accuracy is "high": expected a number'),
        ({"step": 40.5}, "step is 40.5: expected a whole number"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_line(
    path: Path, change: dict[str, Any], told: str
) -> None:
    lines = [as_line(record) for record in made(6)]
    lines[3] = as_line(as_dict(made(4)[3]) | change)
    path.write_text("".join([*lines[:2], "\n", *lines[2:]]))  # an empty line is no damage
    with pytest.raises(DataError) as raised:
        read_metrics(path, steps_each=10)
    assert str(raised.value).startswith(f"metrics.jsonl line 5: {told}")


def test_a_key_that_is_missing_is_told_by_line(path: Path) -> None:
    path.write_text('{"iteration": 1, "step": 10}\n')
    with pytest.raises(DataError, match=r"line 1: object missing required field learning_rate"):
        read_metrics(path)


@pytest.mark.parametrize("value", [0, 1, None])
def test_values_at_their_bounds_are_taken(path: Path, value: float | None) -> None:
    names = [name for name in records.SERIES if name != "learning_rate"]
    synthetic.write_metrics(path, [replace(made(1)[0], **dict.fromkeys(names, value))])
    assert len(read_metrics(path, steps_each=10)) == 1


# --- holes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "told", "covered"),
    [
        ([1, 2, 3], "", 3),
        ([1, 2, 3, 2, 3, 4], "", 4),  # went back
        ([2, 3], "lacks the evaluation of iteration 1", 0),
        ([5, 6, 7], "lacks the evaluations of iterations 1–4", 0),
        ([1, 2, 5, 6, 9], "lacks the evaluations of iterations 3–4, 7–8", 2),
        ([1, 2, 3, 4, 2, 5], "lacks the evaluations of iterations 3–4", 2),
        (list(range(1, 30, 2)), "lacks the evaluations of iterations 2, 4, 6, 8, 10, …", 1),
        ([1, 10**12], f"lacks the evaluations of iterations 2–{10**12 - 1}", 1),
    ],
)
def test_evaluations_that_are_missing_are_told(
    path: Path, there: list[int], told: str, covered: int
) -> None:
    found = [replace(made(1)[0], iteration=i, step=10 * i) for i in there]
    synthetic.write_metrics(path, found)
    assert read_metrics(path, steps_each=10).missing() == told
    assert records.covered(path) == covered


def test_a_line_cut_short_in_the_middle_is_a_hole_and_told(path: Path) -> None:
    first, second, third = map(as_line, made(3))
    path.write_text(f"{first}{second[:50]}\n{third}")
    told = "lacks the evaluation of iteration 2; 1 line cut short"
    assert read_metrics(path).missing() == told
    assert records.covered(path) == 1


@pytest.mark.parametrize(
    "line", ['{"iteration":3}', '{"no":"evaluation"}', '{"iteration":3,"cut', "[3]", "null"]
)
def test_a_line_that_is_no_evaluation_covers_nothing_and_goes(path: Path, line: str) -> None:
    first, second, third = map(as_line, made(3))
    path.write_text(f"{first}{second}{line}\n{third}")
    assert records.covered(path) == 3
    path.write_text(f"{first}{line}\n{third}")
    assert records.covered(path) == 1
    records.keep_evaluations(path, 1)
    assert path.read_text() == first


def test_an_impossible_value_covers_nothing(path: Path) -> None:
    first, second, third = made(3)
    synthetic.write_metrics(path, [first, replace(second, validation_accuracy=7.0), third])
    assert records.covered(path) == 1
    records.keep_evaluations(path, 3)
    assert [each.iteration for each in records.read_evaluations(path)] == [1, 3]


# --- results ---------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    study = synthetic.study(seeds=1)
    return synthetic.write_run(synthetic.directory(study, tmp_path), study.runs[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 3}, "result.json says seed 3, config.yaml 0"),
        ({"steps": 300}, "result.json says 300 steps and 60 iterations, config.yaml 600 and 60"),
        ({"restarts": -1}, "result.json: restarts is -1: expected a whole number >= 0"),
        ({"wall_seconds": -1}, "result.json: wall_seconds is -1"),
        ({"weights_sha256": None}, "result.json: weights_sha256 is null: expected text"),
        ({"optimal": {"iteration": 61, "validation_accuracy": 1, "test_accuracy": 1}},
         "result.json: the optimal iteration comes after the final one"),
        ({"final": {"iteration": 60, "validation_accuracy": 1, "test_accuracy": 1.5}},
         "result.json: final.test_accuracy is 1.5"),
        ({"final": {"iteration": 59, "validation_accuracy": 1, "test_accuracy": 1}},
         "result.json says 600 steps and 59 iterations"),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_is_none(run: RunDir, change: dict[str, Any], told: str) -> None:
    settings = synthetic.study(seeds=1).runs[0].settings
    whole = as_dict(msgspec.json.decode(run.result.read_bytes()))
    assert records.result_of(run, settings.seed, settings.train) is not None
    run.result.write_bytes(msgspec.json.encode({**whole, **change}))
    assert records.result_of(run, settings.seed, settings.train) is None
    with pytest.raises(DataError) as raised:
        records.own_result(run, settings.seed, settings.train)
    assert str(raised.value).startswith(told)


def test_outcomes_are_decided_without_scipy() -> None:
    assert "scipy" not in (outcomes.__file__ and Path(outcomes.__file__).read_text())
