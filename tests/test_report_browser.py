"""The page of a study in a browser."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from glass_cnn.analysis.table import Aggregation
from glass_cnn.report import pagedata, palette
from tests import synthetic
from tests.collapse_study import ARMS, pages, with_report


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Aggregation:
    return with_report(tmp_path_factory.mktemp("logs"))


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
    for value in (*pagedata.QUANTITIES, "samples", "epochs", "runs", "bands", "panels"):
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


def opened(browser: Browser, large: Aggregation, **options: Any) -> Page:
    """The report with all its charts, on another screen."""
    page = browser.new_page(**options)
    page.goto(large.directory.report.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    return page


@pytest.mark.requires("chromium")
def test_the_page_fits_a_phone(browser: Browser, large: Aggregation) -> None:
    page = opened(browser, large, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    outside = page.evaluate(
        """[...document.querySelectorAll("main *")].filter(
            e => e.getBoundingClientRect().right > 391 && !e.closest(".scroll")).length"""
    )
    assert outside == 0
    page.close()


@pytest.mark.requires("chromium")
def test_charts_follow_a_dark_screen_and_back_and_paper_stays_white(
    browser: Browser, large: Aggregation
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    chart = "document.getElementById('curves-plot')._fullLayout.plot_bgcolor.toLowerCase()"
    line = "document.getElementById('curves-plot').data[0].line.color.toLowerCase()"
    page = opened(browser, large, color_scheme="dark")
    dark, light = palette.DARK, palette.LIGHT
    assert page.evaluate(ground) == "rgb(21, 24, 28)"
    assert page.evaluate(chart) == dark["paper"]
    assert page.evaluate(line) == dark["arm-0"].lower()
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"{chart} === '{light['paper']}'")
    assert page.evaluate(line) == light["arm-0"].lower()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{chart} === '{dark['paper']}'")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"{chart} === '{light['paper']}'")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"{chart} === '{dark['paper']}'")
    page.close()


@pytest.mark.requires("chromium")
def test_tables_and_controls_work_by_keyboard_alone(page: Page) -> None:
    page.locator("#runs-table thead button").nth(8).focus()
    page.keyboard.press("Enter")
    assert page.locator("#runs-table thead th").nth(8).get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert page.locator("#runs-table thead th").nth(8).get_attribute("aria-sort") == "descending"
    link = page.locator("#runs-table tbody a").first
    link.focus()
    page.keyboard.press("Enter")
    assert page.get_attribute("#curves-plot", "data-isolated") == link.inner_text()
    page.locator("#controls button[data-value=bands]").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.value") == "bands"
    assert page.get_attribute("#curves-plot", "data-isolated") == ""


@pytest.mark.requires("chromium")
def test_any_run_is_found_by_words_and_shown_by_keyboard_alone(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagedata, "MOST_CURVES", 2)
    study = synthetic.study(seeds=9)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run, "never_learned" if run.seed in (6, 8) else "survived")
    pages(study, place)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(place.report.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    traces = page.locator("#curves-plot .trace")
    assert traces.count() == 2
    assert page.locator("#found").is_hidden()
    page.locator("#find").focus()
    page.keyboard.type("never base")
    assert page.inner_text("#found-count") == "2 of 9"
    for name in (study.runs[6].name, study.runs[8].name):
        page.keyboard.press("ArrowDown")
        page.wait_for_selector(f"#curves-plot[data-isolated='{name}']", state="attached")
        assert f"{name} alone · never learned" in page.inner_text("#isolated")
    assert traces.count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.fill("#find", study.runs[7].name)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#curves-plot[data-isolated='{study.runs[7].name}']", state="attached")
    page.click(f"a[data-run='{study.runs[3].name}']")
    page.wait_for_selector(f"#curves-plot[data-isolated='{study.runs[3].name}']", state="attached")
    page.fill("#find", "no such run")
    assert page.inner_text("#found-count") == "0 of 9"
    assert page.locator("#found").is_hidden()
    page.close()


@pytest.mark.requires("chromium")
@pytest.mark.parametrize("width", [390, 1366])
def test_a_grid_shows_its_map_and_a_panel_for_each_level_of_the_second_factor(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    axes = {"train.learning_rate.initial": [1e-4, 1e-3], "train.dropout": [0.0, 0.2, 0.5]}
    study = synthetic.study("grid", 2, grid=axes)
    place = synthetic.directory(study, tmp_path)
    for run in study.runs:
        synthetic.write_run(place, run, "permanent_collapse" if run.seed else "survived")
    pages(study, place)
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.add_init_script(
        """globalThis.drawn = []; new MutationObserver((all) => all.forEach(({ target }) => {
            const which = target.id || "map";
            if (target.matches(".js-plotly-plot") && !drawn.includes(which)) drawn.push(which);
        })).observe(document, { attributeFilter: ["class"], subtree: true });"""
    )
    page.goto(place.report.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.locator(".heat .heatmaplayer").count() == 1
    for plot in ("#survival-plot", "#profiles-plot"):
        titles = page.locator(f"{plot} .annotation-text").all_text_contents()
        assert titles == ["dropout 0", "dropout 0.2", "dropout 0.5"]
        assert page.locator(f"{plot} .legendtext").all_text_contents() == ["0.0001", "0.001"]
    assert page.evaluate("drawn[0]") == "map", "what is in sight is drawn first"
    assert len(page.evaluate("drawn")) == 4
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


@pytest.mark.requires("chromium")
@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (390, "dark"), (1366, "light"), (1366, "dark")]
)
def test_axe_finds_nothing_that_keeps_anybody_out(
    browser: Browser, large: Aggregation, width: int, scheme: Literal["light", "dark"]
) -> None:
    viewport: ViewportSize = {"width": width, "height": 844}
    page = opened(browser, large, viewport=viewport, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    page.fill("#find", "s")
    page.wait_for_selector("#found")
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = page.evaluate(
        """axe.run(document, { resultTypes: ["violations"] }).then((result) =>
            result.violations.map((each) => [each.id, ...each.nodes.map((node) => node.html)]))"""
    )
    assert found == []
    page.close()
