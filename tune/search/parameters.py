"""Allocations as Optuna's parameters: bits and rank of every module, each visible by itself."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from search_spaces.allocation import Allocation, Choice
from search_spaces.spaces import Space


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's distributions: bits and rank of every module, and its group size where
    there are several. Modules that choose together have those of the first.
    """
    found: dict[str, BaseDistribution] = {}
    for name, *_ in space.units:
        found[f"{name}.bits"] = CategoricalDistribution(space.bits[name])
        found[f"{name}.rank"] = CategoricalDistribution(space.ranks[name])
        if len(space.group_sizes[name]) > 1:
            found[f"{name}.group_size"] = CategoricalDistribution(space.group_sizes[name])
    return found


def to_params(allocation: Allocation, space: Space) -> dict[str, int]:
    """Return an allocation as Optuna's parameters.

    A format without groups gets the first group size, since it has to have one.
    """
    params = {}
    for name, *_ in space.units:
        choice = allocation.choices[name]
        params[f"{name}.bits"] = choice.bits
        params[f"{name}.rank"] = choice.rank
        sizes = space.group_sizes[name]
        if len(sizes) > 1:
            params[f"{name}.group_size"] = choice.group_size or sizes[0]
    return params


def from_params(params: Mapping[str, Any], space: Space) -> Allocation:
    """Return the allocation that Optuna's parameters stand for."""
    chosen: dict[str, Choice] = {}
    for name, *others in space.units:
        choice = space.choice(
            name,
            int(params[f"{name}.bits"]),
            int(params[f"{name}.rank"]),
            int(params.get(f"{name}.group_size", space.group_sizes[name][0])),
        )
        chosen |= dict.fromkeys((name, *others), choice)
    return Allocation({name: chosen[name] for name in space.inventory.names})
