"""Allocations as Optuna's parameters: bits and rank of every module, each visible by itself."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from search_spaces.allocation import Allocation, Choice
from search_spaces.inventory import short_names
from search_spaces.spaces import Space


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's distributions: bits and rank of every module, and its group size, as far as
    there are several. Modules that choose together have those of the first.

    Their names are short, for dashboards: `03.attention.query.bits`.
    """
    return {
        f"{short}.{what}": CategoricalDistribution(choices)
        for name, short in _units(space)
        for what, choices in _choices(space, name).items()
        if len(choices) > 1
    }


def to_params(allocation: Allocation, space: Space) -> dict[str, int]:
    """Return an allocation as Optuna's parameters.

    A format without groups gets the first group size, since it has to have one.
    """
    params: dict[str, int] = {}
    for name, short in _units(space):
        choice, choices = allocation.choices[name], _choices(space, name)
        values = {"bits": choice.bits, "rank": choice.rank}
        values["group_size"] = choice.group_size or choices["group_size"][0]
        params |= {f"{short}.{what}": values[what] for what in choices if len(choices[what]) > 1}
    return params


def from_params(params: Mapping[str, Any], space: Space) -> Allocation:
    """Return the allocation that Optuna's parameters stand for."""
    chosen: dict[str, Choice] = {}
    groups = {name: others for name, *others in space.units}
    for name, short in _units(space):
        bits, rank, size = (
            int(params.get(f"{short}.{what}", choices[0]))
            for what, choices in _choices(space, name).items()
        )
        chosen |= dict.fromkeys((name, *groups[name]), space.choice(name, bits, rank, size))
    return Allocation({name: chosen[name] for name in space.inventory.names})


def _units(space: Space) -> list[tuple[str, str]]:
    """Return the modules that choose, and their short names."""
    short = short_names(space.inventory)
    return [(name, short[name]) for name, *_ in space.units]


def _choices(space: Space, name: str) -> dict[str, tuple[int, ...]]:
    return {
        "bits": tuple(space.bits[name]),
        "rank": tuple(space.ranks[name]),
        "group_size": tuple(space.group_sizes[name]),
    }
