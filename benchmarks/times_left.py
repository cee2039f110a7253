"""Counts how long a study's screen told right how long it takes still, from the study's log.

    python -m benchmarks.times_left results/studies/NAME [...]

At each second from the fifth minute on, and until the last half minute of a part of the study, the
time left that the screen shows is compared with the one that it took: right is what lies within a
third. Printed is the share of seconds at which it was right, wrong, or not shown. A part in
which a run was interrupted is left out.
"""

import argparse
from bisect import bisect_right
from collections import Counter
from pathlib import Path

from tune.report.facts import read_facts
from tune.report.pace import Pace
from tune.study.events import LOG_NAME, EventLog, Started
from tune.study.state import StudyState

FROM_SECOND, LAST_SECONDS, WITHIN = 300, 30, 1 / 3


Shown = list[tuple[float, str, float | None]]


def shown(study: Path) -> list[Shown]:
    """Return for each run of a study, after each event: seconds since its first, the part of the
    study, and what is left.
    """
    facts = read_facts(study)
    pace = Pace(facts.config, facts.config.budget, fixed=False)
    state, began = StudyState(facts.state.names), 0.0
    runs: list[Shown] = []
    for logged, event in EventLog(study / LOG_NAME).timed():
        assert logged is not None
        state.apply(event)
        if isinstance(event, Started):
            began, pace = logged, Pace(facts.config, event.budget, fixed=False)
            runs.append(Shown())
        pace.take(logged, event, state)
        for phase in pace.phases(logged, state)[-1:]:
            runs[-1].append((logged - began, phase.title, phase.seconds_left))
    return runs


def counts(study: Path) -> dict[str, Counter[str]]:
    """Return at how many seconds it was right, wrong, or not told, by part of the study."""
    found: dict[str, Counter[str]] = {}
    runs = shown(study)
    for number, told in enumerate(runs, 1):
        interrupted = told[-1][1] if told and number < len(runs) else None
        times = [at for at, _, _ in told]
        ends = {title: at for at, title, _ in told}
        for second in range(FROM_SECOND, int(max(times, default=0))):
            before = bisect_right(times, second)
            at, title, left = told[before - 1] if before else (0.0, told[0][1], None)
            truth = ends[title] - second
            if truth < LAST_SECONDS or title == interrupted:
                continue
            now = None if left is None else max(0.0, left - (second - at))
            right = now is not None and abs(now - truth) <= WITHIN * truth
            what = "not shown" if now is None else "right" if right else "wrong"
            found.setdefault(title, Counter())[what] += 1
    return found


def main() -> None:
    """Print the shares of each study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path)
    for study in parser.parse_args().studies:
        for title, counted in counts(study).items():
            seconds = counted.total()
            shares = ", ".join(f"{100 * n / seconds:.0f} % {what}" for what, n in counted.items())
            print(f"{study.name}: {title}: {seconds} s: {shares}")


if __name__ == "__main__":
    main()
