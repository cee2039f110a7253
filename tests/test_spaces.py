"""What each space lets a module take."""

import math

import pytest

from search_spaces.allocation import Choice
from search_spaces.costs import memory_bytes
from search_spaces.inventory import Inventory, TargetModule
from search_spaces.spaces import NEEDS_ADALORA, SPACES, fixed_allocation, make_space
from tests.simulated import make_inventory

INVENTORY = make_inventory()


def test_joint_offers_all_bits_and_ranks() -> None:
    space = make_space("joint", INVENTORY)

    assert set(space.bits.values()) == {(2, 3, 4, 8, 16)}
    assert set(space.ranks.values()) == {(0, 2, 4, 8, 16, 32)}
    assert space.log10_size == pytest.approx(6 * math.log10(30))
    assert not space.fixed


def test_bits_and_rank_hold_the_other_fixed() -> None:
    bits, rank = make_space("bits", INVENTORY), make_space("rank", INVENTORY)

    assert set(bits.ranks.values()) == {(8,)}
    assert set(bits.bits.values()) == {(2, 3, 4, 8, 16)}
    assert set(rank.bits.values()) == {(4,)}
    assert set(rank.ranks.values()) == {(0, 2, 4, 8, 16, 32)}


@pytest.mark.parametrize(
    ("name", "attention", "feed_forward"),
    [
        ("B-FP", Choice(16, 8), Choice(16, 8)),
        ("B-Q4", Choice(4, 8), Choice(4, 8)),
        ("Joint-3", Choice(8, 6), Choice(4, 10)),
    ],
)
def test_fixed_spaces_have_one_point(name: str, attention: Choice, feed_forward: Choice) -> None:
    allocation = fixed_allocation(name, INVENTORY)

    assert make_space(name, INVENTORY).fixed
    for target in INVENTORY.targets:
        expected = attention if target.part == "attention" else feed_forward
        assert allocation.choices[target.name] == expected


def test_corners_are_the_extremes() -> None:
    space = make_space("joint", INVENTORY)
    sizes = [memory_bytes(anchor, INVENTORY) for anchor in space.anchors(10, None)]

    assert set(space.smallest().choices.values()) == {Choice(2, 0)}
    assert set(space.largest().choices.values()) == {Choice(16, 32)}
    assert memory_bytes(space.smallest(), INVENTORY) <= min(sizes)
    assert memory_bytes(space.largest(), INVENTORY) >= max(sizes)


def test_anchors_are_distinct_inside_the_space_and_fit() -> None:
    space = make_space("rank", INVENTORY)
    anchors = space.anchors(10, None)
    limit = sorted(memory_bytes(anchor, INVENTORY) for anchor in anchors)[1]

    assert len(set(anchors)) == len(anchors)
    for anchor in anchors:
        assert all(choice.bits == 4 for choice in anchor.choices.values())
    fitting = space.anchors(10, limit)
    assert all(memory_bytes(anchor, INVENTORY) <= limit for anchor in fitting)
    assert len(fitting) == 2


def test_ranks_stay_below_a_modules_size_and_bits_fit_its_shape() -> None:
    target = TargetModule(name="m", out_features=5, in_features=100, part="feed-forward", block=0)
    space = make_space("joint", Inventory(model="m", targets=(target,), other_parameters=0))

    assert space.ranks["m"] == (0, 2, 4)
    assert space.bits["m"] == (4, 8, 16)


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="`--space` must be one of joint, bits, rank, B-FP"):
        make_space("joined", INVENTORY)
    for name in NEEDS_ADALORA:
        with pytest.raises(ValueError, match=rf"got '{name}', which needs AdaLoRA"):
            make_space(name, INVENTORY)
    assert not set(NEEDS_ADALORA) & set(SPACES)
