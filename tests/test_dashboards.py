"""TensorBoard and optuna-dashboard, by the commands of the docs, in a real browser."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browsing import SHOWN_MS, needs_browser, watch
from tests.simulated import drive, make_inventory, make_study
from tests.waiting import until
from tune.report.sinks import TensorBoard
from tune.search.journal import STORAGE_NAME
from tune.study.study import Study

# What TensorBoard's page says of itself.
ITS_OWN = ("is deprecated", "Multiple instances of Three.js")

pytestmark = needs_browser
expect.set_options(timeout=SHOWN_MS)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    sink = TensorBoard(folder / "tensorboard", make_inventory(), diverge=True)
    made = make_study(folder, budget=12, searcher="alrq", reference="B-FP", listeners=(sink,))
    drive(made)
    sink.close()
    return made


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """At the end its console must be empty, and nobody but this machine may have been asked."""
    made = browser.new_page(viewport={"width": 1900, "height": 1000})
    said, asked = watch(made)
    yield made
    made.close()
    assert [text for text in said if not any(own in text for own in ITS_OWN)] == []
    assert [url for url in asked if not re.match("http://localhost:|data:|blob:", url)] == []


def answers(address: str) -> bool:
    with suppress(OSError), urlopen(address, timeout=10):
        return True
    return False


@contextmanager
def served(command: str, *arguments: str | Path) -> Iterator[str]:
    """Run a server, and give its address once it answers."""
    with closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    program = Path(sys.executable).with_name(command)
    with subprocess.Popen(
        [program, *arguments, "--port", port],
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            address = f"http://localhost:{port}"
            until(lambda: answers(address), process)
            yield address
        finally:
            process.kill()


def test_tensorboard_compares_trials(study: Study, page: Page) -> None:
    trials = study.state.trials.values()
    diverging = [t for t in trials if t.judged is not None and t.judged.divergence is not None]
    with served("tensorboard", "--logdir", study.folder / "tensorboard") as address:
        page.goto(f"{address}/#hparams")
        table = page.locator("tf-hparams-table-view")
        expect(table.get_by_text("B-FP", exact=True)).to_be_visible()
        for column in ("average bits", "memory (MB)", "role", "divergence", "training (s)"):
            expect(table.get_by_text(column, exact=True)).to_be_attached()
        expect(table.get_by_text("test accuracy")).not_to_be_attached()
        for choice in ("bits: attention query", "baseline", "completed", "test accuracy"):
            expect(page.get_by_role("checkbox", name=choice)).to_be_visible()
        page.get_by_text("Parallel coordinates view").click()
        lines = page.locator("tf-hparams-parallel-coords-plot g.foreground path")
        expect(lines).to_have_count(len(diverging))
        # Before its server is gone, which it asks again and again.
        page.goto("about:blank")

    assert len(diverging) >= 12


def test_optuna_dashboard_has_the_objectives_and_what_matters(study: Study, page: Page) -> None:
    with served("optuna-dashboard", study.folder / STORAGE_NAME) as address:
        page.goto(f"{address}/dashboard/studies/0")
        expect(page.get_by_text("Pareto Front")).to_be_visible()
        for shown in ("02.output.bits", "divergence", "memory (MB)"):
            expect(page.get_by_text(shown).first).to_be_attached()
        page.goto("about:blank")
