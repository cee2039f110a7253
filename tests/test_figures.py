"""Figures: colours that everybody can tell apart, axes with units, legends beside the data."""

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert

from search_spaces.inventory import Inventory, TargetModule, kinds
from tests.simulated import drive, make_study, save_study
from tune.report.facts import Facts, read_facts
from tune.report.figures import allocations, fronts, memory, modules, searching
from tune.report.figures.compared import STUDY_COLOURS, STUDY_SHAPES
from tune.report.figures.memory import PART_COLOURS
from tune.report.figures.searching import FATE_COLOURS
from tune.report.figures.style import (
    BACKGROUND,
    BITS_RAMP,
    CHANGES,
    COLOURS,
    IN_THE_DARK,
    RANKS_RAMP,
    SHAPES,
    TEXT,
    Figure,
    theme,
)
from tune.report.page.page import captioned

# What those see who lack one kind of cone, of linear RGB: Machado, Oliveira & Fernandes 2009, "A
# physiologically-based model for simulation of color vision deficiency", table 1, severity 1.
SIGHTS = {
    "usual": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# A just noticeable difference is about 2 of CIE 1976.
APART, CONTRAST, LARGE_CONTRAST = 11.0, 4.5, 3.0


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB under D65."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, "contrast ratio"."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    high, low = sorted((float(weights @ linear(one)) for one in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(
    "colours",
    [COLOURS["light"], COLOURS["dark"], FATE_COLOURS, PART_COLOURS, STUDY_COLOURS],
    ids=["light", "dark", "fates", "parts", "studies"],
)
def test_colours_can_be_told_apart(colours: tuple[str, ...], sight: str) -> None:
    seen = [lab(np.array(SIGHTS[sight]) @ linear(colour)) for colour in colours]
    distances = {
        pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
        for pair in combinations(range(len(seen)), 2)
    }
    assert min(distances.values()) > APART, distances


def test_groups_and_studies_differ_in_shape_too() -> None:
    # The last group is small and grey, and never large and blue as the second.
    assert len(set(SHAPES[:-1])) == len(SHAPES) - 1
    assert len(set(STUDY_SHAPES)) == len(STUDY_COLOURS)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_what_is_read_stands_out(name: str) -> None:
    ground = BACKGROUND[name]
    assert contrast(TEXT[name], ground) > CONTRAST
    assert contrast(theme(name)["axis"]["labelColor"], ground) > CONTRAST
    for colour in COLOURS[name]:
        assert contrast(colour, ground) > LARGE_CONTRAST, colour


@pytest.mark.parametrize("ramp", [BITS_RAMP, RANKS_RAMP], ids=["bits", "ranks"])
def test_numbers_are_read_in_their_cells(ramp: tuple[str, ...]) -> None:
    """On a dark page the paint of cells and numbers is another, chosen by the same rule."""
    black, white = TEXT["light"], BACKGROUND["light"]
    for at, colour in enumerate(ramp):
        text = black if at < allocations.PALE else white
        assert contrast(colour, text) > CONTRAST, colour
        assert contrast(IN_THE_DARK[colour], IN_THE_DARK[text]) > CONTRAST, colour


def test_changes_are_read_in_their_cells() -> None:
    """The two ends are dark on a light page, and light on a dark one."""
    for at, colour in enumerate(CHANGES):
        text = BACKGROUND["light"] if at in (0, len(CHANGES) - 1) else TEXT["light"]
        assert contrast(colour, text) > CONTRAST, colour
        assert contrast(IN_THE_DARK[colour], IN_THE_DARK[text]) > CONTRAST, colour


def test_nothing_glares_in_the_dark() -> None:
    """What fills cells is replaced, so that the smallest numbers have about the page's colour."""
    for ramp in (BITS_RAMP, RANKS_RAMP):
        light = [contrast(colour, BACKGROUND["light"]) for colour in ramp]
        dark = [contrast(IN_THE_DARK[colour], BACKGROUND["dark"]) for colour in ramp]
        assert light == sorted(light) and dark == sorted(dark)
        assert max(light[0], dark[0]) < 1.5


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    folder = tmp_path_factory.mktemp("study")
    study = make_study(folder, budget=20, searcher="alrq", reference="B-FP")
    drive(study)
    return read_facts(save_study(study))


@pytest.fixture(scope="module")
def figures(facts: Facts) -> list[Figure]:
    assert facts.chosen is not None
    found = [
        fronts.differences(facts),
        fronts.test_front(facts),
        fronts.search_front(facts),
        *allocations.allocation_maps(facts, facts.chosen, "chosen"),
        *modules.module_maps(facts),
        modules.predictions(facts),
        searching.rungs(facts),
        searching.area_over_cost(facts),
        searching.orders(facts),
        memory.deployed(facts),
        memory.training(facts),
    ]
    assert None not in found
    return [one for one in found if one is not None]


def nested(spec: Any, key: str) -> Iterator[Any]:
    """Every value of a key, however deep."""
    for name, value in spec.items() if isinstance(spec, dict) else enumerate(spec):
        if name == key:
            yield value
        if isinstance(value, dict | list):
            yield from nested(value, key)


UNITS = ("(", "trials", "perplexity", "block")


def test_axes_have_units_and_legends_stand_above_the_data(figures: list[Figure]) -> None:
    for figure in figures:
        channels = [c for layer in figure.spec["layer"] for c in [layer["encoding"]]]
        titles = {
            channel[axis]["title"]
            for channel in channels
            for axis in ("x", "y")
            if channel.get(axis, {}).get("title")
        }
        assert titles, figure.name
        for title in titles:
            assert any(unit in title for unit in UNITS), (figure.name, title)
        for legend in nested(figure.spec["layer"], "legend"):
            assert legend is None or legend["orient"] == "top", figure.name


def test_every_figure_compiles_and_draws_its_marks(figures: list[Figure]) -> None:
    for figure in figures:
        spec = {**figure.spec, "width": 600}
        svg = vl_convert.vegalite_to_svg(spec, config=theme("light"))
        drawn = svg.count("<path") + svg.count("<rect")
        assert drawn > len(figure.spec["data"]["values"]), figure.name
        assert "NaN" not in svg and "undefined" not in svg, figure.name


def test_titles_and_captions_have_their_place_in_files(figures: list[Figure]) -> None:
    """A title is moved up from the corner of its figure, and that down from the edge."""
    moved = r'translate\([-\d.]+,([-\d.]+)\)"'
    for figure in figures:
        svg = vl_convert.vegalite_to_svg(captioned(figure, "a condition " * 20))
        title = re.search(r'role-title"><g transform="' + moved, svg)
        corner = re.search(r'<g fill="none"[^>]*transform="' + moved, svg)
        assert title is not None and corner is not None
        assert float(corner[1]) + float(title[1]) >= 0, figure.name


def test_an_allocation_is_mapped_block_by_kind(facts: Facts) -> None:
    assert facts.chosen is not None
    bits, ranks = allocations.allocation_maps(facts, facts.chosen, "chosen")
    cells = bits.spec["data"]["values"]

    assert {(cell["block"], cell["kind"]) for cell in cells} == {
        (block, kind) for block in range(3) for kind in ("attention query", "output")
    }
    choices = facts.chosen.allocation["modules"]
    for cell in cells:
        assert int(cell["label"]) == choices[cell["module"]][0]
    for cell in ranks.spec["data"]["values"]:
        assert int(cell["label"]) == choices[cell["module"]][1]


def test_kinds_with_the_same_last_name_stay_apart() -> None:
    names = ("attention.output.dense", "output.dense", "attention.self.query")
    targets = tuple(
        TargetModule(
            name=f"encoder.layer.11.{name}",
            out_features=8,
            in_features=8,
            part="attention",
            block=11,
        )
        for name in names
    )
    found = kinds(Inventory(model="m", targets=targets, other_parameters=0))

    assert list(found.values()) == ["attention output", "output", "attention query"]


def test_bytes_of_the_parts_add_up(facts: Facts) -> None:
    figure = memory.deployed(facts)
    assert figure is not None
    for row in facts.rows:
        parts = [p for p in figure.spec["data"]["values"] if p["trial"] == row.trial]
        whole = sum(part["megabytes"] for part in parts)
        assert whole == pytest.approx(row.memory_bytes / 1e6, rel=1e-3)


def test_the_area_grows_to_its_end(facts: Facts) -> None:
    figure = searching.area_over_cost(facts)
    assert figure is not None
    areas = [row["area"] for row in figure.spec["data"]["values"]]
    assert areas == sorted(areas) and areas[-1] == 100


def test_rungs_count_every_trial_once_at_its_end(facts: Facts) -> None:
    figure = searching.rungs(facts)
    assert figure is not None
    rows = figure.spec["data"]["values"]
    first = [row for row in rows if row["rung"] == "step 0"]
    ended = [row for row in rows if row["fate"] != "went on"]

    assert sum(row["trials"] for row in first) == 20
    assert sum(row["trials"] for row in ended) == 20


def test_a_study_from_nothing_is_drawn_by_its_losses(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=12)
    drive(study)
    figure = fronts.search_front(read_facts(save_study(study)))

    assert figure is not None and "validation loss" in str(figure.spec)
    assert "fixed configuration" in {row["group"] for row in figure.spec["data"]["values"]}
