"""Allocations of given bytes that nothing has chosen: uniform and random ones."""

from collections.abc import Callable
from random import Random

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import memory_bytes
from search_spaces.spaces import Space

# As many times the bytes of what it is compared with may a uniform allocation have: its sizes are
# so far apart that the next larger one is often the worse of two.
MORE_BYTES = 1.1


def lowered(allocation: Allocation, space: Space, limit: int, generator: Random) -> Allocation:
    """Lower bits and ranks of randomly chosen units, a step each, until all fits.

    Args:
        allocation: Of the space.
        space: A searched one.
        limit: Bytes of the deployed model, no fewer than the smallest allocation's.
        generator: Of the choices.
    """
    choices, units = dict(allocation.choices), space.units
    size = memory_bytes(allocation, space.inventory)
    while size > limit:
        steps = [
            (unit, smaller)
            for unit in units
            for smaller in _one_step_down(space, unit[0], choices[unit[0]])
        ]
        unit, smaller = generator.choice(steps)
        choices |= dict.fromkeys(unit, smaller)
        size = memory_bytes(Allocation(choices), space.inventory)
    return Allocation(choices)


def random_of_bytes(space: Space, size: int, generator: Random) -> Allocation:
    """Return a random allocation of at most these bytes, and less than a step fewer.

    A random draw, or the largest allocation where the draw is too small, lowered at random.
    """
    drawn = space.draw_all(generator)
    if memory_bytes(drawn, space.inventory) < size:
        drawn = space.largest()
    return lowered(drawn, space, size, generator)


def uniform_of_bytes(
    space: Space, size: int, cost: Callable[[Allocation], float] | None = None
) -> Allocation:
    """Return the uniform allocation that somebody with room for these bytes would take.

    The one of the lowest cost of no fewer bytes and at most a tenth more; the next larger one
    where none is in between, and the largest where none is larger.

    Args:
        space: A searched one.
        size: Bytes of the deployed model.
        cost: Of an allocation; None for its bytes.
    """
    inventory = space.inventory
    every = sorted(uniform_allocations(space), key=lambda a: memory_bytes(a, inventory))
    enough = [found for found in every if memory_bytes(found, inventory) >= size] or every[-1:]
    near = [a for a in enough if memory_bytes(a, inventory) <= MORE_BYTES * size] or enough[:1]
    return near[0] if cost is None else min(near, key=cost)


def uniform_allocations(space: Space) -> list[Allocation]:
    """Return the uniform allocation of each bits and rank.

    With adapters, where the space has any: without them nothing is fine-tuned but a head.
    """
    bits = sorted({value for values in space.bits.values() for value in values})
    ranks = sorted({value for values in space.ranks.values() for value in values if value}) or [0]
    return [space.nearest_uniform(b, r) for b in bits for r in ranks]


def _one_step_down(space: Space, name: str, choice: Choice) -> list[Choice]:
    """Return the next smaller bits, rank and group size of a module, each by itself."""
    group_size = choice.group_size or space.group_sizes[name][0]
    bits = [value for value in space.bits[name] if value < choice.bits]
    ranks = [value for value in space.ranks[name] if value < choice.rank]
    wider = [value for value in space.group_sizes[name] if 0 < choice.group_size < value]
    down = []
    if bits:
        down.append(space.choice(name, bits[-1], choice.rank, group_size))
    if ranks:
        down.append(space.choice(name, choice.bits, ranks[-1], group_size))
    if wider:
        down.append(space.choice(name, choice.bits, choice.rank, wider[0]))
    return down
