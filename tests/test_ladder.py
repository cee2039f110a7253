"""What a ladder keeps is what the rule says of all that is there."""

import random
from collections.abc import Sequence

import pytest

from search_spaces.spaces import make_space
from tests.simulated import make_inventory, make_report
from tune.search.front import Point
from tune.study.ladder import Ladder
from tune.study.schedulers import SCHEDULERS, Scheduler
from tune.study.state import TrialState

SPACE = make_space("joint", make_inventory())


def trial(number: int) -> TrialState:
    return TrialState(
        id=f"t{number}",
        role="search",
        origin="alrq",
        seed=0,
        allocation=SPACE.smallest(),
        memory_bytes=1000 + 7919 * number % 101,
        number=number,
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_says_what_one_says_that_is_told_all_at_once(name: str) -> None:
    chance, trials = random.Random(0), [trial(number) for number in range(30)]
    ladder = Ladder(SCHEDULERS[name], 2)
    for _ in range(60):
        one = chance.choice(trials)
        if len(one.reports) < 3:
            one.reports.append(make_report(2 ** len(one.reports), chance.random()))
        else:
            one.memory_bytes += 1
        ladder.place(one)
        fresh = Ladder(SCHEDULERS[name], 2)
        for other in trials:
            fresh.place(other)
        for rung in range(3):
            for closing in (False, True):
                mine = [found.id for found in ladder.passing(rung, closing)]
                assert mine == [found.id for found in fresh.passing(rung, closing)]


def test_a_rule_is_asked_once_for_what_is_there() -> None:
    asked = []

    def all_pass(points: Sequence[Point], closing: bool, factor: int) -> list[bool]:
        asked.append((len(points), closing, factor))
        return [True] * len(points)

    ladder = Ladder(Scheduler(passes=all_pass, pauses=True), 5)
    assert ladder.passing(0, closing=False) == []
    for number in range(2):
        one = trial(number)
        one.reports.append(make_report(2, 0.5))
        for _ in range(3):
            ladder.place(one)
            assert len(ladder.passing(0, closing=False)) == number + 1
    ladder.passing(0, closing=True)

    assert asked == [(1, False, 5), (2, False, 5), (2, True, 5)]


@pytest.mark.parametrize("capped", [False, True])
def test_no_more_go_on_than_a_part_where_they_are_capped(capped: bool) -> None:
    """Whoever is among the best at some time goes on otherwise, and their order changes."""
    chance, ladder = random.Random(0), Ladder(SCHEDULERS["front-asha"], 5, capped)
    waiting: list[TrialState] = []
    gone = 0
    for number in range(60):
        one = trial(number)
        one.memory_bytes = chance.randrange(1000, 2000)
        one.reports.append(make_report(0, chance.random()))
        ladder.place(one)
        waiting.append(one)
        for found in ladder.passing(0, closing=False):
            if any(found is other for other in waiting):
                found.promoted_step = 0
                ladder.place(found)
                waiting = [other for other in waiting if other is not found]
                gone += 1
        assert not capped or gone == (number + 1) // 5

    assert capped or gone > 60 // 5
