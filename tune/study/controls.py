"""Allocations that nobody searched for, of the bytes of the smallest that was found."""

from collections.abc import Mapping
from random import Random

from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes, uniform_of_bytes
from search_spaces.spaces import Space
from tune.study.state import TrialState

CONTROLS = ("uniform", "random")


def controls(space: Space, found: TrialState, seed: int) -> Mapping[str, Allocation]:
    """Return the controls of one finalist, by their trials' ids, such as `uniform-t007`.

    A larger budget may find a smaller finalist, which then has controls of its own.

    Args:
        space: Of the search.
        found: The finalist.
        seed: Of the study.
    """
    size = found.memory_bytes
    generator = Random(f"{seed}-{found.id}")
    allocations = (uniform_of_bytes(space, size), random_of_bytes(space, size, generator))
    ids = (f"{kind}-{found.id}" for kind in CONTROLS)
    return dict(zip(ids, allocations, strict=True))
