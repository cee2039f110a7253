"""Non-dominated ranks, spread and fronts of points whose coordinates all shall be small."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

Point = tuple[float, float]


def dominates(a: Point, b: Point) -> bool:
    """Tell whether `a` is no worse than `b` in both coordinates and better in one."""
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def ranks(points: Sequence[Point]) -> list[int]:
    """Return the non-dominated rank of each point, 0 for the front.

    Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II", section III-A;
    in two coordinates a point's rank is the first whose points so far, the smaller ones in the
    first coordinate, are all larger in the second.
    """
    found: dict[Point, int] = {}
    lowest: list[float] = []
    for point in sorted(set(points)):
        rank = bisect_right(lowest, point[1])
        lowest[rank : rank + 1] = [point[1]]
        found[point] = rank
    return [found[point] for point in points]


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


def in_order(points: Sequence[Point]) -> Iterator[int]:
    """Yield the indices of points, the best first: by rank, then by loneliness within the rank."""
    layers: dict[int, list[int]] = defaultdict(list)
    for index, rank in enumerate(ranks(points)):
        layers[rank].append(index)
    for rank in range(len(layers)):
        members = layers[rank]
        lonely = crowding([points[member] for member in members])
        yield from (members[at] for at in sorted(range(len(members)), key=lambda i: -lonely[i]))


def best(points: Sequence[Point], count: int) -> set[int]:
    """Return the indices of the best points."""
    return set(islice(in_order(points), count))


def front(points: Sequence[Point] | np.ndarray) -> list[int]:
    """Return the indices of the non-dominated points, by the second coordinate."""
    first, second = np.asarray(points, dtype=float).reshape(-1, 2).T
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.append(True, (np.diff(first) != 0) | (np.diff(second) != 0))[: len(order)]
    lower = second < np.append(np.inf, np.minimum.accumulate(second))[: len(order)]
    # Equal points are as good as the first of them.
    leaders = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    kept = np.sort(order[lower[leaders]])
    seconds = np.asarray(points, dtype=float).reshape(-1, 2)[kept, 1]
    found: list[int] = kept[np.argsort(seconds, kind="stable")].tolist()
    return found


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


def hypervolume_gain(points: np.ndarray, candidates: np.ndarray, beyond: float = 0.0) -> np.ndarray:
    """Return how much each candidate alone would add to the area that the points dominate.

    Args:
        points: What is there, points x 2.
        candidates: What may be added, candidates x 2.
        beyond: The reference is the worst of all in both coordinates, and by this share of their
            range further in the second: at 0 the largest candidate adds nothing. Ishibuchi et al.
            2018, "How to specify a reference point in hypervolume calculation for fair performance
            comparison".
    """
    every = np.concatenate([points, candidates])
    reference = every.max(axis=0)
    reference[1] += beyond * (reference[1] - every[:, 1].min())
    best = points[front(points)]
    # From each size on, the least loss.
    heights = np.append(reference[0], best[:, 0])
    starts, ends = np.append(-np.inf, best[:, 1]), np.append(best[:, 1], reference[1])
    losses, sizes = candidates[:, :1], candidates[:, 1:]
    widths = np.maximum(ends - np.maximum(starts, sizes), 0.0)
    gains: np.ndarray = (widths * np.maximum(heights - losses, 0.0)).sum(axis=1)
    return gains
