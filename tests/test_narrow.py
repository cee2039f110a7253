"""Searched spaces with fewer bits and ranks."""

from dataclasses import replace

import pytest

from search_spaces.formats import Formats
from search_spaces.narrow import fewer_bits, narrowed, target_bits
from search_spaces.spaces import make_space
from search_spaces.ties import tied
from tests.simulated import make_inventory
from tests.test_spaces import TOKENS
from tests.test_ties import LLAMA, holds, inventory_of

INVENTORY = make_inventory()
JOINT = make_space("joint", INVENTORY)


def test_modules_take_the_values_that_are_asked_for() -> None:
    space = narrowed(JOINT, bits=(2, 4), ranks=(0, 8))

    assert set(space.bits.values()) == {(2, 4)}
    assert set(space.ranks.values()) == {(0, 8)}
    assert {choice.bits for choice in space.largest().choices.values()} == {4}
    assert {choice.rank for choice in space.largest().choices.values()} == {8}
    assert narrowed(JOINT) == JOINT


def test_what_has_none_of_the_values_keeps_its_own() -> None:
    """HQQ's rows can't be read one by one, so that an embedding stays in 16 bits."""
    inventory = replace(INVENTORY, embeddings=(TOKENS,))
    space = narrowed(make_space("joint", inventory, Formats(backend="hqq")), (2, 3), (4,))

    assert space.bits["tokens"] == (16,)
    assert space.ranks["tokens"] == (0,)
    assert target_bits(space) == (2, 3)


@pytest.mark.parametrize(
    ("space", "bits", "ranks", "message"),
    [
        ("B-FP", (2,), None, "`--bits` must go with a searched space, got --space B-FP"),
        ("joint", (2, 5), None, "`--bits` must be some of 2, 3, 4, 8, 16 in --space joint"),
        ("rank", (3,), None, "`--bits` must be some of 4 in --space rank with --quant-backend"),
        ("joint", None, (64,), "`--ranks` must be some of 0, 2, 4, 8, 16, 32 in --space joint"),
    ],
)
def test_values_that_no_module_has_are_refused(
    space: str, bits: tuple[int, ...] | None, ranks: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        narrowed(make_space(space, INVENTORY), bits, ranks)


def test_highest_bits_go_first_and_two_widths_stay() -> None:
    found = [target_bits(space) for space in fewer_bits(JOINT)]

    assert found == [(2, 3, 4, 8), (2, 3, 4), (2, 3)]
    assert not list(fewer_bits(make_space("rank", INVENTORY)))


def test_what_is_tied_stays_tied() -> None:
    joint = make_space("joint", inventory_of(LLAMA))
    fewer = next(fewer_bits(tied(joint)))

    assert fewer.groups
    assert holds(fewer, fewer.largest())
    assert target_bits(fewer) == target_bits(tied(narrowed(joint, (2, 3, 4, 8)))) == (2, 3, 4, 8)
