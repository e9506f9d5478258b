"""Curves on the pages of a study: which runs, how thinned, drawn once for page, log and files."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.table import Aggregation, aggregate
from glass_cnn.metrics import Metrics, read_metrics
from glass_cnn.report import curves, pagedata, palette
from glass_cnn.report.page import write_report
from tests import synthetic
from tests.collapse_study import ARMS, embedded, others, pages, text_of, with_report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Aggregation:
    return with_report(tmp_path_factory.mktemp("logs"))


def test_figures_are_drawn_again_only_where_a_run_changed(
    large: Aggregation, tmp_path: Path
) -> None:
    study = synthetic.study(seeds=3)
    place = synthetic.directory(study, tmp_path)
    folders = [synthetic.write_run(place, run, done=False, count=20) for run in study.runs]
    pages(study, place)
    drawn = {path.name: path.stat().st_mtime_ns for path in place.figures.glob("base*")}
    last = folders[1].metrics.read_text().splitlines()[-1]
    with folders[1].metrics.open("a") as file:
        file.write(last.replace('"iteration":20,"step":200', '"iteration":21,"step":210'))
        file.write("\n")
    pages(study, place)
    changed = {
        path.name for path in place.figures.glob("base*")
        if path.stat().st_mtime_ns != drawn[path.name]
    }  # fmt: skip
    assert changed == {f"{folders[1].name}.svg"}


def test_a_grid_becomes_maps_with_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"train.batch_size": [10, 80, 200], "train.learning_rate.initial": [1e-4, 1e-3]}
    study = synthetic.study(seeds=2, grid=grid, arms={"a": {}, "b": {"train.dropout": 0.1}})
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        train = run.settings.train
        assert train.learning_rate.kind == "constant"
        collapses = train.batch_size == 10 and train.learning_rate.initial == 1e-3
        synthetic.write_run(place, run, "permanent_collapse" if collapses else "survived")
    page, _ = pages(study, place)
    maps = embedded(page)["heatmaps"]
    assert [m["title"] for m in maps] == ["", "dropout 0.1"]
    assert (maps[0]["y"], maps[0]["x"]) == (["10", "80", "200"], ["0.0001", "0.001"])
    assert maps[0]["z"] == [[0, 1], [0, 0], [0, 0]]
    assert maps[0]["text"][0][1] == "2/2<br>16–100 %"
    assert "against the rest" not in text_of(page)


def test_long_curves_are_thinned_and_keep_their_extremes(tmp_path: Path) -> None:
    settings = synthetic.study().points[0].settings
    records = synthetic.evaluations(synthetic.MadeUpCourse(), 5000, 0, settings)
    records[3210].validation_accuracy = 0.01
    records[1234].validation_loss = 99.0
    path = tmp_path / "metrics.jsonl"
    synthetic.write_metrics(path, records)
    metrics = read_metrics(path)
    kept = curves.sample(metrics, 200)
    assert {0, 1234, 3210, 4999} <= set(kept.tolist())
    assert len(kept) <= 201
    assert (np.diff(kept) > 0).all()
    assert curves.sample(metrics, 5000).tolist() == list(range(5000))


def test_bands_are_quantiles_of_the_runs_that_are_still_there(tmp_path: Path) -> None:
    settings = synthetic.study().points[0].settings
    runs = []
    for i, length in enumerate((4, 4, 2)):
        records = synthetic.evaluations(synthetic.MadeUpCourse(), length, 0, settings)
        for record in records:
            record.validation_accuracy = 0.5 + 0.1 * i
        path = tmp_path / f"{i}.jsonl"
        synthetic.write_metrics(path, records)
        runs.append(read_metrics(path))
    (middle,) = pagedata.quantile_band(runs, "validation_accuracy", np.arange(1, 6), (0.5,))
    assert middle.tolist()[:4] == pytest.approx([0.6, 0.6, 0.55, 0.55])
    assert np.isnan(middle[4])


def test_a_large_study_gives_a_small_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagedata, "MOST_CURVES", 20)
    monkeypatch.setattr(pagedata, "MOST_POINTS", 1000)
    study = synthetic.study(seeds=30, arms={f"a{i}": {"train.batch_size": i} for i in range(2, 4)})
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    data = embedded(pages(study, place)[0])
    assert len(data["runs"]) == 20
    assert {run["seed"] for run in data["runs"]} == set(range(10))
    assert sum(len(run["iteration"]) for run in data["runs"]) <= 1100
    assert "the first seeds of every arm" in text_of(place.report.read_text())


def test_curves_of_the_runs_that_are_not_drawn_can_be_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagedata, "MOST_CURVES", 2)
    study = synthetic.study(seeds=6)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run, "never_learned" if run.seed == 4 else "survived")
    page, _ = pages(study, place)
    found = others(page)
    assert [run["seed"] for run in found] == [2, 3, 4, 5]
    metrics = read_metrics(place.runs / study.runs[4].name / "metrics.jsonl")
    accuracy = metrics.series["validation_accuracy"]
    assert found[2]["series"]["validation_accuracy"] == pytest.approx(accuracy, rel=1e-4)
    assert found[2]["iteration"] == metrics.iteration.tolist()
    assert set(found[2]) == set(embedded(page)["runs"][0])
    listed = re.findall(r'<option value="([^"]+)">([^<]+)</option>', page)
    assert sorted(name for name, _ in listed) == sorted(run.name for run in study.runs)
    assert (study.runs[4].name, f"{study.runs[4].name} · never learned") in listed
    assert len(re.findall(r"<a [^>]*data-run=", page)) == 6
    assert "The curves of 4 more are shown when one is chosen by its name." in text_of(page)


def test_a_page_says_how_many_runs_have_no_curves_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in {"MOST_CURVES": 1, "MOST_OTHERS": 2, "MOST_OTHER_POINTS": 60}.items():
        monkeypatch.setattr(pagedata, name, most)
    study = synthetic.study(seeds=5)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    page, _ = pages(study, place)
    assert [run["seed"] for run in others(page)] == [1, 2]
    assert all(len(run["iteration"]) <= 41 for run in others(page))  # thinned as the drawn ones
    assert "2 runs have no curves on this page" in text_of(page)
    assert len(re.findall(r"<a [^>]*data-run=", page)) == 3


def test_a_run_that_is_damaged_meanwhile_is_left_out(tmp_path: Path) -> None:
    study = synthetic.study(seeds=2)
    place = synthetic.directory(study, tmp_path)
    folders = [synthetic.write_run(place, run) for run in study.runs]
    result = aggregate(study, place)
    shutil.rmtree(folders[0].path)
    folders[1].metrics.write_text("{}\n")
    write_report(result, estimate(result))
    assert embedded(place.report.read_text())["runs"] == []


def test_the_results_log_has_dated_numbered_entries_with_figures(large: Aggregation) -> None:
    log = large.directory.results_log.read_text()
    assert "## 26 November 2017" in log
    assert [int(n) for n in re.findall(r"^### (\d+)\. ", log, re.M)] == list(range(1, 37))
    linked = re.findall(r"\]\((figures/[^)]+)\)", log)
    assert len(linked) == 39
    for name in linked:
        assert ElementTree.parse(large.directory.path / name).getroot().tag == f"{SVG}svg"
    assert "| constant-1e-3 | 12/12 | 12/12 | 10/12 (83 %, 55–95 %) | 6 / 4 |" in log
    assert "final 49.223 % (iteration 60, epoch 3.4; test" in log


def drawn_run(
    tmp_path: Path, kind: str = "survived", count: int = 40
) -> tuple[Metrics, dict[str, Any]]:
    """Metrics of a made-up run, and what its figure needs of its row."""
    settings = synthetic.study().points[0].settings
    records = synthetic.evaluations(synthetic.COURSES[kind], count, 0, settings)
    path = tmp_path / "metrics.jsonl"
    synthetic.write_metrics(path, records)
    return read_metrics(path), {
        "run": "a<b>",
        "seed": 7,
        "copy": 0,
        "outcome": kind,
        "onset_iteration": None,
    }


def paths_of(drawing: str, kind: str) -> list[list[tuple[float, float]]]:
    """Points of all lines of one class."""
    root = ElementTree.fromstring(drawing)
    found = (path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("class") == kind)
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) (-?[\d.]+)", d)] for d in found
    ]


def test_a_run_is_drawn_where_its_numbers_are(tmp_path: Path) -> None:
    metrics, row = drawn_run(tmp_path)
    _, accuracy = paths_of(curves.run_figure(metrics, row), "validation")
    left, right = accuracy[0][0], accuracy[-1][0]
    per = (right - left) / (metrics.iteration[-1] - metrics.iteration[0])
    expected = left + per * (metrics.iteration - 1)
    assert [x for x, _ in accuracy] == pytest.approx(expected, abs=0.1)
    values = metrics.series["validation_accuracy"]
    down = np.array([y for _, y in accuracy])
    slope = (down[-1] - down[0]) / (values[-1] - values[0])
    assert slope < 0
    assert down == pytest.approx(down[0] + slope * (values - values[0]), abs=0.15)


def test_a_loss_that_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    metrics, row = drawn_run(tmp_path, "non_finite", 60)
    metrics.series["validation_loss"][10] = np.nan
    loss, accuracy = paths_of(curves.run_figure(metrics, row), "validation")
    assert len(loss) == 49 - 1
    assert len(accuracy) == 60
    figure = curves.run_figure(metrics, row)
    assert "nan" not in figure
    assert "inf" not in figure


def test_a_single_evaluation_shows_as_a_point(tmp_path: Path) -> None:
    metrics, row = drawn_run(tmp_path, count=1)
    assert re.search(r'class="validation" d="M[\d.]+ [\d.]+h0"', curves.run_figure(metrics, row))


def test_page_and_file_show_the_same_drawing(large: Aggregation) -> None:
    page = large.directory.report.read_text()
    files = [path for path in large.directory.figures.glob("*.svg") if "study" not in path.name]
    assert len(files) == 36
    for path in files:
        lines = re.findall(r'<path class="(?:training|validation)" d="[^"]+"/>', path.read_text())
        assert len(lines) == 4
        assert all(line in page for line in lines)


def test_the_figure_of_a_study_has_a_panel_for_every_run_in_the_colour_of_its_outcome(
    large: Aggregation,
) -> None:
    figure = (large.directory.figures / "study-runs.svg").read_text()
    panels = re.findall(r"<title>([^<]+)</title>", figure)
    counts = {arm: sum(t.startswith(f"{arm}-s") for t in panels) for arm in ARMS}
    assert counts == dict.fromkeys(ARMS, 12)
    assert len(paths_of(figure, "permanent_collapse")) == 6
    assert len(paths_of(figure, "survived")) == 2 + 11 + 9
    assert "permanent collapse (6)" in figure
    assert [figure.index(f">{arm}<") for arm in ARMS] == sorted(
        figure.index(f">{arm}<") for arm in ARMS
    )


def test_the_axis_of_a_run_says_how_many_epochs_its_iterations_are(tmp_path: Path) -> None:
    metrics, row = drawn_run(tmp_path)
    end = int(metrics.iteration[-1])
    assert f"iteration ({end} are {end * 800 / 14_000:.3g} epochs)" in curves.run_figure(
        metrics, row
    )
    older = dataclasses.replace(metrics, epoch=np.full(len(metrics), np.nan))
    assert "epochs" not in curves.run_figure(older, row)


def test_names_in_drawings_stay_text(tmp_path: Path) -> None:
    metrics, row = drawn_run(tmp_path)
    block = curves.Block("<script>", [(row, metrics)])
    for figure in (curves.run_figure(metrics, row), curves.study_figure([block])):
        assert "<script>" not in figure
        assert "<b>" not in figure
        ElementTree.fromstring(curves.as_file(figure, 640).split("\n", 1)[1])


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 60, [0, 20, 40, 60]),
        (0.4, 1, [0.4, 0.6, 0.8, 1]),
        (0, 1, [0, 0.5, 1]),
        (0, 0.7312, [0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, marks: list[float]) -> None:
    assert curves.ticks(low, high) == pytest.approx(marks)


def test_all_runs_that_collapsed_can_be_looked_at_and_do_not_bend_the_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagedata, "MOST_CURVES", 10)
    study = synthetic.study(seeds=40)
    place = synthetic.directory(study, tmp_path)
    kinds = {15: "permanent_collapse", 30: "transient_collapse", 39: "permanent_collapse"}
    for run in study.runs:
        synthetic.write_run(place, run, kinds.get(run.seed, "survived"), count=60)
    page, log = pages(study, place)
    data = embedded(page)
    assert {run["seed"] for run in data["runs"]} == {*range(10), *kinds}
    assert "of 40: the first seeds of every arm, and 3 others that collapsed" in text_of(page)
    assert log.count("permanent collapse") >= 2
    (band,) = data["bands"]
    assert band["runs"] == 10
    assert min(band["series"]["validation_accuracy"][0][-10:]) > 0.9


def test_colours_stand_in_the_palette_alone(root: Path) -> None:
    report = root / "glass_cnn" / "report"
    files = [p for p in report.rglob("*") if p.suffix in (".py", ".js", ".css", ".j2")]
    assert len(files) > 10
    for path in files:
        found = re.findall(r"(?<!&)#(?:[0-9a-fA-F]{3}){1,2}\b", path.read_text())
        assert (found != []) == (path.name == "palette.py"), path


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("tones", [palette.LIGHT, palette.DARK])
def test_words_can_be_read_on_light_and_on_dark(tones: dict[str, str]) -> None:
    for words_ in ("ink", "quiet", "accent", "training-text"):
        assert contrast(tones[words_], tones["paper"]) >= 4.5, words_
    assert set(tones) == set(palette.LIGHT)
