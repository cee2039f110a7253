"""Non-dominated ranks, spread and order, by hand and against a slow definition."""

import random

import numpy as np

from tune.search.front import (
    Point,
    best,
    crowding,
    dominates,
    front,
    hypervolume,
    hypervolume_gain,
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


def test_rank_comes_before_spread() -> None:
    points = [D, (3.1, 3.9), B, A, C]

    assert best(points, 0) == set()
    assert best(points, 2) == {3, 4}
    assert best(points, 4) == {1, 2, 3, 4}
    assert best(points, 5) == set(range(5))


def test_the_best_are_those_of_a_sorted_list() -> None:
    """By rank, by loneliness among all of the rank, and the first of what is alike."""
    generator = random.Random(0)
    points = [(float(generator.randint(0, 9)), float(generator.randint(0, 9))) for _ in range(60)]
    rank, lonely = ranks(points), [0.0] * 60
    for layer in set(rank):
        members = [i for i in range(60) if rank[i] == layer]
        for member, distance in zip(members, crowding([points[m] for m in members]), strict=True):
            lonely[member] = distance
    order = sorted(range(60), key=lambda i: (rank[i], -lonely[i], i))

    for count in range(61):
        assert best(points, count) == set(order[:count])


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
        assert slow == {index for index, rank in enumerate(ranks(points)) if rank == 0}


def test_hypervolume_computed_by_hand() -> None:
    """Steps of 1 x 3, 2 x 2 and a point that is dominated, up to (4, 4)."""
    points = [(3.0, 1.0), (1.0, 2.0), (2.0, 3.0)]

    assert hypervolume(points, (4.0, 4.0)) == 1 * 3 + 2 * 2
    assert hypervolume(points, (1.0, 1.0)) == 0.0
    assert hypervolume([], (4.0, 4.0)) == 0.0


def gain(points: list[Point], candidates: list[Point], beyond: float = 0.0) -> list[float]:
    known, new = (np.array(some, dtype=float).reshape(-1, 2) for some in (points, candidates))
    found: list[float] = hypervolume_gain(known, new, beyond).tolist()
    return found


def test_what_a_candidate_adds_is_the_area_that_it_alone_dominates() -> None:
    points = [(3.0, 1.0), (1.0, 2.0)]
    candidates = [(0.5, 3.0), (2.0, 2.5), (2.0, 1.0), (4.0, 4.0)]

    assert gain(points, candidates) == [0.5, 0.0, 1.0, 0.0]
    assert gain([], [(1.0, 2.0), (3.0, 5.0)]) == [6.0, 0.0]


def test_a_reference_that_is_further_away_leaves_room_for_the_largest() -> None:
    """Sizes go from 1 to 4, so half of their range more is up to 5.5."""
    points = [(3.0, 1.0), (1.0, 2.0)]
    candidates = [(0.5, 4.0), (2.0, 2.5), (2.0, 1.0), (3.5, 4.0)]

    assert gain(points, candidates) == [0.0, 0.0, 1.0, 0.0]
    assert gain(points, candidates, beyond=0.5) == [0.75, 0.0, 1.0, 0.0]


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

        assert gain([*points, *points[:3]], candidates) == slow
