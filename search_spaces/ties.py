"""Modules that engines fuse into one matrix when they load a model, so that they must be alike."""

from dataclasses import replace

from search_spaces.inventory import Inventory
from search_spaces.spaces import PerModule, Space

# Last parts of names with one parent, as vLLM joins them (`packed_modules_mapping` of its models):
# Llama and its kin, and BERT.
FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("query", "key", "value"),
)


def fused_groups(inventory: Inventory) -> tuple[tuple[str, ...], ...]:
    """Return the groups of modules that are fused, in the order of the inventory."""
    names = set(inventory.names)
    parents = dict.fromkeys(name.rpartition(".")[0] for name in inventory.names)
    found = [tuple(f"{parent}.{last}" for last in lasts) for parent in parents for lasts in FUSED]
    return tuple(group for group in found if names.issuperset(group))


def tied(space: Space) -> Space:
    """Return the space in which fused modules take the same bits, rank and group size.

    Raises:
        ValueError: The space is fixed, or a group has no choice in common.
    """
    if space.fixed:
        raise ValueError(
            f"`--tie` must go with a searched space, got --space {space.name}. "
            "Leave it out, or use joint, bits or rank."
        )
    groups = fused_groups(space.inventory)
    return replace(
        space,
        groups=groups,
        bits=_shared(space.bits, groups, "bits"),
        ranks=_shared(space.ranks, groups, "ranks"),
        group_sizes=_shared(space.group_sizes, groups, "group sizes"),
    )


def _shared(
    options: PerModule, groups: tuple[tuple[str, ...], ...], what: str
) -> dict[str, tuple[int, ...]]:
    """Leave each module of a group what all of them have."""
    found = dict(options)
    for group in groups:
        common = set.intersection(*(set(options[name]) for name in group))
        if not common:
            raise ValueError(
                f"`--tie` must join modules with {what} in common, got {', '.join(group)} with "
                "none. Give --no-tie, or use another --quant-backend."
            )
        found |= dict.fromkeys(group, tuple(sorted(common)))
    return found
