"""Counts how often a study's screen told right how long it takes still, from the study's log.

    python -m benchmarks.times_left results/studies/NAME [...]

At each event from the fifth minute on, and until the last half minute of a part of the study, the
time left that was told is compared with the one that it took: right is what lies within a third.
"""

import argparse
from collections import Counter
from pathlib import Path

from tune.report.facts import read_facts
from tune.report.pace import Pace
from tune.study.events import LOG_NAME, EventLog
from tune.study.state import StudyState

FROM_SECONDS, LAST_SECONDS, WITHIN = 300, 30, 1 / 3


def counts(study: Path) -> dict[str, Counter[str]]:
    """Return how many times were right, wrong, or not told, by part of the study."""
    facts = read_facts(study)
    pace = Pace(facts.config, facts.config.budget, fixed=False)
    state, told, began = StudyState(facts.state.names), [], None
    for logged, event in EventLog(study / LOG_NAME).timed():
        assert logged is not None
        began = logged if began is None else began
        state.apply(event)
        pace.take(logged, event, state)
        for phase in pace.phases(logged, state)[-1:]:
            told.append((logged - began, phase.title, phase.seconds_left))
    ends = {title: at for at, title, _ in told}
    found: dict[str, Counter[str]] = {}
    for at, title, left in told:
        truth = ends[title] - at
        if at < FROM_SECONDS or truth < LAST_SECONDS:
            continue
        right = left is not None and abs(left - truth) <= WITHIN * truth
        what = "not told" if left is None else "right" if right else "wrong"
        found.setdefault(title, Counter())[what] += 1
    return found


def main() -> None:
    """Print the counts of each study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path)
    for study in parser.parse_args().studies:
        for title, counted in counts(study).items():
            print(f"{study.name}: {title}: {dict(counted)}")


if __name__ == "__main__":
    main()
