"""What the pages of a study say."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from glass_cnn.analysis import statistics
from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.effects import Effect
from glass_cnn.analysis.table import Aggregation, aggregate
from glass_cnn.report import answers, pagedata, words
from glass_cnn.settings import RunSettings
from hpc.records import append_record
from jobs.report import main
from tests import synthetic
from tests.collapse_study import EVIL, embedded, pages, text_of, with_report


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Aggregation:
    return with_report(tmp_path_factory.mktemp("logs"))


# --- what is said ----------------------------------------------------------------------------


def test_the_answers_come_first_and_are_right(large: Aggregation) -> None:
    said = dict(answers.answers(estimate(large))[:3])
    assert said["constant-1e-3"].startswith(
        "collapsed in 10 of the 12 runs that learned (83 %, 95 % interval 55–95 %): "
        "6 permanently, 4 transiently"
    )
    assert said["constant-1e-4"].startswith("collapsed in none of the 11 runs")
    assert said["constant-1e-4"].count(
        "; 1 run never learned. Median validation accuracy: optimal 99."
    )
    assert "1 run ended with a loss that is not finite" in said["threshold"]
    page = text_of(large.directory.report.read_text())
    assert page.index("collapsed in 10 of the 12") < page.index("Kaplan–Meier")
    assert "constant-1e-3 collapses more often than constant-1e-4: by 83 percentage points" in page
    assert "1 of 36 runs is not complete" in page
    assert "With 11 runs that learned in an arm, no collapse at all still allows" in page


def test_text_from_outside_stays_text(large: Aggregation) -> None:
    page = large.directory.report.read_text()
    assert EVIL not in page
    assert "alert(1)" in text_of(page)
    assert EVIL in text_of(page)
    log = large.directory.results_log.read_text()
    assert EVIL not in log
    assert r"\<script\>" in log


def test_settings_cannot_end_the_data_of_the_page(tmp_path: Path) -> None:
    name = "train.restart_from.run"
    study = synthetic.study(seeds=1, grid={name: [f"</script>{EVIL}", "x"], "train.l2": [0, 1]})
    page, _ = pages(study, synthetic.directory(study, tmp_path))
    assert embedded(page)["heatmaps"][0]["y"] == [f"</script>{EVIL}", "x"]
    assert EVIL not in page


def test_the_page_needs_no_network(large: Aggregation) -> None:
    page = large.directory.report.read_text()
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", outside)
    assert "@import" not in outside
    assert "url(" not in outside


def test_every_part_is_there(large: Aggregation) -> None:
    page = text_of(large.directory.report.read_text())
    for words_ in (
        "Kaplan–Meier", "Performance profiles", "Fisher p", "McNemar p", "Run by run",
        "parent-s0-01234567 at step 600", "resumed at step 300", "At least 99 % of the validation",
        "Validation accuracy of at least 95 % in 3 evaluations", "0123456789ab",
        "Hosts 2 (names in summary.csv)", "python 3.11.7", "at iteration 30 of 60",
        "is not named <label>-s<seed>-<hash>",
        "data set endpoint (thermal, 250 px), model swanson2017, batch size 80",
    ):  # fmt: skip
        assert words_ in page, words_


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "learning rate 0.001, Adam (β₁ 0.9, β₂ 0.999, ε 1e-8), L2 0.01, dropout 0.5, "
             "no augmentation"),
        ({"learning_rate": {"kind": "linear", "initial": 1e-3, "final": 1e-4,
                            "schedule_length": 550}},
         "learning rate linear (initial 0.001, final 0.0001, schedule length 550)"),
        ({"learning_rate": {"kind": "threshold", "initial": 1e-3,
                            "levels": [{"above": 0.995, "rate": 1e-4}]}},
         "learning rate threshold (initial 0.001, 0.0001 above 99.5 %)"),
        ({"optimizer": {"kind": "sgd", "momentum": 0.9}}, "SGD (momentum 0.9)"),
        ({"augmentation": {"rotations": True, "flips": True}},
         "augmentation by rotations and flips"),
        ({"order": "batch"}, "no augmentation, a new shuffle for each batch"),
        ({"precision": "bfloat16"}, "no augmentation, bfloat16 factors"),
    ],
)  # fmt: skip
def test_captions_name_all_hyperparameters(changes: dict[str, Any], told: str) -> None:
    assert told in words.describe(RunSettings.model_validate({"train": changes}))


def test_captions_name_what_is_set_beside_a_recipe_and_how_pictures_are_drawn() -> None:
    beside = {"recipe": "modern", "input": "raw", "dense_rate": 0.01}
    drawn = {"style": "disc", "background": "black", "pixels": 48, "window": 10.0}
    settings = RunSettings.model_validate({"model": beside, "render": drawn})
    assert words.describe(settings).startswith(
        "data set endpoint (thermal, 48 px, discs, on black, windows of 10 σ), "
        "model modern (input raw, dense rate 0.01), batch size 80"
    )


@pytest.mark.parametrize(
    ("k", "n", "told"),
    [(3, 10, "11–60 %"), (0, 12, "0–26 %"), (0, 1000, "0.0–0.4 %"), (0, 0, "–")],
)
def test_intervals_are_told_as_finely_as_they_are(k: int, n: int, told: str) -> None:
    assert words.interval(statistics.rate(k, n)) == told


def test_arms_are_told_by_what_they_change(large: Aggregation) -> None:
    threshold = large.study.points[2]
    assert words.plain(threshold.changes["train.learning_rate"]) == (
        "threshold, initial 0.001, levels above 0.9, rate 0.0001"
    )


def test_an_interval_across_zero_is_told_as_such(tmp_path: Path) -> None:
    arms = {f"a{i}": {"train.dropout": 0.1 * i} for i in (1, 2)}
    study = synthetic.study(seeds=8, arms=arms, analysis={"confidence": 0.999})
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        collapses = run.seed < {"a1": 1, "a2": 7}[run.point.label]
        synthetic.write_run(place, run, "permanent_collapse" if collapses else "survived")
    (_, first), _, (arm, text), *_ = answers.answers(estimate(aggregate(study, place)))
    assert "99.9 % interval" in first
    page, log = pages(study, place)
    assert text_of(page).count("99.9 %") > 5
    assert "99.9 % intervals" in log
    assert not re.search(r"\b100 % (interval|confidence|bootstrap)", text_of(page) + log)
    assert arm == "a2"
    assert text.startswith(
        "collapses more often than a1: by 75 percentage points (−2 to 91; Fisher's exact test"
    )


def test_many_arms_are_asked_by_their_axis(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1, grid={"train.batch_size": list(range(2, 15))})
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    said = answers.answers(estimate(aggregate(study, place)))
    assert said[0][1] == "13 of 13 complete runs of 13 arms learned; 0 of these collapsed (0 %)."
    assert said[1] == ("batch size", "decides nothing that these runs could tell.")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Aggregation:
    """Two by three points of ten seeds: collapses with the rate, whatever the dropout."""
    axes = {"train.learning_rate.initial": [1e-4, 1e-3], "train.dropout": [0.0, 0.2, 0.5]}
    study = synthetic.study("grid", 10, grid=axes)
    place = synthetic.directory(study, tmp_path_factory.mktemp("grid"))
    for run in study.runs:
        often = 7 if run.point.label.startswith("learning_rate_0.001") else 1
        synthetic.write_run(place, run, "permanent_collapse" if run.seed < often else "survived")
    pages(study, place)
    return aggregate(study, place)


def test_a_grid_is_answered_by_its_factors(grid: Aggregation) -> None:
    first, rate, dropout, *rest = answers.answers(estimate(grid))
    assert first[1] == "60 of 60 complete runs of 6 arms learned; 24 of these collapsed (40 %)."
    assert rate[0] == "learning rate"
    assert rate[1].startswith(
        "decides how often runs collapse, the rest being equal (Cochran–Mantel–Haenszel test, "
        "p < 0.0001): 10 % at 0.0001; 70 % at 0.001. 0.001 collapses more often than 0.0001: by 60 "
        "percentage points ("
    )
    assert re.search(r"\), at [\d.]+ \([\d.]+–[\d.]+\) times the hazard\.$", rate[1])
    assert dropout[0] == "dropout"
    assert dropout[1].startswith("does not clearly decide how often")
    assert len(rest) == 1, "what the seeds show, and no pair of arms"


def test_the_page_of_a_grid_begins_with_its_map_scaled_to_the_data(grid: Aggregation) -> None:
    page = grid.directory.report.read_text()
    assert page.index('id="grid"') < page.index('id="answers"')
    data = embedded(page)
    (map_,) = data["heatmaps"]
    assert map_["highest"] == pytest.approx(0.7)
    assert map_["short"] == [["10 %"] * 3, ["70 %"] * 3]
    arms = data["arms"]
    assert [arm["color"] for arm in arms] == ["arm-0"] * 3 + ["arm-1"] * 3, "of the rate"
    assert [arm["dash"] for arm in arms] == ["solid", "dash", "dot"] * 2, "of the dropout"
    assert data["panels"]["titles"] == ["dropout 0", "dropout 0.2", "dropout 0.5"]
    assert data["panels"]["of"] == [0, 1, 2, 0, 1, 2]
    assert data["panels"]["lines"] == ["0.0001"] * 3 + ["0.001"] * 3


@pytest.mark.parametrize(
    ("effect", "told"),
    [
        (Effect(12.34, 8.06, 18.9), "12 (8.1–19)"),
        (Effect(math.inf, 3.21, math.inf), "∞ (3.2–∞)"),
        (Effect(0, 0, 0.31), "0 (0–0.31)"),
        (Effect(2500, 0.001, 1e6), "2500 (0.001–1e6)"),
        (None, "–"),
    ],
)
def test_ratios_are_told_with_two_digits(effect: Effect | None, told: str) -> None:
    assert words.ratio(effect) == told


@pytest.mark.parametrize(
    ("a", "b", "difference", "low", "high", "subject", "told"),
    [
        ("x", "y", 0.5, 0.2, 0.7, "x", "more often than y: by 50 percentage points (20 to 70;"),
        ("x", "y", -0.5, -0.7, -0.2, "y", "more often than x: by 50 percentage points (20 to 70;"),
    ],
)  # fmt: skip
def test_the_arm_that_collapses_more_often_is_the_subject_of_a_difference(
    large: Aggregation, a: str, b: str, difference: float, low: float, high: float,
    subject: str, told: str,
) -> None:  # fmt: skip
    test = statistics.Comparison(a, b, difference, low, high, 0.001, 0.002)
    said = answers.answers(dataclasses.replace(estimate(large), comparisons=[test]))
    (found,) = [text for who, text in said if who == subject and "often than" in text]
    assert found.startswith(f"collapses {told}")


def test_a_study_of_one_arm_says_first_what_its_runs_reached(tmp_path: Path) -> None:
    study = synthetic.study(seeds=4)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run, "never_learned" if run.seed == 3 else "survived")
    (arm, first), (_, second), *_ = answers.answers(estimate(aggregate(study, place)))
    assert arm == "base"
    assert first.startswith(
        "learned in 3 of its 4 complete runs (a validation accuracy of at least 95 % in 3 "
    )
    assert "in a row). Median validation accuracy: optimal 99." in first
    assert second.startswith("collapsed in none of the 3 runs that learned")


def test_numbers_at_risk_stand_under_the_survival_curves(large: Aggregation) -> None:
    arms = estimate(large).arms
    found = pagedata.at_risk(arms)
    assert found is not None
    times, counts = found
    assert times[0] == 0
    for arm, (label, row) in zip(arms, counts, strict=True):
        assert label == arm.label
        assert row[0] == arm.learned.k
        assert row == sorted(row, reverse=True)
    few = dataclasses.replace(arms[0], times=[0.0, 100.0, 100.0, 400.0])
    assert pagedata.at_risk([few]) == ([0, 100, 200, 300, 400], [(few.label, [4, 3, 1, 1, 1])])
    page = text_of(large.directory.report.read_text())
    assert f"Runs at risk after (steps) 0 {times[1]:g}" in page


def test_the_page_names_no_host_and_no_place_of_this_machine(large: Aggregation) -> None:
    page = large.directory.report.read_text()
    assert "node1" not in page
    assert "node2" not in page
    assert str(large.directory.path.parent) not in page


def test_reasons_on_the_pages_name_no_host_and_no_place(tmp_path: Path) -> None:
    study = synthetic.study(seeds=2)
    place = synthetic.directory(study, tmp_path)
    first, second = study.runs
    parent = tmp_path / "first/runs/base-s0-01234567/checkpoints"
    said = f"node17.cluster.org was lost, and rank 1 on node17 with it; branched from {parent}"
    folder = synthetic.write_run(place, first, start={"hosts": ["node1", "node17.cluster.org"]})
    again = json.loads(folder.provenance.read_text()) | {"reason": said}
    append_record(folder.provenance, again)
    damaged = synthetic.write_run(place, second)
    damaged.metrics.unlink()
    damaged.metrics.mkdir()
    for text in pages(study, place):
        assert "node17" not in text
        assert str(tmp_path) not in text
        assert second.name in text_of(text)
    assert "a node was lost, and rank 1 on a node with it; branched from first/runs/" in text_of(
        place.report.read_text()
    )
    assert f"runs/{second.name}/metrics.jsonl" in text_of(place.report.read_text())


def test_what_a_study_comes_after_is_named_without_its_place(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1, after=str(tmp_path / "elsewhere" / "first.yaml"))
    page, _ = pages(study, synthetic.directory(study, tmp_path))
    assert "after: first.yaml" in text_of(page)
    assert str(tmp_path) not in page


def test_runs_lead_to_their_files(tmp_path: Path) -> None:
    study = synthetic.study(seeds=2)
    place = synthetic.directory(study, tmp_path)
    first, second = (synthetic.write_run(place, run) for run in study.runs)
    first.pictures.write_text("")
    page, _ = pages(study, place)
    found = re.findall(r'<a href="([^"#]+)"', page)
    for address in found:
        assert (place.path / address).exists(), address
    assert f"runs/{first.name}/visualize.html" in found
    assert f"runs/{second.name}/visualize.html" not in found
    assert f"runs/{second.name}/metrics.jsonl" in found
    assert "summary.csv" in found
    assert "tensorboard --logdir runs" in text_of(page)


def test_several_studies_stand_on_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        study = synthetic.study(name, 2, description=f"{name}? {EVIL}")
        place = synthetic.directory(study, tmp_path)
        for run in study.runs:
            synthetic.write_run(place, run, "permanent_collapse" if run.seed else "survived")
    main(["one two", "--logs", str(tmp_path)])
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert text_of(page).count("collapsed in 1 of the 2 runs that learned") == 2
    for name in ("one", "two"):
        assert f'<a href="{name}/report.html">' in page
        assert (tmp_path / name / "report.html").exists()
    assert EVIL not in page
    assert page.count("<table") == 2


# --- awkward studies -------------------------------------------------------------------------


def test_a_study_without_runs_says_so(tmp_path: Path) -> None:
    study = synthetic.study(seeds=2)
    page, log = pages(study, synthetic.directory(study, tmp_path))
    assert "No run is complete yet; the study asks for 2." in text_of(page)
    assert "No run has been evaluated yet." in text_of(page)
    assert "0 of 2 runs complete" in log


def test_unfinished_runs_are_shown_and_not_counted(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1)
    place = synthetic.directory(study, tmp_path)
    synthetic.write_run(place, study.runs[0], "permanent_collapse", done=False, count=50)
    page, _ = pages(study, place)
    assert "No run is complete yet" in text_of(page)
    assert len(embedded(page)["runs"]) == 1
    assert embedded(page)["survival"] == []


@pytest.mark.parametrize("kind", synthetic.COURSES)
def test_a_single_run_makes_a_report(tmp_path: Path, kind: str) -> None:
    study = synthetic.study(seeds=1)
    place = synthetic.directory(study, tmp_path)
    synthetic.write_run(place, study.runs[0], kind)
    page, log = pages(study, place)
    assert "1 of 1 run complete" in text_of(page)
    assert words.OUTCOME_WORDS[kind] in log


@pytest.mark.parametrize(
    ("time", "day"),
    [
        ("2017-11-26T14:03:00Z", "26 November 2017"),
        (1511704980.5, "26 November 2017"),
        ("Sunday", "Without a date"),
        (1e300, "Without a date"),
        (None, "Without a date"),
    ],
)
def test_entries_stand_under_the_day_on_which_they_started(
    tmp_path: Path, time: Any, day: str
) -> None:
    study = synthetic.study(seeds=1)
    place = synthetic.directory(study, tmp_path)
    synthetic.write_run(place, study.runs[0], start={"time": time})
    assert f"## {day}\n" in pages(study, place)[1]


def test_the_command_line(large: Aggregation, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(large.directory.path)])
    shown = capsys.readouterr().out
    assert re.search(r"constant-1e-3 +12/12 +12/12 +10/12 +55–95 % +6/4", shown)
    assert "35 runs counted; not counted: " in shown
    assert str(large.directory.report) in shown
