"""Draws what a terminal showed of a study that was run, as a moving picture.

    python -m benchmarks.recording --study results/studies/NAME --to docs/recording.gif

Moments are taken from the study's log, one for every so many of its events; a second of the picture
stands for minutes of the study.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import vl_convert
from PIL import Image
from rich.console import Console

from tune.report.facts import read_facts
from tune.report.pace import Pace
from tune.report.screen import moment, render
from tune.study.events import LOG_NAME, EventLog, Reported
from tune.study.state import StudyState

FONT, LINES, WINDOW = "DejaVu Sans Mono", 22, 40
FRAMES, FRAME_MS, LAST_MS = 24, 500, 3000


def frames(study: Path) -> list[Image.Image]:
    """Return the pictures of a study, from its first event to its last."""
    facts = read_facts(study)
    timed = list(EventLog(study / LOG_NAME).timed())
    wanted = set(np.linspace(4, len(timed) - 1, FRAMES).astype(int).tolist())
    pace, state = (
        Pace(facts.config, facts.config.budget, fixed=False),
        StudyState(facts.state.names),
    )
    times: list[float] = []
    found = []
    for number, (logged, event) in enumerate(timed):
        assert logged is not None
        state.apply(event)
        pace.take(logged, event, state)
        if isinstance(event, Reported):
            times = [*times, logged][-WINDOW:]
        if number in wanted:
            per_minute = 60 * (len(times) - 1) / (logged - times[0]) if len(times) > 1 else None
            shown = moment(facts.config, pace, state, logged, per_minute)
            found.append(picture(render(shown, logged)))
    return found


def picture(screen: object) -> Image.Image:
    """Return a screen of a terminal as a picture."""
    console = Console(record=True, width=100, height=LINES, file=io.StringIO())
    console.print(screen)
    for _ in range(LINES - console.export_text(clear=False).count("\n")):
        console.print()
    svg = console.export_svg(title="python run_search.py").replace("Fira Code", FONT)
    return Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=0.75))).convert("RGB")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    first, *others = (frame.quantize(32) for frame in frames(given.study))
    durations = [FRAME_MS] * len(others) + [LAST_MS]
    first.save(given.to, save_all=True, append_images=others, duration=durations, loop=0)
    print(f"wrote {given.to}, {given.to.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
