"""Non-dominated ranks, spread and order, by hand and against a slow definition."""

import random

from tune.search.front import (
    crowding,
    dominates,
    front,
    hypervolume,
    hypervolume_gain,
    order,
    ranks,
)

# Three layers: a, b, c cannot be beaten; d is beaten by b; e by d.
A, B, C, D, E = (1.0, 9.0), (3.0, 4.0), (8.0, 1.0), (4.0, 5.0), (5.0, 6.0)


def test_domination_needs_one_better_coordinate() -> None:
    assert dominates(B, D)
    assert not dominates(D, B)
    assert not dominates(B, B)
    assert dominates((1.0, 2.0), (1.0, 3.0))


def test_ranks_peel_layers() -> None:
    assert ranks([E, A, D, B, C]) == [2, 0, 1, 0, 0]


def test_equal_points_share_a_rank() -> None:
    assert ranks([A, A, B]) == [0, 0, 0]


def test_front_is_sorted_by_the_second_coordinate() -> None:
    assert front([E, A, D, B, C]) == [4, 3, 1]
    assert front([]) == []


def test_ends_are_infinitely_lonely() -> None:
    distances = crowding([A, B, C])

    assert distances[0] == distances[2] == float("inf")
    assert distances[1] == (8 - 1) / 7 + (9 - 1) / 8


def test_order_puts_rank_before_spread() -> None:
    points = [D, (3.1, 3.9), B, A, C]
    placed = order(points)

    assert placed[-1] == 0
    assert set(placed[:2]) == {3, 4}


def test_front_against_its_definition() -> None:
    generator = random.Random(0)
    for _ in range(50):
        points = [
            (float(generator.randint(0, 9)), float(generator.randint(0, 9))) for _ in range(12)
        ]
        slow = {
            index
            for index, point in enumerate(points)
            if not any(
                q[0] <= point[0] and q[1] <= point[1] and (q[0] < point[0] or q[1] < point[1])
                for q in points
            )
        }
        assert set(front(points)) == slow
        assert sorted(order(points)) == list(range(12))


def test_hypervolume_computed_by_hand() -> None:
    """Steps of 1 x 3, 2 x 2 and a point that is dominated, up to (4, 4)."""
    points = [(3.0, 1.0), (1.0, 2.0), (2.0, 3.0)]

    assert hypervolume(points, (4.0, 4.0)) == 1 * 3 + 2 * 2
    assert hypervolume(points, (1.0, 1.0)) == 0.0
    assert hypervolume([], (4.0, 4.0)) == 0.0


def test_what_a_candidate_adds_is_the_area_that_it_alone_dominates() -> None:
    points = [(3.0, 1.0), (1.0, 2.0)]
    candidates = [(0.5, 3.0), (2.0, 2.5), (2.0, 1.0), (4.0, 4.0)]

    assert hypervolume_gain(points, candidates) == [0.5, 0.0, 1.0, 0.0]
    assert hypervolume_gain([], [(1.0, 2.0), (3.0, 5.0)]) == [6.0, 0.0]


def test_a_reference_that_is_further_away_leaves_room_for_the_largest() -> None:
    """Sizes go from 1 to 4, so half of their range more is up to 5.5."""
    points = [(3.0, 1.0), (1.0, 2.0)]
    candidates = [(0.5, 4.0), (2.0, 2.5), (2.0, 1.0), (3.5, 4.0)]

    assert hypervolume_gain(points, candidates) == [0.0, 0.0, 1.0, 0.0]
    assert hypervolume_gain(points, candidates, beyond=0.5) == [0.75, 0.0, 1.0, 0.0]


def test_what_candidates_add_is_a_difference_of_areas() -> None:
    generator = random.Random(0)
    for count in (0, 1, 30):
        points, candidates = (
            [(generator.randint(0, 9) / 2, generator.randint(0, 9) / 4) for _ in range(number)]
            for number in (count, 12)
        )
        every = [*points, *candidates, *points[:3]]
        reference = (max(loss for loss, _ in every), max(size for _, size in every))
        before = hypervolume(points, reference)
        slow = [hypervolume([*points, c], reference) - before for c in candidates]

        assert hypervolume_gain([*points, *points[:3]], candidates) == slow
