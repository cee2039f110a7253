"""Non-dominated ranks, spread and fronts of points whose coordinates all shall be small."""

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


def dominates(a: Point, b: Point) -> bool:
    """Tell whether `a` is no worse than `b` in both coordinates and better in one."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def ranks(points: Sequence[Point]) -> list[int]:
    """Return the non-dominated rank of each point, 0 for the front.

    Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II", section III-A.
    """
    result = [-1] * len(points)
    rank = 0
    while -1 in result:
        left = [index for index, value in enumerate(result) if value == -1]
        layer = [
            index
            for index in left
            if not any(dominates(points[other], points[index]) for other in left)
        ]
        for index in layer:
            result[index] = rank
        rank += 1
    return result


def crowding(points: Sequence[Point]) -> list[float]:
    """Return the crowding distance of each point among all: larger is lonelier.

    The two ends of each coordinate are infinitely lonely. Deb et al. 2002, section III-B.
    """
    values = np.asarray(points, dtype=float).reshape(len(points), -1)
    distance = np.zeros(len(points))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if len(order) else 0.0
        distance[order[[0, -1]]] = np.inf
        if span > 0 and len(order) > 2:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return [float(value) for value in distance]


def order(points: Sequence[Point]) -> list[int]:
    """Return the indices from best to worst: by rank, then by loneliness within the rank."""
    rank = ranks(points)
    lonely = [0.0] * len(points)
    for value in set(rank):
        members = [index for index in range(len(points)) if rank[index] == value]
        for member, distance in zip(members, crowding([points[m] for m in members]), strict=True):
            lonely[member] = distance
    return sorted(range(len(points)), key=lambda index: (rank[index], -lonely[index], index))


def front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the non-dominated points, by the second coordinate."""
    rank = ranks(points)
    return sorted((i for i in range(len(points)) if rank[i] == 0), key=lambda i: points[i][1])


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate, up to the reference.

    Zitzler and Thiele 1999, "Multiobjective evolutionary algorithms: a comparative case study and
    the strength Pareto approach", section III-A.
    """
    area, height = 0.0, reference[0]
    for loss, size in sorted(points, key=lambda point: (point[1], point[0])):
        if loss < height and size < reference[1]:
            area += (height - loss) * (reference[1] - size)
            height = loss
    return area


def hypervolume_gain(points: Sequence[Point], candidates: Sequence[Point]) -> list[float]:
    """Return how much each candidate alone would add to the area that the points dominate.

    The reference is the worst of all points and candidates in both coordinates.
    """
    every = [*points, *candidates]
    reference = (max(loss for loss, _ in every), max(size for _, size in every))
    before = hypervolume(points, reference)
    return [hypervolume([*points, candidate], reference) - before for candidate in candidates]
