"""Rungs are whole numbers, and each rule keeps what it says. All rules share one contract."""

import random

import pytest

from alrq_core.recipe import Recipe
from tune.search.front import ranks
from tune.study.schedulers import SCHEDULERS, rung_steps, rungs_of

RULES = sorted(set(SCHEDULERS) - {"none"})


def passes(
    name: str, points: list[tuple[float, float]], closing: bool = False, factor: int = 2
) -> list[bool]:
    return SCHEDULERS[name].passes(points, closing, factor)


def test_what_starts_from_a_reference_is_scored_before_any_step() -> None:
    recipe = Recipe(max_steps=200)

    assert rungs_of(recipe, "search", started=True) == (0, 100)
    assert rungs_of(recipe, "confirm", started=True) == (0, 100)
    assert rungs_of(recipe, "screen", started=True) == (0,)
    assert rungs_of(recipe, "search", started=False) == (50, 100, 200)
    assert rungs_of(recipe, "baseline", started=False) == (200,)
    assert rungs_of(Recipe(tune_steps=7), "search", started=True) == (0, 7)


@pytest.mark.parametrize(
    ("max_steps", "expected"),
    [(200, (50, 100, 200)), (243, (60, 121, 243)), (7, (1, 3, 7)), (2, (1, 2)), (1, (1,))],
)
def test_rungs_end_with_full_fidelity(max_steps: int, expected: tuple[int, ...]) -> None:
    assert rung_steps(max_steps) == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_rule_lets_the_best_of_many_go_on(name: str) -> None:
    worse = [(2.0 + number, 20.0) for number in range(9)]

    assert passes(name, [*worse, (1.0, 10.0)])[-1]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_only_one_goes_on_at_the_end_at_the_latest(name: str) -> None:
    assert passes(name, [(5.0, 50.0)], closing=True) == [True]
    assert passes(name, [(5.0, 50.0)]) == [not SCHEDULERS[name].pauses]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_holds_the_worst_of_many(name: str) -> None:
    better = [(1.0 + number / 10, 10.0 + number) for number in range(9)]

    assert not passes(name, [*better, (9.0, 99.0)])[-1]


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_equal_losses_are_no_reason_to_hold_all(name: str, closing: bool) -> None:
    assert any(passes(name, [(1.0, 2.0)] * 9, closing))


def test_none_holds_nothing() -> None:
    assert passes("none", [(1.0, 1.0)] * 9 + [(9.0, 9.0)]) == [True] * 10


def test_size_is_not_free_for_the_front_only() -> None:
    """A small model with a middling loss: nothing smaller is better."""
    large = [(1.0 + number / 100, 100.0 + number) for number in range(9)]
    small = (1.5, 10.0)

    assert passes("front-asha", [*large, small])[-1]
    assert not passes("asha", [*large, small])[-1]
    assert not passes("median", [*large, small])[-1]


def test_half_and_median_by_hand() -> None:
    points = [(loss, 1.0) for loss in (5.0, 1.0, 4.0, 2.0, 3.0)]

    assert passes("asha", points) == [False, True, False, True, True]
    assert passes("median", points) == [False, True, False, True, True]
    assert passes("median", points[:3]) == [True] * 3


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("count", range(1, 40))
def test_a_part_of_any_front_goes_on_rounded_up_at_the_end(count: int, factor: int) -> None:
    line = [(float(number), float(count - number)) for number in range(count)]
    kept = passes("front-asha", line, factor=factor)
    last = passes("front-asha", line, closing=True, factor=factor)

    assert sum(kept) == count // factor
    assert sum(last) == -(-count // factor)
    assert all(later for now, later in zip(kept, last, strict=True) if now)


def test_better_ranks_pass_before_worse_ones() -> None:
    generator = random.Random(0)
    points = [(generator.random(), generator.random()) for _ in range(300)]
    kept, rank = passes("front-asha", points), ranks(points)

    assert sum(kept) == 150
    assert max(r for r, k in zip(rank, kept, strict=True) if k) <= min(
        r for r, k in zip(rank, kept, strict=True) if not k
    )
