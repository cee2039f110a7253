"""How all figures look: colours that colour-blind people tell apart, axes, marks, legends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
# What a point stands for. Shapes differ too, so that nothing is told by colour alone.
CHOSEN, FOUND, BASELINE, CONTROL, OTHER = (
    "recommended",
    "on the front of the search",
    "fixed configuration",
    "control",
    "off the front",
)
GROUPS = (CHOSEN, FOUND, BASELINE, CONTROL, OTHER)
SHAPES = ("diamond", "circle", "square", "triangle-up", "circle")
# After Okabe & Ito 2008, "Color universal design", lighter in the dark.
COLOURS: Mapping[str, Sequence[str]] = {
    "light": ("#c84e00", "#0072b2", "#1b1b1b", "#008a63", "#949494"),
    "dark": ("#ff8a3d", "#62b5f0", "#f2f2f2", "#2fd0a0", "#7c7c7c"),
}
# Of bits and of ranks, few to many: one hue each, which everybody sees as pale to dark.
BITS_RAMP = ("#eaf1f9", "#bfd5ec", "#86b1da", "#3374b2", "#0f3f75")
RANKS_RAMP = ("#fff4e8", "#fdd9b0", "#f8ae66", "#b15d0d", "#8a430b", "#4f2604")
# Less, as much, more; after `PuOr` of Brewer's ColorBrewer, which colour-blind people can read.
CHANGES = ("#5e3c99", "#b2abd2", "#f7f7f7", "#fdb863", "#b35806")
# Decades are too far apart to end an axis at.
LOGARITHMS = {"nice": False, "padding": 14}
TEXT = {"light": "#1b1b1b", "dark": "#ececec"}
MUTED = {"light": "#595959", "dark": "#b0b0b0"}
LINES = {"light": "#dedede", "dark": "#3a3f45"}
BACKGROUND = {"light": "#ffffff", "dark": "#16191d"}
# Colours of marks that would glare on a dark page, and what takes their place there.
IN_THE_DARK: Mapping[str, str] = {
    TEXT["light"]: TEXT["dark"],
    BACKGROUND["light"]: BACKGROUND["dark"],
    **dict(zip(BITS_RAMP, ("#1e2a3a", "#264263", "#30598c", "#5b94cf", "#b9dcff"), strict=True)),
    **dict(
        zip(
            RANKS_RAMP,
            ("#2b2218", "#533715", "#805014", "#d08a2e", "#f2b866", "#ffe3bd"),
            strict=True,
        )
    ),
    **dict(zip(CHANGES, ("#b79cf0", "#5b4a8a", "#2a2f36", "#7a5120", "#eda050"), strict=True)),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a report.

    Attributes:
        name: Of its files.
        title: What it shows.
        text: How to read it, in a sentence or two.
        spec: Of Vega-Lite.
    """

    name: str
    title: str
    text: str
    spec: Spec


def theme(name: str) -> Spec:
    """Return the configuration of all figures, `light` or `dark`."""
    axis = {
        "labelColor": MUTED[name],
        "titleColor": TEXT[name],
        "gridColor": LINES[name],
        "domainColor": LINES[name],
        "tickColor": LINES[name],
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    return {
        "background": "transparent" if name == "dark" else BACKGROUND[name],
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {"labelColor": TEXT[name], "titleColor": TEXT[name], "labelFontSize": 12},
        "title": {
            "color": TEXT[name],
            "subtitleColor": MUTED[name],
            "anchor": "start",
            "fontSize": 14,
            "subtitleFontSize": 11,
            "offset": 12,
        },
        "text": {"color": TEXT[name], "fontSize": 12},
        "rule": {"color": MUTED[name]},
        "line": {"color": COLOURS[name][1]},
        "range": {"category": list(COLOURS[name]), "symbol": list(SHAPES)},
    }


def figure(layers: Sequence[Spec], rows: Sequence[Mapping[str, Any]], **more: Any) -> Spec:
    """Return a figure of layers over the same rows, as wide as its place."""
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": 320,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": [rounded(row) for row in rows]},
        "layer": list(layers),
        **more,
    }


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose numbers have the digits that anybody can see; None where one is none."""
    return {k: visible(v) for k, v in row.items()}


def visible(value: Any, digits: int = 5) -> Any:
    """Return a number with so many digits, None for one that is not finite, and others as is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def quantity(field: str, title: str, **scale: Any) -> Spec:
    """Return the channel of a number: its axis names what it is and its unit."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {**(LOGARITHMS if scale.get("type") == "log" else {"zero": False}), **scale},
        "axis": {"tickCount": 6, "labelOverlap": True},
    }


def megabytes(title: str = "deployed model (MB, log scale)") -> Spec:
    """Return the channel of bytes, the same in all figures."""
    channel = quantity("megabytes", title, type="log")
    return channel | {"axis": channel["axis"] | {"format": "~r"}}


def dots(encoding: Spec, size: int, opacity: float = 1) -> Spec:
    """Return the layer of a row's points."""
    mark = {"type": "point", "filled": True, "size": size, "opacity": opacity}
    return {"mark": mark, "encoding": encoding}


def bars(encoding: Spec, along: str, ends: tuple[str, str] = ("low", "high"), **mark: Any) -> Spec:
    """Return the layer of a row's intervals.

    Args:
        encoding: Of its points.
        along: The channel, `x` or `y`, that they lie along.
        ends: Fields of both ends.
        mark: How they look.
    """
    shown = {name: encoding[name] for name in ("x", "y", "color")}
    shown |= {along: encoding[along] | {"field": ends[0]}, f"{along}2": {"field": ends[1]}}
    return {"mark": {"type": "rule", **mark}, "encoding": shown}


def tooltip(**titles: str) -> list[Spec]:
    """Return what hovering shows: fields to their titles, in order."""
    return [
        {"field": field, "title": title, **({"format": ".4~g"} if number else {})}
        for field, name in titles.items()
        for title, number in [(name.removesuffix("#"), name.endswith("#"))]
    ]


def grouped(present: Sequence[str], columns: int = 2) -> Spec:
    """Return the channels by which groups are told apart, with a legend of those that are there.

    Args:
        present: The groups.
        columns: Of the legend: one where names of rows leave little place on a phone.
    """
    shown = [group for group in GROUPS if group in present]
    legend = {"orient": "top", "title": None, "columns": columns, "values": shown}
    legend |= {"symbolOpacity": 1}
    channel = {"field": "group", "type": "nominal", "legend": legend}
    domain = {"domain": list(GROUPS)}
    return {
        "color": channel | {"scale": domain},
        "shape": channel | {"scale": domain},
    }
