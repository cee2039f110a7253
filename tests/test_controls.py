"""Allocations of given bytes: uniform ones are no smaller, random ones just fit."""

import itertools
import random

import pytest

from search_spaces.controls import (
    lowered,
    random_of_bytes,
    uniform_allocations,
    uniform_of_bytes,
)
from search_spaces.costs import memory_bytes, module_bytes
from search_spaces.spaces import make_space
from tests.simulated import make_inventory

INVENTORY = make_inventory()
JOINT = make_space("joint", INVENTORY)
SMALLEST, LARGEST = (memory_bytes(a, INVENTORY) for a in (JOINT.smallest(), JOINT.largest()))
SIZES = [SMALLEST, SMALLEST + 1, (SMALLEST + LARGEST) // 3, LARGEST - 1, LARGEST]
# The largest difference between two choices of one module that follow each other.
STEP = max(
    max(b - a for a, b in itertools.pairwise(sizes))
    for module in INVENTORY.modules
    for sizes in [sorted(module_bytes(module, c) for c in JOINT.choices(module.name))]
)


@pytest.mark.parametrize("size", SIZES)
def test_a_random_allocation_just_fits(size: int) -> None:
    found = [random_of_bytes(JOINT, size, random.Random(seed)) for seed in range(20)]

    assert all(size - 2 * STEP <= memory_bytes(a, INVENTORY) <= size for a in found)
    if SMALLEST + STEP < size < LARGEST - STEP:
        assert len(set(found)) == 20


@pytest.mark.parametrize("size", SIZES)
def test_a_uniform_allocation_has_at_least_these_bytes(size: int) -> None:
    found = uniform_of_bytes(JOINT, size)
    bits = {choice.bits for choice in found.choices.values()}

    assert memory_bytes(found, INVENTORY) >= size
    assert all(choice.rank for choice in found.choices.values())
    assert len(bits) == 1


def test_no_uniform_allocation_in_between_is_passed_over() -> None:
    for bits, rank in ((2, 2), (3, 8), (4, 2), (16, 32)):
        uniform = JOINT.nearest_uniform(bits, rank)
        assert uniform_of_bytes(JOINT, memory_bytes(uniform, INVENTORY)) == uniform


def test_of_a_tenth_more_bytes_the_uniform_one_of_the_lowest_cost_is_taken() -> None:
    every = uniform_allocations(JOINT)
    sizes = {memory_bytes(a, INVENTORY): a for a in every}
    first = max(sizes, key=lambda size: sum(size <= other <= 1.1 * size for other in sizes))
    within = [size for size in sorted(sizes) if first <= size <= 1.1 * first]
    assert 1 < len(within) < len(sizes) - 2
    for wanted in within:
        found = uniform_of_bytes(JOINT, first, lambda a, wanted=wanted: a != sizes[wanted])
        assert found == sizes[wanted]
    # The smallest and the largest are not asked.
    found = uniform_of_bytes(JOINT, first, lambda a: -abs(memory_bytes(a, INVENTORY) - first))
    assert memory_bytes(found, INVENTORY) == within[-1]


def test_more_bytes_than_any_get_the_largest() -> None:
    assert uniform_of_bytes(JOINT, LARGEST + 1) == JOINT.nearest_uniform(16, 32)


def test_what_fits_is_not_lowered() -> None:
    assert lowered(JOINT.largest(), JOINT, LARGEST, random.Random(0)) == JOINT.largest()
