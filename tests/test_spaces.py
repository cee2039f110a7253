"""What each space lets a module take."""

import math
from dataclasses import replace

import pytest

from search_spaces.allocation import Choice
from search_spaces.costs import memory_bytes
from search_spaces.fixed import FIXED, fixed_allocation, unavailable
from search_spaces.formats import Formats
from search_spaces.inventory import Inventory, TargetModule
from search_spaces.spaces import make_space
from tests.simulated import make_inventory

INVENTORY = make_inventory()
TOKENS = TargetModule(name="tokens", out_features=90, in_features=64, part="embedding", block=-1)
WITH_EMBEDDING = replace(INVENTORY, embeddings=(TOKENS,))


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
        ("B-Q4", Choice(4, 8, "nf4-double"), Choice(4, 8, "nf4-double")),
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
    inventory = Inventory(model="m", targets=(target,), other_parameters=0)
    space = make_space("joint", inventory, Formats(backend="bnb"))

    assert space.ranks["m"] == (0, 2, 4)
    assert space.bits["m"] == (4, 8, 16)
    with pytest.raises(ValueError, match=r"must have inputs in multiples of 32 .*, got 100 for m"):
        make_space("joint", inventory)


def test_groups_of_32_where_64_does_not_divide() -> None:
    target = TargetModule(name="m", out_features=5, in_features=96, part="feed-forward", block=0)
    inventory = Inventory(model="m", targets=(target,), other_parameters=0)
    space = make_space("joint", inventory)

    assert {choice.group_size for choice in space.choices("m") if choice.bits < 16} == {32}
    assert (
        fixed_allocation("Joint-3", replace(inventory, targets=(replace(target, out_features=96),)))
        .choices["m"]
        .group_size
        == 32
    )


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="`--space` must be one of joint, bits, rank, B-FP"):
        make_space("joined", INVENTORY)


@pytest.mark.parametrize("name", ["B-Ada", "Joint-1", "Joint-2"])
def test_adalora_begins_at_12_and_ends_at_4(name: str) -> None:
    allocation = fixed_allocation(name, INVENTORY)

    assert {choice.rank for choice in allocation.choices.values()} == {12}
    assert allocation.final_rank == 4


def test_joint_2_keeps_8_bits_at_both_ends_and_in_embeddings() -> None:
    choices = fixed_allocation("Joint-2", WITH_EMBEDDING).choices

    assert choices["tokens"] == Choice(8, 0)
    for target in INVENTORY.targets:
        assert choices[target.name].bits == (4 if target.block == 1 else 8)
    for name in set(FIXED) - {"Joint-2"}:
        assert fixed_allocation(name, WITH_EMBEDDING).choices["tokens"] == Choice(16, 0)


def test_the_matrix_has_all_six_and_no_two_alike() -> None:
    space = make_space("matrix", INVENTORY)

    assert list(space.points) == ["B-FP", "B-Q4", "B-Ada", "Joint-1", "Joint-2", "Joint-3"]
    assert len(set(space.points.values())) == 6
    assert space.fixed
    assert space.log10_size == pytest.approx(math.log10(6))


def test_joint_chooses_the_bits_of_embeddings_and_gives_them_no_rank() -> None:
    joint, rank = make_space("joint", WITH_EMBEDDING), make_space("rank", WITH_EMBEDDING)

    assert joint.bits["tokens"] == (2, 3, 4, 8, 16)
    assert joint.ranks["tokens"] == rank.ranks["tokens"] == (0,)
    assert rank.bits["tokens"] == (16,)


@pytest.mark.parametrize(
    ("backend", "device", "bits"),
    [
        ("auto", "cpu", (2, 3, 4, 8, 16)),
        ("bnb", "cuda", (4, 8, 16)),
        ("bnb", "mps", (4, 16)),
        ("hqq", "mps", (2, 3, 4, 8, 16)),
        ("cpu-int8", "cpu", (8, 16)),
        ("cuda-4bit", "cuda", (4, 16)),
        ("none", "cpu", (16,)),
    ],
)
def test_a_backend_has_its_own_bits(backend: str, device: str, bits: tuple[int, ...]) -> None:
    space = make_space("joint", INVENTORY, Formats(backend=backend, device=device))

    assert set(space.bits.values()) == {bits}


@pytest.mark.parametrize(
    ("backend", "device"), [("cuda-4bit", "cpu"), ("cuda-8bit", "mps"), ("cpu-int8", "cuda")]
)
def test_a_backend_without_its_device_is_an_error(backend: str, device: str) -> None:
    with pytest.raises(
        ValueError, match=rf"`--quant-backend` {backend} needs c.+, got a machine with {device}"
    ):
        Formats(backend=backend, device=device)


def test_an_allocation_outside_the_backend_is_refused_by_name() -> None:
    formats = Formats(backend="none")
    with pytest.raises(
        ValueError, match=r"`bits` must be one of 16 with --quant-backend none.*got 4 for model"
    ):
        make_space("B-Q4", INVENTORY, formats)
    with pytest.raises(ValueError, match=r"must be one of hqq.*got nf4-double for model\.layer"):
        make_space("B-Q4", INVENTORY, Formats(backend="hqq"))
    with pytest.raises(ValueError, match=r"`bits` must leave at least one.*got none for model\.l"):
        make_space("rank", INVENTORY, formats)
    assert unavailable("B-FP", INVENTORY, formats) is None
    assert "got 4 for" in str(unavailable("B-Q4", INVENTORY, formats))


def test_four_bits_have_three_methods() -> None:
    for method in ("nf4-double", "nf4", "fp4"):
        space = make_space("rank", INVENTORY, Formats(four_bit=method))
        assert {c.method for c in space.smallest().choices.values()} == {method}
    with pytest.raises(ValueError, match=r"`--four-bit` must be a method of .* hqq \(hqq\)"):
        Formats(backend="hqq", four_bit="fp4")


def test_group_sizes_are_chosen_by_module() -> None:
    space = make_space("bits", INVENTORY, Formats(group_sizes=(32, 64)))

    assert set(space.group_sizes.values()) == {(32, 64)}
    # 16 bits have no groups, the others have two sizes.
    assert space.log10_size == pytest.approx(6 * math.log10(9))
    assert {choice.group_size for choice in space.smallest().choices.values()} == {64}
    with pytest.raises(ValueError, match="`--group-size` must be one of 32, 64, 128, 256, got 48"):
        Formats(group_sizes=(48,))


def test_a_group_size_that_does_not_divide_is_refused_by_name() -> None:
    target = TargetModule(name="m", out_features=5, in_features=100, part="feed-forward", block=0)
    inventory = Inventory(model="m", targets=(target,), other_parameters=0)
    with pytest.raises(ValueError, match="must divide 500, the weights of m, got 32"):
        make_space("joint", inventory, Formats(backend="hqq", group_sizes=(32,)))
    wider = replace(inventory, targets=(replace(target, in_features=96),))
    with pytest.raises(ValueError, match="must divide 96, the inputs of m, got 64"):
        make_space("joint", wider, Formats(group_sizes=(32, 64)))
    with pytest.raises(ValueError, match=r"must be one of 32, 64, 128 with .* auto, got 256"):
        Formats(group_sizes=(256,))


def test_a_rank_above_the_modules_size_is_refused_by_name() -> None:
    target = TargetModule(name="m", out_features=5, in_features=100, part="feed-forward", block=0)
    inventory = Inventory(model="m", targets=(target,), other_parameters=0)
    with pytest.raises(ValueError, match="`rank` must lie from 0 to 5 for m, got 8"):
        make_space("B-FP", inventory)
