"""Pages of a study: what they say, what they show in a browser, what they take."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from playwright.sync_api import Browser, Page, sync_playwright

from glass_cnn.analysis import statistics
from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.table import Aggregation, aggregate, write
from glass_cnn.metrics import read_metrics
from glass_cnn.paths import RunDir, StudyDir
from glass_cnn.records import Lineage
from glass_cnn.report import figures, pagedata, words
from glass_cnn.report import page as report
from glass_cnn.report.page import write_report
from glass_cnn.settings import RunSettings
from glass_cnn.study import Study
from hpc.records import append_record
from jobs.report import main
from tests import synthetic

ARMS = {
    "constant-1e-3": {"train.learning_rate.initial": 1e-3},
    "constant-1e-4": {"train.learning_rate.initial": 1e-4},
    "threshold": {
        "train.learning_rate": {
            "kind": "threshold",
            "initial": 1e-3,
            "levels": [{"above": 0.9, "rate": 1e-4}],
        }
    },
}
FATES = {
    "constant-1e-3": ["survived"] * 2 + ["permanent_collapse"] * 6 + ["transient_collapse"] * 4,
    "constant-1e-4": ["survived"] * 11 + ["never_learned"],
    "threshold": ["survived"] * 9 + ["transient_collapse", "non_finite", "survived"],
}
EVIL = "<script>alert(1)</script>"


def pages(study: Study, place: StudyDir) -> tuple[str, str]:
    result = aggregate(study, place)
    write(result)
    write_report(result, estimate(result))
    return place.report.read_text(), place.results_log.read_text()


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Aggregation:
    """Three arms on twelve seeds, with all that can go wrong; its report is written."""
    study = synthetic.study("collapse", 12, arms=ARMS, description=f"Why? {EVIL}")
    place = synthetic.directory(study, tmp_path_factory.mktemp("logs"))
    for run in study.runs:
        kind = FATES[run.point.label][run.seed]
        if (run.point.label, run.seed) == ("threshold", 11):
            synthetic.write_run(place, run, kind, done=False, count=30)
        else:
            synthetic.write_run(place, run, kind)
    again = replace(
        synthetic.START,
        time="2017-11-27T08:00:00+00:00",
        hosts=["node2"],
        resumed_step=300,
        reason=f"preempted {EVIL}",
        lineage=Lineage("parent-s0-01234567", step=600, which="best"),
    )
    append_record(RunDir(place.runs / study.runs[0].name).provenance, again)
    (place.runs / f"odd {EVIL.replace('/', '')}").mkdir()
    result = aggregate(study, place)
    write(result)
    write_report(result, estimate(result))
    return result


# --- what is said ----------------------------------------------------------------------------


def test_the_answers_come_first_and_are_right(large: Aggregation) -> None:
    said = dict(words.answers(estimate(large))[:3])
    assert said["constant-1e-3"].startswith(
        "collapsed in 10 of the 12 runs that learned (83 %, 95 % interval 55–95 %): "
        "6 for good, 4 transiently"
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
        "Validation accuracy of at least 95 % in 3 evaluations", "0123456789ab", "node1, node2",
        "python 3.11.7", "is not named <label>-s<seed>-<hash>", "at iteration 30 of 60",
        "data set endpoint (thermal, 250 px), model swanson2017, batch size 80",
    ):  # fmt: skip
        assert words_ in page, words_


def test_the_results_log_has_dated_numbered_entries_with_figures(large: Aggregation) -> None:
    log = large.directory.results_log.read_text()
    assert "## 26 November 2017" in log
    assert [int(n) for n in re.findall(r"^### (\d+)\. ", log, re.M)] == list(range(1, 37))
    linked = re.findall(r"\]\((figures/[^)]+)\)", log)
    assert len(linked) == 38
    for name in linked:
        assert (large.directory.path / name).read_text().startswith("<?xml")
    assert "| constant-1e-3 | 12/12 | 12/12 | 10/12 (83 %, 55–95 %) | 6 / 4 |" in log
    assert "final 49.223 % (iteration 60; test" in log


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
        file.write(last.replace('"iteration": 20, "step": 200', '"iteration": 21, "step": 210'))
        file.write("\n")
    pages(study, place)
    changed = {
        path.name for path in place.figures.glob("base*")
        if path.stat().st_mtime_ns != drawn[path.name]
    }  # fmt: skip
    assert changed == {f"{folders[1].name}.svg"}


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
    ],
)  # fmt: skip
def test_captions_name_all_hyperparameters(changes: dict[str, Any], told: str) -> None:
    assert told in words.describe(RunSettings.model_validate({"train": changes}))


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
    (_, first), _, (arm, text), *_ = words.answers(estimate(aggregate(study, place)))
    assert "99.9 % interval" in first
    page, log = pages(study, place)
    assert text_of(page).count("99.9 %") > 5
    assert "99.9 % intervals" in log
    assert not re.search(r"\b100 % (interval|confidence|bootstrap)", text_of(page) + log)
    assert arm == "a2"
    assert text.startswith(
        "collapses more often than a1: by 75 percentage points (−2 to 91; Fisher's exact test"
    )


def test_many_arms_are_compared_with_all_others_together(tmp_path: Path) -> None:
    study = synthetic.study(seeds=1, grid={"train.batch_size": list(range(2, 15))})
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    said = words.answers(estimate(aggregate(study, place)))
    assert said[0][1].startswith("did not collapse in the only run that learned (0 %, 95 %")
    assert said[-2][1] == (
        "No arm collapses significantly more or less often than all others together "
        "(smallest adjusted p = 1)."
    )


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


def test_a_grid_becomes_maps_with_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_FIGURES", 1)
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
    kept = figures.sample(metrics, 200)
    assert {0, 1234, 3210, 4999} <= set(kept.tolist())
    assert len(kept) <= 201
    assert (np.diff(kept) > 0).all()
    assert figures.sample(metrics, 5000).tolist() == list(range(5000))


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
    (middle,) = figures.quantile_band(runs, "validation_accuracy", np.arange(1, 6), (0.5,))
    assert middle.tolist()[:4] == pytest.approx([0.6, 0.6, 0.55, 0.55])
    assert np.isnan(middle[4])


def test_a_large_study_gives_a_small_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagedata, "MOST_CURVES", 20)
    monkeypatch.setattr(pagedata, "MOST_POINTS", 1000)
    monkeypatch.setattr(report, "MOST_FIGURES", 1)
    study = synthetic.study(seeds=30, arms={f"a{i}": {"train.batch_size": i} for i in range(2, 4)})
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    data = embedded(pages(study, place)[0])
    assert len(data["runs"]) == 20
    assert {run["seed"] for run in data["runs"]} == set(range(10))
    assert sum(len(run["iteration"]) for run in data["runs"]) <= 1100
    assert "the first seeds of every arm" in text_of(place.report.read_text())


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


def test_a_run_that_is_damaged_meanwhile_is_left_out(tmp_path: Path) -> None:
    study = synthetic.study(seeds=2)
    place = synthetic.directory(study, tmp_path)
    folders = [synthetic.write_run(place, run) for run in study.runs]
    result = aggregate(study, place)
    shutil.rmtree(folders[0].path)
    folders[1].metrics.write_text("{}\n")
    write_report(result, estimate(result))
    assert embedded(place.report.read_text())["runs"] == []


def test_the_command_line(large: Aggregation, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(large.directory.path)])
    shown = capsys.readouterr().out
    assert re.search(r"constant-1e-3 +12/12 +12/12 +10/12 +55–95 % +6/4", shown)
    assert "35 runs counted; not counted: " in shown
    assert str(large.directory.report) in shown


# --- in a browser ----------------------------------------------------------------------------

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(large: Aggregation, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The report, open at the size of a laptop; fails if it complains or asks for anything."""
    browser: Browser = request.getfixturevalue("browser")
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = large.directory.report.as_uri()
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_selector("#curves-plot .scatterlayer .trace")
    yield page
    assert said == []
    assert [url for url in asked if url != address and not url.startswith("data:")] == []
    page.close()


@pytest.mark.requires("chromium")
def test_a_click_on_a_curve_shows_that_run_alone(page: Page) -> None:
    faint = (
        "[...document.querySelectorAll('#curves-plot .trace')]"
        ".filter(t => Number(getComputedStyle(t).opacity) < 0.2).length"
    )
    assert page.evaluate("document.querySelectorAll('#curves-plot .trace').length") == 36
    assert page.evaluate(faint) == 0
    page.locator("#curves-plot").scroll_into_view_if_needed()
    spot = page.evaluate(
        """() => {
            const plot = document.getElementById("curves-plot");
            const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
            const trace = plot.data[3], i = trace.x.length - 5;
            return [box.x + xaxis._offset + xaxis.l2p(trace.x[i]),
                    box.y + yaxis._offset + yaxis.l2p(trace.y[i])];
        }"""
    )
    page.mouse.move(*spot)
    page.wait_for_selector("#curves-plot .hoverlayer .hovertext")
    hovered = page.locator("#curves-plot .hoverlayer .hovertext").text_content() or ""
    assert re.search(r"constant-1e-3-s\d+-[0-9a-f]{8}", hovered)
    assert "seed" in hovered
    page.mouse.click(*spot)
    page.wait_for_function("document.getElementById('curves-plot').dataset.isolated")
    alone = page.get_attribute("#curves-plot", "data-isolated")
    assert alone is not None
    assert alone in hovered.replace("\n", " ")
    assert page.evaluate(faint) == 35
    assert alone in page.inner_text("#isolated")
    page.mouse.click(*spot)
    page.wait_for_function("!document.getElementById('curves-plot').dataset.isolated")
    assert page.evaluate(faint) == 0


@pytest.mark.requires("chromium")
def test_controls_change_the_curves(page: Page) -> None:
    for value in (*pagedata.QUANTITIES, "samples", "runs", "bands", "panels"):
        page.click(f"#controls button[data-value={value}]")
        pressed = page.get_attribute(f"#controls button[data-value={value}]", "aria-pressed")
        assert pressed == "true"
        assert page.locator("#curves-plot .scatterlayer .trace").count() > 0


@pytest.mark.requires("chromium")
def test_legends_name_the_arms_in_the_order_of_the_study(page: Page) -> None:
    for plot in ("survival-plot", "profiles-plot"):
        page.wait_for_selector(f"#{plot} .legendtext")
        assert page.locator(f"#{plot} .legendtext").all_text_contents() == list(ARMS)


@pytest.mark.requires("chromium")
def test_labels_of_neighbouring_panels_do_not_touch(page: Page) -> None:
    boxes = page.evaluate(
        """[...document.querySelectorAll("#curves-plot .xaxislayer-above text")].map(
            t => t.getBoundingClientRect()).map(b => [b.left, b.right])"""
    )
    assert len(boxes) > 6
    boxes.sort()
    assert all(a[1] < b[0] for a, b in itertools.pairwise(boxes))


@pytest.mark.requires("chromium")
def test_long_names_stay_over_their_panels(browser: Browser, tmp_path: Path) -> None:
    arms = {f"{'long_name_' * 5}{i}": {"train.batch_size": i} for i in range(2, 9)}
    study = synthetic.study(seeds=1, arms=arms)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run)
    pages(study, place)
    for width in (700, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(place.report.as_uri())
        page.wait_for_selector("#curves-plot .annotation-text")
        boxes = page.evaluate(
            """[...document.querySelectorAll("#curves-plot .annotation-text")].map(
                t => t.getBoundingClientRect()).map(b => [b.top, b.left, b.right])"""
        )
        assert len(boxes) == 7
        for (top, _, right), (other, left, _) in itertools.pairwise(boxes):
            assert abs(top - other) > 5 or right < left
        ends = page.evaluate(
            """[...document.querySelectorAll("#curves-plot .xaxislayer-above text")].filter(
                t => t.textContent === "0").length"""
        )
        assert ends == (3 if width == 700 else 4)  # under the lowest panel of every column
        page.close()


@pytest.mark.requires("chromium")
def test_all_columns_of_the_tables_are_seen_at_once(page: Page) -> None:
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    )


@pytest.mark.requires("chromium")
def test_tables_sort_and_filter(page: Page) -> None:
    rows = page.locator("#runs-table tbody tr:visible")
    body = "document.querySelectorAll('#runs-table tbody tr')"
    finals = f"[...{body}].map(row => row.cells[8].dataset.key)"
    heading = page.locator("#runs-table thead th").nth(8)
    assert heading.inner_text().strip() == "Final validation %"
    heading.click()
    up = [float(x) for x in page.evaluate(finals) if x]
    assert up == sorted(up)
    heading.click()
    down = [float(x) for x in page.evaluate(finals) if x]
    assert down == sorted(up, reverse=True)
    page.fill("#filter", "permanent 1e-3")
    assert rows.count() == 6
    assert page.inner_text("#filter-count") == "6 of 36"
    page.fill("#filter", "nothing of the kind")
    assert rows.count() == 0


@pytest.mark.requires("chromium")
def test_a_name_in_the_table_leads_to_its_curve(page: Page) -> None:
    cell = page.locator("#runs-table tbody td:first-child").nth(4)
    name = cell.inner_text()
    cell.click()
    assert page.get_attribute("#curves-plot", "data-isolated") == name


@pytest.mark.requires("chromium")
def test_screenshot_and_print(page: Page, tmp_path: Path) -> None:
    page.wait_for_function(
        "[...document.querySelectorAll('figure')].every(f => f.querySelector('svg'))"
    )
    picture = page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert len(picture) > 50_000
    assert page.locator("figure svg path").count() == 36 * 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 900})  # A4 less its margins, at 96 px an inch
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert page.locator("text=alert(1)").count() >= 2
