"""Reports in a real browser: nothing fails, nothing is asked of a network, figures and tables work.

What `axe` calls serious or critical is a fault.
"""

import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Download, Page

from search_spaces.costs import memory_bytes
from tests.browsing import SHOWN_MS, needs_browser, watch
from tests.simulated import drive, make_report, make_study, save_study
from tune.report.facts import read_facts
from tune.report.figures.style import BITS_RAMP, IN_THE_DARK
from tune.report.page.compare import write_comparison
from tune.report.page.page import write_report
from tune.study.confirming import Proposal, proposed
from tune.study.events import LOG_NAME, Reported, Stopped, encode_event

LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
TRIALS = 5000

pytestmark = needs_browser


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for name, budget in (("one", 30), ("two", 12)):
        folder = tmp_path_factory.mktemp("studies") / name
        folder.mkdir()
        study = make_study(folder, budget=budget, searcher="alrq", reference="B-FP")
        drive(study)
        folders.append(save_study(study))
    return folders


@pytest.fixture(scope="module")
def pages(studies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    compared = tmp_path_factory.mktemp("page") / "comparison.html"
    return {"report": write_report(studies[0]), "compare": write_comparison(studies, compared)}


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[[Path, int, str], Page]]:
    """Opens a page; at the end nothing may have been printed, failed, or asked for elsewhere."""
    made: list[tuple[Page, list[str], list[str]]] = []

    def open_page(path: Path, width: int = 1280, scheme: str = "light") -> Page:
        size = {"width": width, "height": 900}
        page = browser.new_page(viewport=size, color_scheme=scheme, accept_downloads=True)
        made.append((page, *watch(page)))
        page.goto(path.as_uri())
        page.wait_for_selector(f"html[data-drawn={scheme}]", state="attached", timeout=SHOWN_MS)
        return page

    yield open_page
    for page, _, _ in made:
        page.close()
    for _, said, asked in made:
        assert said == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
        assert sum(url.startswith("file:") for url in asked) == 1


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [*(("report", *look) for look in LOOKS), ("compare", *LOOKS[0]), ("compare", *LOOKS[-1])],
)
def test_all_is_drawn_and_can_be_read(
    opened: Callable[..., Page], pages: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    page = opened(pages[kind], width, scheme)
    charts = page.locator("[data-figure]")

    assert charts.count() >= (14 if kind == "report" else 3)
    for at in range(charts.count()):
        chart = charts.nth(at)
        assert chart.get_attribute("data-drawn") == scheme
        assert chart.locator("svg .mark-group, svg .role-mark").count() > 1
        box, place = chart.locator("svg").bounding_box(), chart.bounding_box()
        assert box is not None and place is not None
        assert box["width"] <= place["width"] + 1, chart.get_attribute("data-figure")
    # Nothing but tables is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    faults = Axe().run(page).response["violations"]
    grave = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in grave] == []


def test_texts_of_a_figure_do_not_lie_on_each_other(
    opened: Callable[..., Page], pages: dict[str, Path]
) -> None:
    """Axis labels and legends; numbers in cells have their cells."""
    for width in (1280, 390):
        page = opened(pages["report"], width)
        for name in ("differences", "test-front", "search-front", "memory-deployed", "rungs"):
            legend = page.locator(f"#{name} svg .role-legend").first.bounding_box()
            marks = page.locator(f"#{name} svg .role-frame > g > g.mark-symbol.role-mark")
            boxes = [box for mark in marks.all() if (box := mark.bounding_box())]
            assert legend is not None
            assert all(box["y"] >= legend["y"] + legend["height"] - 1 for box in boxes), name


def test_hovering_gives_numbers(opened: Callable[..., Page], pages: dict[str, Path]) -> None:
    page = opened(pages["report"])
    facts = read_facts(pages["report"].parent)
    point = page.locator("#differences svg g.mark-symbol.role-mark path").first
    point.scroll_into_view_if_needed()
    point.hover()
    shown = page.locator("#vg-tooltip-element.visible")
    shown.wait_for()
    text = shown.inner_text()

    assert any(row.trial in text for row in facts.rows)
    assert "difference" in text and "average bits" in text


def test_tables_sort_turn_and_are_saved(
    opened: Callable[..., Page], pages: dict[str, Path], tmp_path: Path
) -> None:
    page = opened(pages["report"])
    facts = read_facts(pages["report"].parent)
    table = page.locator("[data-table=trials]")
    page.locator("summary", has_text="All trials").click()
    head = table.locator("th", has_text="MB")
    cells = table.locator("tbody tr td:nth-child(5)")
    head.locator("button").click()
    first = float(cells.first.inner_text())
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    last = float(cells.first.inner_text())
    assert head.get_attribute("aria-sort") == "descending"
    sizes = [trial.memory_bytes / 1e6 for trial in facts.state.trials.values()]
    assert first == pytest.approx(min(sizes), rel=0.01)
    assert last == pytest.approx(max(sizes), rel=0.01)

    table.get_by_role("button", name="Next").click()
    assert "26 to" in table.locator(".below").inner_text()
    with page.expect_download() as waiting:
        table.get_by_role("button", name="Save All trials as CSV").click()
    saved = rows_of(waiting.value, tmp_path)
    assert {row["trial"] for row in saved} == set(facts.state.trials)


def rows_of(download: Download, folder: Path) -> list[dict[str, str]]:
    path = folder / download.suggested_filename
    download.save_as(path)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_figures_are_saved_as_they_are_seen(
    opened: Callable[..., Page], pages: dict[str, Path], tmp_path: Path
) -> None:
    page = opened(pages["report"])
    for kind, begin in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        with page.expect_download() as waiting:
            page.locator("#test-front").get_by_role("button", name=kind).click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        assert path.read_bytes().startswith(begin)


def test_the_page_turns_dark_when_the_screen_does(
    opened: Callable[..., Page], pages: dict[str, Path]
) -> None:
    page = opened(pages["report"], 1280, "light")
    cells = page.locator("[data-figure^=allocation-][data-figure$=-bits] svg .mark-rect path")
    light = {cell.get_attribute("fill") for cell in cells.all()}
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=dark]", state="attached", timeout=SHOWN_MS)
    dark = {cell.get_attribute("fill") for cell in cells.all()}

    assert page.locator("#differences .chart").get_attribute("data-drawn") == "dark"
    assert light and light <= set(BITS_RAMP)
    assert dark == {IN_THE_DARK[colour or ""] for colour in light}


def test_what_a_study_is_called_is_text(opened: Callable[..., Page], tmp_path: Path) -> None:
    """Names and reasons may hold anything."""
    folder = tmp_path / "s"
    folder.mkdir()
    study = make_study(folder, budget=4, searcher="alrq", reference="B-FP")
    drive(study, reports=12)
    running = study.state.with_status("running") or study.state.with_status("paused")
    study.fail(running[0].id, "</SCRIPT><img src=x onerror=alert(1)> <!-- & </script> more")
    study.log.close()
    save_study(study, name="<b>bold", model="</script><script>alert(1)</script>")
    page = opened(write_report(folder))

    assert "<b>bold" in page.locator("header").inner_text()
    assert page.locator("header b b, img").count() == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 5,000 trials of a model of 72 modules."""
    folder = tmp_path_factory.mktemp("large")
    study = make_study(folder, budget=12, searcher="alrq", reference="B-FP", blocks=36)
    drive(study)
    generator, inventory = Random(0), study.plan.space.inventory
    with (folder / LOG_NAME).open("a", encoding="utf-8") as log:
        for number in range(TRIALS):
            trial, allocation = f"t{number + 1000}", study.plan.space.draw_all(generator)
            size = memory_bytes(allocation, inventory)
            why = Proposal(trial, "search", "alrq", 0)
            divergence = generator.uniform(0.5, 1.5) * 1e4 / size
            report = make_report(0, 0.5, divergence)
            for event in (
                proposed(study.plan.space, why, allocation, "reference"),
                Reported(trial=trial, rung=0, report=report),
                Stopped(trial=trial, rung=0),
            ):
                log.write(encode_event(event) + "\n")
    return save_study(study, budget=TRIALS)


def test_a_study_of_5000_trials_has_a_small_report_soon(
    opened: Callable[..., Page], large: Path
) -> None:
    began = time.process_time()
    path = write_report(large)
    # Of processors: how long it took besides is the machine's doing.
    assert time.process_time() - began < 30
    assert path.stat().st_size < 5_000_000
    page = opened(path)
    assert page.locator("#search-front svg g.mark-symbol.role-mark path").count() > TRIALS
    assert f"All trials ({len(read_facts(large).state.trials)})" in page.content()
