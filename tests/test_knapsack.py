"""The knapsack against all solutions, where options tie in bytes or loss or are missing."""

import itertools

import numpy as np
import pytest

from tune.search.knapsack import solve_knapsack


@pytest.mark.parametrize("seed", range(80))
def test_agrees_with_brute_force_where_options_tie(seed: int) -> None:
    generator = np.random.default_rng(seed)
    units, options = int(generator.integers(1, 6)), int(generator.integers(1, 6))
    step = int(generator.integers(1, 4))
    sizes = np.sort(step * generator.integers(0, 5, (units, options)), axis=1)
    losses = generator.integers(-4, 5, (units, options)) * 10.0 ** generator.integers(-9, 3)
    losses[:, 1:][generator.random((units, options - 1)) < 0.2] = np.inf
    every = np.array(list(itertools.product(range(options), repeat=units)))
    rows = np.arange(units)
    filled, lost = sizes[rows, every].sum(axis=1), losses[rows, every].sum(axis=1)
    for room in range(int(sizes[:, 0].sum()), int(sizes[:, -1].sum()) + 2):
        found = solve_knapsack(losses, sizes, room).options

        assert sizes[rows, found].sum() <= room
        least = lost[filled <= room].min()
        assert losses[rows, found].sum() == pytest.approx(least, rel=1e-9, abs=1e-15)
