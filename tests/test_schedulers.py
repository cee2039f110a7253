"""Rungs are whole numbers, and each rule keeps what it says. All rules share one contract."""

import random

import pytest

from tune.front import ranks
from tune.schedulers import SCHEDULERS, rung_steps


@pytest.mark.parametrize(
    ("max_steps", "expected"),
    [(200, (50, 100, 200)), (243, (60, 121, 243)), (7, (1, 3, 7)), (2, (1, 2)), (1, (1,))],
)
def test_rungs_end_with_full_fidelity(max_steps: int, expected: tuple[int, ...]) -> None:
    assert rung_steps(max_steps) == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_rule_lets_the_first_and_the_best_go_on(name: str) -> None:
    rule = SCHEDULERS[name]
    worse = [(2.0 + number, 20.0) for number in range(9)]

    assert rule([(5.0, 50.0)])
    assert rule([*worse, (1.0, 10.0)])


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"none"}))
def test_every_stopping_rule_stops_the_worst_of_many(name: str) -> None:
    better = [(1.0 + number / 10, 10.0 + number) for number in range(9)]

    assert not SCHEDULERS[name]([*better, (9.0, 99.0)])


def test_none_stops_nothing() -> None:
    assert SCHEDULERS["none"]([(1.0, 1.0)] * 9 + [(9.0, 9.0)])


def test_size_is_not_free_for_the_front_only() -> None:
    """A small model with a middling loss: nothing smaller is better."""
    large = [(1.0 + number / 100, 100.0 + number) for number in range(9)]
    small = (1.5, 10.0)

    assert SCHEDULERS["front-asha"]([*large, small])
    assert not SCHEDULERS["asha"]([*large, small])


def test_a_front_of_any_size_goes_on() -> None:
    line = [(float(number), float(20 - number)) for number in range(20)]

    assert all(SCHEDULERS["front-asha"]([*line[:n], *line[n + 1 :], line[n]]) for n in range(20))


def test_about_a_third_of_random_trials_goes_on() -> None:
    generator = random.Random(0)
    points: list[tuple[float, float]] = []
    passed = 0
    for _ in range(300):
        points.append((generator.random(), generator.random()))
        kept = SCHEDULERS["front-asha"](points)
        passed += kept
        if ranks(points)[-1] == 0:
            assert kept

    assert 0.25 < passed / 300 < 0.45
