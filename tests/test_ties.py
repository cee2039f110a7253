"""Modules that engines fuse choose together, whoever proposes."""

import random
from pathlib import Path

import pytest

from alrq_core.sensitivity.table import flat_table
from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes
from search_spaces.costs import memory_bytes
from search_spaces.inventory import Inventory, TargetModule
from search_spaces.spaces import Space, make_space
from search_spaces.ties import fused_groups, tied
from tune.search.parameters import distributions, from_params, to_params
from tune.search.proposer import Proposer
from tune.search.searchers import SEARCHERS, Setting

LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LLAMA += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def inventory_of(names: tuple[str, ...], narrow: int = 64) -> Inventory:
    """Two blocks; keys and values are `narrow` wide, as with grouped queries."""
    targets = [
        TargetModule(
            name=f"model.layers.{block}.{name}",
            out_features=narrow if name.endswith(("k_proj", "v_proj")) else 128,
            in_features=128,
            part="attention" if "attn" in name else "feed-forward",
            block=block,
        )
        for block in range(2)
        for name in names
    ]
    return Inventory(model="made-up", targets=tuple(targets), other_parameters=10)


SPACE = tied(make_space("joint", inventory_of(LLAMA)))


def holds(space: Space, allocation: Allocation) -> bool:
    return all(len({allocation.choices[name] for name in group}) == 1 for group in space.groups)


def test_query_key_value_and_gate_up_are_fused_and_nothing_else() -> None:
    first = fused_groups(inventory_of(LLAMA))[:2]

    assert [[name.rpartition(".")[2] for name in group] for group in first] == [
        ["q_proj", "k_proj", "v_proj"],
        ["gate_proj", "up_proj"],
    ]
    assert len(fused_groups(inventory_of(LLAMA))) == 4
    assert fused_groups(inventory_of(("attn.c_attn", "attn.c_proj"))) == ()
    assert fused_groups(inventory_of(("attention.query", "attention.key"))) == ()


@pytest.mark.parametrize("searcher", SEARCHERS)
@pytest.mark.parametrize("tight", [False, True])
def test_every_searcher_keeps_ties_and_the_limit(
    tmp_path: Path, searcher: str, tight: bool
) -> None:
    smallest = memory_bytes(SPACE.smallest(), SPACE.inventory)
    limit = round(1.3 * smallest) if tight else None
    setting = Setting(space=SPACE, rungs=(2, 4), budget=20, seed=0, max_memory_bytes=limit)
    proposer = Proposer(setting, searcher, tmp_path, flat_table(SPACE))
    found = [proposer.propose(f"t{number}") for number in range(9)]

    assert all(holds(SPACE, allocation) for allocation in found)
    assert len(set(found)) == 9
    if limit is not None:
        assert all(memory_bytes(a, SPACE.inventory) <= limit for a in found)


def test_random_draws_keep_ties() -> None:
    generator = random.Random(0)
    size = 2 * memory_bytes(SPACE.smallest(), SPACE.inventory)

    assert all(holds(SPACE, SPACE.draw_all(generator)) for _ in range(20))
    assert all(holds(SPACE, random_of_bytes(SPACE, size, generator)) for _ in range(20))


def test_one_parameter_stands_for_all_of_a_group() -> None:
    allocation = SPACE.draw_all(random.Random(1))
    params = to_params(allocation, SPACE)

    assert set(params) == set(distributions(SPACE))
    assert len(params) == 2 * 2 * 4
    assert from_params(params, SPACE) == allocation


def test_a_tied_space_is_smaller() -> None:
    assert SPACE.log10_size < make_space("joint", SPACE.inventory).log10_size


def test_members_take_only_what_all_have() -> None:
    narrow = tied(make_space("joint", inventory_of(LLAMA, narrow=16)))
    group = narrow.groups[0]

    assert {narrow.ranks[name] for name in group} == {(0, 2, 4, 8, 16)}
    assert narrow.ranks["model.layers.0.self_attn.o_proj"] == (0, 2, 4, 8, 16, 32)


def test_a_fixed_space_has_nothing_to_tie() -> None:
    with pytest.raises(ValueError, match=r"must go with a searched space, got --space B-FP"):
        tied(make_space("B-FP", SPACE.inventory))
