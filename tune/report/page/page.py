"""Writes a study's report: a page with its figures and tables, and the figures as files."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined

from alrq_core.files import replaced
from tune.report.answer import answer
from tune.report.conditions import conditions, one_line
from tune.report.confirmation import Confirmed
from tune.report.facts import Facts, read_facts
from tune.report.failing import failure_groups
from tune.report.figures import allocations, fronts, memory, modules, searching
from tune.report.figures.style import IN_THE_DARK, Figure, Spec, theme
from tune.report.metrics import METRICS
from tune.report.tables import report_tables

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"
# Of a figure in a file, in points, and of the letters of a line of its caption.
FILE_WIDTH, CAPTION_WIDTH, FILE_SCALE = 640, 110, 2
TITLE_HEIGHT, LINE_HEIGHT = 32, 14
THEMES = ("light", "dark")
# Figures by their part of a page.
Sections = Mapping[str, Sequence[Figure]]
BUNDLE = "window.vegaEmbed = vegaEmbed;"


def write_report(folder: Path) -> Path:
    """Write the report of a study and its figures into its folder, as far as the study has come;
    return the path of the page.

    Raises:
        ValueError: No study, or one whose files can't be read.
    """
    facts = read_facts(folder)
    sections = sections_of(facts)
    _write_figures(facts, sections)
    return write_page(folder / REPORT_FILE, report_page(facts, sections))


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all; return its path."""
    with replaced(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def report_page(facts: Facts, sections: Sections) -> str:
    """Return the report of one study with its figures, in HTML."""
    return page(
        "report.html.jinja",
        [one for section in sections.values() for one in section],
        [asdict(table) for table in report_tables(facts)],
        facts=facts,
        answer=answer(facts),
        sections=sections,
        maps=_maps(facts),
        loaded=facts.first_run(facts.chosen) if facts.chosen is not None else None,
        failures=failure_groups(facts.state),
        conditions=conditions(facts),
        line=one_line(facts),
    )


def page(
    template: str,
    figures: Sequence[Figure],
    tables: Sequence[Mapping[str, Any]],
    **content: Any,
) -> str:
    """Return a page that holds all that it needs.

    Args:
        template: Name of its file.
        figures: That its scripts draw, by name.
        tables: That they fill, by name.
        content: What the template says.
    """
    here = files(__package__)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["metric"] = lambda name: METRICS[name].name
    environment.filters["megabytes"] = lambda value: f"{value / 1e6:.2f} MB"
    data = {
        "figures": {figure.name: figure.spec for figure in figures},
        "tables": {table["name"]: table for table in tables},
        "themes": {name: theme(name) for name in THEMES},
        "in_the_dark": IN_THE_DARK,
    }
    base = environment.from_string(here.joinpath("base.html.jinja").read_text(encoding="utf-8"))
    body = environment.from_string(here.joinpath(template).read_text(encoding="utf-8"))
    return body.render(
        base=base,
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        script=here.joinpath("page.js").read_text(encoding="utf-8"),
        library=_inert(vl_convert.javascript_bundle(BUNDLE)),
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        figures=figures,
        tables=tables,
        **content,
    )


def _inert(text: str) -> str:
    """Return a script in which nothing ends the element that holds it."""
    return re.sub("<(/script|!--)", r"<\\\1", text, flags=re.IGNORECASE)


def sections_of(facts: Facts) -> Sections:
    """Return the figures that a study has something for, in the order of the page."""
    found: dict[str, list[Figure | None]] = {
        "front": [fronts.differences(facts), fronts.test_front(facts), fronts.search_front(facts)],
        "allocation": [
            one
            for place, row in _shown(facts).items()
            for one in allocations.allocation_maps(facts, row, place)
        ],
        "modules": [*modules.module_maps(facts), modules.predictions(facts)],
        "search": [
            searching.rungs(facts),
            searching.area_over_cost(facts),
            searching.orders(facts),
        ],
        "memory": [memory.deployed(facts), memory.training(facts)],
    }
    return {name: [one for one in some if one is not None] for name, some in found.items()}


def _shown(facts: Facts) -> dict[str, Confirmed]:
    """Return the allocations whose maps are shown, by their places."""
    found = {"chosen": facts.chosen, "beside": facts.runner_up}
    return {place: row for place, row in found.items() if row is not None}


def _maps(facts: Facts) -> list[dict[str, Any]]:
    """Return what stands over and under the maps of each allocation that is shown."""
    return [
        {"row": row, "outside": allocations.outside(facts, row), "beside": place == "beside"}
        for place, row in _shown(facts).items()
    ]


def _write_figures(facts: Facts, sections: Sections) -> None:
    """Write each figure for papers, as PNG and PDF, with all conditions in its caption."""
    target = facts.folder / FIGURES_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for figure in (one for section in sections.values() for one in section):
        spec = captioned(figure, one_line(facts))
        svg = vl_convert.vegalite_to_svg(spec, config=theme("light"))
        for ending, content in (
            ("png", vl_convert.svg_to_png(svg, scale=FILE_SCALE)),
            ("pdf", vl_convert.svg_to_pdf(svg)),
        ):
            with replaced(target / f"{figure.name}.{ending}") as partial:
                partial.write_bytes(content)


def figure_png(figure: Figure, line: str) -> bytes:
    """Return a figure as a picture, with all conditions in its caption."""
    png: bytes = vl_convert.vegalite_to_png(
        captioned(figure, line), config=theme("light"), scale=FILE_SCALE
    )
    return png


def captioned(figure: Figure, line: str) -> Spec:
    """Return a figure as a file holds it: of fixed width, with its title and all conditions."""
    caption = [part for text in (figure.text, line) for part in wrap(text, CAPTION_WIDTH)]
    title = {"text": figure.title, "subtitle": caption}
    # A title takes its place from the height that all have together.
    height = figure.spec["height"] + TITLE_HEIGHT + LINE_HEIGHT * len(caption)
    return {**figure.spec, "width": FILE_WIDTH, "height": height, "title": title}
